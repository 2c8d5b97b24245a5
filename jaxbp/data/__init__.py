"""Data sets by name, from image files or TensorFlow Datasets, and augmentation.

>>> from jaxbp import data
>>> digits = data.load("digits", seed=0)
>>> digits.input_shape, data.balanced_subset(digits.train, 20, seed=0).inputs.shape
((8, 8, 1), (20, 8, 8, 1))
"""

from jaxbp.data.files import DataError
from jaxbp.data.loading import NAMES, Dataset, Split, balanced_subset, check, check_name, load, stratified_indices
