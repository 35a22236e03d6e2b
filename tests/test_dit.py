"""The diffusion transformer against three in PyTorch with the same weights, and what the papers say
of its start; dit_goldens.py says how those were recorded."""

import collections
import functools
import json
import math

import dit_goldens
import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
from dit_goldens import CASES
from quick import compiled

from fdistill.config import call
from fdistill.networks.dit import VARIANTS, dit, sincos

TINY = dict(resolution=8, num_classes=3, width=8, depth=2, heads=2, patch=4)


def build(**settings):
    """The network of a section of a config."""
    return call(dit, settings, 'config.network')


def shapes(network, resolution, channels=4):
    x = jax.ShapeDtypeStruct((1, resolution, resolution, channels), jnp.float32)
    params = jax.eval_shape(network.init, jax.random.key(0), x, jnp.zeros(1), {})
    return {name: leaf.shape for name, leaf in params.items()}


def error(case, settings, expected):
    """Largest error of our network of these settings, over the largest value."""
    network = build(**settings)
    params = {
        name: dit_goldens.weight(name, shape)
        for name, shape in shapes(network, settings['resolution']).items()
    }
    x, times, labels = dit_goldens.inputs(case)
    ours = compiled(lambda params: network.apply(params, x, times, {'label': labels})[0])(params)
    expected = expected[..., : ours.shape[-1]]
    assert ours.shape == x.shape == expected.shape
    return np.abs(ours - expected).max() / np.abs(expected).max()


@pytest.fixture(scope='module')
def goldens():
    with np.load(dit_goldens.GOLDENS) as arrays:
        return dict(arrays)


@pytest.mark.parametrize('name', CASES)
def test_agrees_with_recorded_implementation(name, goldens):
    assert error(CASES[name], CASES[name].settings, goldens[name]) < 1e-5


@pytest.mark.parametrize('name', [name for name in CASES if name.startswith('diffusers')])
def test_agrees_with_installed_implementation(name):
    for package in ('torch', 'diffusers'):
        pytest.importorskip(package, reason=f'pip install -e .[diffusers] torch: no {package}')
    case = CASES[name]
    expected = dit_goldens.answer(case, dit_goldens.module(case))
    assert error(case, case.settings, expected) < 1e-5


@pytest.mark.parametrize('change', [dict(second_eps=1e-6), dict(endpoint=False)])
def test_each_part_of_the_variant_shows(change, goldens, monkeypatch):
    case = CASES['diffusers']
    monkeypatch.setitem(VARIANTS, 'diffusers', VARIANTS['diffusers']._replace(**change))
    assert error(case, case.settings, goldens['diffusers']) > 1e-4


def test_positions_of_other_sizes_are_spread_over_the_usual_range(goldens):
    places = sincos(**dit_goldens.PLACES)
    np.testing.assert_allclose(places[0], goldens['places'], atol=1e-6)


@pytest.mark.parametrize('variant', VARIANTS)
def test_names_and_shapes_are_the_published_ones(variant, goldens):
    ours = shapes(
        build(resolution=32, num_classes=1000, learned_variance=True, variant=variant), 32
    )
    if variant == 'facebook':
        ours['pos_embed'] = (1, 256, 1152)
    else:
        # An array of two axes of no bytes stands for a matrix.
        empty = {name: np.broadcast_to(np.float32(0), shape) for name, shape in ours.items()}
        ours = {name: a.shape for name, a in dit_goldens.to_diffusers(empty).items()}
    entries = json.loads(str(goldens[f'{variant}/entries']))
    assert ours == {name: tuple(shape) for name, shape in entries.items()}


@pytest.mark.parametrize('size', dit_goldens.SIZES)
def test_sizes_are_the_published_ones(size, goldens):
    named = shapes(build(resolution=32, num_classes=1000, size=size, learned_variance=True), 32)
    width, patch = named['x_embedder.proj.weight'][0], int(size.split('/')[1])
    fixed = width * (32 // patch) ** 2  # Positions, which are counted there.
    assert sum(map(math.prod, named.values())) + fixed == goldens[f'{size}/parameters']


def test_each_block_starts_as_the_identity_and_layers_within_xaviers_bounds():
    network = build(**TINY | dict(width=64, depth=6, positions='learned'))
    x = jnp.ones((2, 8, 8, 4))

    @compiled
    def start(key):
        params = network.init(key, x, jnp.zeros(2), {})
        return params, *network.apply(params, x, jnp.zeros(2), {})

    params, out, features = start(jax.random.key(0, impl='rbg'))
    assert not np.any(out) and len(features) == 4
    for feature in features:
        assert feature.shape == (2, 2, 2, 64)
        np.testing.assert_array_equal(feature, features[0])
    np.testing.assert_allclose(params['pos_embed'], sincos(64, 2, 2, 2))
    for name, fans in (('blocks.1.attn.qkv', 64 + 192), ('x_embedder.proj', 64 + 4 * 16)):
        draw, bound = np.asarray(params[f'{name}.weight']), (6 / fans) ** 0.5
        np.testing.assert_allclose(np.abs(draw).max(), bound, rtol=1e-2)
        np.testing.assert_allclose(draw.std(), bound / 3**0.5, rtol=3e-2)
    for name in ('t_embedder.mlp.0.weight', 'y_embedder.embedding_table.weight'):
        np.testing.assert_allclose(np.std(params[name]), 0.02, rtol=0.15)


def test_features_are_those_of_the_chosen_blocks():
    def features(**settings):
        network = build(**TINY | dict(depth=8), **settings)
        x = jnp.zeros((1, 8, 8, 4))
        return len(jax.eval_shape(network.apply, shaped(network), x, jnp.zeros(1), {})[1])

    def shaped(network):
        return jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 8, 8, 4)), None, {})

    assert features() == 4 and features(features=(0, 6, 7)) == 3
    assert features(features=()) == 0


