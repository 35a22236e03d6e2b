"""LPIPS is the sum of the squared distances of its features: against two packages, recorded, with
the same random weights; and its files are read as they are published."""

import functools

import jax
import jax.extend
import jax.numpy as jnp
import lpips_goldens as goldens
import numpy as np
import pytest
import weights_files as files
from quick import compiled

from fdistill import cli, weights
from fdistill.build import encoders
from fdistill.errors import UserError
from fdistill.methods import losses
from fdistill.networks import lpips
from fdistill.weights import store

IMAGES = {'data': {'name': 'digits'}, 'image': {'shape': [40, 40, 1], 'num_classes': 10}}
DIGITS = {'data': {'name': 'digits'}, 'image': {'shape': [8, 8, 1], 'num_classes': 10}}


@pytest.fixture(scope='module')
def recorded():
    with np.load(goldens.GOLDENS) as arrays:
        return dict(arrays)


@functools.cache
def arrays(net):
    return {n: goldens.weight(n, shape) for n, shape in lpips.lpips(net).shapes().items()}


def distances(made, wanted):
    """[B, layers]."""
    return jnp.stack([losses.perceptual(x, y) for x, y in zip(zip(made), zip(wanted))], axis=1)


@pytest.mark.parametrize('case', goldens.CASES)
def test_distances_and_slopes_are_those_of_the_packages(case, recorded):
    net, pooling, sizes = goldens.CASES[case]
    network = lpips.lpips(net, pooling)
    params = network.from_arrays(arrays(net))

    def whole(x, y, params):
        found = distances(network.apply(params, x), network.apply(params, y))
        return found.sum(), found

    def check(found, wanted):
        found = found if wanted.shape[1] > 1 else found.sum(axis=1, keepdims=True)  # of piq the sum
        np.testing.assert_allclose(found, wanted, rtol=1e-5)
        np.testing.assert_allclose(found.sum(axis=1), wanted.sum(axis=1), rtol=2e-6)

    first, *others = sizes
    x, y = goldens.images(*first)
    (_, found), slope = compiled(jax.value_and_grad(whole, has_aux=True))(x, y, params)
    check(found, recorded[f'{case}/{first[0]}x{first[1]}'])
    expected = recorded[f'{case}/slope']
    assert np.abs(slope - expected).max() < 1e-5 * np.abs(expected).max()
    for size in others:
        _, found = compiled(whole)(*goldens.images(*size), params)
        check(found, recorded[f'{case}/{size[0]}x{size[1]}'])


def test_the_packages_differ_by_the_pooling(recorded):
    ratio = recorded['piq/35x46'] / recorded['vgg/35x46'].sum(axis=1, keepdims=True)
    assert (np.abs(ratio - 1) > 0.2).all()


@pytest.mark.parametrize('net', lpips.TRUNKS)
def test_names_and_shapes_are_those_of_the_files(net, recorded):
    entries = [entry.split() for entry in recorded[f'{net}/entries'].tolist()]
    trunk = {name: tuple(map(int, shape)) for name, *shape in entries if 'classifier' not in name}
    shapes = lpips.lpips(net).shapes()
    assert {n: shape for n, shape in shapes.items() if not n.startswith('lin')} == trunk
    # Each stage ends where its layer's weights begin.
    widths = [stage.convolutions[-1].channels for stage in lpips.TRUNKS[net].stages]
    assert [shapes[f'lin{k}.model.1.weight'] for k in range(5)] == [(1, c, 1, 1) for c in widths]


def test_lengths_are_one_and_nothing_has_a_slope():
    random = np.random.default_rng(0)
    a, b = (jnp.asarray(random.normal(size=(2, 3, 4, 5)), jnp.float32) for _ in range(2))
    weight = np.arange(5.0)

    def unit(x):
        return x / np.linalg.norm(x, axis=-1, keepdims=True)

    by_hand = (weight * (unit(np.asarray(a)) - unit(np.asarray(b))) ** 2).sum(-1).mean((1, 2))
    made, wanted = (lpips.normalised(x, weight) for x in (a, b))
    np.testing.assert_allclose(losses.perceptual((made,), (wanted,)), by_hand, rtol=1e-5)
    # A layer without positions has one; how strong it is does not count.
    flat = lpips.normalised(3 * a[:, 0, 0])
    np.testing.assert_allclose(flat, unit(np.asarray(a[:, 0, 0])), rtol=1e-5)
    # In the published code neither is a number.
    dark = a.at[0, 1, 2].set(0)
    value, slope = jax.value_and_grad(lambda x: jnp.sum(lpips.normalised(x)))(dark)
    assert jnp.isfinite(value) and jnp.isfinite(slope).all()


