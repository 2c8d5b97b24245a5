"""Flax networks, a file a family; the one registry that names them; and `Network`, the form in which every network comes.

>>> import jax, jax.numpy as jnp
>>> from jaxbp import models
>>> net = models.create("mlp", num_classes=10, width=32, depth=2)
>>> params, state = net.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
>>> net.apply(params, jnp.zeros((5, 8, 8, 1))).shape
(5, 10)

A network with BatchNorm has a state beside its parameters, and two modes: ``apply`` evaluates, ``update`` trains.

>>> net = models.create("resnet", num_classes=10, width=8, depth=1, stages=1)
>>> params, state = net.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
>>> logits, state = net.update(params, jnp.zeros((5, 8, 8, 1)), state)
>>> net.features(params, jnp.zeros((5, 8, 8, 1)), state).shape
(5, 8)

Modules of your own come in by `from_linen` and `from_nnx`, or by the name "module:function"; plain functions by `from_functions`,
weights of PyTorch models by `from_torch_names`.
"""

from jaxbp.models.batch_norm import calibrate_batch_norm
from jaxbp.models.convnet import ConvNet
from jaxbp.models.densenet import DenseNet
from jaxbp.models.from_flax import from_linen, from_nnx
from jaxbp.models.mlp import MLP
from jaxbp.models.mobilenet import MobileNet
from jaxbp.models.network import Network, State, from_functions, with_batch_statistics, with_normalised_inputs
from jaxbp.models.registry import REGISTRY, Width, create
from jaxbp.models.resnet import ResNet
from jaxbp.models.torch_names import from_torch_names, resnet_torch_names
from jaxbp.models.vgg import VGG
