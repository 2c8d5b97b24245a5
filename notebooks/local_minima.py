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
# # Do suboptimal local minima exist?
#
# **The belief.** All local minima of a deep network's loss are global, or nearly so.
#
# **The construction.** The best *affine* classifier of a data set can be written into a deep ReLU network: factor its matrix over the
# layers and choose biases so large that every ReLU stays active on the training data. Near that point the network only computes affine
# maps, and none of those has a lower loss: a local minimum ("Truth or Backpropaganda?", ICLR 2020, Theorem 1).
#
# **What this notebook can decide.** It builds such minima in a small MLP, *proves* each one, and looks where SGD goes that starts there.
# The proof needs no statistics; what SGD does is told for this network, these step sizes and a handful of seeds.

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
import jax
import jax.numpy as jnp
import numpy as np
import threadpoolctl
from jax.flatten_util import ravel_pytree

from experiments.local_minima import claims
from jaxbp import data, lab, landscape, models, report, stats, sweep, training
from jaxbp.claims import judge

print(lab.start_jax())  # each CPU core a device of its own; what is compiled is kept for the next time
SEEDS = range(8)
splits = [data.load("mnist1d", seed=seed, num_train=1000).train for seed in SEEDS]  # each seed has signals of its own
net = models.create("mlp", num_classes=10, width=64, depth=4)

# %% [markdown]
# ## The shallow minimiser, embedded and certified
#
# Newton's method in float64 gives the affine minimiser and a *proven* lower bound of the loss over all affine maps. `embed_affine` writes
# it into the network. `certify` proves that it is a minimum there, or says why not: every ReLU active, a radius within which no ReLU can
# switch off, a loss that attains the bound. Curvature alone could not prove it: the minimum is degenerate, as layers can be rescaled
# against each other, so the smallest eigenvalue of the Hessian is 0.

# %%
minima, certificates = [], []
for seed, (inputs, labels) in zip(SEEDS, splits, strict=True):
    with threadpoolctl.threadpool_limits(1):  # such small matrices keep several threads waiting for one another
        fit = landscape.fit_affine(inputs.reshape(len(inputs), -1), labels, 10, loss="cross_entropy")
    minimum = landscape.embed_affine(net.module, fit, inputs, key=jax.random.key(seed))
    certificate = landscape.certify(
        net.apply,
        minimum,
        inputs,
        labels,
        loss="cross_entropy",
        key=jax.random.key(seed),
        fit=fit,
        num_directions=1,
        num_steps=5,
    )
    minima.append(jax.tree.map(np.float32, minimum))
    certificates.append(certificate)
    ends = certificate.extremes
    print(
        f"seed {seed}: {certificate.status}. Loss {certificate.loss:.4f}, {certificate.gap:.0e} above the bound; gradient "
        f"{certificate.gradient_norm:.0e}; eigenvalues {ends.smallest.value:.0e} to {ends.largest.value:.3g}; "
        f"no ReLU switches within {certificate.radius:.0e}"
    )

# %% [markdown]
# ## Where does SGD go?
#
# The same optimiser from the default initialisation and from the minimum, and from there with half the learning rate above which gradient
# descent would leave any minimum of that curvature: 2 (1 + momentum) / the largest eigenvalue. All runs are one compiled program.

# %%
EPOCHS = range(0, 101, 5)
limits = np.array([2 * (1 + 0.9) / certificate.extremes.largest.value for certificate in certificates])
ARMS = {"default training": 0.01, "SGD from the minimum": 0.01, "the same, at half the limit": 0.5 * limits}
print(f"limits: {limits.min():.2g} to {limits.max():.2g}")


def train(one):
    optimizer = training.sgd(one["learning_rate"], momentum=0.9, decay_steps=training.num_steps(len(one["labels"]), EPOCHS[-1], 32))
    settings = training.Settings(EPOCHS[-1], batch_size=32, measure_epochs=EPOCHS)
    split, start = (one["inputs"], one["labels"]), (one["params"], {})
    result = training.train(net, optimizer, split, one["key"], settings, start=start)
    return result.params, result.history["train_loss"]


fresh = [net.init(key, splits[0].inputs[:1])[0] for key in sweep.keys(SEEDS)]
runs = {
    "params": jax.tree.map(lambda *leaves: np.stack(leaves), *fresh, *minima, *minima),
    "inputs": np.stack([split.inputs for split in splits] * 3),
    "labels": np.stack([split.labels for split in splits] * 3),
    "key": jnp.concatenate([sweep.keys(SEEDS)] * 3),
    "learning_rate": np.concatenate([np.full(len(SEEDS), rate, np.float32) for rate in ARMS.values()]),
}
trained, curves = jax.device_get(sweep.evaluate(train, runs))
curves = curves.reshape(len(ARMS), len(SEEDS), -1)

