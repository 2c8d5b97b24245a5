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
# # Do wide-network theories describe real networks?
#
# **The belief.** The tangent kernel of a network holds the inner products of its gradients, $\Theta(x, x') = \nabla_\theta f(x) \cdot
# \nabla_\theta f(x')$. As a network grows wider, theory says, this kernel approaches an exact, deterministic one, and stays as it is while
# the network trains. Training then is kernel regression.
#
# **The instruments.** The empirical kernel of any Flax model, exactly and without a Jacobian; the exact kernel of its infinitely wide
# twin; measures that compare kernels ("Truth or Backpropaganda?", ICLR 2020, Study 3).
#
# **What this notebook can decide.** Three small networks on digits, a few widths, a few seeds: enough to see in which direction width
# pulls here. The paper found that a ResNet with BatchNorm goes the other way, on larger images and after hundreds of epochs.

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
import itertools
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np

from experiments.ntk_width import claims
from jaxbp import data, lab, models, ntk, report, stats, training
from jaxbp.claims import judge
from jaxbp.ntk import infinite_width, measures

print(lab.start_jax())  # what is compiled is kept for the next time
digits = data.load("digits", validation=0, num_train=500, normalise=True)
probes = data.balanced_subset(digits.train, 20, seed=0)  # two images of each class
images = jnp.asarray(probes.inputs[np.argsort(probes.labels, kind="stable")])  # by class

# %% [markdown]
# ## Networks, trainings, kernels
#
# A training is one compiled program that hands back the parameters before and after. BatchNorm's kernels are taken with stored statistics,
# as in the paper; at the start these are mean 0 and variance 1. `FAST_COMPILE_OPTIONS` cuts compile time to a third; the programs run
# somewhat slower, which pays for programs that run a few times.

# %%
SMALL = {"name": "resnet", "stages": 1, "depth": 1, "shortcut": "projection"}
NETWORKS = {  # options, learning rate, widths
    "MLP": ({"name": "mlp", "depth": 3}, 0.05, (16, 64, 256)),
    "ResNet without BatchNorm": (SMALL | {"norm": "none"}, 0.1, (6, 12, 24)),
    "ResNet with BatchNorm": (SMALL | {"norm": "batch"}, 0.1, (6, 12, 24)),
}
WIDTHS = {name: widths for name, (_, _, widths) in NETWORKS.items()}
NUM_EPOCHS, SEEDS = 10, range(5)


def trainer(net, learning_rate):
    def train(key, inputs, labels):
        result = training.train(
            net,
            training.sgd(learning_rate, momentum=0.9),
            (inputs, labels),
            key,
            training.Settings(NUM_EPOCHS, batch_size=50, measure_epochs=(0, NUM_EPOCHS)),
            measure_fn=lambda state: (state.params, state.model_state),
        )
        return result.history["train_loss"][-1], result.measured

    return jax.jit(train, compiler_options=ntk.FAST_COMPILE_OPTIONS)


def kernels(net, points):
    """The full kernels (N, N, C, C) before and after training."""
    ends = (jax.tree.map(lambda leaf, e=e: leaf[e], points) for e in (0, 1))
    return [ntk.empirical_ntk(net.apply, *end[:1], images, state=end[1], compiler_options=ntk.FAST_COMPILE_OPTIONS) for end in ends]


# %% [markdown]
# Compiling takes longer than running here, so two networks are worked on at a time.


# %%
def measure(case):
    name, width = case
    options, learning_rate, _ = NETWORKS[name]
    net = models.create(num_classes=10, width=width, **options)
    train = trainer(net, learning_rate)
    runs = [train(jax.random.key(seed), *digits.train) for seed in SEEDS]
    return net, [kernels(net, points) for _, points in runs], np.array([loss for loss, _ in runs])


cases = [(name, width) for name, widths in WIDTHS.items() for width in widths]
with ThreadPoolExecutor(2) as pool:
    found = dict(zip(cases, pool.map(measure, cases), strict=True))
for (name, width), (_, _, final) in found.items():
    print(f"{name}, width {width}: training loss at the end {report.format_interval(stats.t_interval(final))}")

# %% [markdown]
# ## The exact kernels
#
# Without BatchNorm each network has an infinitely wide twin, built from the same configuration. With BatchNorm there is one for each kind
# of statistics, and asking without saying which is an error; the guide `experiments/guide/batch_norm_kernels.md` shows them.

# %%
exact = {}
for name, widths in WIDTHS.items():
    for width in widths:
        try:
            kernel_fn = infinite_width.infinite_width_kernel(found[name, width][0].module, images.shape[1:], normal_kernels=True)
        except infinite_width.NoExactKernelError as reason:
            print(f"{name}: {reason}")
            break
        exact[name, width] = jax.jit(kernel_fn, compiler_options=ntk.FAST_COMPILE_OPTIONS)(images)

# %% [markdown]
# ## The kernel of a batch
#
# With statistics of the batch the logits of an image depend on the images beside it, at every width. A kernel between two images then
# means nothing by itself: it is a block of the kernel of their batch. Here are two images of one class, once among images of the first
# three classes, once among images of the last three. Statistics that are stored know of no batch. "Frozen" ones are those of the batch,
# held constant in the derivative.

# %%
chain = models.create("resnet", num_classes=10, width=1, stages=1, depth=1, skip=False, parametrisation="ntk")
batches = {"among classes 0 to 2": images[:6], "among classes 7 to 9": jnp.concatenate([images[:2], images[-4:]])}
for statistics in ("batch", "frozen", "stored"):
    kernel_fn = infinite_width.infinite_width_kernel(chain.module, images.shape[1:], statistics=statistics)
    for name, batch in batches.items():
        kernel = kernel_fn(batch)
        similarity = kernel[0, 1] / np.sqrt(kernel[0, 0] * kernel[1, 1])
        print(f"{statistics:>6} statistics, {name}: kernel {kernel[0, 1]:6.2f}, cosine {similarity:.3f}")

