"""Data sets by name, from image files or TensorFlow Datasets, and augmentation."""

from jaxbp.data.files import DataError
from jaxbp.data.loading import NAMES, Dataset, Split, balanced_subset, load, stratified_indices
