"""Minima of loss landscapes: curvature, bad local minima by construction, and certificates of what a point is.

The module follows section 2 of "Truth or Backpropaganda?" (Goldblum et al., ICLR 2020). `hessian` multiplies with the curvature of any
loss; `gauss_newton` with the Gauss-Newton matrix and Fisher information, and `restrict` with a part of them. `extreme_eigenvalues`,
`top_eigenpairs`, `spectral_density`, `trace`, `diagonal` and `log_determinant` measure a spectrum, `jaxbp.landscape.sharpness` inside a
compiled training. `fit_affine` finds minimisers of affine maps;
`embed_affine` and `embed_mlp` build deep networks from shallow ones. `analyse` and `stable_radius` measure the distance from the nearest
ReLU kink, `probe` searches for lower losses, `certify` combines all of these, and `classify` names the kind of a point.

A local minimum of a deep network, built from the best affine map and proven:

>>> import flax.linen as nn
>>> import jax, numpy as np
>>> from jaxbp import landscape
>>> rng = np.random.default_rng(0)
>>> x, y = rng.normal(size=(100, 4)), rng.integers(0, 3, 100)
>>> fit = landscape.fit_affine(x, y, 3, loss="squared_error")
>>> net = nn.Sequential([nn.Dense(8), nn.relu, nn.Dense(3)])
>>> def apply_fn(params, inputs):
...     return net.apply({"params": params}, inputs)
>>> certificate = landscape.certify(apply_fn, landscape.embed_affine(net, fit, x), x, y, loss="squared_error",
...     key=jax.random.key(0), fit=fit)
>>> certificate.status
'proven'
"""

from jaxbp.landscape import sharpness
from jaxbp.landscape.activation import ActivationReport, UnsupportedOperationError, analyse, stable_radius
from jaxbp.landscape.affine import AffineFit, SeparableError, fit_affine
from jaxbp.landscape.certificate import CLASSES, GRADES, Certificate, certify, classify, per_example_loss
from jaxbp.landscape.embedding import NotRepresentableError, embed_affine, embed_mlp
from jaxbp.landscape.gauss_newton import gauss_newton
from jaxbp.landscape.hessian import Hessian, hessian, loss_and_gradient
from jaxbp.landscape.inits import INITS, perturb_init
from jaxbp.landscape.probes import ProbeReport, losses_at, probe
from jaxbp.landscape.proofs import best_constant_loss
from jaxbp.landscape.subsets import block_spectra, layers, restrict
from jaxbp.linalg.block_lanczos import Eigenpairs, top_eigenpairs
from jaxbp.linalg.lanczos import (
    Eigenvalue,
    Extremes,
    SpectralDensity,
    extreme_eigenvalues,
    hutchinson_trace,
    spectral_density,
)
from jaxbp.linalg.stochastic import Estimate, NotPositiveError, diagonal, log_determinant, trace
