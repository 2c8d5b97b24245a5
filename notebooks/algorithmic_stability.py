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
# # How much does one example matter to training that never settles?
#
# **The belief.** At a constant learning rate weights never converge, but averages of the loss over time do. If such an average hardly
# changes when one training example is replaced, the network generalises well ("On the generalization of learning algorithms that do not
# converge", NeurIPS 2022).
#
# **The instruments.** `jaxbp.stability`: replace an example, add label noise that is nested in its share, compare time averages. They take
# arrays, so any training loop will do.
#
# **What this notebook can decide.** Whether one example matters more than another order of the same data, on one small network. Swap the
# network in the cell "Your network" for your own.

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

from experiments.algorithmic_stability import claims
from jaxbp import data, lab, models, report, stability, stats, sweep, training
from jaxbp.claims import judge
from jaxbp.data import augment

print(lab.start_jax())  # each CPU core a device of its own; what is compiled is kept for the next time
NUM_TRAIN, NUM_REPLACED = 200, 3
digits = data.load("digits", validation=0, num_train=NUM_TRAIN + NUM_REPLACED)  # the last are spare: they replace the first
test = data.balanced_subset(digits.test, 200, seed=0)


# %% [markdown]
# ## Your network


# %%
class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = x.reshape(len(x), -1)
        for width in (24, 24):
            x = nn.relu(nn.Dense(width)(x))
        return nn.Dense(10)(x)


net = models.from_linen(Net())

# %% [markdown]
# ## Runs that differ in one thing
#
# A seed has a base run, runs with one example replaced, and a run in another order, all from the same start; each with no wrong labels and
# with half of them wrong. Each image of a batch is shifted by up to a pixel, so that the noise of training never dies. After every epoch
# we keep the test losses and a sketch of the weights, whose distances are those of the weights.

# %%
SEEDS, SHARES, RUNS = range(5), (0.0, 0.5), ("base", "replaced 1", "replaced 2", "replaced 3", "other order")
NUM_EPOCHS, RUN_UP = 80, 40


def train(one, inputs, labels, test_inputs, test_labels):
    init_key, noise_key, order_key, sketch_key = jax.random.split(one["key"], 4)
    position = jnp.clip(one["run"] - 1, 0, NUM_REPLACED - 1)
    replaced = (one["run"] >= 1) & (one["run"] <= NUM_REPLACED)
    source = jnp.where(replaced, NUM_TRAIN + position, position)  # else the example itself
    x, y = stability.replace_example(inputs[:NUM_TRAIN], labels[:NUM_TRAIN], position, inputs[source], labels[source])
    y = stability.apply_label_noise(stability.draw_label_noise(noise_key, NUM_TRAIN, 10), y, one["share"], 10)

    def measure(now):
        losses = stability.CLASS_LOSSES["cross_entropy"](net.apply(now.params, test_inputs))
        return stability.expected_loss(losses, test_labels, 0.0), stability.sketch(sketch_key, now.params, 32)

    settings = training.Settings(NUM_EPOCHS, batch_size=50, augment_fn=augment.crop_and_flip(1, flip=False))
    optimizer = training.sgd(0.1, momentum=0.9, weight_decay=1e-3)
    order_key = jax.random.fold_in(order_key, one["run"] == len(RUNS) - 1)
    return training.train(net, optimizer, (x, y), order_key, settings, start=net.init(init_key, x[:1]), measure_fn=measure).measured


shape = len(SEEDS), len(SHARES), len(RUNS)
seed, share, run = (place.ravel() for place in np.indices(shape))
runs = {"key": sweep.keys(seed), "share": np.array(SHARES, np.float32)[share], "run": run}
parts = (digits.train.inputs, digits.train.labels, test.inputs, test.labels)
losses, sketches = sweep.evaluate(train, runs, *map(jnp.asarray, parts))
losses, sketches = (np.asarray(values).reshape(*shape, *values.shape[1:]) for values in (losses, sketches))  # then epoch, ...
losses.shape

# %% [markdown]
# ## Weights never settle, averages may
#
# The distance that the weights go from one epoch to the next, and the test loss, of the base runs: thin lines are seeds.

