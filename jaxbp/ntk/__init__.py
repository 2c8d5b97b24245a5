"""Study 3's instruments: tangent kernels of finite networks, measures that compare them, and what they predict.

`compat` loads neural-tangents, for the exact kernels of infinitely wide networks.

>>> from jaxbp import ntk
>>> callable(ntk.empirical_ntk)
True
"""

from jaxbp.ntk import compat, measures, regression
from jaxbp.ntk.empirical import QUICKLY, CoupledExamples, TooLittleMemory, empirical_ntk
from jaxbp.ntk.flax_function import flax_function, flax_ntk
from jaxbp.ntk.products import ntk_extremes, ntk_vector_product
