"""What each tap of a convolution's window sees: slices of the padded input, one for each place in the window.

>>> import jax.numpy as jnp
>>> from jaxbp.ops.taps import taps
>>> signal = jnp.arange(4.0).reshape(1, 4, 1)
>>> [part.ravel().tolist() for part in taps(signal, (2,), strides=(2,), padding=((1, 1),), dilation=(1,))]
[[0.0, 1.0, 3.0], [0.0, 2.0, 0.0]]
"""

import itertools
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


def taps(
    inputs: Float[Array, "N *spatial C"],
    window: Sequence[int],
    *,
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    dilation: Sequence[int],
) -> Iterator[jax.Array]:
    """The inputs (N, \\*spatial', C) of all output positions by tap, in the order of the kernel's entries (\\*window).

    Args:
      inputs: channels last.
      window: taps along each spatial axis.
      strides, padding, dilation: of the convolution, an entry for each spatial axis; padding may be negative.
    """
    edges = ((0, 0, 0), *((low, high, 0) for low, high in padding), (0, 0, 0))
    padded = lax.pad(inputs, jnp.zeros((), inputs.dtype), edges)
    axes = zip(padded.shape[1:-1], window, strides, dilation, strict=True)
    sizes = [(extent - (width - 1) * d - 1) // stride * stride + 1 for extent, width, stride, d in axes]
    for place in itertools.product(*map(range, window)):
        starts = [index * d for index, d in zip(place, dilation, strict=True)]
        ends = [start + size for start, size in zip(starts, sizes, strict=True)]
        yield lax.slice(padded, (0, *starts, 0), (len(padded), *ends, padded.shape[-1]), (1, *strides, 1))
