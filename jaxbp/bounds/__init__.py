"""Bounds on the complexity and the test error of networks, every factor shown, each held between a lower bound and the truth.

`anatomy` verifies that a network is of the kind that the theorems speak of. `peeling`, `sparse`, `low_rank` and `counting` bound the
Rademacher (or Gaussian) complexity R(F) = E_xi sup_f sum_i xi_i . f(x_i) / N of all networks with the same norms; `jaxbp.bounds.lower`
bounds it from below; `risk` turns a bound into one of the test error. Everything is float64 on the host and logarithms, whose sum is the
bound's logarithm.

>>> import jax, jax.numpy as jnp
>>> from jaxbp import bounds
>>> def apply_fn(params, inputs):
...     return jax.nn.relu(inputs @ params["hidden"]) @ params["top"]
>>> params = {"hidden": jnp.eye(8), "top": jnp.ones((8, 3)) / 5}
>>> inputs = jax.random.normal(jax.random.key(0), (100, 8))
>>> net = bounds.anatomy(apply_fn, params, inputs)
>>> bound = bounds.peeling(net, inputs)
>>> list(bound.factors), bound.status
(['norms', 'pooling', 'data', 'outputs', 'depth', 'examples'], 'proven')
>>> witness = bounds.lower.top_layer(jax.nn.relu(inputs), 1.0, num_outputs=3, key=jax.random.key(1))
>>> bool(witness.log_value < bound.log_value - bound.factors["norms"])  # both for norms of 1
True
"""

from jaxbp.bounds import lower
from jaxbp.bounds._anatomy import Anatomy, Layer, anatomy
from jaxbp.bounds._bound import Bound
from jaxbp.bounds._covering import counting, low_rank
from jaxbp.bounds._peeling import peeling
from jaxbp.bounds._risk import Risk, log_examples_needed, margins, risk
from jaxbp.bounds._sparse import sparse
