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
# # Are small-norm solutions better?
#
# **The belief.** Weight decay pulls the parameters of a network to zero, and networks trained with it generalise better; so small norms
# must be what helps.
#
# **The instrument.** *Norm-bias* pulls the norm of all parameters to any value $\mu$, by the penalty
# $\frac{\lambda}{2}\,\bigl|\,\|\theta\|^2 - \mu^2\bigr|$. At $\mu = 0$ it is weight decay, to the last bit. If small norms are what helps,
# a large $\mu$ has to hurt ("Truth or Backpropaganda?", ICLR 2020, Study 2).
#
# **What this notebook can decide.** One small ResNet with BatchNorm, one data set, one coefficient that nobody tuned, a handful of seeds:
# it shows the effect and how it is judged. Whether the claims hold when each regulariser is tuned is a question for the full study.

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
import optax

from experiments.norm_bias import claims
from jaxbp import data, lab, models, norms, report, stats, sweep, training
from jaxbp.claims import judge

print(lab.start_jax())  # each CPU core a device of its own; what is compiled is kept for the next time
digits = data.load("digits", validation=0, normalise=True)
net = models.create("resnet", num_classes=10, width=8, stages=2, depth=1)

# %% [markdown]
# ## One training as a pure function
#
# A run is a seed's key, the rows of its training images, and what the regulariser wants: a coefficient $\lambda$, and $\mu$ relative to
# the norm of the fresh network. `norms.norm_bias` is a link in an optax chain, `norms.track_angular_updates` keeps the angle by which
# each step turns the weights.

# %%
NUM_EPOCHS, BATCH_SIZE, NUM_TRAIN = 24, 50, 500
EPOCHS = range(0, NUM_EPOCHS + 1, 2)


def measure(now):
    return {"norm": jnp.sqrt(norms.squared_norm(now.params)), "angle": norms.angular_updates(now.opt_state).mean()}


def train(one, inputs, labels, *test_data):
    init_key, order_key = jax.random.split(one["key"])
    start = params, _ = net.init(init_key, inputs[:1])
    mu = one["mu"] * jnp.sqrt(norms.squared_norm(params))
    sgd = training.sgd(
        0.1,
        momentum=0.9,
        decay_steps=training.num_steps(NUM_TRAIN, NUM_EPOCHS, BATCH_SIZE),
        regulariser=norms.norm_bias(one["coefficient"], mu),
    )
    result = training.train(
        net,
        optax.chain(sgd, norms.track_angular_updates()),
        (inputs[one["rows"]], labels[one["rows"]]),
        order_key,
        training.Settings(NUM_EPOCHS, BATCH_SIZE, measure_epochs=EPOCHS),
        start=start,
        test_data=test_data,
        measure_fn=measure,
    )
    return {"accuracy": 100 * result.history["test_accuracy"], **result.measured}


# %% [markdown]
# ## All arms, all seeds, one compiled program
#
# The arms of a seed share its images, its initial parameters and the order of its batches, so that differences between arms are paired.

# %%
SEEDS = range(6)
MUS = (0.0, 0.75, 1.0, 1.5, 2.0)
arms = {"no regulariser": (0.0, 0.0)} | {f"norm-bias, μ = {mu:g}": (0.01, mu) for mu in MUS}
runs = {
    "key": jnp.concatenate([sweep.keys(SEEDS)] * len(arms)),
    "rows": np.stack([data.stratified_indices(digits.train.labels, NUM_TRAIN, seed=s) for s in SEEDS] * len(arms)),
    "coefficient": np.repeat([coefficient for coefficient, _ in arms.values()], len(SEEDS)),
    "mu": np.repeat([mu for _, mu in arms.values()], len(SEEDS)),
}
found = sweep.evaluate(train, runs, *map(jnp.asarray, (*digits.train, *digits.test)))
found = {name: np.asarray(values).reshape(len(arms), len(SEEDS), -1) for name, values in found.items()}
accuracy, norm = found["accuracy"][..., -1], found["norm"] / found["norm"][..., :1]
print("arms with a seed that diverged:", [arm for arm, a in zip(arms, accuracy, strict=True) if not a.all()])

