"""The one registry that names the networks of this package."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import flax.linen as nn

from jaxbp.models.convnet import ConvNet
from jaxbp.models.densenet import DenseNet
from jaxbp.models.from_flax import from_linen
from jaxbp.models.mlp import MLP
from jaxbp.models.mobilenet import MobileNet
from jaxbp.models.network import Network
from jaxbp.models.own import create_own, is_own
from jaxbp.models.resnet import ResNet
from jaxbp.models.vgg import VGG

Width = int | Sequence[int]
_OneOrEach = int | tuple[int, ...]  # a width as the builders get it
_Net = TypeVar("_Net", bound=nn.Module)


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


def _wide_resnet(name: str, num_classes: int, width: _OneOrEach, depth: int | None, options: dict) -> nn.Module:
    return _fixed(ResNet, stage_sizes=(2, 2, 2, 2))(name, num_classes, width, depth, {"widening": 2} | options)


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
    "wideresnet": _wide_resnet,
    "resnet20": _fixed(ResNet, stage_sizes=(3, 3, 3)),
    "resnet34": _fixed(ResNet, stage_sizes=(3, 4, 6, 3)),
    "vgg11": _fixed(VGG),
    "mobilenetv2": _fixed(MobileNet),
    "densenet": _staged(DenseNet, "block_sizes", "blocks", each="layers of every block"),
    "densenet40": _fixed(DenseNet, block_sizes=(6, 6, 6)),
}


def create(name: str, *, num_classes: int, width: Width, depth: int | None = None, **options: Any) -> Network:
    """The network ``name`` of `REGISTRY`, or one of your own.

    Args:
      name: "module:function" for a network of your own (`jaxbp.models.own`); a family; or a network of fixed depth: "resnet18" and the
        paper's "wideresnet" (both four stages of two basic blocks; in the second, stages 2 to 4 are wider by ``widening``, default 2),
        "resnet20" (three stages of three; norm="fixup" is the paper's), "resnet34", "vgg11", "mobilenetv2", "densenet40".
      width: hidden units, of every layer or of each ("mlp": ``(2048, 2048, 1024)`` is that of Goldblum et al., ICLR 2020); channels of
        the first convolution (all others; the sources have 64 for "resnet18", "resnet34" and "vgg11", 32 for
        "mobilenetv2", 24, twice the growth rate, for "densenet40", 16 for "resnet20").
      depth: hidden layers ("mlp", default 2, or as many as there are widths); convolutions ("convnet", default 5);
        blocks of every stage ("resnet", default 2); layers of every block ("densenet", default 6).
      options: ``parametrisation``, ``dtype`` ("float32", or "bfloat16" for mixed precision, see `jaxbp.models.layers`) and the
        family's own fields; for all ResNets
        ``pre_activation`` and ``stem``; for "resnet" also ``stages``, their number (default 4), unless ``stage_sizes`` gives the
        blocks of each; likewise for "densenet" ``blocks`` (default 3) or ``block_sizes``.

    Raises:
      ValueError: an unknown name or option, a width or depth below 1, or ones that do not suit the family.
    """
    if is_own(name):
        return create_own(name, num_classes=num_classes, width=width, depth=depth, **options)
    if name not in REGISTRY:
        raise ValueError(f"there is no model {name!r}: choose one of {', '.join(REGISTRY)}, or name your own as MODULE:FUNCTION")
    width = tuple(width) if isinstance(width, Sequence) else width
    smallest = min(width, default=0) if isinstance(width, tuple) else width
    for label, value, least in (("width", width, smallest), ("depth", depth, 1 if depth is None else depth)):
        if least < 1:
            raise ValueError(f"{label} must be at least 1, got {value}")
    return from_linen(REGISTRY[name](name, num_classes, width, depth, options))