def test_second_derivatives_are_symmetric():
    """SIM and SiD differentiate the gradient of a score: v'Hw = w'Hv of a Hessian H."""
    network = build(**TINY | dict(depth=1))
    random = np.random.RandomState(0)
    params = {
        name: jnp.float32(random.standard_normal(shape) / 3)
        for name, shape in shapes(network, 8).items()
    }
    x, v, w = (jnp.float32(random.standard_normal((2, 8, 8, 4))) for _ in range(3))

    def loss(x):
        return jnp.sum(jnp.sin(network.apply(params, x, jnp.ones(2), {})[0]))

    @compiled
    def both(v, w):
        hessian = functools.partial(jax.jvp, jax.grad(loss), (x,))
        return jnp.sum(v * hessian((w,))[1]), jnp.sum(w * hessian((v,))[1])

    one, other = both(v, w)
    assert abs(one) > 0.1
    np.testing.assert_allclose(one, other, rtol=1e-3)


def equations(jaxpr):
    """Of a program and of all programs within it."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from equations(inner)


def test_bfloat16_leaves_norms_weights_and_the_last_layer_alone():
    network = build(**TINY, bfloat16=True)
    x = jax.ShapeDtypeStruct((2, 8, 8, 4), jnp.float32)
    given = x, jax.ShapeDtypeStruct((2,), jnp.float32), {}
    params = jax.eval_shape(network.init, jax.random.key(0), *given)
    program = jax.make_jaxpr(network.apply)(params, *given)
    types = collections.defaultdict(list)
    for equation in equations(program.jaxpr):
        for variable in equation.invars[:1]:
            types[equation.primitive.name].append(variable.aval.dtype.name)
    # Two norms in a block and the last; a softmax in a block.
    assert types['rsqrt'] == 5 * ['float32'] and types['exp'] == 2 * ['float32']
    # The patches; in a block qkv, two of the attention, its projection, two of the perceptron.
    # Float32: two of time, one of the class; a modulation for each block and the last layer, which
    # comes last.
    products = types['dot_general']
    assert products.count('bfloat16') == 1 + 2 * 6 and products.count('float32') == 3 + 2 + 2
    assert products[-1] == 'float32'


@pytest.mark.parametrize(
    'settings, message',
    [
        (dict(size='M/2'), "size='M/2'"),
        (dict(size='XL'), "size='XL'"),
        (dict(size='S/0', patch=None), 'patch=0'),
        (dict(patch=3), 'resolution=8: is no multiple of patch=3'),
        (dict(heads=3), 'heads=3'),
        (dict(width=6), 'of 4'),
        (dict(depth=0), 'depth=0'),
        (dict(num_classes=-1), 'num_classes=-1'),
        (dict(positions='rotary'), "positions='rotary': known are sincos, learned"),
        (dict(variant='flax'), "variant='flax': known are facebook, diffusers"),
        (dict(features=(1, 0)), r'features=\(1, 0\): must be rising blocks in 0..1'),
        (dict(features=(2,)), r'features=\(2,\)'),
        (dict(remat='all'), "remat='all'"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        build(**TINY | settings)


@pytest.mark.parametrize(
    'positions, shape',
    [('sincos', (1, 8, 8, 3)), ('sincos', (1, 8, 6, 4)), ('learned', (1, 8, 12, 4))],
)
def test_images_that_do_not_fit_are_refused(positions, shape):
    network = build(**TINY, positions=positions)
    with pytest.raises(ValueError, match=r'\[B, 8, 8, 4\]'):
        jax.eval_shape(network.init, jax.random.key(0), jnp.zeros(shape), None, {})
