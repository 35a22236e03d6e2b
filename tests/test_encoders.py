"""Frozen networks for distances of features: what they see is what the evaluation sees, and the
moments of the data are those of the data."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fdistill import build
from fdistill.build import encoders
from fdistill.build.resume import origin
from fdistill.data.sources import Source, to_float
from fdistill.errors import UserError
from fdistill.evaluation import extract, protocol
from fdistill.evaluation import features as own
from fdistill.methods import losses
from fdistill.networks.classifier import classifier
from fdistill.training import checkpoint, sharding
from fdistill.weights import detectors, store

DIGITS = {'data': {'name': 'digits'}, 'image': {'shape': [8, 8, 1], 'num_classes': 10}}
RING = {
    'data': {'name': 'mixture', 'mixture': 'ring', 'labelled': True, 'n': 300},
    'image': {'shape': [2], 'num_classes': 8},
}


def few(plain, count=20):
    source = build.load_data(plain, 'train')
    return jnp.asarray(to_float(np.asarray(source.images[:count]), source.levels))


@pytest.fixture
def quick(monkeypatch):
    """A classifier trained for a few steps."""
    monkeypatch.setattr(own, 'SMALL', own.SMALL._replace(steps=20, version=-1))


def seen(plain, section, x):
    made = encoders.encoder({**plain, 'features': section})
    params = made.load() if made.load else {}
    shapes = jax.eval_shape(made.encoder.init, jax.random.key(0), x, {})
    like = jax.tree.map(lambda a: (a.shape, a.dtype), jax.eval_shape(lambda: params))
    assert jax.tree.map(lambda a: (a.shape, a.dtype), shapes) == like
    return made.encoder.apply(params, x)


def test_classifier_sees_what_the_evaluation_sees(quick):
    x = few(DIGITS)
    (found,) = seen(DIGITS, {'name': 'classifier', 'seed': 1}, x)
    wanted = own.get('classifier', build.load_data(DIGITS, 'train'), seed=1).apply(np.asarray(x))
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    # Nothing is gained by levels that no image has.
    (beyond,) = seen(DIGITS, {'name': 'classifier', 'seed': 1}, 3 * jnp.ones_like(x))
    (white,) = seen(DIGITS, {'name': 'classifier', 'seed': 1}, jnp.ones_like(x))
    np.testing.assert_array_equal(beyond, white)


def test_layers_of_the_classifier_are_all_it_has(quick):
    """Of unit length, by hand; and what lies beyond the grey levels is seen."""
    section = {'name': 'classifier', 'seed': 1, 'layers': True}
    x = few(DIGITS)
    found = seen(DIGITS, section, x)
    network = own.trained_classifier(build.load_data(DIGITS, 'train'), 1).params['params']
    layer = np.asarray(x).reshape(20, 64)
    for number, one in enumerate(found):
        dense = network[f'Dense_{number}']
        layer = np.tanh(layer @ dense['kernel'] + dense['bias'])
        wanted = layer / np.linalg.norm(layer, axis=1, keepdims=True)
        np.testing.assert_allclose(one, wanted, atol=1e-5)
    assert [one.shape[1] for one in found] == [256, 256, 32]
    bright, white = (
        seen(DIGITS, section, 3 * jnp.ones_like(x)),
        seen(DIGITS, section, jnp.ones_like(x)),
    )
    assert (losses.perceptual(bright, white) > 0).all()


def test_layers_of_a_convolutional_classifier_have_positions():
    model = classifier(num_classes=3, image_shape=(20, 16, 1))
    x = jnp.zeros((2, 20, 16, 1))
    params = jax.eval_shape(model.init, jax.random.key(0), x)
    layers = jax.eval_shape(model.layers, params, x)
    shapes = [(2, 10, 8, 32), (2, 5, 4, 64), (2, 3, 2, 128), (2, 32)]
    assert [layer.shape for layer in layers] == shapes
    assert [out.shape for out in jax.eval_shape(model.apply, params, x)] == [(2, 3), (2, 32)]


def test_pixels_and_several(quick):
    x = few(DIGITS)
    classifier = {'name': 'classifier'}
    one, other = seen(DIGITS, (classifier, 'pixels'), x)
    np.testing.assert_array_equal(one, seen(DIGITS, classifier, x)[0])
    np.testing.assert_array_equal(other, x.reshape(20, 64))
    plain = few(RING)
    np.testing.assert_array_equal(seen(RING, {'name': 'pixels'}, plain)[0], plain)


def test_products_of_waves_are_a_gaussian_kernel():
    x = few(RING)
    (f,) = seen(RING, {'name': 'fourier', 'count': 20_000, 'width': 0.5}, x)
    squares = np.sum((np.asarray(x)[:, None] - np.asarray(x)) ** 2, axis=-1)
    # The error of 20 000 waves is 0.007 on average.
    np.testing.assert_allclose(f @ f.T / 20_000, np.exp(-squares / (2 * 0.5**2)), atol=0.04)


@pytest.mark.parametrize('name', detectors.DETECTORS)
def test_published_networks_trace(name):
    plain = {**DIGITS, 'features': {'name': name, 'weights': 'nowhere.safetensors'}}
    made = encoders.encoder(plain)
    x = jax.ShapeDtypeStruct((2, 8, 8, 1), jnp.float32)
    params = jax.eval_shape(made.encoder.init, jax.random.key(0), x, {})
    (found,) = jax.eval_shape(made.encoder.apply, params, x)
    assert found.shape == (2, detectors.DETECTORS[name].features)


def test_published_network_sees_what_its_protocol_shows_it(monkeypatch, tmp_path):
    """Of images on grey levels, whose rounding changes nothing; with a gradient."""
    weight = np.random.default_rng(0).normal(size=(299 * 299 * 3, 4)).astype(np.float32) / 500

    def apply(params, x):
        return {'pool': jnp.tanh(x.reshape(len(x), -1) @ params['w'])}

    network = detectors.Network(lambda: {'w': weight.shape}, lambda arrays: dict(arrays), apply)
    row = detectors.DETECTORS['inception']._replace(network=lambda chunk: network)
    monkeypatch.setitem(detectors.DETECTORS, 'inception', row)
    path = tmp_path / 'w.safetensors'
    store.save(path, {'w': weight}, {'kind': 'inception', 'licence': 'ours'})
    grey = np.random.default_rng(1).integers(0, 256, (5, 8, 8, 1)).astype(np.uint8)
    rules = protocol.get('edm')
    wanted = extract.detector(rules, path, sharding.make_mesh()).apply(np.repeat(grey, 8, axis=0))
    plain = {**DIGITS, 'features': {'name': 'inception', 'weights': str(path)}}
    made = encoders.encoder(plain)
    params, x = made.load(), jnp.asarray(to_float(grey, 255))
    np.testing.assert_allclose(made.encoder.apply(params, x)[0], wanted['pool'][::8], atol=1e-4)
    slope = jax.grad(lambda x: made.encoder.apply(params, x)[0].sum())(0.9 * x)
    assert np.abs(slope).min() > 0
    store.save(tmp_path / 'd.safetensors', {'w': weight}, {'kind': 'dinov2', 'licence': 'ours'})
    other = plain['features'] | {'weights': str(tmp_path / 'd.safetensors')}
    with pytest.raises(UserError, match="holds weights 'dinov2', not inception"):
        encoders.encoder({**plain, 'features': other}).load()


@pytest.mark.parametrize('scale', [0.0, 0.5])
def test_reference_holds_the_moments_of_the_data(scale):
    plain = {**RING, 'features': {'name': 'pixels'}}
    reference = encoders.reference(plain, encoders.encoder(plain), scale)
    (found,) = reference.load()
    source = build.load_data(RING, 'train')
    points = np.asarray(source.images, np.float64)
    if scale:
        points = np.hstack([points, scale * np.eye(8)[source.labels]])
    np.testing.assert_allclose(found['mean'], points.mean(axis=0), atol=1e-6)
    covariance = found['axes'] * found['variances'] @ found['axes'].T
    np.testing.assert_allclose(covariance, np.cov(points.T), atol=1e-6)
    shapes = jax.eval_shape(reference.init, jax.random.key(0), few(RING), {})
    assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, (found,))


def test_mirrored_images_count_where_they_are_trained_on():
    images = np.random.default_rng(0).integers(0, 256, (300, 2, 3, 1)).astype(np.uint8)
    source = Source(images, np.zeros(300, np.int32), 1, 255, 'grey')
    made = encoders.encoder({**DIGITS, 'features': {'name': 'pixels'}}).encoder
    (found,) = encoders.measured(made, {}, source, flip=True)
    both = to_float(np.concatenate([images, images[:, :, ::-1]]), 255).reshape(600, -1)
    assert found.count == 600
    np.testing.assert_allclose(found.covariance, np.cov(both.T), atol=1e-6)


def test_moments_of_too_many_features_are_refused():
    plain = {**RING, 'features': {'name': 'fourier', 'count': 2**14 + 1}}
    reference = encoders.reference(plain, encoders.encoder(plain), 0.0)
    with pytest.raises(UserError, match='16,385 features of one network have no covariance'):
        reference.load()


def test_a_batch_in_parts_is_the_whole_batch():
    made = encoders.encoder({**RING, 'features': {'name': 'fourier', 'count': 8}})
    params, x = made.load(), few(RING, 12)
    in_parts = encoders.accumulated(made.encoder, 3).apply

    def value(apply, x):
        return jnp.sum(apply(params, x)[0] ** 3)

    np.testing.assert_allclose(in_parts(params, x)[0], made.encoder.apply(params, x)[0], atol=1e-6)
    slopes = [jax.grad(functools.partial(value, f))(x) for f in (in_parts, made.encoder.apply)]
    np.testing.assert_allclose(*slopes, atol=1e-4)


@pytest.mark.parametrize(
    'plain, section, message',
    [
        (RING, {'name': 'classifier'}, 'sees images, and the samples are none'),
        (RING, {'name': 'pixel'}, 'did you mean pixels'),
        (RING, (), 'config.features: missing'),
        (RING, ({'name': 'pixels', 'seed': 1},), r'config.features\[0\].seed: unknown'),
        (RING, {'name': 'fourier', 'width': 0.0}, 'width=0.0'),
        (DIGITS, {'name': 'classifier', 'seed': -1}, 'seed=-1: need >= 0'),
        (
            {**DIGITS, 'image': {'shape': [8, 8, 4], 'num_classes': 10}},
            {'name': 'inception', 'weights': 'nowhere.safetensors'},
            'sees images of 1 or 3 channels, and these have 4',
        ),
        (RING, None, 'config.features: missing'),
    ],
)
def test_refused(plain, section, message):
    with pytest.raises(UserError, match=message):
        encoders.encoder({**plain, 'features': section} if section else plain)


def test_labels_need_classes():
    plain = {**RING, 'image': {'shape': [2], 'num_classes': 0}, 'features': {'name': 'pixels'}}
    with pytest.raises(UserError, match='the data has no labels'):
        encoders.reference(plain, encoders.encoder(plain), 0.5)


def test_a_run_is_not_known_by_the_axes_that_a_machine_found(monkeypatch):
    """What is recorded of the moments is what they are made from."""

    def recorded(scale=0.0, section='pixels'):
        plain = {
            **RING,
            'network': {'name': 'mlp', 'width': 4, 'blocks': 1},
            'method': {'name': 'fd_loss', 'label_scale': scale},
            'features': section,
        }
        params, known = build.experiment(plain).frozen['reference'](None)
        return params, origin(build.load_data(plain, 'train'), {'reference': known})['reference']

    params, known = recorded()
    eigh = np.linalg.eigh
    monkeypatch.setattr(np.linalg, 'eigh', lambda matrix: (eigh(matrix)[0], -eigh(matrix)[1]))
    others, same = recorded()
    np.testing.assert_array_equal(others[0]['axes'], -params[0]['axes'])
    assert same == known
    different = {recorded(scale=0.5)[1], recorded(section=({'name': 'pixels'}, 'fourier'))[1]}
    assert len(different | {known}) == 3


def test_weights_are_placed_and_known_as_those_of_a_reward():
    section = {'name': 'fourier', 'count': 8}
    plain = {**RING, 'network': {'name': 'mlp', 'width': 4, 'blocks': 1}, 'features': section}
    load = build.experiment(plain | {'method': {'name': 'mmd'}}).frozen['encoder']
    mesh = sharding.make_mesh(data=-1, fsdp=1)
    (params, known), (spread, same) = load(None), load(mesh)
    assert known == same == checkpoint.digests(params)
    (leaf, *_), (whole, *_) = jax.tree.leaves(spread), jax.tree.leaves(params)
    assert leaf.sharding.mesh == mesh and whole.devices() == {jax.local_devices()[0]}