num_proven = sum(certificate.status == "proven" for certificate in certificates)
fig, ax = report.figure(width=8, height=4.8)
for arm, of_seeds in zip(ARMS, curves, strict=True):
    report.curve(ax, EPOCHS, of_seeds, label=arm, log=True)
with report.style():
    title = f"{num_proven} of {len(SEEDS)} embedded points are proven minima. Where does SGD go?"
    ax.set(xlabel="epoch", ylabel="training loss, nats", title=title)
    ax.legend()
fig

# %% [markdown]
# ## What lies between
#
# The loss on straight lines from the embedded minimum to the point that default training reached, every seed; and on a plane through both
# points of seed 0. Nothing was aligned: the two are far apart, and a better path may exist.

# %%
loss_fn = landscape.per_example_loss(net.apply, "cross_entropy")
along, across = np.linspace(-0.25, 1.25, 61), np.linspace(-0.35, 0.35, 29)
lines = []
for seed, (split, minimum) in enumerate(zip(splits, minima, strict=True)):
    there = ravel_pytree(jax.tree.map(lambda leaf, i=seed: leaf[i], trained))[0] - ravel_pytree(minimum)[0]
    lines.append(landscape.losses_at(loss_fn, minimum, tuple(split), along[:, None] * there))
    if seed == 0:
        sideways = jax.random.normal(jax.random.key(0), there.shape)
        sideways -= there * (sideways @ there) / (there @ there)
        sideways *= jnp.linalg.norm(there) / jnp.linalg.norm(sideways)
        plane = np.stack([landscape.losses_at(loss_fn, minimum, tuple(split), along[:, None] * there + b * sideways) for b in across])

fig, axes = report.figure(1, 2, width=11, height=4.8)
with report.style():
    axes[0].grid(False)
    filled = axes[0].contourf(along, across, np.log10(plane), levels=40, cmap="cividis")
    filled.set_edgecolor("face")
    fig.colorbar(filled, ax=axes[0], label="log10 of the training loss")
    for x, marker, name in ((0, "o", "embedded\nminimum"), (1, "s", "default\ntraining")):
        axes[0].plot(x, 0, marker, color="white", markeredgecolor="black", markersize=9)
        place = {"xytext": (0, 11), "textcoords": "offset points", "ha": "center"}
        axes[0].annotate(name, (x, 0), **place, color="white", weight="bold")
    axes[0].set(ylabel="a random direction, same unit", title="Seed 0, on a plane")
    axes[1].plot(along, np.array(lines).T, color=report.PALETTE[0], alpha=0.8)
    axes[1].axvline(0, color="#444444", linestyle=":")
    axes[1].axvline(1, color="#444444", linestyle=":")
    axes[1].set(yscale="log", ylabel="training loss, nats", title="All seeds, on the line")
    for ax in axes:
        ax.set_xlabel("minimum (0) to default training (1)")
fig

# %% [markdown]
# ## Verdicts
#
# The study's own claims, each with a rule that was fixed beforehand. A share of seeds gets an exact binomial interval. "Stays" means that
# the loss moves by less than a tenth of the gap to default training.

# %%
top, final = np.array([c.loss for c in certificates]), curves[..., -1]
stays = np.abs(top - final[2]) < 0.1 * np.abs(top - final[0])
verdicts = [
    judge(claims.S1A, {"MLP": [c.status == "proven" for c in certificates]}, interval_fn=stats.event_interval),
    judge(claims.S1B, {"MLP": np.log2(top / final[0])}),
    judge(claims.S1C, {"MLP, 0.5 of the limit": stays.astype(float)}, interval_fn=stats.event_interval),
]
for verdict in verdicts:
    print(f"{verdict.claim.id} {verdict.claim.statement}\n    Holds if {verdict.claim.rule.text(verdict.claim.measure)}.")
    print(f"    {report.format_interval(verdict.interval)}, {verdict.num_seeds} seeds: {verdict.verdict}. {verdict.note}")

# %% [markdown]
# ## Where next
#
# The full study has more networks (a ConvNet among them), data sets and losses, certifies where trainings end, pushes networks off their
# minima, and asks which initialisations end badly and whether momentum helps:
#
# ```
# python -m experiments.local_minima                   # minutes on two CPU cores
# python -m experiments.local_minima --preset paper    # CIFAR-10, the paper's MLP, an accelerator
# ```
