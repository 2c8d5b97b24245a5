"""Data sets by name, files of anybody's, TensorFlow Datasets, augmentation."""

from jaxbp.data.files import DataError
from jaxbp.data.loading import NAMES, Dataset, Split, load, probe_set, stratified_rows
