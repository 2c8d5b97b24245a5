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
# # Does a bound for convolutions hold, and does it say anything?
#
# **The belief.** A convolution shares a small filter among all pixels, so the norm of the filter, not that of the matrix, decides the
# complexity of convolutional networks (Galanti, Xu, Galanti and Poggio, NeurIPS 2023).
#
# **The instruments.** `jaxbp.bounds`: upper bounds with every factor shown, and lower bounds of the quantity that they bound. "As
# published" is the formula as the authors' public code and a report have it; the paper's text was not at hand.
#
# **What this notebook can decide.** Where the formula is a bound and where it is not, and how far all bounds are from the truth for one
# small network on digits. Swap the network in the cell "Your network" for a chain of your own.

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
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from experiments.sparse_bounds import claims
from jaxbp import bounds, data, lab, models, report, sweep, training
from jaxbp.claims import judge
from jaxbp.ops.convolution import conv_with

print(lab.start_jax())  # each CPU core a device of its own; what is compiled is kept for the next time

# %% [markdown]
# ## The smallest counterexample, by hand
#
# One image of d white pixels, one filter of one weight, and a last layer that reads all pixels, both of norm 1. The supremum of
# +-f(x) is the norm of the image, the root of d. The formula does not know d: with eight pixels it lies below the truth.


# %%
def tiny(params, images):
    options = {"window_strides": (1, 1), "padding": "VALID", "dimension_numbers": ("NHWC", "HWIO", "NHWC")}
    hidden = jax.nn.relu(jax.lax.conv_general_dilated(images, params["filter"], **options))
    return hidden.reshape(len(images), -1) @ params["top"]


truths, formulas, proven = [], [], []
COUNTS = np.array([1, 2, 4, 7, 8, 16, 32, 64])
for count in COUNTS:
    image = np.ones((1, count, 1, 1))
    params = {"filter": jnp.ones((1, 1, 1, 1)), "top": jnp.ones((count, 1)) / np.sqrt(count)}
    chain = bounds.anatomy(tiny, params, image)
    truths.append(bounds.lower.exact(lambda signs, image=image: np.linalg.norm(image) * np.abs(signs[:, 0, 0]), 1))
    formulas.append(bounds.sparse(chain, image, form="published").value)
    proven.append(bounds.sparse(chain, image).value)
fig, ax = report.figure(width=6.4, height=4.2)
with report.style():
    for values, name in ((proven, "proven bound"), (truths, "the complexity itself"), (formulas, "as published")):
        ax.plot(COUNTS, values, "o-", label=name)
    ax.set_xscale("log", base=2)
    ax.set_yscale("log", base=2)
    ax.set(xlabel="pixels that the last layer reads", ylabel="Rademacher complexity")
    ax.legend()
fig

# %% [markdown]
# ## Your network
#
# A chain without biases, skips and norms: two convolutions with windows of 2 x 2 and a linear layer that reads every pixel.


# %%
class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        for width in (12, 12):
            x = nn.relu(nn.Conv(width, (2, 2), padding="VALID", use_bias=False, conv_general_dilated=conv_with("auto"))(x))
        self.sow("intermediates", "features", x)
        return nn.Dense(10, use_bias=False)(x.reshape(len(x), -1))


net = models.from_linen(Net())
digits = data.load("digits", validation=0)  # raw pixels, in training as in the bounds

# %% [markdown]
# ## Train some seeds
#
# Each draws its own training images, too: on the same images some ratios of bounds would be the same to the last digit.

# %%
SEEDS, NUM_TRAIN, NUM_EPOCHS = range(3), 600, 40


def train(one, inputs, labels):
    settings = training.Settings(NUM_EPOCHS, batch_size=50, measure_epochs=(NUM_EPOCHS,))
    return training.train(net, training.sgd(0.02, momentum=0.9), (inputs[one["rows"]], labels[one["rows"]]), one["key"], settings).params


rows = np.stack([data.stratified_indices(digits.train.labels, NUM_TRAIN, seed=seed) for seed in SEEDS])
runs = {"key": sweep.keys(SEEDS), "rows": rows}
trained = jax.device_get(sweep.evaluate(train, runs, *map(jnp.asarray, digits.train)))
networks = [jax.tree.map(lambda leaf, s=s: leaf[s], trained) for s in SEEDS]


# %% [markdown]
# ## A ladder of bounds, between a lower bound and the truth
#
# The lower bound fixes the lower layers, scaled to norm 1, and takes the last layer's supremum in closed form: the better of the trained
# filters and of filters that average. Whatever lies below it is no bound. Bounds of the test error pay for norms and margins, and hold with
# probability 95 %.


