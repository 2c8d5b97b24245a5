"""Crops and flips: what each image becomes, how often, and with whose random numbers."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbp.data import augment


def numbered(height, width, channels=2):
    """Images in which every pixel has a number of its own, from 1."""
    return 1.0 + jnp.arange(height * width * channels, dtype=jnp.float32).reshape(1, height, width, channels)


def windows(image, padding, fill):
    """All windows of a padded image, by plain loops."""
    height, width, _ = image.shape
    padded = np.pad(np.asarray(image), ((padding, padding), (padding, padding), (0, 0)))
    outside = np.pad(np.ones(image.shape[:2], bool), padding) == 0
    padded[outside] = fill
    return [padded[i : i + height, j : j + width] for i in range(2 * padding + 1) for j in range(2 * padding + 1)]


def test_every_window_and_its_mirror_image_comes_equally_often():
    image = numbered(3, 4)
    copies = jnp.broadcast_to(image, (9000, *image.shape[1:]))
    out = jax.jit(augment.crop_and_flip(1, fill=(-1.0, -2.0)))(jax.random.key(0), copies)
    wanted = windows(image[0], 1, np.array([-1.0, -2.0]))
    wanted += [w[:, ::-1] for w in wanted]
    counts = collections.Counter(np.asarray(o).tobytes() for o in out)
    assert set(counts) == {np.ascontiguousarray(w, np.float32).tobytes() for w in wanted}
    expected = 9000 / 18
    chi_squared = sum((n - expected) ** 2 / expected for n in counts.values())
    assert chi_squared < 40.8  # 0.999 quantile for 17 degrees of freedom


def test_without_flip_and_without_padding():
    images = numbered(3, 4)
    np.testing.assert_array_equal(augment.crop_and_flip(0, flip=False)(jax.random.key(0), images), images)
    out = augment.crop_and_flip(0)(jax.random.key(0), jnp.broadcast_to(images, (50, 3, 4, 2)))
    mirrored = np.array([bool((o == images[0, :, ::-1]).all()) for o in out])
    assert 10 < mirrored.sum() < 40
    assert all((o == images[0]).all() for o in out[~mirrored])


def test_signals_are_cropped_along_their_length_only():
    signals = jnp.broadcast_to(numbered(5, 1), (200, 5, 1, 2))
    out = np.asarray(augment.crop_and_flip(2)(jax.random.key(3), signals))
    padded = np.pad(np.asarray(signals[0]), ((2, 2), (0, 0), (0, 0)))
    assert {o.tobytes() for o in out} == {padded[i : i + 5].tobytes() for i in range(5)}


def test_cutmix_fills_one_box_and_says_what_is_left():
    images = jnp.arange(1.0, 7.0)[:, None, None, None] * jnp.ones((6, 8, 10, 2))
    labels = jnp.arange(6)
    mix = jax.jit(jax.vmap(augment.cutmix(1.0), (0, None, None)))
    mixed, others, shares = jax.tree.map(np.asarray, mix(jax.random.split(jax.random.key(0), 400), images, labels))
    own = mixed == np.asarray(images)
    for batch in range(20):
        assert sorted(others[batch]) == list(range(6))
        moved = others[batch] != np.arange(6)
        foreign = ~own[batch][moved]
        assert (foreign == foreign[:1]).all()  # one box for the batch
        rows, columns = foreign[0, :, :, 0].any(1), foreign[0, :, :, 0].any(0)
        assert (foreign[0, :, :, 0] == rows[:, None] & columns).all()
        assert all(np.diff(np.flatnonzero(part)).max(initial=1) == 1 for part in (rows, columns))
        boxes = np.broadcast_to(1 + others[batch][:, None, None, None], mixed[batch].shape)
        np.testing.assert_array_equal(mixed[batch][~own[batch]], boxes[~own[batch]])
        assert shares[batch] == pytest.approx(1 - foreign[0].mean())
    # the box's expected area, by numbers: sides sqrt(1 - l), l uniform, cut at the edges
    side, centre = np.sqrt((np.arange(1000) + 0.5) / 1000)[:, None], (np.arange(1000) + 0.5) / 1000
    inside = np.minimum(centre + side / 2, 1) - np.maximum(centre - side / 2, 0)
    assert 1 - shares.mean() == pytest.approx((inside.mean(1) ** 2).mean(), abs=float(4 * shares.std() / 20))


@pytest.mark.slow
def test_cutmix_at_times():
    images, labels = numbered(3, 4) * jnp.arange(1.0, 5.0)[:, None, None, None], jnp.arange(4)
    never, _, share = augment.cutmix(0.0)(jax.random.key(0), images, labels)
    np.testing.assert_array_equal(never, images)
    assert share == 1
    shares = jax.vmap(augment.cutmix(0.25), (0, None, None))(jax.random.split(jax.random.key(0), 800), images, labels)[2]
    assert 0.12 < float((shares < 1).mean()) < 0.25  # some boxes hold no pixel's centre
    with pytest.raises(ValueError, match="alpha must be positive, got 0"):
        augment.cutmix(alpha=0)
    with pytest.raises(ValueError, match="probability must lie between 0 and 1, got 2"):
        augment.cutmix(2)


def test_equal_arguments_are_one_function_and_misuse_is_named():
    assert augment.crop_and_flip(4, flip=False) is augment.crop_and_flip(4, flip=False)
    with pytest.raises(ValueError, match="padding must be at least 0, got -1"):
        augment.crop_and_flip(-1)
    with pytest.raises(ValueError, match=r"images must be numbers \(N, H, W, C\), got float32 of shape \(2, 3\)"):
        augment.crop_and_flip(1)(jax.random.key(0), jnp.ones((2, 3)))