# %%
distances = np.array([[stability.weight_distances(rows) for rows in of_seed] for of_seed in sketches[:, :, 0]])
names = [f"{share:.0%} wrong labels" for share in SHARES]
fig, axes = report.figure(1, 2, width=10.5, height=4.4)
for place, name in enumerate(names):
    report.curve(axes[0], np.arange(1, NUM_EPOCHS + 1), distances[:, place], label=name, log=True)
    report.curve(axes[1], np.arange(NUM_EPOCHS + 1), losses[:, place, 0].mean(-1), label=name, log=True)
with report.style():
    axes[0].set(xlabel="epoch", ylabel="distance of the weights from the epoch before")
    axes[1].set(xlabel="epoch", ylabel="test loss")
    axes[1].axvline(RUN_UP, color="#444444", linestyle=":")
    axes[0].legend()
fig

# %% [markdown]
# ## What an example does, and what another order does
#
# Beta is the mean, over replaced examples and test examples, of the change of the time-averaged loss. The control that such measurements
# need is another order of the same data: dots below the diagonal say that the order matters more than the example.

# %%
averages = losses[..., RUN_UP + 1 :, :].mean(-2)  # seed, share, run, test example
coefficients = jax.vmap(jax.vmap(stability.coefficients))
beta = np.asarray(coefficients(averages[:, :, 0], averages[:, :, 1:-1]).mean)
order = np.asarray(coefficients(averages[:, :, 0], averages[:, :, -1:]).mean)
fig, ax = report.figure(width=6.4, height=4.8)
with report.style():
    for place, name in enumerate(names):
        ax.plot(order[:, place], beta[:, place], "o", color=report.PALETTE[place], label=name)
    top = 1.1 * max(order.max(), beta.max())
    ax.plot([0, top], [0, top], ":", color="#888888")
    ax.set(xlabel="change by another order", ylabel="change by a replaced example (beta)")
    ax.legend()
fig

# %% [markdown]
# ## Memory of the loss
#
# A drift passes for a slow correlation: autocorrelation times before and after a cubic trend is removed. Forty epochs are few: the
# instrument calls a time reliable if the series is fifty times as long.

# %%
series = losses[:, -1, 0, RUN_UP + 1 :].mean(-1)  # of the base runs with the most label noise: seed, epoch
raw = [stability.integrated_time(row).time for row in series]
detrended = [stability.integrated_time(stability.detrend(row)).time for row in series]
for name, times in (("raw", raw), ("drift removed", detrended)):
    print(f"{name}: {report.format_interval(stats.t_interval(times))} epochs")

# %% [markdown]
# ## Verdicts
#
# Claims of the study, each with a rule that was fixed beforehand, on one network and one learning rate.

# %%
quarter = NUM_EPOCHS // 4
late, early = distances[..., -quarter:].mean(-1), distances[..., quarter : 2 * quarter].mean(-1)
loss = averages.mean((2, 3))
verdicts = [
    judge(claims.WEIGHTS, dict(zip(names, np.log2(late / early).T, strict=True))),
    judge(claims.NOISE, {"digits": np.log2(beta[:, 1] / beta[:, 0])}),
    judge(claims.BEYOND_LOSS, {"digits": np.log2((beta / loss)[:, 1] / (beta / loss)[:, 0])}),
    judge(claims.INFLUENCE, {"digits": np.log2(beta / order).mean(1)}),
]
for verdict in verdicts:
    print(f"{verdict.claim.id} {verdict.claim.statement}\n    Holds if {verdict.claim.rule.text(verdict.claim.measure)}.")
    print(f"    {report.format_interval(verdict.interval)}, {verdict.num_seeds} seeds: {verdict.verdict}. {verdict.note}")

# %% [markdown]
# ## Where next
#
# The full study adds other learning rates, signals and no shifts:
#
# ```
# python -m experiments.algorithmic_stability                      # minutes on two CPU cores
# python -m experiments.algorithmic_stability --preset standard    # Fashion-MNIST
# ```
