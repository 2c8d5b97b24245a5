"""Exact kernels of infinitely wide layers and networks with BatchNorm.

With batch statistics the examples of a batch depend on one another, at every width: the kernel is that of a whole batch, all its
pixels at once. `batch_norm_relu` is one layer, exactly, by one quadrature; `stored_norm_relu` the same with statistics that are stored;
`sampled_sum_relu` the sum at the end of a residual block. `maps` has the linear layers between them, `networks` and `kernels` whole
networks: `jaxbp.ntk.infinite_width.infinite_width_kernel` is their door.

For MLPs such kernels are known (Yang, "Tensor Programs I", arXiv 1910.12478, and "Tensor Programs II", arXiv 2006.14548). Here are
epsilon, trained scale and bias, convolutions with joint statistics over batch and pixels, and shortcuts.

>>> import jax.numpy as jnp
>>> from jaxbp.ntk import batch_norm
>>> layer = batch_norm.batch_norm_relu(jnp.eye(6), jnp.eye(6))
>>> layer.tangent.shape, layer.error < 1e-3
((6, 6), True)
"""

from jaxbp.ntk.batch_norm.layers import (
    EPSILON,
    DegenerateBatchError,
    InaccurateQuadratureError,
    Layer,
    SlowLimitWarning,
    batch_norm_relu,
    stored_norm_relu,
)
from jaxbp.ntk.batch_norm.sums import Branch, Carried, sampled_sum_relu
