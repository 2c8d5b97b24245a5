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
# # What can be learnt from unlearnable data?
#
# **The belief.** Small perturbations make data useless: networks trained on them fail on clean data. They learn shortcuts only, and the
# shortcuts work because they are linearly separable.
#
# **The instruments.** `jaxbp.data.poisons` makes perturbations, `jaxbp.unlearnable` proves their separability or the opposite, refits the
# last layer on a few clean images, and projects perturbations out ("What can we learn from unlearnable datasets?", NeurIPS 2023).
#
# **What this notebook can decide.** All of it for one small network on small MNIST. The perturbations are large beside those of natural
# images: small digits are easier to learn. Swap the network in the cell "Your network", or load your own data.

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

from experiments.unlearnable import claims
from jaxbp import data, lab, models, report, stats, sweep, training, unlearnable
from jaxbp.claims import judge
from jaxbp.data import poisons
from jaxbp.ops.convolution import conv_with

print(lab.start_jax())  # each CPU core a device of its own; what is compiled is kept for the next time
mnist = data.load("mnist5k@14", validation=0, num_train=600)
inputs, labels = mnist.train


# %% [markdown]
# ## Your network
#
# What it sows as `features` is what the last layer reads.


# %%
class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        for width in (8, 16):
            x = nn.relu(nn.Conv(width, (3, 3), strides=2, conv_general_dilated=conv_with("auto"))(x))
        x = nn.relu(nn.Dense(32)(x.reshape(len(x), -1)))
        self.sow("intermediates", "features", x)
        return nn.Dense(10)(x)


net = models.from_linen(Net())

# %% [markdown]
# ## Two perturbations, and whether they are linearly separable
#
# Patches of one sign each, a pattern a class; and waves of a frequency that belongs to the class, each with its negative. The first are
# separable: a classifier shows it. The second are not: no affine classifier can be right on d and on -d in two classes.

# %%
SIZE = 0.25  # root mean square; pixels are from 0 to 1
angles = np.pi * np.arange(10) / 10
frequencies = 1.5 * np.stack([np.cos(angles), np.sin(angles)], 1)
made = {
    "patches": poisons.class_patches(jax.random.key(0), labels, mnist.input_shape, 10, rms=SIZE, patch=4),
    "waves": poisons.waves(jax.random.key(1), labels, mnist.input_shape, frequencies, rms=SIZE),
}
fresh = {
    "patches": made["patches"],  # a pattern a class: there are no others
    "waves": poisons.waves(jax.random.key(2), labels, mnist.input_shape, frequencies, rms=SIZE),
}
proofs = {}
for name, perturbation in made.items():
    proofs[name] = unlearnable.separability(perturbation, labels, 10, fresh=(fresh[name], labels))
    budget = poisons.budget(perturbation)
    print(f"{name}: {proofs[name].status}, rms {budget['rms']:.2f}, linear accuracy on fresh ones {proofs[name].fresh_accuracy:.0%}")

# %% [markdown]
# ## The remedy
#
# A linear classifier is trained on the perturbed images, and what its weights span is projected out.

# %%
poisoned = {name: poisons.apply(inputs, perturbation, -np.inf, np.inf).inputs for name, perturbation in made.items()}
weights = {name: unlearnable.linear_weights(part, labels, 10, jax.random.key(3), batch_size=12) for name, part in poisoned.items()}
spans = {name: unlearnable.projection(columns) for name, columns in weights.items()}
projected = {name: unlearnable.project_out(part, spans[name]) for name, part in poisoned.items()}
fig, axes = report.figure(2, 5, width=9, height=3.8)
with report.style():
    for row, name in zip(axes, made, strict=True):
        pictures = (
            inputs[0],
            poisoned[name][0],
            made[name][0],
            np.asarray(weights[name])[:, 0].reshape(mnist.input_shape),
            projected[name][0],
        )
        for ax, picture, title in zip(row, pictures, ("clean", "perturbed", "perturbation", "linear weights", "projected"), strict=True):
            ax.imshow(picture[..., 0], cmap="gray")
            ax.set_title(title, fontsize=10)
            ax.set_xticks([])
            ax.set_yticks([])
            ax.grid(False)
        row[0].set_ylabel(name)
fig

# %% [markdown]
# ## Train all arms
#
# Arms differ in their training images alone, so all of them are one compiled program. "Subset" is what sixty clean images teach by
# themselves, in as many steps.

