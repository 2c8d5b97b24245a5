"""Random crops and flips of a batch of images, and CutMix, inside a compiled training step.

The usual augmentation of small natural images (He et al., CVPR 2016, section 4.2): pad, crop a window of the original
size, mirror half of the images. Each image has its own random numbers. `jaxbp.training.train` takes the functions as
``augment_fn``, and `cutmix` as ``mix_fn``.

>>> import jax, jax.numpy as jnp
>>> from jaxbp.data import augment
>>> augment_fn = augment.crop_and_flip(4)
>>> augment_fn(jax.random.key(0), jnp.ones((8, 32, 32, 3))).shape
(8, 32, 32, 3)
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxbp import checks

AugmentFn = Callable[[jax.Array, jax.Array], jax.Array]  # (key, images (N, H, W, C)) -> images
MixFn = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array, jax.Array]]


@functools.cache  # equal arguments return the same object, so that a training run is traced once
def crop_and_flip(padding: int = 4, *, flip: bool = True, fill: tuple[float, ...] = (0.0,)) -> AugmentFn:
    """Crop by up to ``padding`` pixels in each direction and, if ``flip``, mirror left to right with probability 1/2.

    Args:
      padding: pixels added on each side; along axes of extent 1 (signals (N, L, 1, C)) there is no crop and no mirror image.
      flip: False for digits, whose mirror images have another meaning.
      fill: value of the padding for each channel, or one value for all: 0 is black in raw images, ``tuple(-mean / std)`` in
        normalised images.

    Raises:
      ValueError: a negative padding, or, when called, images that are not (N, H, W, C).
    """
    if padding < 0:
        raise ValueError(f"padding must be at least 0, got {padding}")

    def augment(key: jax.Array, images: jax.Array) -> jax.Array:
        key, images = checks.prng_key(key), _images(images)
        crop_key, flip_key = jax.random.split(key)
        images = _cropped(crop_key, images, padding, jnp.asarray(fill, images.dtype)) if padding else images
        if not flip or images.shape[2] == 1:
            return images
        mirrored = jax.random.bernoulli(flip_key, shape=(len(images), 1, 1, 1))
        return jnp.where(mirrored, images[:, :, ::-1], images)

    return augment


def cutmix(probability: float | jax.Array = 0.5, *, alpha: float = 1.0) -> MixFn:
    """CutMix (Yun et al., ICCV 2019, section 3.1): a box of each image is filled with the same box of another image of the batch.

    The box covers 1 - l of the image, but for what lies beyond its edges, with l from Beta(alpha, alpha) and a uniform centre; a batch
    has one box, and is mixed at all with ``probability``.

    Args:
      probability: from 0 to 1; may be traced.
      alpha: positive.

    Returns:
      ``(key, images (N, H, W, C), labels (N,)) -> (images, labels of the boxes (N,), share of each image that is its own, a scalar)``.

    Raises:
      ValueError: numbers out of range, or, when called, images that are not (N, H, W, C).
    """
    if checks.number(alpha, "alpha", known=True) <= 0:
        raise ValueError(f"alpha must be positive, got {alpha}")
    if not isinstance(probability, jax.core.Tracer) and not 0 <= checks.number(probability, "probability", known=True) <= 1:
        raise ValueError(f"probability must lie between 0 and 1, got {probability}")

    def mix(key: jax.Array, images: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        key, (images, labels) = checks.prng_key(key), checks.labelled_examples((_images(images), labels), "(images, labels)")
        order_key, share_key, centre_key, whether_key = jax.random.split(key, 4)
        order, extents = jax.random.permutation(order_key, len(images)), images.shape[1:3]
        half_side = jnp.sqrt(1 - jax.random.beta(share_key, alpha, alpha)) / 2
        inside = jnp.array(jax.random.uniform(whether_key) < probability)
        for axis, (extent, centre) in enumerate(zip(extents, jax.random.uniform(centre_key, (2,)), strict=True)):
            places = (jnp.arange(extent) + 0.5) / extent
            inside = inside & jnp.expand_dims(jnp.abs(places - centre) < half_side, 1 - axis)
        mixed = jnp.where(inside[:, :, None], images[order], images)
        return mixed, jnp.asarray(labels)[order], 1 - inside.mean(dtype=images.dtype)

    return mix


def _images(images: jax.Array) -> jax.Array:
    images = checks.examples(images, "images")
    if images.ndim != 4 or images.dtype == bool:
        raise ValueError(f"images must be numbers (N, H, W, C), got {images.dtype} of shape {images.shape}")
    return images


def _cropped(key: jax.Array, images: jax.Array, padding: int, fill: jax.Array) -> jax.Array:
    margins = [padding if extent > 1 else 0 for extent in images.shape[1:3]]
    pads = [(0, 0), *((m, m) for m in margins), (0, 0)]
    padded = jnp.pad(images - fill, pads) + fill
    corners = jax.random.randint(key, (len(images), 2), 0, jnp.array(margins) * 2 + 1)
    cut = jax.vmap(lambda image, corner: jax.lax.dynamic_slice(image, (*corner, 0), images.shape[1:]))
    return cut(padded, corners)
