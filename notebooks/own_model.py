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
# # Bring your own Flax model
#
# All instruments take functions and pytrees; `models.from_linen` and `models.from_nnx` make them of a Flax module. Here two networks are
# defined on the spot, one in linen, one in nnx with BatchNorm, trained on digits with several seeds, and then questioned: certificate,
# tangent kernel, spectra, attack.
#
# | instrument | needs |
# |---|---|
# | `training.train` | a `models.Network`: of a linen or nnx module, or of plain functions |
# | `sweep.evaluate` | pure functions of arrays |
# | `landscape.certify` | `(params, inputs) -> logits`, in float64 when given float64; a proof needs ReLUs and affine layers only |
# | `landscape.embed_affine` | a linen module of `nn.Conv`, `nn.Dense` and ReLUs |
# | `ntk.empirical_ntk` | `(params, inputs)` or `(params, inputs, state) -> logits`; examples must not influence one another |
# | `spectra.of_network` | `(params, inputs)`; it finds where parameters multiply data, and on maps of which size |
# | `attacks.robust_accuracy` | `inputs -> logits`, as a `jax.tree_util.Partial`, so that networks share a program |
#
# All of them want a network in evaluation mode: BatchNorm with stored statistics.

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
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import threadpoolctl
from flax import nnx

from jaxbp import attacks, claims, data, lab, landscape, losses, models, ntk, report, spectra, stats, sweep, training
from jaxbp.ops.convolution import conv_with

print(lab.start_jax())  # each CPU core a device of its own; what is compiled is kept for the next time
digits = data.load("digits", validation=0, num_train=600)  # pixels from 0 to 1

# %% [markdown]
# ## In linen
#
# Nothing special but one field: `conv_general_dilated=conv_with("auto")` gives `nn.Conv` a convolution that stays fast inside compiled
# loops on a CPU, where XLA's own backward pass is several times slower. On a GPU it is XLA's.


# %%
class LinenNet(nn.Module):
    @nn.compact
    def __call__(self, x):
        for width in (8, 16):
            x = nn.relu(nn.Conv(width, (3, 3), strides=2, conv_general_dilated=conv_with("auto"))(x))
        return nn.Dense(10)(x.reshape(len(x), -1))


linen_net = models.from_linen(LinenNet())

# %% [markdown]
# ## In nnx
#
# The same network with BatchNorm. Parameters and state come as plain dictionaries of arrays, so that layers are called `conv1/kernel`
# everywhere. A network has two functions: `apply`, its logits by stored statistics, and `update`, its training mode, which returns the
# new state, too.


# %%
def convolve(*args, out_sharding=None, **options):
    """nnx.Conv passes one argument more than linen's."""
    return conv_with("auto")(*args, **options)


class NnxNet(nnx.Module):
    def __init__(self, rngs):
        self.conv1 = nnx.Conv(1, 8, (3, 3), strides=2, conv_general_dilated=convolve, rngs=rngs)
        self.norm1 = nnx.BatchNorm(8, momentum=0.9, rngs=rngs)
        self.conv2 = nnx.Conv(8, 16, (3, 3), strides=2, conv_general_dilated=convolve, rngs=rngs)
        self.norm2 = nnx.BatchNorm(16, momentum=0.9, rngs=rngs)
        self.head = nnx.Linear(64, 10, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm1(self.conv1(x)))
        x = nnx.relu(self.norm2(self.conv2(x)))
        return self.head(x.reshape(len(x), -1))


NETWORKS = {"linen": linen_net, "nnx, BatchNorm": models.from_nnx(NnxNet)}

# %% [markdown]
# ## Train all seeds
#
# From here on the two are treated alike. A run is a pure function of its key; `sweep` spreads the seeds over the devices. The loss is the
# squared error: digits are linearly separable, so that the cross-entropy would have no affine minimiser to begin a proof with.

# %%
SEEDS, NUM_EPOCHS = range(5), 20


def train(net, key, inputs, labels):
    settings = training.Settings(NUM_EPOCHS, batch_size=50, loss_fn=losses.squared_error, measure_epochs=(NUM_EPOCHS,))
    return training.train(net, training.sgd(0.05, momentum=0.9), (inputs, labels), key, settings)


trained = {
    name: jax.device_get(sweep.evaluate(partial(train, net), sweep.keys(SEEDS), *map(jnp.asarray, digits.train)))
    for name, net in NETWORKS.items()
}
for name, result in trained.items():
    final = result.history["train_loss"][:, -1]
    print(f"{name}: training loss {report.format_interval(stats.t_interval(final))}")


def networks(name):
    """The function ``(params, inputs, state) -> logits``, and parameters and state of each seed."""
    result = trained[name]
    points = [jax.tree.map(lambda leaf, s=seed: leaf[s], (result.params, result.state)) for seed in SEEDS]
    return NETWORKS[name].apply, points


# %% [markdown]
# ## A certificate
#
# First a minimum that is proven: the best affine classifier, written into the linen network. Then the points at which the first seeds
# ended: what they are, and what speaks against a minimum. BatchNorm with stored statistics is affine, so the certificate can follow it.

# %%
inputs, labels = digits.train
with threadpoolctl.threadpool_limits(1):  # such small matrices keep several threads waiting for one another
    fit = landscape.fit_affine(inputs.reshape(len(inputs), -1), labels, 10, loss="squared_error")
points = {"linen, embedded": (partial(linen_net.apply, state={}), landscape.embed_affine(linen_net.module, fit, inputs))}
for name in NETWORKS:
    logits, ((params, state), *_) = networks(name)
    fn = points["linen, embedded"][0] if name == "linen" else partial(logits, state=state)  # one object is compiled once
    points[f"{name}, trained"] = fn, params
