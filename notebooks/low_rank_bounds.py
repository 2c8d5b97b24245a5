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
# # Do layers of low rank tighten bounds?
#
# **The belief.** Networks in neural collapse have layers of low rank, and bounds in which ranks add up in place of multiplying explain why
# such networks generalise.
#
# **The instruments.** `jaxbp.bounds` takes a chain of layers without biases apart, computes bounds with every factor shown, and a lower
# bound of what they bound; `jaxbp.collapse` measures collapse (after Pinto, Rangamani and Poggio, ALT 2025, whose bound is rebuilt here
# from the public abstract, its unknown constants taken as 1).
#
# **What this notebook can decide.** Whether weight decay makes layers of rank C, and whether that tightens bounds over margins, for one
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

from experiments.low_rank_bounds import claims
from jaxbp import bounds, collapse, data, lab, models, report, sweep, training
from jaxbp.claims import judge

print(lab.start_jax())  # each CPU core a device of its own; what is compiled is kept for the next time
digits = data.load("digits", validation=0, num_train=600, normalise=True)
inputs, labels = digits.train
NUM_CLASSES = 10


# %% [markdown]
# ## Your network
#
# The theorems speak of chains without biases, skips and norms; `bounds.anatomy` verifies that, and refuses what is none.


# %%
class Net(nn.Module):
    bias: bool = False

    @nn.compact
    def __call__(self, x):
        x = x.reshape(len(x), -1)
        for width in (48, 48, 48):
            x = nn.relu(nn.Dense(width, use_bias=self.bias)(x))
        self.sow("intermediates", "features", x)
        return nn.Dense(NUM_CLASSES, use_bias=self.bias)(x)


net = models.from_linen(Net())
try:
    refused = models.from_linen(Net(bias=True))
    params = jax.tree.map(lambda leaf: leaf + 0.1, refused.init(jax.random.key(0), inputs[:1])[0])
    bounds.anatomy(refused.apply, params, inputs)
except ValueError as refusal:
    print("with biases:", refusal)

# %% [markdown]
# ## Train with and without weight decay
#
# Far beyond the epoch at which all training images are right, where collapse happens. Decay needs steps to act: learning rate / (1 -
# momentum) x decay x steps is 3.6 and more at the end.

# %%
SEEDS, DECAYS, NUM_EPOCHS, EVERY = range(3), (0.0, 5e-3), 240, 20
NAMES = [f"decay {decay:g}" for decay in DECAYS]


def train(one, *arrays):
    epochs = tuple(range(0, NUM_EPOCHS + 1, EVERY))
    settings = training.Settings(NUM_EPOCHS, batch_size=50, measure_epochs=epochs)
    optimizer = training.sgd(0.02, momentum=0.9, weight_decay=one["decay"])
    result = training.train(net, optimizer, arrays[:2], one["key"], settings, test_data=arrays[2:], measure_fn=lambda now: now.params)
    return result.measured, result.history["test_accuracy"]


runs = {"key": sweep.keys([*SEEDS] * len(DECAYS)), "decay": np.repeat(np.float32(DECAYS), len(SEEDS))}
trained, test_accuracy = jax.device_get(sweep.evaluate(train, runs, *map(jnp.asarray, (*digits.train, *digits.test))))
EPOCHS = np.arange(0, NUM_EPOCHS + 1, EVERY)


def network(arm, seed, when):
    """The parameters of one run at one measurement."""
    return jax.tree.map(lambda leaf: leaf[arm * len(SEEDS) + seed, when], trained)


# %% [markdown]
# ## Singular values and collapse
#
# Left and middle: all singular values of the third hidden layer along training, largest first, of the first seed; the dotted line marks
# as many as there are classes. Right: spread within classes relative to that between them (NC1).


# %%
def look(arm, seed, when):
    """Singular values of the third hidden layer, and collapse of the last features."""
    params = network(arm, seed, when)
    values = np.linalg.svd(params["Dense_2"]["kernel"].astype(np.float64), compute_uv=False)
    fell = collapse.measure(jax.jit(net.features)(params, inputs), labels, head=params["Dense_3"]["kernel"])
    return values, fell.nc1


looks = [[[look(arm, seed, when) for when in range(1, len(EPOCHS))] for seed in SEEDS] for arm in range(len(DECAYS))]
fig, axes = report.figure(1, 3, width=13, height=4.4)
for arm, name in enumerate(NAMES):
    with report.style():
        for when, epoch in enumerate(EPOCHS[1:]):
            shade = 0.25 + 0.75 * epoch / NUM_EPOCHS
            axes[arm].plot(np.arange(1, 49), looks[arm][0][when][0], color=report.PALETTE[arm], alpha=shade, linewidth=1)
        axes[arm].axvline(NUM_CLASSES, color="#444444", linestyle=":")
        axes[arm].set(xlabel="number of the singular value", ylabel="singular value", title=f"{name}: darker is later")
    report.curve(axes[2], EPOCHS[1:], [[nc1 for _, nc1 in of_seed] for of_seed in looks[arm]], label=name, log=True)
