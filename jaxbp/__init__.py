"""A laboratory for claims about deep learning theory: claim, experiment over many seeds, measured effect with an interval, verdict.

Users import modules, each for one scientific question: ``from jaxbp import landscape, claims, sweep``. The instruments take functions and
pytrees, so they serve any model:

| instrument | question | begin with |
|---|---|---|
| `jaxbp.landscape` | Is this point a minimum? How is the loss curved there? | `jaxbp.landscape.certify` |
| `jaxbp.ntk` | Which tangent kernel does this network have, and does it stay? | `jaxbp.ntk.empirical_ntk` |
| `jaxbp.spectra` | Which singular values and ranks have its layers, as the operators that they are? | `jaxbp.spectra.of_network` |
| `jaxbp.attacks` | How much accuracy does the strongest of several attacks leave? | `jaxbp.attacks.robust_accuracy` |
| `jaxbp.norms` | What does a pull on the norm of the parameters do? | `jaxbp.norms.norm_bias` |
| `jaxbp.bounds` | What does this generalisation bound say here, factor by factor, and is it true? | `jaxbp.bounds.risk` |
| `jaxbp.pac_bayes` | What do bounds say that count bits? | `jaxbp.pac_bayes.certify` |
| `jaxbp.collapse` | Have features collapsed to their class means? | `jaxbp.collapse.measure` |
| `jaxbp.stability` | What does one training example change? | `jaxbp.stability.coefficients` |
| `jaxbp.unlearnable` | What can be learnt from poisoned data? | `jaxbp.unlearnable.separability` |
| `jaxbp.descent` | Where does the test loss peak, and what is the exact risk? | `jaxbp.descent.isotropic_risk` |

What they stand on, and what makes claims of them:

| module | what it is for |
|---|---|
| `jaxbp.models` | Flax networks and their infinite-width twins |
| `jaxbp.data` | data sets by name, splits, probe sets, augmentation |
| `jaxbp.training` | a whole training as one compiled program, on one device or on several |
| `jaxbp.sweep` | a pure function over settings and seeds, on all devices and hosts, in folders that survive kills |
| `jaxbp.stats`, `jaxbp.claims` | intervals and tests; claims, rules, verdicts |
| `jaxbp.report` | figures, tables, one self-contained page |
| `jaxbp.lab` | studies: command line, stages, results, verdicts, the page |
| `jaxbp.losses`, `jaxbp.metrics` | losses and measures of predictions, one value for each example |
| `jaxbp.linalg`, `jaxbp.ops`, `jaxbp.jaxprs` | iterative linear algebra; fast convolutions in compiled loops; analysis of traced programs |
| `jaxbp.runtime` | files, folders of runs, processes, progress, an orderly end |

From a claim to its verdict:

>>> import jax
>>> from jaxbp import claims, sweep
>>> def measure(key, *, width):  # any pure function of a key
...     return {"length": (jax.random.normal(key, (width,)) ** 2).mean()}
>>> result = sweep.run(measure, {"width": [100, 1000]}, seeds=10, quiet=True)
>>> claim = claims.Claim(
...     "X.a", "Gaussian vectors have squared lengths near their dimension.", "law of large numbers",
...     "squared length over dimension", claims.Within(0.2, centre=1.0))
>>> cases = {f"dimension {setting['width']}": lengths for setting, lengths in zip(result.settings, result.stack("length"))}
>>> claims.judge(claim, cases).verdict
'supported'
"""

__version__ = "0.2.0"
