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
# # Do layers of low rank resist attack?
#
# **The belief.** Low rank explains why networks generalise, and why some resist adversarial attack.
#
# **The instruments.** The singular values of a convolution *as an operator* on its true map; *RankMin*, which sets small ones to 0 while
# the network is fine-tuned, and *RankMax*, which caps large ones; attacks within a ball around each image, the strongest available ("Truth
# or Backpropaganda?", ICLR 2020, Study 4).
#
# **What this notebook can decide.** Whether ranks can be pushed down and up, and what that does to the accuracy of one small, naturally
# trained ResNet on digits, attacked and not. Projected weights lose norm as well as rank, so a drop of accuracy is not proof that rank as
# such is needed; a gain would have to show here if low rank protected.

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

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.rank_robustness import claims
from jaxbp import attacks, data, lab, models, report, spectra, stats, sweep, training
from jaxbp.claims import judge

print(lab.start_jax())  # each CPU core a device of its own; what is compiled is kept for the next time
digits = data.load("digits", validation=0)  # pixels from 0 to 1, the unit of the attacks
net = models.create("resnet", num_classes=10, width=8, stages=2, depth=1)
mean, std = digits.train.inputs.mean(), digits.train.inputs.std()
net = models.with_normalised_inputs(net, mean, std)


# %% [markdown]
# ## One network, three ways
#
# Each seed trains a network, and fine-tunes it at a tenth of the learning rate: left alone, by RankMin, or by RankMax, which act at the
# end of three epochs of the fine-tuning. The arms of a seed are the same up to the first projection. All runs are one compiled program.

# %%
ARMS, SEEDS = ("left alone", "RankMin", "RankMax"), range(5)
NUM_EPOCHS, NUM_FINE_TUNING, PROJECT_EPOCHS = 16, 8, (18, 20, 22)
NUM_TRAIN, BATCH_SIZE = 600, 50
THRESHOLD, CEILING = 0.5, 1.5  # the paper's


def train(one, inputs, labels):
    init_key, order_key = jax.random.split(one["key"])
    params, state = net.init(init_key, inputs[:1])
    network = partial(net.apply, state=state)
    lower = spectra.rank_min(network, params, inputs[:1], threshold=THRESHOLD, num_projections=20)
    cap = spectra.rank_max(network, params, inputs[:1], ceiling=CEILING, num_projections=20)

    def project(params):
        ways = (lambda p: p, lambda p: lower(p)[0], lambda p: cap(p)[0])
        return jax.lax.switch(one["arm"], ways, params)

    def measure(now):
        shown = {"pattern": spectra.inner_convolutions, "padding": "circular"}  # as the projections see them
        found = spectra.of_network(network, now.params, inputs[:1], **shown)
        return {name: spectrum.values for name, spectrum in found.items()}

    before_tuning = training.num_steps(NUM_TRAIN, NUM_EPOCHS, BATCH_SIZE)
    schedule = optax.piecewise_constant_schedule(1.0, {before_tuning: 0.1})
    num_epochs = NUM_EPOCHS + NUM_FINE_TUNING
    settings = training.Settings(num_epochs, BATCH_SIZE, measure_epochs=(0, num_epochs), project_fn=project, project_epochs=PROJECT_EPOCHS)
    result = training.train(
        net,
        training.sgd(0.1, momentum=0.9, weight_decay=5e-4, schedule=schedule),
        (inputs[one["rows"]], labels[one["rows"]]),
        order_key,
        settings,
        start=(params, state),
        measure_fn=measure,
    )
    return (result.params, result.state), result.measured


runs = {
    "key": jnp.concatenate([sweep.keys(SEEDS)] * len(ARMS)),
    "rows": np.stack([data.stratified_indices(digits.train.labels, NUM_TRAIN, seed=s) for s in SEEDS] * len(ARMS)),
    "arm": np.repeat(np.arange(len(ARMS)), len(SEEDS)),
}
networks, values = jax.device_get(sweep.evaluate(train, runs, *map(jnp.asarray, digits.train)))
values = {name: v.reshape(len(ARMS), len(SEEDS), *v.shape[1:]) for name, v in values.items()}  # arm, seed, time, value
list(values)  # the convolutions that are projected: all but the first one and the shortcuts

# %% [markdown]
# ## Under attack
#
# PGD of twenty steps over a range of radii, one program for all networks and radii. It says how accuracy falls; how much is really left,
# the strongest attack has to say: APGD on two losses, FAB and a random search without gradients, worst case over all, at one radius.


# %%
def accuracy_under_pgd(one, inputs, labels):
    params, state = one["network"]
    network = jax.tree_util.Partial(net.apply, params, state=state)
    attack = attacks.pgd(attacks.Threat("linf", one["radius"]), num_steps=20)
    return 100 * (1 - attack(network, jax.random.key(0), inputs, labels).success.mean())


RADII, RADIUS = np.array([0.0, 0.025, 0.05, 0.075, 0.1]), 0.05  # a pixel ranges from 0 to 1
images, labels = digits.test.inputs[:200], digits.test.labels[:200]
attacked = {
    "network": jax.tree.map(lambda leaf: np.repeat(leaf, len(RADII), 0), networks),
    "radius": np.tile(RADII, len(ARMS) * len(SEEDS)).astype(np.float32),
}
curve = sweep.evaluate(accuracy_under_pgd, attacked, jnp.asarray(images), jnp.asarray(labels))
curve = np.asarray(curve).reshape(len(ARMS), len(SEEDS), len(RADII))