# %% [markdown]
# ## Accuracy over the norm wanted
#
# Thin lines are seeds, bands 95 % intervals of the mean. Beside it the norm that was reached: on the diagonal $\mu$ was met.

# %%
none, bias = accuracy[0], accuracy[1:]
fig, axes = report.figure(1, 2, width=10.5, height=4.4)
report.curve(axes[0], MUS, bias.T, label="norm-bias (μ = 0: weight decay)")
report.curve(axes[0], MUS, np.repeat(none[:, None], len(MUS), 1), label="no regulariser")
report.curve(axes[1], MUS, norm[1:, :, -1].T, label="reached with norm-bias")
report.curve(axes[1], MUS, np.repeat(norm[0, :, -1:], len(MUS), 1), label="reached without regulariser")
change = report.format_interval(stats.paired_difference(bias[-1], bias[0]))
with report.style():
    axes[1].plot(MUS, MUS, ":", color="#555555", label="wanted")
    axes[0].set(ylabel="test accuracy, %", title=f"μ = {MUS[-1]:g} against μ = {MUS[0]:g}: {change} points")
    axes[1].set(ylabel="final norm / norm of the fresh network", title="The norm wanted, and the norm reached")
    for ax in axes:
        ax.set_xlabel("norm wanted, μ / norm of the fresh network")
        ax.legend()
fig

# %% [markdown]
# ## Verdicts
#
# The study's own claims, with their rules fixed beforehand. Norm-bias stands for "a large norm" here, $\mu = 1.5$ times the norm of the
# fresh network. A claim is supported if its whole interval lies where its rule says, contradicted if none of it does.

# %%
decay, large = 1 + MUS.index(0.0), 1 + MUS.index(1.5)
case = "digits, ResNet with BatchNorm"
verdicts = [
    judge(claims.S2A, {case: accuracy[decay] - accuracy[0]}),
    judge(claims.S2B, {case: accuracy[large] - accuracy[decay]}),
    judge(claims.S2C, {case: accuracy[large] - accuracy[decay]}),
    judge(claims.S2E, {case: np.log2(norm[large, :, -1] / norm[decay, :, -1])}),
]
for verdict in verdicts:
    print(f"{verdict.claim.id} {verdict.claim.statement}\n    Holds if {verdict.claim.rule.text(verdict.claim.measure)}.")
    print(f"    {report.format_interval(verdict.interval)}, {verdict.num_seeds} seeds: {verdict.verdict}")

# %% [markdown]
# ## Why? What a norm does under BatchNorm
#
# A layer that BatchNorm follows computes the same when its weights are scaled. Their norm cannot matter to the function; it sets how far a
# step of SGD *turns* them. Left: the norm along training. Right: the angle by which a step turns a kernel, mean over kernels.

# %%
fig, axes = report.figure(1, 2, width=10.5, height=4.6)
for place, name in enumerate(arms):
    report.curve(axes[0], EPOCHS, norm[place])
    moving = slice(1, -1)  # no step has been made at first, and the last one has length 0
    report.curve(axes[1], EPOCHS[moving], found["angle"][place, :, moving], label=name, log=True)
middle = len(EPOCHS) // 2
turned = stats.t_interval(np.log2(found["angle"][decay, :, middle] / found["angle"][large, :, middle]))
low, ratio, high = (2**end for end in (turned.low, turned.estimate, turned.high))
with report.style():
    axes[0].set(ylabel="norm / norm of the fresh network", title="Norm of all parameters")
    title = f"A step at μ = 0 against one at μ = 1.5, halfway:\n{ratio:.0f} [{low:.0f}, {high:.0f}] times the angle"
    axes[1].set(ylabel="angle of a step, radians", title=title)
    axes[1].legend(fontsize=9)
    for ax in axes:
        ax.set(xlabel="epoch", xticks=EPOCHS[::2])
fig

# %% [markdown]
# ## Where next
#
# The full study tunes weight decay and norm-bias on validation data with equal budgets, on networks with BatchNorm, with Fixup and without
# either, and adds the paper's own settings:
#
# ```
# python -m experiments.norm_bias                   # minutes on two CPU cores
# python -m experiments.norm_bias --preset paper    # CIFAR-10, accelerators
# ```
