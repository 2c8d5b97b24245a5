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
# # Tangent kernels, finite and exact
#
# The tangent kernel of a network holds the inner products of its gradients. Wide-network theory says that it tends to a fixed kernel as the
# width grows. This notebook computes the empirical kernel of a small ResNet, exactly and without a Jacobian, compares it with the exact
# kernel of its infinitely wide twin, and shows what BatchNorm's statistics make of it.

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

from jaxbp import data, models, ntk
from jaxbp.models.twin import infinite_twin
from jaxbp.ntk import measures

digits = data.load("digits", normalise=True)
images = jnp.asarray(data.probe_set(digits.train, 10, seed=0).inputs)

# %% [markdown]
# ## Towards the exact kernel
#
# Without BatchNorm, and with projections for shortcuts, the ResNet has an exact twin. The relative distance to it should halve when the
# width grows fourfold.

# %%
options = {
    "num_classes": 10,
    "depth": 1,
    "stages": 2,
    "norm": "none",
    "shortcut": "projection",
    "parametrisation": "ntk",
}
exact = infinite_twin(models.create("resnet", width=1, **options), images.shape[1:])(images)
for width in (4, 16, 64):
    net = models.create("resnet", width=width, **options)
    params, _ = models.initialise(net, jax.random.key(0), images)
    kernel = ntk.empirical_ntk(models.apply_fn(net), params, images, logits="trace") / 10
    print(f"width {width:3d}: relative distance {float(measures.relative_change(exact, kernel)):.3f}")

# %% [markdown]
# ## Any Flax model, and the mode of its BatchNorm
#
# With BatchNorm there are two kernels: of the function with stored statistics, where images are independent, and through the statistics of
# the batch. The mode has to be said.

# %%
net = models.create("resnet", num_classes=10, width=8, depth=1, stages=2)
variables = net.init(jax.random.key(0), images)
stored = ntk.flax_ntk(net, variables, images, batch_norm="stored", apply_options={"train": False})
batch = ntk.flax_ntk(net, variables, images, batch_norm="batch", apply_options={"train": True})
print(f"correlation of the two kernels' entries: {float(measures.correlation(stored, batch)):.2f}")

# %%
try:
    ntk.flax_ntk(net, variables, images)
except ValueError as error:
    print(error)

# %% [markdown]
# Kernels too large to form still have products and eigenvalues:

# %%
fn = ntk.flax_function(net, batch_norm="stored", train=False)
state = {"batch_stats": variables["batch_stats"]}
ends = ntk.ntk_extremes(fn, variables["params"], images, jax.random.key(1), state=state)
matrix = measures.as_matrix(stored)
largest = float(measures.spectrum(matrix)[0])
print(
    f"largest eigenvalue {ends.largest.value:.4g} from {ends.num_products} products; {largest:.4g} from the whole kernel"
)
