"""Augmentation: labels against the paper's table, exact moves, and waves against their analytic
transforms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from fdistill import build
from fdistill.diffusion import augment
from fdistill.errors import UserError
from fdistill.networks import NETWORKS

KEY = jax.random.key(5)
warp = jax.jit(augment.warp)
augmented = jax.jit(augment.augment, static_argnames=('probability', 'x_flip'))


def images(batch=3, size=8, seed=0):
    return np.random.default_rng(seed).normal(size=(batch, size, size, 2)).astype(np.float32)


def labels(batch=1, **values):
    """All 0 but for those named by their index, as l7=1."""
    found = np.zeros((batch, 9), np.float32)
    for name, value in values.items():
        found[:, int(name[1:])] = value
    return found


def turned(angle):
    return {'l3': np.cos(angle) - 1, 'l4': np.sin(angle)}


# Labels.


@pytest.mark.parametrize('probability', [0.12, 1.0])
def test_labels_have_the_moments_of_the_table(probability):
    """Five standard errors: means, variances, shares of zeros, and which are drawn together."""
    n, p = 100_000, probability
    drawn = np.asarray(augment.draw(KEY, n, probability=p))
    assert drawn.shape == (n, 9) and drawn.dtype == np.float32
    mean = np.array([0.5, p / 2, 0, -p, 0, 0, 0, 0, 0])
    square = np.array([0.5, p / 2, p, 1.5 * p, p / 2, p / 2, p / 2, p, p])
    # E a^4: 3 of a normal, 3/8 of a cosine, both of their product, 35/8 of cos - 1.
    fourth = np.array(
        [0.5, p / 2, 3 * p, 35 / 8 * p, 3 / 8 * p, 9 / 8 * p, 9 / 8 * p, 3 * p, 3 * p]
    )
    error = 5 / np.sqrt(n)
    np.testing.assert_array_less(np.abs(drawn.mean(0) - mean), error * np.sqrt(square))
    np.testing.assert_array_less(
        np.abs((drawn.astype(np.float64) ** 2).mean(0) - square), error * np.sqrt(fourth)
    )
    # Both of a pair or neither; but cos - 1 is rounded to 0 for some angles.
    assert np.all(drawn[drawn[:, 4] == 0, 3] == 0)
    for one, other in ((5, 6), (7, 8)):
        np.testing.assert_array_equal(drawn[:, one] != 0, drawn[:, other] != 0)
    happened = (drawn[:, [2, 4, 5, 7]] != 0).astype(np.float64)
    np.testing.assert_allclose(happened.mean(0), p, atol=error)
    # Independently of one another.
    together = happened.T @ happened / n
    np.testing.assert_allclose(together, np.where(np.eye(4), p, p * p), atol=error)
    np.testing.assert_allclose(np.mean(drawn[:, 0] * drawn[:, 1]), p / 4, atol=error)


def test_angles_are_uniform_and_the_stretch_is_half_normal():
    drawn = np.asarray(augment.draw(KEY, 100_000, probability=1.0), np.float64)
    for x, y in ((1 + drawn[:, 3], drawn[:, 4]), (drawn[:, 5], drawn[:, 6])):
        counts, _ = np.histogram(np.arctan2(y, x), 20, (-np.pi, np.pi))
        np.testing.assert_allclose(counts, 5000, atol=5 * np.sqrt(5000))
    np.testing.assert_allclose(np.hypot(1 + drawn[:, 3], drawn[:, 4]), 1, atol=1e-6)
    length = np.hypot(drawn[:, 5], drawn[:, 6])
    assert length.mean() == pytest.approx(np.sqrt(2 / np.pi), abs=0.01)
    assert (length**2).mean() == pytest.approx(1, abs=0.025)


def test_probability_zero_leaves_the_flips_of_half_the_images():
    x = images(200)
    moved, drawn = augmented(KEY, x, probability=0.0)
    assert not np.any(drawn[:, 1:])
    flipped = np.asarray(drawn)[:, 0] == 1
    assert 60 < flipped.sum() < 140
    np.testing.assert_array_equal(moved, np.where(flipped[:, None, None, None], x[:, :, ::-1], x))
    moved, drawn = augmented(KEY, x, probability=0.0, x_flip=0.0)
    assert not np.any(drawn)
    np.testing.assert_array_equal(moved, x)


# Exact moves.

QUARTERS = {k: {'l3': np.rint(np.cos(k * np.pi / 2)) - 1, 'l4': (0, 1, 0, -1)[k]} for k in range(4)}


@pytest.mark.parametrize('size', [1, 2, 7, 8])
def test_what_moves_pixels_to_pixels_is_exact(size):
    x = images(size=size)
    np.testing.assert_array_equal(warp(x, labels(3)), x)
    np.testing.assert_array_equal(warp(x, labels(3, l0=1)), x[:, :, ::-1])
    np.testing.assert_array_equal(warp(x, labels(3, l1=1)), x[:, ::-1])
    for k, quarter in QUARTERS.items():
        np.testing.assert_array_equal(warp(x, labels(3, **quarter)), np.rot90(x, k, (1, 2)))
        # Mirrored first, then turned.
        both = labels(3, l0=1, **quarter)
        np.testing.assert_array_equal(warp(x, both), np.rot90(x[:, :, ::-1], k, (1, 2)))


def test_whole_pixels_bring_in_the_reflection():
    """One to the right and two down, and by more than the image is wide."""
    x = images()
    inside = np.pad(x, ((0, 0), (2, 0), (1, 0), (0, 0)), 'reflect')[:, :8, :8]
    np.testing.assert_array_equal(warp(x, labels(3, l7=1, l8=2)), inside)
    far = np.pad(x, ((0, 0), (0, 0), (0, 30), (0, 0)), 'reflect')[:, :, 27:35]
    np.testing.assert_array_equal(warp(x, labels(3, l7=-27)), far)


def test_sides_of_different_lengths():
    x = np.random.default_rng(0).normal(size=(1, 4, 8, 1)).astype(np.float32)
    np.testing.assert_array_equal(warp(x, labels(**QUARTERS[2])), x[:, ::-1, ::-1])
    moved = np.pad(x, ((0, 0), (1, 0), (1, 0), (0, 0)), 'reflect')[:, :4, :8]
    np.testing.assert_array_equal(warp(x, labels(l7=1, l8=2)), moved)


# Smooth images.

SIZE = 48
GRID = np.stack(np.meshgrid(*2 * [np.arange(SIZE) - (SIZE - 1) / 2]))
S = 2**0.2


def rotation(angle):
    """Of (x, y), y pointing down: clockwise as one sees it."""
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


def wave(at, pixels):
    return np.sin(2 * np.pi / pixels * (0.8 * at[0] + 0.6 * at[1]) + 0.4)


STRETCH = rotation(0.5) @ np.diag([S**0.9, S**-0.9]) @ rotation(-0.5)
MOVES = {
    'larger': ({'l2': 0.7}, np.diag([S**0.7] * 2)),
    'smaller': ({'l2': -0.7}, np.diag([S**-0.7] * 2)),
    'anticlockwise': (turned(0.4), rotation(-0.4)),
    'stretched': ({'l5': 0.9 * np.cos(0.5), 'l6': 0.9 * np.sin(0.5)}, STRETCH),
    'all': (
        {'l0': 1, 'l1': 1, 'l2': 0.7, 'l5': 0.9 * np.cos(0.5), 'l6': 0.9 * np.sin(0.5)}
        | turned(2.4),
        STRETCH @ rotation(-2.4) @ np.diag([-(S**0.7)] * 2),
    ),
}


@pytest.mark.parametrize(('pixels', 'error'), [(8, 2e-3), (16, 1e-4), (32, 1e-5)])
@pytest.mark.parametrize('name', MOVES)
def test_a_wave_is_the_analytic_one(name, pixels, error):
    """out(p) = in(A^-1 (p - t)), away from the edges; the error is that of the docstring."""
    label, forward = MOVES[name]
    shift = np.array([0.4 * SIZE / 8, -0.3 * SIZE / 8])
    x = wave(GRID, pixels)[None, ..., None].astype(np.float32)
    moved = np.asarray(warp(x, labels(**label, l7=0.4, l8=-0.3)))[0, ..., 0]
    source = np.einsum('ij,jhw->ihw', np.linalg.inv(forward), GRID - shift[:, None, None])
    inside = np.all(np.abs(source) < SIZE / 2 - 4, axis=0)
    assert inside.sum() > 500
    exact = wave(source, pixels)
    assert np.max(np.abs(moved - exact)[inside]) < error


@pytest.mark.optimised
def test_constants_stay_and_moves_are_continuous_in_the_labels():
    drawn = np.asarray(augment.draw(KEY, 64, probability=1.0))
    np.testing.assert_allclose(warp(np.ones((64, 8, 8, 1), np.float32), drawn), 1, atol=1e-6)
    x = images(64)
    for index in range(2, 9):
        near = drawn * (np.arange(9) != index)
        # Anisotropy's labels at once are the hard case: their length divides.
        near[:, 5:7] *= index not in (5, 6)
        a_little = near.copy()
        a_little[:, index] = 1e-6
        np.testing.assert_allclose(warp(x, a_little), warp(x, near), atol=1e-4)
        assert np.all(np.isfinite(warp(x, near)))


# In a training step.


def test_vmap_and_dtypes():
    x = images(4)
    moved, drawn = augmented(KEY, x, probability=1.0)
    assert moved.shape == x.shape and moved.dtype == drawn.dtype == jnp.float32
    many = jax.jit(jax.vmap(lambda key, x: augment.augment(key, x, probability=1.0)))
    found = many(jnp.stack([KEY, jax.random.key(6)]), np.stack([x, x]))
    np.testing.assert_allclose(found[0][0], moved, atol=1e-5)
    np.testing.assert_allclose(found[1][0], drawn, atol=1e-6)
    assert not np.allclose(found[1][1], drawn)
    half = x.astype(jnp.bfloat16)
    assert warp(half, drawn).dtype == jnp.bfloat16
    np.testing.assert_array_equal(warp(half, 0 * drawn), half)


def test_networks_take_the_labels():
    """Nine of them, as networks of augment_dim=9 want."""
    network = NETWORKS['ddpmpp'](
        resolution=8,
        channels=2,
        augment_dim=9,
        model_channels=8,
        channel_mult=(1,),
        num_blocks=1,
        attn_resolutions=(),
    )
    x, drawn = augmented(KEY, images(4), probability=1.0)
    c_noise, condition = jnp.zeros(4), {'augment': drawn}
    shapes = jax.eval_shape(
        lambda x: network.apply(network.init(KEY, x, c_noise, condition), x, c_noise, condition)[0],
        x,
    )
    assert shapes.shape == x.shape


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'probability': 1.1}, r'probability=1.1: must lie in \[0, 1\]'),
        ({'probability': float('nan')}, 'probability=nan'),
        ({'x_flip': -0.1}, r'x_flip=-0.1: must lie in \[0, 1\]'),
        ({'scale': 0.0}, 'scale=0.0'),
        ({'anisotropy': -1.0}, 'anisotropy=-1.0'),
        ({'translation': -0.1}, 'translation=-0.1'),
        ({'x': np.zeros((2, 3), np.float32)}, r'x of shape \(2, 3\)'),
        ({'x': np.zeros((2, 3, 3, 1), np.uint8)}, 'dtype uint8'),
    ],
)
def test_refused(options, message):
    with pytest.raises(ValueError, match=message):
        augment.augment(KEY, **({'x': images()} | options))


def test_labels_of_another_width_are_refused():
    with pytest.raises(ValueError, match=r'labels of shape \(3, 8\): must be \(3, 9\)'):
        augment.warp(images(), np.zeros((3, 8), np.float32))


def test_a_teacher_is_told_what_was_done_to_its_images(tmp_path):
    """In pre-training the moves are a condition that the network has to take; samples need none."""
    network = dict(
        name='ddpmpp',
        model_channels=16,
        channel_mult=(1,),
        num_blocks=1,
        attn_resolutions=(),
        augment_dim=9,
    )
    plain = dict(
        seed=0,
        data=dict(name='digits'),
        network=network,
        method=dict(
            name='pretrain',
            law=dict(name='lognormal'),
            grid=dict(name='karras', steps=2),
            augment=0.5,
        ),
        optimizer=dict(student=dict(learning_rate=1e-2)),
        training=dict(steps=2, batch_size=16, ema_half_life=10.0, log_every=1, sample_every=0),
    )
    build.train(ConfigDict(plain), tmp_path / 'run', quiet=True)
    run = build.from_workdir(tmp_path / 'run')
    source = build.load_data(plain, 'train')
    method = build.experiment(build.resolve(plain, source)).method
    batch = {'x': jnp.zeros((16, 8, 8, 1)), 'condition': source.condition(np.arange(16))}
    key = jax.random.fold_in(jax.random.key(0), 0)
    start, _ = jax.jit(method.init)(key, batch, {})
    # Where nothing is moved, the weights of the moves get no gradient and stay as they were.
    learned = run.params['map_augment']['kernel']
    unmoved = start['student']['map_augment']['kernel']
    assert np.abs(learned - unmoved).max() > 1e-3
    assert run.generate(jax.random.key(0), 2).shape == (2, 8, 8, 1)
    plain['network'] = network | {'augment_dim': 0}
    with pytest.raises(UserError, match='set its augment_dim=9'):
        build.train(ConfigDict(plain), tmp_path / 'other', quiet=True)