# %%
SEEDS, FEW, NUM_EPOCHS = range(4), 60, 15
rows = np.arange(len(labels)) % FEW  # the first examples have the classes in proportion
arms = {"clean": inputs, **poisoned, **{f"{name}, projected": part for name, part in projected.items()}}
arms |= {f"clean, projected by {name}": unlearnable.project_out(inputs, spans[name]) for name in made}
sets = np.stack([*arms.values(), inputs[rows]])
NAMES = [*arms, "subset"]


def train(one, sets, labels, rows):
    images, targets = sets[one["arm"]], jnp.where(one["arm"] == len(NAMES) - 1, labels[rows], labels)
    settings = training.Settings(NUM_EPOCHS, batch_size=50, measure_epochs=(NUM_EPOCHS,))
    optimizer = training.sgd(0.05, momentum=0.9, weight_decay=5e-4, decay_steps=training.num_steps(len(labels), NUM_EPOCHS, 50))
    result = training.train(net, optimizer, (images, targets), one["key"], settings)
    return result.params


runs = {"key": sweep.keys([*SEEDS] * len(NAMES)), "arm": np.repeat(np.arange(len(NAMES)), len(SEEDS))}
trained = jax.device_get(sweep.evaluate(train, runs, *map(jnp.asarray, (sets, labels, rows))))


def network(arm, seed):
    """The parameters of one run."""
    return jax.tree.map(lambda leaf: leaf[NAMES.index(arm) * len(SEEDS) + seed], trained)


def accuracy(arm, images=mnist.test.inputs):
    """On test images, in per cent: one number a seed."""
    logits = [jax.jit(net.apply)(network(arm, seed), images) for seed in SEEDS]
    return np.array([100 * float((logit.argmax(1) == mnist.test.labels).mean()) for logit in logits])


tested = {arm: accuracy(arm) for arm in NAMES}
fig, ax = report.figure(width=8, height=4.6)
report.strip(ax, tested)
with report.style():
    ax.set(xlabel="test accuracy, %", title="By what the network was trained on")
fig

# %% [markdown]
# ## Features, reweighed
#
# The last layer alone is refitted on the sixty clean images; no other parameter changes.


# %%
def refitted(params):
    """Test accuracy in per cent."""
    features = [np.asarray(jax.jit(net.features)(params, images)) for images in (inputs[:FEW], mnist.test.inputs)]
    head = unlearnable.reweigh(features[0], labels[:FEW], 10, l2=0.1)
    return 100 * head.accuracy(features[1], mnist.test.labels)


untrained = [net.init(key, inputs[:1])[0] for key in sweep.keys(SEEDS)]
heads = {"untrained": np.array([refitted(params) for params in untrained])}
heads |= {arm: np.array([refitted(network(arm, seed)) for seed in SEEDS]) for arm in ("clean", *made)}
fig, ax = report.figure(width=8, height=3.4)
report.strip(ax, heads | {"network on the subset": tested["subset"]})
with report.style():
    ax.set(xlabel="accuracy of the refitted head, %", title="By what the features were trained on")
fig

# %% [markdown]
# ## Verdicts
#
# Claims of the study, each with a rule that was fixed beforehand, on one network and one data set.

# %%
drop = {name: tested[name] - tested["clean"] for name in made}
proven = proofs["waves"].status == "inseparable"
alike = {name: tested[f"{name}, projected"] - tested[f"clean, projected by {name}"] for name in made}
verdicts = [
    judge(claims.FAIL, drop),
    judge(claims.REWEIGHED, {name: heads[name] - heads["untrained"] for name in made}),
    judge(claims.BEYOND_SUBSET, {name: heads[name] - tested["subset"] for name in made}),
    judge(claims.INSEPARABLE, {"waves": (proven & (drop["waves"] <= -claims.DROP)).astype(float)}, interval_fn=stats.event_interval),
    judge(claims.RECOVERED, {"patches": alike["patches"]}),
    judge(claims.KEPT, {"waves": tested["waves, projected"] - tested["waves"]}),
]
for verdict in verdicts:
    print(f"{verdict.claim.id} {verdict.claim.statement}\n    Holds if {verdict.claim.rule.text(verdict.claim.measure)}.")
    print(f"    {report.format_interval(verdict.interval)}, {verdict.num_seeds} seeds: {verdict.verdict}. {verdict.note}")

# %% [markdown]
# ## Where next
#
# The full study adds one-pixel and autoregressive perturbations, projected test images, and those made by networks:
#
# ```
# python -m experiments.unlearnable                      # minutes on two CPU cores
# python -m experiments.unlearnable --preset standard    # Fashion-MNIST
# ```
