"""Singular values of linear layers as operators, the ranks that they show, and networks with reduced or raised ranks.

The module follows section 5 of "Truth or Backpropaganda?" (Goldblum et al., ICLR 2020). `singular_values` computes those of one kernel on
a map, `of_network` those of all layers of a function. `nuclear_rank`, `stable_rank`, `entropy_rank` and `numerical_rank` measure them.
`rank_measure` follows them along a training.
`rank_min` and `rank_max` change a network's parameters so that its layers have lower or higher rank.

>>> import jax, jax.numpy as jnp
>>> from jaxbp import spectra
>>> def apply_fn(params, inputs):
...     return jax.nn.relu(inputs @ params["hidden"]) @ params["head"]
>>> params = {"hidden": jnp.eye(8), "head": jnp.ones((8, 3))}
>>> spectrum_of = spectra.of_network(apply_fn, params, jnp.ones((1, 8)))
>>> {name: round(float(spectra.nuclear_rank(spectrum) ** 2), 3) for name, spectrum in spectrum_of.items()}  # eight equal values; one
{'hidden': 8.0, 'head': 1.0}
"""

from jaxbp.linalg import golub_kahan
from jaxbp.spectra import lipschitz, marchenko_pastur, power_law, symbol, values
from jaxbp.spectra.attention import Heads, attention_heads, layer_norm_operator
from jaxbp.spectra.geometry import Geometry
from jaxbp.spectra.measures import rank_measure
from jaxbp.spectra.network import Layer, inner_convolutions, layers_of, of_network
from jaxbp.spectra.projection import LayerReport, rank_max, rank_min
from jaxbp.spectra.ranks import (
    entropy_rank,
    frobenius_norm,
    nuclear_norm,
    nuclear_rank,
    numerical_rank,
    stable_rank,
)
from jaxbp.spectra.spectrum import Spectrum, of_geometry, singular_values