with report.style():
    axes[2].set(xlabel="epoch", ylabel="NC1")
    axes[2].legend()
fig

# %% [markdown]
# ## A ladder of bounds
#
# All are of the Rademacher complexity of networks with the same norms as this one, but for the chain form, which bounds the Gaussian one.
# The lower bound fixes the trained layers but the last.


# %%
def ladder(params):
    """Bounds by name, the lower bound, and the 10 % quantile of the margins."""
    chain = bounds.anatomy(net.apply, params, inputs)
    by_name = {
        "chain, constants 1": bounds.low_rank(chain, inputs, form="chain"),
        "ranks, one scale": bounds.low_rank(chain, inputs),
        "product of norms": bounds.peeling(chain, inputs),
        "parameters": bounds.counting(chain, inputs),
    }
    features = np.asarray(jax.jit(net.features)(params, inputs))
    lower = bounds.lower.top_layer(features, chain.layers[-1].spectral, NUM_CLASSES, jax.random.key(0))
    margins = bounds.margins(net.apply(params, jnp.asarray(inputs)), labels)
    return by_name, lower, float(np.quantile(margins, 0.1))


def truncated(params, rank):
    """The network with hidden layers cut to their largest singular values: another classifier, of exact rank."""

    def cut(kernel):
        left, s, right = np.linalg.svd(kernel.astype(np.float64), full_matrices=False)
        return (left[:, :rank] * s[:rank]) @ right[:rank]

    return {name: {"kernel": cut(layer["kernel"]) if name != "Dense_3" else layer["kernel"]} for name, layer in params.items()}


RANK = 12
whole = {name: [ladder(network(arm, seed, -1)) for seed in SEEDS] for arm, name in enumerate(NAMES)}
cut = {f"{name}, rank {RANK}": [ladder(truncated(network(arm, seed, -1), RANK)) for seed in SEEDS] for arm, name in enumerate(NAMES)}
judged = whole | cut
fig, axes = report.figure(2, 2, width=11, height=7, sharex=True)
for ax, (name, results) in zip(axes.ravel(), judged.items(), strict=True):
    rows = {"lower bound": [lower.value for _, lower, _ in results]}
    rows |= {bound: [by_name[bound].value for by_name, _, _ in results] for bound in results[0][0]}
    report.strip(ax, rows, log=True)
    with report.style():
        ax.axvline(np.exp(np.mean(np.log(rows["lower bound"]))), color="#444444", linestyle="--", linewidth=1)
        ax.set(title=name, xlabel="complexity")
fig

# %% [markdown]
# ## What the bound is made of
#
# The logarithms of the factors add up. A truncated network has a cheaper cover, and smaller margins.

# %%
fig, ax = report.figure(width=8, height=3.6)
with report.style():
    for row, results in enumerate(judged.values()):
        factors = [by_name["ranks, one scale"].factors | {"1 / margin": -np.log(gamma)} for by_name, _, gamma in results if gamma > 0]
        ends = {True: 0.0, False: 0.0}
        for place, factor in enumerate(factors[0] if factors else ()):
            size = np.mean([of_seed[factor] for of_seed in factors]) / np.log(10)
            ax.barh(row, size, left=ends[size > 0], height=0.6, color=report.PALETTE[place], label=factor if row == 0 else None)
            ends[size > 0] += size
        ax.plot(sum(ends.values()), row, "ko", label="sum" if row == 0 else None)
    ax.set_yticks(range(len(judged)), list(judged))
    ax.invert_yaxis()
    ax.set(xlabel="log10 of the factors of the bound by ranks, over the margin")
    ax.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
fig

# %% [markdown]
# ## Verdicts
#
# Claims of the study, each with a rule that was fixed beforehand, on one network.


# %%
def beyond(values):
    """Share of the squared singular values beyond the C largest."""
    return np.sum(values[NUM_CLASSES:] ** 2) / np.sum(values**2)


def log2_ratio(results, above, below):
    """Of two bounds of the same networks."""
    return np.array([by_name[above].log_value - by_name[below].log_value for by_name, _, _ in results]) / np.log(2)


verdicts = [
    judge(claims.S6C, {name: log2_ratio(results, "product of norms", "ranks, one scale") for name, results in cut.items()}),
    judge(claims.S6D, {NAMES[1]: np.array([beyond(of_seed[-1][0]) for of_seed in looks[1]])}),
]
for verdict in verdicts:
    print(f"{verdict.claim.id} {verdict.claim.statement}\n    Holds if {verdict.claim.rule.text(verdict.claim.measure)}.")
    print(f"    {report.format_interval(verdict.interval)}, {verdict.num_seeds} seeds: {verdict.verdict}. {verdict.note}")

# %% [markdown]
# ## Where next
#
# The full study adds networks of low rank from the start, at equal training loss, and more data sets:
#
# ```
# python -m experiments.low_rank_bounds                      # minutes on two CPU cores
# python -m experiments.low_rank_bounds --preset standard    # Fashion-MNIST
# ```
