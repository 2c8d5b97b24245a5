"""Neural tangent kernels of finite networks, measures that compare them, and kernel regression.

`empirical_ntk` takes any function of ``(params, inputs)`` or ``(params, inputs, state)``; `ntk_vector_product`, `ntk_extremes` and, for
sets that stay on the host, `streamed_product` never form the kernel. `measures` compares kernels; `regression` predicts with them,
`iterative` without forming them; `flow` follows gradient flow on any loss, `initialisation` averages over seeds, `precision` tells
errors. `compat` loads neural-tangents, for the exact kernels of infinitely wide networks (`jaxbp.ntk.infinite_width`).

These are the instruments of "Truth or Backpropaganda?" (Goldblum et al., ICLR 2020), section 4.

>>> import jax, jax.numpy as jnp
>>> from jaxbp import ntk
>>> def apply_fn(params, inputs):
...     return jnp.tanh(inputs @ params["hidden"]) @ params["head"]
>>> hidden, head, inputs = (jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate([(5, 16), (16, 3), (4, 5)]))
>>> before = ntk.empirical_ntk(apply_fn, {"hidden": hidden, "head": head}, inputs)
>>> after = ntk.empirical_ntk(apply_fn, {"hidden": 1.1 * hidden, "head": head}, inputs)
>>> before.shape, bool(0.9 < ntk.measures.correlation(before, after) < 1)
((4, 4, 3, 3), True)
"""

from jaxbp.checks import BatchCouplingError
from jaxbp.ntk import compat, flow, initialisation, iterative, measures, precision, regression
from jaxbp.ntk.empirical import FAST_COMPILE_OPTIONS, InsufficientMemoryError, empirical_ntk
from jaxbp.ntk.products import ntk_extremes, ntk_vector_product
from jaxbp.ntk.streaming import streamed_product
