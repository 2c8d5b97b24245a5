"""A laboratory for claims about deep learning theory: claim, experiment over many seeds, measured effect with an interval, verdict.

Users import modules, one scientific question each: ``from jaxbp import landscape, claims, sweep``.

| module | what it is for |
|---|---|
| `jaxbp.landscape` | curvature, spectra of Hessians, affine minimisers and their embedding, certificates of minima |
| `jaxbp.ntk` | tangent kernels of finite networks, measures that compare them, kernel regression |
| `jaxbp.norms` | norm-bias, effective learning rates, angular updates |
| `jaxbp.spectra` | singular values of layers as operators, ranks, RankMin and RankMax |
| `jaxbp.attacks` | adversarial attacks, training against them, robust accuracy |
| `jaxbp.evidence` | claims, intervals, tests, verdicts |
| `jaxbp.report` | figures, tables, one self-contained page |
| `jaxbp.data`, `jaxbp.data.augment` | data sets by name, splits, probe sets; crops and flips |
| `jaxbp.models`, `jaxbp.ops.convolution` | Flax networks and their infinite-width twins; convolutions fast in compiled loops |
| `jaxbp.training`, `jaxbp.training.parallel` | a whole run as one compiled program, on one device or on several |
| `jaxbp.sweep`, `jaxbp.runtime.store` | seeds and settings over devices and hosts, in folders that survive kills |
| `jaxbp.ops.platform` | which kind of device a computation is for |
| `jaxbp.runtime.processes`, `jaxbp.runtime.progress`, `jaxbp.runtime.preemption` | several processes, progress and status, an orderly end |

The instruments (the first five) take functions ``(params, inputs) -> logits`` and pytrees, so they serve anybody's model. From a claim to
its verdict:

>>> import jax
>>> from jaxbp import claims, sweep
>>> def measure(key, *, width):  # any pure function of a key
...     return {"length": (jax.random.normal(key, (width,)) ** 2).mean()}
>>> found = sweep.run(measure, {"width": [100, 1000]}, seeds=10, quiet=True)
>>> claim = claims.Claim(
...     "X.a", "Gaussian vectors have squared lengths near their dimension.", "law of large numbers",
...     "squared length over dimension", claims.Within(0.2, centre=1.0))
>>> cases = {f"dimension {setting['width']}": lengths for setting, lengths in zip(found.settings, found.stack("length"))}
>>> claims.judge(claim, cases).verdict
'supported'
"""

__version__ = "0.1.0"