for name, (fn, params) in points.items():
    found = landscape.certify(
        fn,
        params,
        inputs,
        labels,
        loss="squared_error",
        key=jax.random.key(0),
        fit=fit,
        max_products=40,
        num_directions=1,
        num_steps=5,
    )
    curvature = f"{found.extremes.smallest.value:.2g} to {found.extremes.largest.value:.3g}"
    print(f"{name}: {found.status}, loss {found.loss:.4f}, eigenvalues {curvature}", *found.reasons, sep="\n    ")

# %% [markdown]
# ## The tangent kernel
#
# Of every seed, on twenty test images. A function that goes by the statistics of the batch has no kernel between single images, and is
# refused.

# %%
probes = jnp.asarray(data.balanced_subset(digits.test, 20, seed=0).inputs)
eigenvalues = {}
for name in NETWORKS:
    logits, seeds = networks(name)
    kernels = [ntk.empirical_ntk(logits, params, probes, state=state, compiler_options=ntk.FAST_COMPILE_OPTIONS) for params, state in seeds]
    eigenvalues[name] = np.array([ntk.measures.spectrum(kernel) for kernel in kernels])

params, state = networks("nnx, BatchNorm")[1][0]
try:
    ntk.empirical_ntk(models.with_batch_statistics(NETWORKS["nnx, BatchNorm"]), params, probes, state=state)
except ntk.BatchCouplingError as refusal:
    print("with batch statistics:", refusal)

# %% [markdown]
# ## Spectra and attacks
#
# The singular values of each layer as an operator, at the map size that it meets, with its stride and its zero padding. Accuracy under PGD
# over the radius of the attack; and at one radius under the strongest attack, the worst case of several, with a warning where gradients
# look masked.

# %%
RADII, RADIUS = (0.0, 0.025, 0.05, 0.075, 0.1), 0.05  # of the l_inf ball
images, targets = digits.test.inputs[:200], digits.test.labels[:200]
pgd = {f"{radius}": attacks.pgd(attacks.Threat("linf", radius), num_steps=20) for radius in RADII[1:]}
suite = attacks.autoattack(attacks.Threat("linf", RADIUS), num_steps=10, num_targets=2, num_queries=100)
ranks, curves, robust = {}, {}, {name: [] for name in NETWORKS}
for name in NETWORKS:
    logits, seeds = networks(name)
    layers = [spectra.of_network(partial(logits, state=state), params, images[:1]) for params, state in seeds]
    ranks[name] = np.array([[spectra.nuclear_rank(layer) for layer in of_seed.values()] for of_seed in layers])
    curves[name] = []
    for params, state in seeds:
        network = jax.tree_util.Partial(logits, params, state=state)
        attacked = partial(attacks.robust_accuracy, network, jax.random.key(0), images, targets, batch_size=100)
        curve = attacked(pgd, only_survivors=False, check_masking=False)
        curves[name].append([curve.clean.estimate, *(interval.estimate for interval in curve.accuracy.values())])
        worst = attacked(suite)
        robust[name].append(100 * worst.worst_case.estimate)
        print(f"{name}: {worst.clean.estimate:.1%} clean, {worst.worst_case.estimate:.1%} in the worst case. {worst.warning}")

# %% [markdown]
# ## Both networks side by side
#
# Thin lines are seeds, bands 95 % intervals.

# %%
fig, axes = report.figure(1, 3, width=13, height=4.6)
for name in NETWORKS:
    order = np.arange(1, 1 + eigenvalues[name].shape[1])
    report.curve(axes[0], order[::8], (eigenvalues[name] / eigenvalues[name][:, :1])[:, ::8], label=name, log=True)
    report.curve(axes[1], range(3), ranks[name], label=name)
    report.curve(axes[2], RADII, 100 * np.array(curves[name]), label=name)
with report.style():
    axes[0].set(xlabel="eigenvalue, largest first", ylabel="eigenvalue / the largest", title="Tangent kernel")
    axes[1].set(xlabel="layer", ylabel="effective rank", title="Layers as operators")
    axes[1].set_xticks(range(3), ["conv 1", "conv 2", "head"])
    axes[2].set(xlabel="radius (pixels from 0 to 1)", ylabel="accuracy under PGD-20, %", title="Accuracy under attack")
    axes[0].legend()
fig

# %% [markdown]
# ## A claim of your own
#
# Say what is measured and which interval supports it, *before* you look. This one is from the literature: BatchNorm makes networks easier
# to attack (Galloway et al., arXiv 1905.02161).

# %%
claim = claims.Claim(
    "own",
    "BatchNorm makes this network easier to attack.",
    "Galloway et al., arXiv 1905.02161",
    "robust accuracy with BatchNorm minus without, percentage points",
    claims.Below(0.0),
)
difference = np.array(robust["nnx, BatchNorm"]) - np.array(robust["linen"])
verdict = claims.judge(claim, {f"digits, radius {RADIUS}": difference})
print(f"{claim.statement}\n    Holds if {claim.rule.text(claim.measure)}.")
print(f"    {report.format_interval(verdict.interval)}, {verdict.num_seeds} seeds: {verdict.verdict}")

# %% [markdown]
# ## Where next
#
# - `python -m experiments.train --help`: sweeps over seeds and settings from the command line, resumable.
# - `sweep.run(your_function, {"learning_rate": [0.01, 0.1]}, seeds=16, out="runs/mine")`: the same for a function of yours.
# - A notebook each of nine studies, from `local_minima` to `soft_biases`: each runs in a minute, and asks for your network.
