import itertools

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
import resize_goldens
from resize_goldens import SHAPES

from fdistill.evaluation.resize import RESIZERS, bicubic

RESIZING = sorted(set(RESIZERS) - {'none'})
# A rounding or three of the largest grey level.
CLOSE = 3e-7 * 255


def naive_tf1(images, size):
    """TensorFlow 1's resize_bilinear(align_corners=False), a pixel at a time, its arithmetic in
    float32."""
    count, height, width, channels = images.shape
    out = np.zeros((count, size, size, channels), np.float32)
    for i in range(size):
        y = np.float32(i) * np.float32(height / size)
        top, bottom, v = int(y), min(int(y) + 1, height - 1), y - np.float32(int(y))
        for j in range(size):
            x = np.float32(j) * np.float32(width / size)
            left, right, u = int(x), min(int(x) + 1, width - 1), x - np.float32(int(x))
            for k in range(count):
                a, b = (
                    images[k, top, left].astype(np.float32),
                    images[k, top, right].astype(np.float32),
                )
                c, d = (
                    images[k, bottom, left].astype(np.float32),
                    images[k, bottom, right].astype(np.float32),
                )
                above, below = a + (b - a) * u, c + (d - c) * u
                out[k, i, j] = above + (below - above) * v
    return out


def pillow(images, size):
    """Every channel of every image through Pillow in mode F, clipped."""
    resized = [
        np.asarray(
            PIL.Image.fromarray(channel.astype(np.float32)).resize(
                (size, size), PIL.Image.Resampling.BICUBIC
            )
        )
        for channel in np.moveaxis(images, 3, 1).reshape(-1, *images.shape[1:3])
    ]
    return np.moveaxis(np.reshape(resized, (len(images), -1, size, size)), 1, 3).clip(0, 255)


@pytest.mark.parametrize('shape', SHAPES, ids=str)
@pytest.mark.parametrize('name', RESIZING)
def test_resizes_as_the_programs_do(name, shape):
    height, width, size = shape
    expected = np.load(resize_goldens.GOLDENS)[f'{name}/{height}x{width}to{size}']
    found = RESIZERS[name](resize_goldens.images(height, width), size)
    assert found.dtype == jnp.float32 and found.shape == (2, size, size, 3)
    np.testing.assert_allclose(found, expected, rtol=0, atol=CLOSE)


@pytest.mark.parametrize('shape', [*SHAPES, (32, 32, 47), (1, 3, 4), (2, 2, 1)], ids=str)
def test_tf1_is_a_naive_loop(shape):
    height, width, size = shape
    images = resize_goldens.images(height, width)
    np.testing.assert_allclose(
        RESIZERS['tf1'](images, size), naive_tf1(images, size), rtol=1e-6, atol=CLOSE
    )


@pytest.mark.parametrize('shape', [*SHAPES, (32, 32, 299), (64, 64, 7), (1, 1, 3)], ids=str)
def test_pil_bicubic_is_pillow(shape):
    height, width, size = shape
    images = resize_goldens.images(height, width)[:1]
    np.testing.assert_allclose(
        RESIZERS['pil_bicubic'](images, size), pillow(images, size), rtol=0, atol=CLOSE
    )


@pytest.mark.parametrize('size', [13, 5])
@pytest.mark.parametrize('one, other', list(itertools.combinations(RESIZING, 2)))
def test_families_differ(one, other, size):
    # By whole grey levels, so that no change of one into another passes unseen.
    images = resize_goldens.images(8, 8)
    difference = np.abs(
        np.asarray(RESIZERS[one](images, size)) - np.asarray(RESIZERS[other](images, size))
    ).max()
    clipped = {one, other} == {'pil_bicubic', 'torch_bicubic_antialias'}
    assert difference > (1 if clipped else 20), (one, other)


def test_tf1_starts_at_the_first_pixel_and_torch_half_a_pixel_before():
    ramp = np.tile(np.arange(4, dtype=np.float32), (1, 4, 1))[..., None]
    row = {name: np.asarray(RESIZERS[name](ramp, 8))[0, 0, :, 0] for name in ('tf1', 'torch')}
    assert row['tf1'] == pytest.approx([0, 0.5, 1, 1.5, 2, 2.5, 3, 3])
    assert row['torch'] == pytest.approx([0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3])


def test_only_torch_bicubic_overshoots():
    images = np.zeros((1, 8, 8, 1), np.uint8)
    images[:, :, 4:] = 255
    extremes = {
        name: (float(x.min()), float(x.max()))
        for name in RESIZING
        for x in [RESIZERS[name](images, 32)]
    }
    low, high = extremes.pop('torch_bicubic_antialias')
    assert low < -5 and high > 260
    assert all(low >= 0 and high <= 255 for low, high in extremes.values())


@pytest.mark.parametrize('name', RESIZING)
def test_a_constant_stays_one_and_types_agree(name):
    images = np.full((1, 9, 7, 2), 201, np.uint8)
    np.testing.assert_allclose(RESIZERS[name](images, 11), 201, rtol=1e-6)
    np.testing.assert_array_equal(
        RESIZERS[name](images, 11), RESIZERS[name](images.astype(np.float32), 11)
    )


@pytest.mark.parametrize('name', RESIZING)
def test_a_size_kept_keeps_the_pixels(name):
    images = resize_goldens.images(6, 6)
    np.testing.assert_array_equal(RESIZERS[name](images, 6), images)


@pytest.mark.parametrize('n, size', [(4, 299), (299, 4), (7, 7), (1, 5)])
def test_bicubic_weights_sum_to_one(n, size):
    weights = bicubic(n, size)
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-6)
    assert (weights.min() < 0) == (n > 1 and n != size)


@pytest.mark.parametrize('name', RESIZING)
def test_products_are_not_rounded_on_accelerators(name):
    jaxpr = str(jax.make_jaxpr(lambda x: RESIZERS[name](x, 5))(jnp.zeros((1, 8, 8, 3))))
    assert (
        jaxpr.count('dot_general[')
        == 2
        == jaxpr.count('precision=(Precision.HIGHEST, Precision.HIGHEST)')
    ), jaxpr


@pytest.mark.parametrize('name', RESIZERS)
def test_what_cannot_be_resized_is_refused(name):
    with pytest.raises(ValueError, match='shape'):
        RESIZERS[name](np.zeros((8, 8, 3), np.uint8), 8)
    with pytest.raises(ValueError, match='shape'):
        RESIZERS[name](np.zeros((1, 8, 8, 3), np.uint8), 0)


def test_none_takes_its_size_only():
    images = resize_goldens.images(6, 6)
    np.testing.assert_array_equal(RESIZERS['none'](images, 6), images)
    assert RESIZERS['none'](images, 6).dtype == jnp.float32
    with pytest.raises(ValueError, match="'none' takes"):
        RESIZERS['none'](images, 7)
