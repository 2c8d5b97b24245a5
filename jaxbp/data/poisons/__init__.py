"""Perturbations that are to make training data unlearnable: a network trained on them should fail on clean data.

Makers return perturbations (N, H, W, C), to be added to inputs by `apply`; signals have W = 1. `class_patches` is the linearly separable
noise of Yu et al. ("Availability attacks create shortcuts", KDD 2022), `one_pixel` that of Wu et al. ("One-pixel shortcut", ICLR 2023),
`autoregressive` that of Sandoval-Segura et al. ("Autoregressive perturbations for data poisoning", NeurIPS 2022), `error_minimising`
that of Huang et al. ("Unlearnable examples", ICLR 2021), `adversarial` that of Fowl et al. ("Adversarial examples make strong poisons",
NeurIPS 2021). `waves` is the closed-form member of the autoregressive family: a cosine obeys ``x[t+1] = 2 cos(k) x[t] - x[t-1]``.

Signals started from a law that is symmetric about 0 are symmetric themselves. *Antithetic* ones appear once as d and once as -d within
their class: no affine classifier separates two such classes (see `jaxbp.unlearnable`).

>>> import jax, numpy as np
>>> from jaxbp.data import poisons
>>> labels = np.array([0, 0, 1, 1])
>>> perturbation = poisons.waves(jax.random.key(0), labels, (8, 8, 1), [[0.5, 0.0], [0.0, 1.5]], rms=0.2)
>>> bool((perturbation[0] == -perturbation[1]).all()), round(poisons.budget(perturbation)["rms"], 6)
(True, 0.2)
"""

from jaxbp.data.poisons.autoregressive import ar_coefficients, ar_response, autoregressive
from jaxbp.data.poisons.clipping import Poisoned, apply, budget, headroom
from jaxbp.data.poisons.network import ErrorMinimising, adversarial, error_minimising
from jaxbp.data.poisons.pixels import class_patches, one_pixel
from jaxbp.data.poisons.signals import waves
