# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Where does a claim hold?
#
# "It depends" is the usual truth, and one design hides on what. A *map* judges a claim at every point of a grid of settings, and
# shows where it holds, where it turns over, and which setting explains the difference.
#
# **The belief.** Momentum speeds up training. **The map.** Learning rate by width, for a small network on digits.
#
# **What this notebook can decide.** The claim for this network, these data and these 12 points. Swap what is trained in the cell
# "What is measured", or the axes in "The map".

# %%
# In Colab this installs the package from a copy of its repository; elsewhere `pip install -e ".[all]"` in that folder does.
import importlib.metadata
import shutil
import subprocess
import sys
from pathlib import Path

if "google.colab" in sys.modules and not any(importlib.metadata.Distribution.discover(name="jaxbp")):
    source = Path("/content/jaxbp")
    if not (source / "pyproject.toml").exists():
        raise FileNotFoundError(f"no copy of the repository in {source}: clone or upload it there and run this cell again")
    packages = [f"{source}[all]"]
    if shutil.which("nvidia-smi"):
        packages.append("jax[cuda12]")  # its plugin has to be of the same version as the JAX that jaxbp brings
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", *packages], check=True)
    importlib.invalidate_caches()

# %%
# %matplotlib inline
# %config InlineBackend.figure_format = "retina"
import dataclasses
import functools

import jax
import jax.numpy as jnp

from jaxbp import claims, data, lab, models, report, sweep, training

print(lab.start_jax())  # each CPU core a device of its own; what is compiled is kept for the next time

# %% [markdown]
# ## The claim
#
# What is measured, and the region in which the whole interval must lie, are fixed before anything is run.

# %%
CLAIM = claims.Claim(
    "M.a",
    "Momentum speeds up training.",
    "folklore",
    "log2 of (training loss without momentum / with momentum 0.9), after equal epochs at one learning rate",
    claims.Above(0.0),
)

# %% [markdown]
# ## What is measured
#
# A study is a value: a stage that measures, and the number by which the claim is judged, for each seed. `rate` and `width` are fields of
# the settings, so that a map can vary them.

# %%
inputs, labels = map(jnp.asarray, data.load("digits@4", num_train=200).train)


@dataclasses.dataclass(frozen=True)
class Case:
    name: str


@dataclasses.dataclass(frozen=True)
class Settings(lab.Settings):
    cases: tuple[Case, ...] = (Case("MLP on digits@4"),)
    rate: float = 0.01
    width: int = 16


def gain(key, inputs, labels, rate, *, width):
    """The two trainings of a seed, from one start and with one order of the data."""

    def final_loss(momentum):
        options = training.Settings(num_epochs=5, batch_size=20, measure_epochs=(5,))
        net = models.create("mlp", num_classes=10, width=width, depth=1)
        return training.train(net, training.sgd(rate, momentum=momentum), (inputs, labels), key, options).history["train_loss"][-1]

    without, with_momentum = jax.vmap(final_loss)(jnp.array([0.0, 0.9]))
    return jnp.log2(without / with_momentum)


@functools.cache
def gain_at(width):
    """A function of its own for each width: the rate is an argument of it, so that rates share a compiled program."""
    return functools.partial(gain, width=width)


def train(case, settings):
    keys = sweep.keys(range(settings.num_seeds))
    return {"gain": lab.along("seed", sweep.evaluate(gain_at(settings.width), keys, inputs, labels, jnp.asarray(settings.rate)))}


STUDY = lab.Study(
    id="M",
    title="Does momentum speed up training?",
    lead="A small network, with and without.",
    module=__name__,
    stages=(lab.Stage(train),),
    measures=(lab.Measure(CLAIM, lambda results: results.train.gain),),
    controls=(),
    figures=(),
    tables=(),
    method=(),
)

# %% [markdown]
# ## The map
#
# Each of the 12 cells has 8 seeds. The results lie in the folder: give more values later, and the new cells alone are computed.

# %%
found = lab.map(
    STUDY, "M.a", {"rate": (0.003, 0.03, 0.3, 1.0), "width": (4, 16, 64)}, settings=Settings("quick", 8), out="runs/map-notebook"
)
print(CLAIM.statement, found.headline)
for cell in found.specifications:
    print(f"rate {cell.point['rate']:<6} width {cell.point['width']:<3} {report.format_interval(cell.interval)} {cell.outcome}")

# %% [markdown]
# ## What explains the effect, and where the claim flips
#
# `explained` splits the variance of the effect over the grid among the axes and their pairs. A boundary reaches from grid point to grid
# point, since nothing was measured in between. The mean effect has none where it never crosses the limit, or goes back and forth.

# %%
for component in found.explained:
    print(f"{' with '.join(component.axes) or 'left'}: {component.share:.0%} of the variance (noise alone {component.noise:.1%})")
for along in found.along:
    print(f"along {along.axis.name}: boundary of the mean effect {along.of_mean}")

# %% [markdown]
# ## As labelled arrays
#
# `map.nc` beside `map.html`, the page with heat maps and the specification curve.

# %%
effect = lab.open_map("runs/map-notebook").effect.squeeze()
fig, ax = report.figure()
for width in effect.width.values:
    ax.plot(effect.rate, effect.sel(width=width), marker="o", label=f"width {width}")
with report.style():
    ax.axhline(0, color="0.5", linewidth=1)
    ax.set(xscale="log", xlabel="learning rate", ylabel="log2 of the ratio of losses", title="The claim holds above 0")
    ax.legend()
fig

# %% [markdown]
# ## Where next
#
# - `python -m experiments.map S7.c --vary num_epochs=30,60 shift=0,1 --plan`: a map of a claim that is there, and its price first.
# - `experiments/guide/maps.md`: what can be varied, your own network and data, several processes.
