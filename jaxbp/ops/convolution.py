"""One convolution, several formulations: equal results, and fast derivatives inside compiled loops on the CPU.

XLA's CPU backend runs ``lax.conv_general_dilated`` well, but not its derivatives inside a loop (``scan``, ``fori_loop``,
``lax.map``): autodiff writes the two backward products as convolutions with permuted dimension labels, XLA does not
canonicalise them in a loop body, and runs them by naive code that is 3-60 times slower (JAX issue 12868). The same happens
without a loop when kernels are vmapped, because they become a grouped convolution.

A convolution relates three arrays, an input x (N, \\*spatial, C), a kernel k (\\*window, C, O) and an output
y (N, \\*spatial', O), by a trilinear form; a *product* takes two of them and returns the third:
*output* (x, k) -> y is the convolution, *input* (y, k) -> x and *kernel* (x, y) -> k are its two gradients. Every
derivative of a product is again one of the three products. So a single JAX primitive represents all three. It is closed under forward
mode, reverse mode, any mix of them (Hessian products, gradients of gradients) and vmap, and each product is written
in a fast form when it is lowered, with its final shapes known:

- ``vjp``     each product as a plain channels-last convolution with explicitly transposed operands, which XLA runs on its fast
              path in and out of loops;
- ``winograd`` `jaxbp.ops.winograd`, for 3x3 kernels of stride 1 with enough channels: 16 multiplications for 36;
- ``im2col``  patches cut out by slices, then one matrix product: better for 1x1 kernels, few channels, signals, small images;
- ``xla``     ``lax.conv_general_dilated`` itself, derivatives and all: the choice on GPU and TPU;
- ``auto``    the rule of `choose`.

>>> import flax.linen as nn, jax, jax.numpy as jnp
>>> from jaxbp.ops.convolution import conv_with
>>> layer = nn.Conv(8, (3, 3), conv_general_dilated=conv_with("auto"))  # for any nn.Conv
>>> variables = layer.init(jax.random.key(0), jnp.ones((2, 8, 8, 3)))   # the usual parameters
>>> layer.apply(variables, jnp.ones((2, 8, 8, 3))).shape
(2, 8, 8, 8)

Programs that search a jaxpr for ``conv_general_dilated`` (`jax.experimental.jet`, neural-tangents) find the primitive
``jaxbp_conv`` instead: use ``xla`` for them.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from jaxbp.ops import depthwise, platform, winograd
from jaxbp.ops.taps import taps

FORMULATIONS = ("auto", "xla", "vjp", "im2col", "winograd")

_PATCH_BYTES = 2**22  # im2col is slower where patches exceed the cache
_MIN_CHANNELS = 32  # on both sides, below which the memory traffic of `winograd` costs more than it saves
_MIN_TILES = 64  # of 2 x 2 outputs, below which the transform of the kernel costs more than it saves
_PART_ROWS = 2**13  # positions (N * output pixels) in a part of a kernel gradient, see `_conv_kernel`
_MAX_PARTS = 8


def choose(
    backend: str,
    lhs_shape: Sequence[int],
    rhs_shape: Sequence[int],
    out_shape: Sequence[int],
    *,
    product: str = "output",
    strides: Sequence[int] = (),
    dilation: Sequence[int] = (),
    itemsize: int = 4,
    num_kernels: int = 1,
) -> str:
    """Return the formulation that ``auto`` uses for a product: ``xla``, ``vjp``, ``im2col``, ``winograd`` or ``loop``.

    ``loop`` is for vmapped kernels only: one kernel after another, each by its own choice.

    The thresholds rest on measurements on two cores, see `experiments/guide/benchmarks.md`.

    Args:
      backend: as `jax.default_backend` names it.
      lhs_shape: input (N, \\*spatial, C) of one kernel.
      rhs_shape: kernel (\\*window, C, O).
      out_shape: output (N, \\*spatial', O).
      product: "output", or one of the gradients "input" and "kernel".
      strides, dilation: of the kernel, a number for each spatial axis; default 1.
      itemsize: bytes of a number.
      num_kernels: number of vmapped kernels, each with its own input.
    """
    if backend != "cpu":
        return "xla"
    patch_bytes = itemsize * math.prod(out_shape[:-1]) * math.prod(rhs_shape[:-1])
    if num_kernels > 1:
        return "im2col" if num_kernels * patch_bytes <= _PATCH_BYTES else "loop"
    *window, c_in, c_out = rhs_shape
    if math.prod(window) == 1 or sum(size > 1 for size in lhs_shape[1:-1]) <= 1:  # pointwise, or a signal
        return "im2col"
    if max(strides, default=1) > 1:
        return "im2col" if product == "kernel" else "vjp"  # patches added up would be added up again by each use of the sum
    wide = min(c_in, c_out) >= _MIN_CHANNELS
    if wide and _winograd_applies(window, strides, dilation):
        num_tiles = math.prod(out_shape[:-1]) // 4
        return "winograd" if product == "kernel" or num_tiles >= _MIN_TILES else "im2col"
    if product == "kernel":
        return "vjp"
    few = c_in <= 4 or (min(c_in, c_out) <= 8 and patch_bytes <= _PATCH_BYTES)
    return "im2col" if few else "vjp"


def _winograd_applies(window: Sequence[int], strides: Sequence[int], dilation: Sequence[int]) -> bool:
    return tuple(window) == (3, 3) and max((*strides, *dilation), default=1) == 1


def conv_general_dilated(
    lhs: jax.Array,
    rhs: jax.Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
    precision: Any = None,
    preferred_element_type: Any = None,
    *,
    formulation: str = "auto",
) -> jax.Array:
    """Convolve as `jax.lax.conv_general_dilated` does, by the given formulation.

    Arguments, value, derivatives and errors are those of `jax.lax.conv_general_dilated`. The fast formulations
    cover floating-point convolutions with channels-last ``dimension_numbers`` (``("NHWC", "HWIO", "NHWC")`` and its
    like in 1 to n dimensions, as `flax.linen.Conv` passes them) without groups and without input dilation, for every
    stride, padding, window and kernel dilation. For all others ``auto`` falls back on `jax.lax`, but for depthwise convolutions, as
    many groups as channels on either side, which are those of `jaxbp.ops.depthwise`. The default of ``dimension_numbers`` means
    channels first, as in `jax.lax`.

    Raises:
      ValueError: an unknown formulation, or a named fast formulation that does not apply.
    """
    if formulation not in FORMULATIONS:
        raise ValueError(f"unknown formulation {formulation!r}: choose one of {', '.join(FORMULATIONS)}")
    plain = functools.partial(
        lax.conv_general_dilated,
        window_strides=window_strides,
        padding=padding,
        lhs_dilation=lhs_dilation,
        rhs_dilation=rhs_dilation,
        dimension_numbers=dimension_numbers,
        feature_group_count=feature_group_count,
        batch_group_count=batch_group_count,
        precision=precision,
        preferred_element_type=preferred_element_type,
    )
    if formulation == "xla" or (formulation == "auto" and platform.current() != "cpu"):
        return plain(lhs, rhs)
    out = jax.eval_shape(plain, lhs, rhs)  # lax checks the arguments, with its own messages
    if 0 in (*lhs.shape, *rhs.shape, *out.shape):
        return plain(lhs, rhs)
    dilation = tuple(rhs_dilation or (1,) * (lhs.ndim - 2))
    precision = tuple(precision) if isinstance(precision, list) else precision
    num_groups = feature_group_count * batch_group_count
    obstacle = _obstacle(lhs, rhs, out, lhs_dilation, dimension_numbers)
    if formulation == "auto" and not obstacle and 1 < feature_group_count == num_groups == lhs.shape[-1] == rhs.shape[-1]:
        pads, numbers = _pads(lhs, rhs, window_strides, padding, dilation), _channels_last(lhs.ndim - 2)
        return depthwise.convolve(depthwise.Geometry(tuple(window_strides), pads, dilation, numbers, precision), lhs, rhs)
    if num_groups != 1:
        obstacle = obstacle or f"groups must be 1, got feature_group_count * batch_group_count = {num_groups}"
    if formulation == "winograd" and not _winograd_applies(rhs.shape[:-2], window_strides, rhs_dilation or ()):
        obstacle = f"it takes 3x3 kernels of stride and dilation 1, got a window of {rhs.shape[:-2]}, strides {window_strides}"
    if obstacle and formulation == "auto":
        return plain(lhs, rhs)
    if obstacle:
        raise ValueError(
            f"formulation {formulation!r} does not apply: {obstacle}; use formulation='auto', which falls back on jax.lax here, or 'xla'"
        )
    spec = _Spec(
        strides=tuple(window_strides),
        padding=_pads(lhs, rhs, window_strides, padding, dilation),
        dilation=dilation,
        spatial=lhs.shape[1:-1],
        window=rhs.shape[:-2],
        precision=precision,
        formulation=formulation,
    )
    return _conv_p.bind(*_vary_alike(lhs, rhs), spec=spec)


def conv_with(formulation: str):
    """Return `conv_general_dilated` with the formulation bound, for the ``conv_general_dilated`` field of `nn.Conv`.

    Results for the same formulation are equal and have equal hashes, so Flax modules that hold them do not retrace.
    """
    return _Bound(formulation)


@dataclasses.dataclass(frozen=True)
class _Bound:
    formulation: str

    def __post_init__(self):
        if self.formulation not in FORMULATIONS:
            raise ValueError(f"unknown formulation {self.formulation!r}: choose one of {', '.join(FORMULATIONS)}")

    def __call__(self, *args, **kwargs):
        return conv_general_dilated(*args, **kwargs, formulation=self.formulation)


def _pads(lhs, rhs, strides, padding, dilation):
    """The padding of a channels-last convolution as pairs, one for each spatial axis."""
    if isinstance(padding, str):
        reach = [(k - 1) * d + 1 for k, d in zip(rhs.shape, dilation, strict=False)]
        padding = lax.padtype_to_pads(lhs.shape[1:-1], reach, strides, padding)
    return tuple((lo, hi) for lo, hi in padding)


def _obstacle(lhs, rhs, out, lhs_dilation, dimension_numbers):
    """The reason why the fast formulations do not apply to a convolution, whatever its groups, or None."""
    n = lhs.ndim - 2
    numbers = lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
    if n < 1 or numbers != _channels_last(n):
        return f"dimension_numbers must be channels last ('NHWC', 'HWIO', 'NHWC'), got {dimension_numbers}"
    if any(d != 1 for d in lhs_dilation or ()):
        return f"lhs_dilation must be 1, got {tuple(lhs_dilation)}"
    if not jnp.issubdtype(lhs.dtype, jnp.floating) or out.dtype != lhs.dtype:
        return f"operands and result must be of one floating dtype, got {lhs.dtype} -> {out.dtype}"
    if not all(isinstance(size, int) for size in (*lhs.shape, *rhs.shape)):
        return f"shapes must be known, got {lhs.shape} and {rhs.shape}"
    if any(axis is not None for x in (lhs, rhs) for axis in jax.typeof(x).sharding.spec):
        return "arrays must not be sharded over Explicit mesh axes (build the mesh with axis_types Auto)"
    return None


def _channels_last(n):
    return lax.ConvDimensionNumbers((0, n + 1, *range(1, n + 1)), (n + 1, n, *range(n)), (0, n + 1, *range(1, n + 1)))


def _vary_alike(lhs, rhs):
    """Mark both operands as varying over the same axes of a `jax.shard_map`, like the operations of lax."""

    def varying(x):
        aval = jax.typeof(x)
        return aval.vma if hasattr(aval, "vma") else aval.manual_axis_type.varying

    axes = varying(lhs) | varying(rhs)
    return [lax.pcast(x, tuple(axes - varying(x)), to="varying") if axes - varying(x) else x for x in (lhs, rhs)]


# The three products, each named for its result; the operands of each product, and the axes of each array.
_OPERANDS = {"output": ("input", "kernel"), "input": ("output", "kernel"), "kernel": ("input", "output")}
_AXES = {"input": "NC", "kernel": "CO", "output": "NO"}


@dataclasses.dataclass(frozen=True)
class _Spec:
    """The static parameters of a product; tuples have an entry for each spatial dimension.

    Attributes:
      strides, padding: of the convolution.
      dilation, window: of the kernel.
      spatial: extents of the input.
      precision: as in `jax.lax`.
      formulation: one of `FORMULATIONS`.
      product: "output", "input" or "kernel".
      stacked: whether both operands and the result have a leading axis, with a separate product for each slice.
    """

    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    spatial: tuple[int, ...]
    window: tuple[int, ...]
    precision: Any
    formulation: str
    product: str = "output"
    stacked: bool = False

    def reach(self):
        return tuple((k - 1) * d + 1 for k, d in zip(self.window, self.dilation, strict=True))

    def out_spatial(self):
        sizes = zip(self.spatial, self.padding, self.reach(), self.strides, strict=True)
        return tuple((h + lo + hi - r) // s + 1 for h, (lo, hi), r, s in sizes)

    def axis(self, array, letter):
        """Position of N, C or O in an array, counted from the end."""
        if letter == "N":
            return -len(self.spatial) - 2
        return -2 if (array, letter) == ("kernel", "C") else -1

    def shapes(self, lhs, rhs):
        """Shapes of input, kernel and output of one slice, given the operands."""
        size = {}
        for array, x in zip(_OPERANDS[self.product], (lhs, rhs), strict=True):
            size |= {letter: x.shape[self.axis(array, letter)] for letter in _AXES[array]}
        return {
            "input": (size["N"], *self.spatial, size["C"]),
            "kernel": (*self.window, size["C"], size["O"]),
            "output": (size["N"], *self.out_spatial(), size["O"]),
        }


# `vjp`: every product a plain channels-last convolution.


def _conv(spec, lhs, rhs, **geometry):
    numbers = _channels_last(len(spec.spatial))
    return lax.conv_general_dilated(lhs, rhs, dimension_numbers=numbers, precision=spec.precision, **geometry)


def _conv_output(spec, x, k):
    if any(size < width for size, width in zip(spec.spatial, spec.window, strict=True)):
        return _patch_output(spec, x, k)  # XLA runs a window wider than its input by naive code (8-14x slower)
    return _conv(spec, x, k, window_strides=spec.strides, padding=spec.padding, rhs_dilation=spec.dilation)


def _conv_input(spec, y, k):
    if any(size < width for size, width in zip(spec.out_spatial(), spec.window, strict=True)):
        return _patch_input(spec, y, k)
    n = len(spec.spatial)
    sizes = zip(spec.spatial, spec.out_spatial(), spec.reach(), spec.strides, spec.padding, strict=True)
    padding = [(r - 1 - lo, h + lo - ((o - 1) * s + 1)) for h, o, r, s, (lo, _) in sizes]
    flipped = jnp.flip(k, range(n)).swapaxes(-1, -2)
    geometry = {"window_strides": (1,) * n, "lhs_dilation": spec.strides, "rhs_dilation": spec.dilation}
    return _conv(spec, y, flipped, padding=padding, **geometry)


def _conv_kernel(spec, x, y):
    n = len(spec.spatial)
    sizes = zip(spec.spatial, spec.out_spatial(), spec.reach(), spec.strides, spec.padding, strict=True)
    padding = [(lo, r - 1 + (o - 1) * s + 1 - h - lo) for h, o, r, s, (lo, _) in sizes]
    geometry = {"window_strides": spec.dilation, "padding": padding, "rhs_dilation": spec.strides}

    def part(x, y):  # channels are the batch, the batch is contracted
        out = _conv(spec, jnp.moveaxis(x, (n + 1, 0), (0, n + 1)), jnp.moveaxis(y, 0, n), **geometry)
        return jnp.moveaxis(out, 0, n)

    # The contraction runs over all positions, long and thin; parts of it fit the cache (Hessian product at N = 500: 1.4x).
    num_parts = max(1, min(_MAX_PARTS, x.shape[0], x.shape[0] * math.prod(spec.out_spatial()) // _PART_ROWS))
    cuts = [x.shape[0] * i // num_parts for i in range(num_parts + 1)]
    return functools.reduce(jnp.add, [part(x[a:b], y[a:b]) for a, b in itertools.pairwise(cuts)])


# `im2col`: patches, then a matrix product.


def _patches(spec, x):
    """The inputs of each output position: (N, \\*spatial', \\*window * C), channels fastest."""
    parts = taps(x, spec.window, strides=spec.strides, padding=spec.padding, dilation=spec.dilation)
    return jnp.concatenate(list(parts), axis=-1)


def _patch_output(spec, x, k):
    return jnp.tensordot(_patches(spec, x), k.reshape(math.prod(k.shape[:-1]), k.shape[-1]), 1, precision=spec.precision)


def _patch_input(spec, y, k):
    # In a shard_map x varies as y does: the gradient of an x that is equal on all devices would be summed over them.
    x = jax.typeof(y).update(shape=(y.shape[0], *spec.spatial, k.shape[-2]))
    return jax.linear_transpose(lambda x: _patch_output(spec, x, k), x)(y)[0]


def _patch_kernel(spec, x, y):
    positions = tuple(range(y.ndim - 1))
    k = jnp.tensordot(_patches(spec, x), y, (positions, positions), precision=spec.precision)
    return k.reshape(*spec.window, x.shape[-1], y.shape[-1])


def _winograd_output(spec, x, k):
    return winograd.output(x, k, padding=spec.padding, precision=spec.precision)


def _winograd_input(spec, y, k):
    return winograd.input_gradient(y, k, padding=spec.padding, precision=spec.precision)


def _winograd_kernel(spec, x, y):
    return winograd.kernel_gradient(x, y, padding=spec.padding, precision=spec.precision)


_PRODUCTS = {
    "winograd": {"output": _winograd_output, "input": _winograd_input, "kernel": _winograd_kernel},
    "vjp": {"output": _conv_output, "input": _conv_input, "kernel": _conv_kernel},
    "im2col": {"output": _patch_output, "input": _patch_input, "kernel": _patch_kernel},
}


def _evaluate(lhs, rhs, *, spec):
    """A product in ordinary JAX operations; called when the primitive is lowered, with final shapes."""
    dtype = lhs.dtype
    if jnp.finfo(dtype).bits < 32:  # round once, at the end
        return _evaluate(lhs.astype(jnp.float32), rhs.astype(jnp.float32), spec=spec).astype(dtype)
    evaluate_slice = functools.partial(_evaluate, spec=dataclasses.replace(spec, stacked=False))
    shapes = spec.shapes(lhs, rhs)
    form = spec.formulation
    if form == "auto":
        num_kernels = lhs.shape[0] if spec.stacked else 1
        options = {"product": spec.product, "strides": spec.strides, "dilation": spec.dilation}
        form = choose("cpu", *shapes.values(), **options, itemsize=dtype.itemsize, num_kernels=num_kernels)
    if not spec.stacked:
        return _PRODUCTS[form][spec.product](spec, lhs, rhs)
    if form == "im2col":
        return jax.vmap(functools.partial(_PRODUCTS[form][spec.product], spec))(lhs, rhs)
    return lax.map(lambda operands: evaluate_slice(*operands), (lhs, rhs))


# The primitive: its type, its derivatives (products of the same convolution) and its batching.

_conv_p = Primitive("jaxbp_conv")
_conv_p.def_impl(jax.jit(_evaluate, static_argnames="spec"))
mlir.register_lowering(_conv_p, mlir.lower_fun(_evaluate, multiple_results=False))


@_conv_p.def_abstract_eval
def _abstract(lhs, rhs, *, spec):
    leading = lhs.shape[:1] if spec.stacked else ()
    return lhs.update(shape=(*leading, *spec.shapes(lhs, rhs)[spec.product]), weak_type=False)


def _transpose(side, cotangent, lhs, rhs, *, spec):
    """The transpose with respect to one operand: the product that returns it, of the cotangent and the other operand."""
    result, other = _OPERANDS[spec.product][side], _OPERANDS[spec.product][1 - side]
    given = {spec.product: cotangent, other: (rhs, lhs)[side]}
    operands = [given[array] for array in _OPERANDS[result]]
    return _conv_p.bind(*operands, spec=dataclasses.replace(spec, product=result))


ad.defbilinear(_conv_p, functools.partial(_transpose, 0), functools.partial(_transpose, 1))


def _batch(operands, dims, *, spec):
    """Batch a product: a single batched operand extends an axis that it shares with the result; two batched operands are stacked."""
    size = next(x.shape[d] for x, d in zip(operands, dims, strict=True) if d is not None)
    if spec.stacked or None not in dims:
        stack = [jnp.broadcast_to(x, (size, *x.shape)) if d is None else jnp.moveaxis(x, d, 0) for x, d in zip(operands, dims, strict=True)]
        if not spec.stacked:
            return _conv_p.bind(*stack, spec=dataclasses.replace(spec, stacked=True)), 0
        depth = stack[0].shape[1]
        out = _conv_p.bind(*(x.reshape(size * depth, *x.shape[2:]) for x in stack), spec=spec)
        return out.reshape(size, depth, *out.shape[1:]), 0
    side = 0 if dims[0] is not None else 1
    array = _OPERANDS[spec.product][side]
    (letter,) = set(_AXES[array]) & set(_AXES[spec.product])
    x = operands[side]
    axis = x.ndim - 1 + spec.axis(array, letter)
    x = jnp.moveaxis(x, dims[side], axis)
    extent = x.shape[axis + 1]
    x = x.reshape(*x.shape[:axis], size * extent, *x.shape[axis + 2 :])
    out = _conv_p.bind(*((x, operands[1]) if side == 0 else (operands[0], x)), spec=spec)
    axis = out.ndim + spec.axis(spec.product, letter)
    return out.reshape(*out.shape[:axis], size, extent, *out.shape[axis + 1 :]), axis


batching.primitive_batchers[_conv_p] = _batch