# %% [markdown]
# The kernel of statistics of the batch is what gradient descent in training mode follows; that of stored statistics is what the paper
# measured, and what a network that is not trained further would have. For regression with the former, training and test images make one
# batch, and the prediction for a test image depends on the other test images.

# %% [markdown]
# ## What it looks like
#
# Kernels of one seed at the largest width, averaged over logits, images in the order of their classes, two of each; each kernel is scaled
# to its largest entry. Bright blocks on the diagonal are pairs of one class.

# %%
fig, axes = report.figure(3, 3, width=8.4, height=7.6)
for row, (name, widths) in zip(axes, WIDTHS.items(), strict=True):
    before, after = (jnp.einsum("ijkk->ij", kernel) for kernel in found[name, widths[-1]][1][0])
    with report.style():
        for ax, kernel in zip(row, (before, after, exact.get((name, widths[-1]))), strict=True):
            ax.set(xticks=[], yticks=[], box_aspect=1)
            ax.grid(False)
            if kernel is None:
                ax.spines[:].set_visible(False)
                ax.text(0.5, 0.5, "BatchNorm: one for\neach kind of statistics", ha="center", va="center", transform=ax.transAxes)
            else:
                picture = ax.imshow(kernel / kernel.max(), cmap="cividis", vmin=0, vmax=1)
        row[0].set_ylabel(f"{name}\nwidth {widths[-1]}", fontsize=10)
with report.style():
    for ax, title in zip(axes[0], ("before training", "after training", "infinite width, exact"), strict=True):
        ax.set_title(title)
    fig.colorbar(picture, ax=axes, label="kernel / its largest entry", shrink=0.6)
fig

# %% [markdown]
# ## What width does to it
#
# Left: the correlation of the kernel after training with the one before; at 1 the kernel has not turned. Right: how far the kernel at the
# start is from the exact one, relative to its norm; theory's rate is the dotted line. Thin lines are seeds, bands 95 % intervals.

# %%
correlation, distance = {}, {}  # by network: (seeds, widths)
eye = jnp.eye(10)  # between different logits the exact kernel is 0
for name, widths in WIDTHS.items():
    pairs = [found[name, width][1] for width in widths]
    correlation[name] = np.array([[measures.correlation(*pair) for pair in of_width] for of_width in pairs]).T
    if (name, widths[0]) in exact:
        targets = [jnp.einsum("ij,kl->ijkl", exact[name, width], eye) for width in widths]
        distance[name] = np.array(
            [[measures.relative_change(target, before) for before, _ in of_width] for target, of_width in zip(targets, pairs, strict=True)]
        ).T

fig, axes = report.figure(1, 2, width=10.5, height=4.8)
for name, widths in WIDTHS.items():
    slope = report.format_interval(stats.trend(widths, correlation[name]))
    report.curve(axes[0], widths, correlation[name], label=f"{name}:\n{slope} per doubling")
    if name in distance:
        rate = report.format_interval(stats.trend(widths, distance[name], log_values=True))
        report.curve(axes[1], widths, distance[name], label=f"{name}:\nwidth to the power {rate}", log=True)
with report.style():
    guide = np.array([6.0, 256.0])
    axes[1].plot(guide, 2 * guide**-0.5, ":", color="#555555", label="width to the power -1/2")
    axes[0].set(ylabel="correlation of kernels", title="After training with before")
    axes[1].set(ylabel="relative distance", title="Before training to the exact kernel")
    for ax in axes:
        ax.set_xscale("log", base=2)
        ax.set_xticks([8, 16, 32, 64, 128, 256], ["8", "16", "32", "64", "128", "256"])
        ax.set_xlabel("width: units, or channels of the first convolution")
        ax.legend(fontsize=9)
fig

# %% [markdown]
# ## Verdicts
#
# The study's own claims, each with a rule that was fixed beforehand. A slope over three widths tells a direction, no more. Kernels of
# *unrelated* networks, too, are more alike the wider they are, so correlations are judged beyond that floor f, as (c - f) / (1 - f). The
# study compares at equal training loss; here all train equally long.

# %%


def floor(name, width):
    starts = [before for before, _ in found[name, width][1]]
    return np.mean([measures.correlation(*pair) for pair in itertools.pairwise(starts)])


floors = {name: np.array([floor(name, width) for width in widths]) for name, widths in WIDTHS.items()}
slopes = {name: stats.slopes(WIDTHS[name], (values - floors[name]) / (1 - floors[name])) for name, values in correlation.items()}
rates = {name: stats.slopes(WIDTHS[name], values, log_values=True) for name, values in distance.items()}
verdicts = [
    judge(claims.S3A, {"MLP": slopes["MLP"]}),
    judge(claims.S3B, {"ResNet with BatchNorm": slopes["ResNet with BatchNorm"]}),
    judge(claims.S3E, rates),
]
for verdict in verdicts:
    print(f"{verdict.claim.id} {verdict.claim.statement}\n    Holds if {verdict.claim.rule.text(verdict.claim.measure)}.")
    print(f"    {report.format_interval(verdict.interval)}, {verdict.num_seeds} seeds: {verdict.verdict}. {verdict.note}")

# %% [markdown]
# ## Where next
#
# The full study has more widths and networks, all four combinations of skip connections and BatchNorm with their exact kernels, equal
# training loss, weight decay as a factor, regression with kernels, and trained networks' kernels against their own and others' limits:
#
# ```
# python -m experiments.ntk_width                   # minutes on two CPU cores
# python -m experiments.ntk_width --preset paper    # CIFAR-10, 600 epochs, accelerators
# ```
