"""Flax networks, a file a family, and the one registry that names them.

>>> import jax, jax.numpy as jnp
>>> from jaxbp import models
>>> net = models.create("mlp", num_classes=10, width=32, depth=2)
>>> params = net.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))["params"]
>>> models.apply_fn(net)(params, jnp.zeros((5, 8, 8, 1))).shape
(5, 10)

A network with BatchNorm has a state beside its parameters, and two modes:

>>> net = models.create("resnet", num_classes=10, width=8, depth=1, stages=1)
>>> params, state = models.initialise(net, jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
>>> logits, state = models.stateful_apply_fn(net, train=True)(params, jnp.zeros((5, 8, 8, 1)), state)
>>> models.features_fn(net)(params, jnp.zeros((5, 8, 8, 1)), state).shape
(5, 8)
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, cast

import flax.errors
import flax.linen as nn
import jax

from jaxbp.models.convnet import ConvNet
from jaxbp.models.densenet import DenseNet
from jaxbp.models.mlp import MLP
from jaxbp.models.mobilenet import MobileNet
from jaxbp.models.resnet import ResNet
from jaxbp.models.vgg import VGG

Width = int | Sequence[int]
_OneOrEach = int | tuple[int, ...]  # a width as the builders get it
_Net = TypeVar("_Net", bound=nn.Module)
State = Mapping[str, Any]  # the collections of a network beside its parameters: {"batch_stats": ...}, or {}


def _mlp(name: str, num_classes: int, width: _OneOrEach, depth: int | None, options: dict) -> MLP:
    if not isinstance(width, tuple):
        width = (width,) * (2 if depth is None else depth)
    elif depth not in (None, len(width)):
        raise ValueError(f"depth must be left out or be the number of widths {len(width)}, got {depth}")
    return _build(MLP, name, num_classes, width, options)


def _convnet(name: str, num_classes: int, width: _OneOrEach, depth: int | None, options: dict) -> ConvNet:
    return _build(ConvNet, name, num_classes, width, ({} if depth is None else {"depth": depth}) | options)


def _staged(family: type[nn.Module], sizes: str, number: str, each: str) -> Callable[..., nn.Module]:
    """Builder of a network given by its depth (``each`` says of what) and a ``number``, or by its field ``sizes``."""

    def build(name: str, num_classes: int, width: _OneOrEach, depth: int | None, options: dict) -> nn.Module:
        usual = getattr(family, sizes)
        if sizes not in options:
            options[sizes] = (usual[0] if depth is None else depth,) * options.pop(number, len(usual))
        elif depth is not None or number in options:
            raise ValueError(f"give depth ({each}) and {number} (their number) or {sizes}, not both")
        options[sizes] = tuple(options[sizes])
        return _build(family, name, num_classes, width, options)

    return build


def _fixed(family: type[nn.Module], **settled: Any) -> Callable[..., nn.Module]:
    """Builder of a network whose depth, and the fields that make it up, ``settled`` here, are part of its name."""

    def build(name: str, num_classes: int, width: _OneOrEach, depth: int | None, options: dict) -> nn.Module:
        given = [option for option in settled if option in options] + ["depth"] * (depth is not None)
        if given:
            raise ValueError(f"the depth of {name} is part of its name: leave out {', '.join(given)}")
        return _build(family, name, num_classes, width, options | settled)

    return build


def _build(family: type[_Net], name: str, num_classes: int, width: _OneOrEach, options: dict) -> _Net:
    if isinstance(width, tuple) and family is not MLP:
        raise ValueError(f"the {name} takes one width, of its first convolution, got {width}")
    fields = [field.name for field in dataclasses.fields(family) if field.name not in ("parent", "name")]
    if unknown := sorted(set(options) - set(fields[2:])):
        raise ValueError(f"{name} has no option {', '.join(unknown)}: choose from {', '.join(fields[2:])}")
    return family(num_classes, width, **options)


REGISTRY: dict[str, Callable[..., nn.Module]] = {
    "mlp": _mlp,
    "convnet": _convnet,
    "resnet": _staged(ResNet, "stage_sizes", "stages", each="blocks of every stage"),
    "resnet18": _fixed(ResNet, stage_sizes=(2, 2, 2, 2)),
    "wideresnet": _fixed(ResNet, stage_sizes=(2, 2, 2, 2)),
    "resnet20": _fixed(ResNet, stage_sizes=(3, 3, 3)),
    "resnet34": _fixed(ResNet, stage_sizes=(3, 4, 6, 3)),
    "vgg11": _fixed(VGG),
    "mobilenetv2": _fixed(MobileNet),
    "densenet": _staged(DenseNet, "block_sizes", "blocks", each="layers of every block"),
    "densenet40": _fixed(DenseNet, block_sizes=(6, 6, 6)),
}


def create(name: str, *, num_classes: int, width: Width, depth: int | None = None, **options: Any) -> nn.Module:
    """The network ``name`` of `REGISTRY`.

    Args:
      name: a family, or a network of fixed depth: "resnet18" and the paper's "wideresnet" (both four stages of two
        basic blocks; the names tell which widths are meant), "resnet20" (three stages of three; norm="fixup" is the
        paper's), "resnet34", "vgg11", "mobilenetv2", "densenet40".
      num_classes: logits.
      width: hidden units, of every layer or of each ("mlp": ``(2048, 2048, 1024)`` is the paper's in Study 1); channels of
        the first convolution (all others; the sources have 64 for "resnet18", "resnet34" and "vgg11", 32 for
        "mobilenetv2", 24, twice the growth rate, for "densenet40", 16 for "resnet20").
      depth: hidden layers ("mlp", default 2, or as many as there are widths); convolutions ("convnet", default 5);
        blocks of every stage ("resnet", default 2); layers of every block ("densenet", default 6).
      options: ``parametrisation``, ``dtype`` ("float32", or "bfloat16" for mixed precision, see `jaxbp.models.layers`) and the
        family's own fields; for "resnet" also ``stages``, their number (default 4), unless ``stage_sizes`` gives the
        blocks of each; likewise for "densenet" ``blocks`` (default 3) or ``block_sizes``.

    Raises:
      ValueError: an unknown name or option, a width or depth below 1, or ones that do not suit the family.
    """
    if name not in REGISTRY:
        raise ValueError(f"there is no model {name!r}: choose one of {', '.join(REGISTRY)}")
    width = tuple(width) if isinstance(width, Sequence) else width
    smallest = min(width, default=0) if isinstance(width, tuple) else width
    for label, value, least in (("width", width, smallest), ("depth", depth, 1 if depth is None else depth)):
        if least < 1:
            raise ValueError(f"{label} must be at least 1, got {value}")
    return REGISTRY[name](name, num_classes, width, depth, options)


def initialise(net: nn.Module, key: jax.Array, inputs: jax.Array) -> tuple[Any, State]:
    """Fresh parameters of a network for ``inputs`` (N, ...), of which only the shape matters, and its fresh `State`."""
    variables = net.init(key, inputs)
    return variables["params"], {name: value for name, value in variables.items() if name != "params"}


@functools.cache
def apply_fn(net: nn.Module) -> Callable[[Any, jax.Array], jax.Array]:
    """``(params, inputs) -> logits`` of a network without state; the same object for equal networks, so jit traces once.

    Raises:
      ValueError: when traced, if the network has a state (BatchNorm).
    """

    def apply(params: Any, inputs: jax.Array) -> jax.Array:
        try:
            return cast(jax.Array, net.apply({"params": params}, inputs))
        except flax.errors.ScopeCollectionNotFound as error:
            raise ValueError(
                f"{type(net).__name__} keeps a state beside its parameters (BatchNorm's statistics): use models.initialise and "
                "models.stateful_apply_fn(net, train), which say whether stored or batch statistics are meant"
            ) from error

    return apply


@functools.cache
def stateful_apply_fn(net: nn.Module, train: bool) -> Callable[..., Any]:
    """A network with `State` as a function; the same object for equal arguments.

    Without ``train`` ``(params, inputs, state) -> logits``, by stored statistics; with it ``(params, inputs, state) ->
    (logits, new_state)``, by those of the batch. Networks without state take and return ``{}``.
    """

    def evaluate(params: Any, inputs: jax.Array, state: State) -> jax.Array:
        return cast(jax.Array, net.apply({"params": params, **state}, inputs, train=False))

    def update(params: Any, inputs: jax.Array, state: State) -> tuple[jax.Array, State]:
        return net.apply({"params": params, **state}, inputs, train=True, mutable=list(state))

    return update if train else evaluate


@functools.cache
def features_fn(net: nn.Module) -> Callable[[Any, jax.Array, State], jax.Array]:
    """``(params, inputs, state) -> (N, F)``, what the network hands to its linear head, by stored statistics.

    Raises:
      ValueError: when traced, if the network does not sow ``features`` into the collection ``intermediates``.
    """

    def features(params: Any, inputs: jax.Array, state: State) -> jax.Array:
        _, sown = net.apply({"params": params, **state}, inputs, train=False, mutable=["intermediates"])
        if "features" not in sown.get("intermediates", {}):
            raise ValueError(f"{type(net).__name__} does not sow its features: self.sow('intermediates', 'features', ...)")
        return sown["intermediates"]["features"][0]

    return features
