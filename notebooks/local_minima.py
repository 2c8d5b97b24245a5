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
# # A bad local minimum, built and certified
#
# The best *affine* classifier of a data set can be written into a deep ReLU network: factor its matrix over the layers and choose biases so
# large that every ReLU stays active on the training data. The deep network then is a local minimum of its loss, far above what training
# reaches ("Truth or Backpropaganda?", ICLR 2020, Theorem 1). This notebook builds one, proves it, and tries to leave it.

# %%
import importlib.util
import subprocess
import sys

if "google.colab" in sys.modules and importlib.util.find_spec("jaxbp") is None:
    source = "/content/jaxbp"  # clone or upload the repository there first
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", source], check=True)

# %%
import jax
import jax.numpy as jnp
import numpy as np

from jaxbp import data, landscape, models, objectives, report, sweep, training

dataset = data.load("mnist1d", num_train=1000)
inputs, labels = dataset.train.inputs, dataset.train.labels
inputs.shape, labels.shape

# %% [markdown]
# ## The shallow minimiser
# Newton's method in float64, with a proven lower bound of the loss over all affine maps.

# %%
fit = landscape.fit_affine(inputs.reshape(len(inputs), -1), labels, 10, loss="cross_entropy")
print(f"loss {fit.loss:.6f}, accuracy {fit.accuracy:.1%}")
print(f"gradient norm {fit.gradient_norm:.1e}, above the proven bound by {fit.loss - fit.lower_bound:.1e}")

# %% [markdown]
# ## Embedded in a network of four hidden layers, and certified

# %%
net = models.create("mlp", num_classes=10, width=64, depth=4)
bad = landscape.embed_affine(net, fit, inputs, key=jax.random.key(0))
certificate = landscape.certify(
    models.apply_fn(net), bad, inputs, labels, loss="cross_entropy", key=jax.random.key(1), lower_bound=fit.lower_bound
)
print(certificate.status)
print(f"deep / affine loss - 1: {certificate.loss / fit.loss - 1:.1e}; gradient norm {certificate.gradient_norm:.1e}")
print(f"no activation changes within a radius of {certificate.radius:.2e} around the parameters")
assert certificate.status == "proven"

# %% [markdown]
# ## What training reaches instead
# Five seeds of default training, in one compiled program, spread over the devices.


# %%
def run(key, inputs, labels):
    init_key, shuffle_key = jax.random.split(key)
    return training.train(
        models.apply_fn(net),
        net.init(init_key, inputs[:1])["params"],
        training.sgd(0.01, momentum=0.9, decay_steps=training.num_steps(len(inputs), 100, 32)),
        (inputs, labels),
        shuffle_key,
        loss_fn=objectives.cross_entropy,
        num_epochs=100,
        batch_size=32,
        measure_epochs=range(0, 101, 5),
    ).history


history = sweep.evaluate(run, sweep.keys(range(5)), jnp.asarray(inputs), jnp.asarray(labels))
fig, ax = report.figure()
report.curve(ax, range(0, 101, 5), history["train_loss"], label="default training", log=True)
ax.axhline(certificate.loss, linestyle="--", color="black", label="embedded minimum")
ax.set_xlabel("epoch")
ax.set_ylabel("training loss")
ax.legend()
fig

# %% [markdown]
# ## The spectrum there
# The minimum is degenerate: most eigenvalues are 0, since layers can be rescaled against each other. None is negative.

# %%
with jax.enable_x64(True):
    loss_fn = landscape.per_example_loss(models.apply_fn(net), "cross_entropy")
    batch = (jnp.asarray(inputs, jnp.float64), jnp.asarray(labels))
    operator = landscape.hessian(loss_fn, bad, batch)
    start = jax.random.normal(jax.random.key(2), (operator.dimension,), jnp.float64)
    ends = landscape.extreme_eigenvalues(operator.matvec, start, atol=1e-6)
for name, end in (("smallest", ends.smallest), ("largest", ends.largest)):
    print(f"{name}: {end.value:.3g}, an eigenvalue lies within {end.residual:.1e}")
assert ends.smallest.value > -1e-6 * ends.largest.value
print(f"{np.round(ends.num_products)} Hessian products")
