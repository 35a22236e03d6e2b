"""The vision transformer against two in PyTorch with the same weights; vit_goldens.py says how
those were recorded."""

import json
import math

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
import vit_goldens
from quick import compiled

from fdistill.networks.vit import vit

SIZES = {
    'vits14': dict(dim=384, depth=12, heads=6),
    'vitb14': dict(dim=768, depth=12, heads=12),
    'vitl14': {},
    'vitg14': dict(dim=1536, depth=40, heads=24, feed_forward='swiglu'),
}
TINY = dict(dim=8, depth=2, heads=2, grid=2)


@pytest.fixture(scope='module')
def goldens():
    with np.load(vit_goldens.GOLDENS) as arrays:
        return dict(arrays)


def weights(network):
    return {name: vit_goldens.weight(name, shape) for name, shape in network.shapes().items()}


@pytest.mark.parametrize('size', vit_goldens.SIZES)
def test_names_and_shapes_are_those_of_the_checkpoint(size, goldens):
    entries = json.loads(str(goldens[f'{size}/entries']))
    assert vit(**SIZES[size]).shapes() == {name: tuple(shape) for name, shape in entries.items()}


@pytest.mark.parametrize('implementation', vit_goldens.OFFSETS)
@pytest.mark.parametrize('case', vit_goldens.CASES)
def test_class_token_agrees(case, implementation, goldens):
    settings, (height, width) = vit_goldens.CASES[case]
    network = vit(**settings, offset=vit_goldens.OFFSETS[implementation])
    params = network.from_arrays(weights(network))
    ours = np.asarray(compiled(network.apply)(params, vit_goldens.inputs(height, width)))
    assert ours.dtype == np.float32

    def error(other):
        recorded = goldens[f'{case}/{other}']
        return np.abs(ours - recorded).max() / np.abs(recorded).max()

    assert error(implementation) < 2e-6
    # The two part where positions are interpolated: 0.8 % at least, so that the one is not mistaken
    # for the other.
    (other,) = vit_goldens.OFFSETS.keys() - {implementation}
    assert (error(other) > 5e-3) == (case != 'native')


def equations(jaxpr):
    """Of a program and of all programs within it."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from equations(inner)


@pytest.mark.parametrize('size', ['vitl14', 'vitg14'])
def test_full_size_is_float32_in_full_precision(size):
    network = vit(**SIZES[size])
    params = jax.eval_shape(network.init, jax.random.key(0))
    dim = SIZES[size].get('dim', 1024)
    # The checkpoint's mask token, [1, dim], is left out.
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) + dim == sum(
        map(math.prod, network.shapes().values())
    )

    program = jax.make_jaxpr(network.apply)(
        params, jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.float32)
    )
    assert program.out_avals == [jax.core.ShapedArray((2, dim), jnp.float32)]
    highest = (jax.lax.Precision.HIGHEST, jax.lax.Precision.HIGHEST)
    products = [e.params['precision'] for e in equations(program.jaxpr) if 'precision' in e.params]
    # The patches, the positions along both axes; in a block qkv, the attention's three, the
    # perceptron's two.
    assert products == 9 * [highest]
    types = {variable.aval.dtype for e in equations(program.jaxpr) for variable in e.outvars}
    assert {dtype for dtype in types if jnp.issubdtype(dtype, jnp.floating)} == {
        np.dtype(np.float32)
    }


def test_init_has_the_structure_of_a_checkpoint():
    network = vit(**TINY)
    params = network.from_arrays(weights(network))
    drawn = compiled(network.init)(jax.random.key(0, impl='rbg'))
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, drawn)
    assert np.asarray(drawn['blocks']['mlp.fc1.weight']).std() == pytest.approx(0.02, rel=0.1)
    out = compiled(network.apply)(drawn, vit_goldens.inputs(28, 42))
    np.testing.assert_allclose(out.mean(axis=-1), 0, atol=1e-5)
    np.testing.assert_allclose(out.std(axis=-1), 1, atol=1e-2)


def without(arrays, name):
    return {key: array for key, array in arrays.items() if key != name}


@pytest.mark.parametrize(
    'change, message',
    [
        (lambda a: without(a, 'mask_token'), "lack 'mask_token'"),
        (lambda a: without(a, 'blocks.1.ls2.gamma'), "lack 'blocks.1.ls2.gamma'"),
        (
            lambda a: {**a, 'register_tokens': np.zeros((1, 4, 8), np.float32)},
            "hold 'register_tokens'",
        ),
        (lambda a: {**a, 'norm.weigth': a['norm.weight']}, 'did you mean norm.weight?'),
        (
            lambda a: {**a, 'pos_embed': a['pos_embed'][:, 1:]},
            r"'pos_embed' are float32 \(1, 4, 8\), .* \(1, 5, 8\)",
        ),
        (
            lambda a: {**a, 'norm.bias': a['norm.bias'].astype(np.float16)},
            "'norm.bias' are float16",
        ),
    ],
)
def test_other_weights_are_refused_in_one_line(change, message):
    network = vit(**TINY)
    with pytest.raises(ValueError, match=message) as error:
        network.from_arrays(change(weights(network)))
    assert '\n' not in str(error.value)


@pytest.mark.parametrize(
    'settings, message',
    [
        (dict(dim=32, heads=5), 'no multiple of heads=5'),
        (dict(feed_forward='swigelu'), 'did you mean swiglu?'),
        (dict(offset=1.0), r'offset=1.0: must lie in \[0, 1\)'),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        vit(**settings)


@pytest.mark.parametrize(
    'shape, dtype, message',
    [
        ((2, 224, 224, 3), jnp.uint8, 'normalise them'),
        ((2, 3, 224, 224), jnp.float32, r'\(B, H, W, 3\)'),
        ((224, 224, 3), jnp.float32, r'\(B, H, W, 3\)'),
        ((2, 224, 225, 3), jnp.float32, 'multiples of 14'),
    ],
)
def test_images_that_do_not_fit_are_refused(shape, dtype, message):
    network = vit(**TINY)
    params = jax.eval_shape(network.init, jax.random.key(0))
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(network.apply, params, jax.ShapeDtypeStruct(shape, dtype))
