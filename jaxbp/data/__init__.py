"""Data sets by name, files of anybody's, TensorFlow Datasets, augmentation."""

from jaxbp.data.files import DataError
from jaxbp.data.loading import NAMES, Dataset, Split, balanced_subset, load, stratified_indices
