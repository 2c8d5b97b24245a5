"""A laboratory for claims about deep learning theory: claim, experiment over many seeds, measured effect with an interval, verdict.

Users import modules, each for one scientific question: ``from jaxbp import landscape, claims, sweep``.

| module | what it is for |
|---|---|
| `jaxbp.landscape` | curvature, spectra of Hessians, affine minimisers and their embedding, certificates of minima |
| `jaxbp.ntk` | tangent kernels of finite and infinitely wide networks, measures that compare kernels, kernel regression |
| `jaxbp.norms` | norm-bias, effective learning rates, angular updates |
| `jaxbp.spectra` | singular values of layers as operators, ranks, RankMin and RankMax |
| `jaxbp.attacks` | adversarial attacks, training against them, robust accuracy |
| `jaxbp.bounds`, `jaxbp.pac_bayes` | bounds on complexity and test error, lower bounds; bounds that count bits |
| `jaxbp.collapse`, `jaxbp.descent` | neural collapse; double descent, exact risks, effective dimensionality |
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

The instruments (the first seven rows) take functions and pytrees, so they serve any model. From a claim to its verdict:

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

__version__ = "0.1.0"