def test_gradient_goes_through_both_sides():
    x, y = (jnp.arange(6.0).reshape(2, 3) ** k for k in (1, 2))
    np.testing.assert_array_equal(losses.perceptual((x, y), (y, y)), np.sum((x - y) ** 2, axis=1))
    slopes = jax.grad(lambda *pair: losses.perceptual(pair[:1], pair[1:]).sum(), (0, 1))(x, y)
    np.testing.assert_array_equal(slopes[0], 2 * (x - y))
    np.testing.assert_array_equal(slopes[0], -slopes[1])
    with pytest.raises(ValueError, match='zip'):
        losses.perceptual((x, y), (y,))


def equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from equations(inner)


@pytest.mark.parametrize('net', lpips.TRUNKS)
def test_every_product_is_of_the_highest_precision(net):
    network = lpips.lpips(net)
    params = network.from_arrays(arrays(net))
    size = network.smallest
    images = jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)
    program = jax.make_jaxpr(network.apply)(params, images)
    highest = (jax.lax.Precision.HIGHEST, jax.lax.Precision.HIGHEST)
    precisions = [
        e.params['precision'] for e in equations(program.jaxpr) if 'precision' in e.params
    ]
    assert precisions == (len(params) - 5) * [highest]
    assert {out.dtype for out in program.out_avals} == {np.dtype(np.float32)}
    # One pixel less, and the last layer has none.
    assert min(out.shape[1] for out in program.out_avals) > 0
    for shape in ((2, size - 1, size, 3), (2, size, size, 1), (size, size, 3)):
        with pytest.raises(ValueError, match=f'at least {size} pixels'):
            jax.eval_shape(network.apply, params, jax.ShapeDtypeStruct(shape, jnp.float32))


def test_random_parameters_have_the_structure_of_a_file():
    network = lpips.lpips('alex')
    params = network.init(jax.random.key(0))
    like = network.from_arrays(arrays('alex'))
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, like)
    kernel = np.asarray(params['features.3']['kernel'])
    assert kernel.std() == pytest.approx(np.sqrt(2 / (5 * 5 * 64)), rel=0.01)


def changed(net, **change):
    made = {**arrays(net), **change}
    return {name: array for name, array in made.items() if array is not None}


@pytest.mark.parametrize(
    'change, message',
    [
        ({'features.0.bias': None}, r'1 missing, unknown or of another shape \(features.0.bias\)'),
        ({'features.1.weight': np.zeros(64)}, r'\(features.1.weight\)'),
        ({'features.3.bias': np.zeros(191)}, r'\(features.3.bias\)'),
        ({'lin1.model.1.weight': np.full((1, 192, 1, 1), -1)}, 'lin1.model.1.weight has a weight'),
        ({'lin1.model.1.weight': np.full((1, 192, 1, 1), np.nan)}, 'has a weight of nan'),
    ],
)
def test_other_arrays_are_refused_in_one_line(change, message):
    with pytest.raises(ValueError, match=message) as error:
        lpips.lpips('alex').from_arrays(changed('alex', **change))
    assert '\n' not in str(error.value)


@pytest.mark.parametrize(
    'settings, said', [(dict(net='vg'), 'vgg'), (dict(pooling='avg'), 'did you mean average')]
)
def test_unknown_settings_are_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        lpips.lpips(**settings)


# Files and encoders.


@pytest.fixture(scope='module')
def published(tmp_path_factory):
    """Files in the true layouts, of random weights: (torchvision's, LPIPS's, what is made of
    both)."""
    folder = tmp_path_factory.mktemp('lpips')
    own = arrays('alex')
    last = {'classifier.6.weight': np.zeros((3, 2), np.float32)}
    trunk = {n: x for n, x in own.items() if n.startswith('features')} | last
    judged = {n: x for n, x in own.items() if n.startswith('lin')}
    (folder / 'alexnet.pth').write_bytes(files.state_dict(trunk))
    (folder / 'alex.pth').write_bytes(files.state_dict_legacy(judged))
    paths = [folder / name for name in ('alexnet.pth', 'alex.pth', 'out.safetensors')]
    words = ['convert', 'lpips-alex', str(paths[0]), str(paths[2]), f'--with={paths[1]}']
    assert cli.main(words) == 0
    return paths


def test_both_files_become_one(published):
    *sources, out = published
    found, about = store.load(out, lpips.lpips('alex').shapes())
    assert all(np.array_equal(found[name], array) for name, array in arrays('alex').items())
    assert about['kind'] == 'lpips-alex' and about['source'] == 'alexnet.pth and alex.pth'
    # In any order.
    assert weights.convert('lpips-alex', sources[1], out, sources[:1]) == about