# %%
def averages(params):
    """Filters of norm 1 that average their windows: the first channel of each layer."""
    kernels = {name: jnp.zeros_like(layer["kernel"]) for name, layer in params.items()}
    return {
        name: {"kernel": kernel.at[:, :, 0, 0].set(0.5) if kernel.ndim == 4 else kernel.at[0, 0].set(1.0)}
        for name, kernel in kernels.items()
    }


def judged(params, inputs, labels):
    """Logarithms: of the bounds of the complexity, of the bounds of the test error, of the lower bound; and the test error."""
    chain = bounds.anatomy(net.apply, params, inputs)
    forms = {name: bounds.sparse(chain, inputs, form=form) for name, form in (("as published", "published"), ("sparse, path", "path"))}
    forms |= {"sparse, union": bounds.sparse(chain, inputs, form="union"), "operator norms": bounds.peeling(chain, inputs)}
    members = (bounds.lower.unit_frobenius(params), averages(params))
    witnesses = [bounds.lower.top_layer(jax.jit(net.features)(p, inputs), 1.0, 10, jax.random.key(0)) for p in members]
    lower = max(witness.value - 3 * witness.standard_error for witness in witnesses)
    margins = bounds.margins(net.apply(params, jnp.asarray(inputs)), labels)
    risks = {name: bounds.risk(bound, margins).log_value for name, bound in forms.items()}
    error = float((net.apply(params, jnp.asarray(digits.test.inputs)).argmax(1) != digits.test.labels).mean())
    return forms, risks, np.log(lower) + chain.log_norms("frobenius"), error


results = [judged(networks[seed], *(part[rows[seed]] for part in digits.train)) for seed in SEEDS]
fig, axes = report.figure(2, 1, width=8, height=6.4)
complexities = {name: [np.exp(forms[name].log_value) for forms, _, _, _ in results] for name in results[0][0]}
risks = {name: [np.exp(of_seed[name]) for _, of_seed, _, _ in results] for name in results[0][1]}
report.strip(axes[0], {"lower bound": [np.exp(lower) for _, _, lower, _ in results]} | complexities, log=True)
report.strip(axes[1], {"test error": [error for *_, error in results]} | risks, log=True)
with report.style():
    axes[0].axvline(np.exp(np.mean([lower for _, _, lower, _ in results])), color="#444444", linestyle="--", linewidth=1)
    axes[1].axvline(0.9, color="#444444", linestyle="--", linewidth=1)
    axes[0].set(xlabel="Rademacher complexity; dashed: the lower bound")
    axes[1].set(xlabel="bound of the test error; dashed: guessing")
fig

# %% [markdown]
# ## Factors
#
# Logarithms that add up: where a bound is large, one sees why.

# %%
for name in complexities:
    factors = {
        factor: np.mean([forms[name].factors[factor] for forms, *_ in results]) / np.log(10) for factor in results[0][0][name].factors
    }
    print(f"{name}, log10:", ", ".join(f"{factor} {value:.2f}" for factor, value in factors.items()), f"= {sum(factors.values()):.2f}")

# %% [markdown]
# ## Verdicts
#
# Claims of the study, each with a rule that was fixed beforehand, on one network.


# %%
def log_ratio(name, base):
    """Of a bound over the smaller proven sparse one."""
    return np.array([forms[name].log_value - min(forms[form].log_value for form in base) for forms, *_ in results])


published = np.array([forms["as published"].log_value - lower for forms, _, lower, _ in results])
verdicts = [
    judge(claims.S9A, {"digits": published / np.log(2)}),
    judge(claims.S9B, {"digits": log_ratio("operator norms", ("sparse, path", "sparse, union")) / np.log(10)}),
]
for verdict in verdicts:
    print(f"{verdict.claim.id} {verdict.claim.statement}\n    Holds if {verdict.claim.rule.text(verdict.claim.measure)}.")
    print(f"    {report.format_interval(verdict.interval)}, {verdict.num_seeds} seeds: {verdict.verdict}. {verdict.note}")

# %% [markdown]
# ## Where next
#
# The full study adds rivals, and whether the bound ranks networks by their generalisation gap:
#
# ```
# python -m experiments.sparse_bounds                      # minutes on two CPU cores
# python -m experiments.sparse_bounds --preset standard    # Fashion-MNIST
# ```