# %%
suite = attacks.autoattack(attacks.Threat("linf", RADIUS), num_steps=10, num_targets=2, num_queries=100)
evaluations = []
for place in range(len(ARMS) * len(SEEDS)):
    params, state = jax.tree.map(lambda leaf, i=place: leaf[i], networks)
    network = jax.tree_util.Partial(net.apply, params, state=state)
    options = {"batch_size": 100, "check_masking": False}  # the notebook own_model looks for signs of masked gradients
    evaluations.append(attacks.robust_accuracy(network, jax.random.key(1), images, labels, suite, **options))
clean = np.reshape([100 * found.clean.estimate for found in evaluations], (len(ARMS), len(SEEDS)))
robust = np.reshape([100 * found.worst_case.estimate for found in evaluations], (len(ARMS), len(SEEDS)))
for arm, of_seeds in zip(ARMS, robust, strict=True):
    print(f"{arm}: {report.format_interval(stats.t_interval(of_seeds))} % left at radius {RADIUS}")

# %% [markdown]
# ## Spectra and robustness, side by side
#
# Left: all singular values of the last projected convolution, largest first, each line a seed; dotted, RankMin's threshold and RankMax's
# ceiling. What training after the last projection undoes, shows. Right: accuracy over the radius of the attack, with 95 % bands.

# %%
layer = list(values)[-1]
share = np.linspace(0, 100, values[layer].shape[-1])
fig, axes = report.figure(1, 2, width=10.5, height=4.8)
with report.style():
    thin = {"linewidth": 1, "alpha": 0.8}
    axes[0].plot(share, values[layer][0, :, 0].T, color="#888888", **thin)
    for place in range(len(ARMS)):
        axes[0].plot(share, values[layer][place, :, 1].T, color=report.PALETTE[place], **thin)
    for level, name, x, side in (
        (THRESHOLD, "RankMin's threshold", 0, "left"),
        (CEILING, "RankMax's ceiling", 100, "right"),
    ):
        axes[0].axhline(level, color="#444444", linestyle=":", linewidth=1.2)
        axes[0].annotate(name, (x, level), (0, 3), textcoords="offset points", ha=side, fontsize=9)
for place, arm in enumerate(ARMS):
    report.curve(axes[1], RADII, curve[place], label=arm)
with report.style():
    axes[1].plot([], [], color="#888888", label="untrained")
    axes[0].legend(handles=axes[1].get_legend_handles_labels()[0])
    axes[0].set(
        xlabel="share of singular values, %",
        ylabel="singular value",
        title=f"All values of {layer.removesuffix('/kernel')}",
    )
    axes[1].set(xlabel="radius of the attack (pixels from 0 to 1)", ylabel="accuracy under PGD-20, %")
    axes[1].set_title("Accuracy under attack")
fig

# %% [markdown]
# ## Rank against robustness
#
# The same seeds: by how much fine-tuning changed the effective rank (nuclear over Frobenius norm, geometric mean over layers) and by how
# much it changed robust accuracy, both against the network left alone. If low rank protected, dots would lie to the upper left.

# %%
rank = np.log2([spectra.nuclear_rank(v) for v in values.values()]).mean(0)  # arm, seed, before and after
fig, ax = report.figure(width=7.6, height=4.8)
with report.style():
    for place, arm in enumerate(ARMS[1:], 1):
        gain = robust[place] - robust[0]
        label = f"{arm}: {report.format_interval(stats.t_interval(gain))} points"
        ax.scatter(2 ** (rank[place] - rank[0])[:, 1], gain, s=60, alpha=0.75, color=report.PALETTE[place], label=label)
    ax.axhline(0, color="#444444", linewidth=1)
    ax.axvline(1, color="#444444", linewidth=1)
    ax.set(xlabel="effective rank / that of the network left alone", ylabel="change of robust accuracy, points")
    ax.set_title(f"Strongest attack, radius {RADIUS}: low rank would protect in the upper left")
    ax.legend(loc="lower right", frameon=True, framealpha=1, edgecolor="none")
fig

# %% [markdown]
# ## Verdicts
#
# The study's own claims, each with a rule that was fixed beforehand, on one network.

# %%
verdicts = [
    judge(claims.S4A, {"RankMin": (rank[0] - rank[1])[:, 1], "RankMax": (rank[2] - rank[0])[:, 1]}),
    judge(claims.S4B, {arm: clean[place] - clean[0] for place, arm in enumerate(ARMS[1:], 1)}),
    judge(claims.S4C, {f"natural, radius {RADIUS}": robust[1] - robust[0]}),
    judge(claims.S4E, {"left alone": rank[0, :, 0] - rank[0, :, 1]}),
]
for verdict in verdicts:
    print(f"{verdict.claim.id} {verdict.claim.statement}\n    Holds if {verdict.claim.rule.text(verdict.claim.measure)}.")
    print(f"    {report.format_interval(verdict.interval)}, {verdict.num_seeds} seeds: {verdict.verdict}. {verdict.note}")

# %% [markdown]
# ## Where next
#
# The full study adds adversarial training (does it produce low rank?), networks without skip connections and larger images:
#
# ```
# python -m experiments.rank_robustness                   # minutes on two CPU cores
# python -m experiments.rank_robustness --preset paper    # CIFAR-10, ResNet-18, accelerators
# ```