@pytest.mark.parametrize(
    'kind, given, said',
    [
        ('lpips-alex', (0,), 'lpips-alex: 0 files beside SRC; give also .*v0.1'),
        ('lpips-alex', (0, 1, 1), 'lpips-alex: 2 files beside SRC; give also'),
        ('inception', (0, 1), 'inception: 1 files beside SRC; give none'),
        ('lpips-alex', (0, 0), "both files have an array 'classifier.6.weight'"),
        ('lpips-vgg', (0, 1), "does not hold the weights 'lpips-vgg': 'features.2.weight' is miss"),
        ('lpips-alex', (1, 0), 'holds other weights'),
    ],
)
def test_other_files_are_refused_in_one_line(published, tmp_path, kind, given, said):
    source, *beside = [published[k] for k in given]
    out = tmp_path / 'out'
    if 'other weights' in said:
        store.save(out, {'a': np.zeros(1)}, {})
    with pytest.raises(UserError, match=said) as error:
        weights.convert(kind, source, out, beside)
    assert '\n' not in str(error.value) and out.exists() == ('other weights' in said)


def test_version_0_0_is_refused(published, tmp_path, monkeypatch):
    judged = {n: x for n, x in arrays('alex').items() if n.startswith('lin')}
    monkeypatch.setattr(weights.lpips, '_OLD', (store.digest(judged),))
    with pytest.raises(UserError, match='of weights/v0.0, not of v0.1; take the file'):
        weights.convert('lpips-alex', published[0], tmp_path / 'out', published[1:2])


def made(plain, **section):
    encoder = encoders.encoder({**plain, 'features': section})
    params = encoder.load()
    shape = jax.ShapeDtypeStruct((2, *plain['image']['shape']), jnp.float32)
    like = jax.eval_shape(encoder.encoder.init, jax.random.key(0), shape, {})
    assert jax.tree.map(jnp.shape, like) == jax.tree.map(jnp.shape, params)
    return functools.partial(encoder.encoder.apply, params)


def test_an_encoder_sees_what_the_package_sees(published, recorded):
    """Small images resized as torch does, grey ones as three channels, none clipped."""
    apply = made(DIGITS, name='lpips-alex', weights=str(published[2]), resize=goldens.RESIZED[1])
    x, y = goldens.images(*goldens.RESIZED[:1] * 2)
    found = distances(apply(x), apply(y))
    np.testing.assert_allclose(found, recorded['alex/resized'], rtol=1e-5)
    grey = x[..., :1]
    np.testing.assert_array_equal(apply(grey)[0], apply(np.repeat(grey, 3, axis=3))[0])
    assert (losses.perceptual(apply(1.5 * x), apply(np.clip(1.5 * x, -1, 1))) > 0).all()


def test_an_encoder_has_the_poolings_and_the_size_of_its_images(published):
    section = dict(name='lpips-alex', weights=str(published[2]))
    x, y = (image[..., :1] for image in goldens.images(40, 40))
    one, other = (made(IMAGES, **section, pooling=pooling) for pooling in lpips.POOLINGS)
    ratio = losses.perceptual(one(x), one(y)) / losses.perceptual(other(x), other(y))
    assert (np.abs(ratio - 1) > 0.1).all()


@pytest.mark.parametrize(
    'plain, section, said',
    [
        (DIGITS, {}, 'at least 31 pixels a side, and these have 8 x 8; set resize=64'),
        (
            DIGITS,
            {'resize': 30},
            'config.features.resize=30: lpips-alex sees images of at least 31',
        ),
        (DIGITS, {'resize': -1}, 'at least 31'),
        (DIGITS, {'resize': 40, 'pooling': 'mean'}, 'pooling'),
        (
            {**DIGITS, 'image': {'shape': [40, 40, 4], 'num_classes': 10}},
            {},
            'sees images of 1 or 3 channels, and these have 4',
        ),
        ({**DIGITS, 'image': {'shape': [2], 'num_classes': 8}}, {}, 'the samples are none'),
    ],
)
def test_an_encoder_is_refused(plain, section, said):
    section = {'name': 'lpips-alex', 'weights': 'nowhere.safetensors', **section}
    with pytest.raises(UserError, match=said):
        encoders.encoder({**plain, 'features': section})


def test_weights_of_another_network_are_refused(published):
    section = {'name': 'lpips-vgg', 'weights': str(published[2])}
    with pytest.raises(UserError, match="'features.2.weight' is missing"):
        encoders.encoder({**IMAGES, 'features': section}).load()
