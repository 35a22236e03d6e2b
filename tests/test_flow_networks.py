"""Networks that embed further numbers and are differentiated forward, as flow maps are: their
derivatives against differences, an attention whose memory is linear in the tokens, and how a
network with more numbers begins as one with fewer."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from quick import compiled
from registered import every

from fdistill.build.experiment import experiment
from fdistill.build.sections import resolve
from fdistill.config import call
from fdistill.data.sources import Source
from fdistill.diffusion import denoiser, noise
from fdistill.errors import UserError
from fdistill.methods.method import start
from fdistill.networks import NETWORKS, Network, layers
from fdistill.weights import diffusers

NUMBERS = ('until', 'guidance')
UNET = dict(
    resolution=4,
    channels=1,
    model_channels=4,
    channel_mult=(1,),
    channel_mult_emb=1,
    num_blocks=1,
    attn_resolutions=(),  # Between encoder and decoder it attends in any case.
)
SMALL = {
    'mlp': dict(width=8, blocks=1, embedding=8, fourier=1),
    'ddpmpp': UNET,
    'ncsnpp': UNET,
    'adm': dict(UNET, channels_per_head=4),
    'edm2': dict(UNET, channels_per_head=2),
    'dit': dict(resolution=4, channels=1, width=8, depth=1, heads=2, patch=1),
    'unet2d': dict(
        resolution=4,
        channels=1,
        block_out_channels=(4,),
        layers_per_block=1,
        norm_num_groups=1,
        attention_head_dim=2,
        down_block_types=('DownBlock2D',),
        up_block_types=('UpBlock2D',),
    ),
}
assert SMALL.keys() == NETWORKS.keys() - {'gaussian'}  # Which embeds nothing.
CONSTANTS = ('freqs', 'phases')


@pytest.fixture
def few(monkeypatch):
    """Chunks of which a small network, too, has several."""
    monkeypatch.setattr(layers, 'CHUNK', 4)


def build(name, **changes):
    """The network of a section of a config."""
    if name == 'mlp':
        changes.pop('attention', None)
    return call(NETWORKS[name], {**SMALL[name], 'num_classes': 2, **changes}, 'config.network')


def drawn(network, inputs, dtype):
    """Parameters of unit gain, also where networks begin at zero, and directions to move them in,
    0 for constants."""
    random = np.random.RandomState(0)

    def draw(path, leaf):
        values = np.asarray(random.standard_normal(leaf.shape))
        if leaf.ndim > 1:
            return (values / np.sqrt(np.prod(leaf.shape[:-1]))).astype(dtype)
        return np.asarray(0.3 * values + str(path[-1].key).endswith('scale'), dtype)

    def direct(path, leaf):
        still = str(path[-1].key).split('.')[-1] in CONSTANTS
        return np.asarray(0.1 * (not still) * random.standard_normal(leaf.shape), dtype)

    shapes = jax.eval_shape(network.init, jax.random.key(0), *inputs)
    return jax.tree.map_with_path(draw, shapes), jax.tree.map_with_path(direct, shapes)


def inputs(dtype):
    """(x, c_noise, numbers) of two samples, their tangents, and labels."""
    random = np.random.RandomState(1)
    x, dx, w = random.standard_normal((3, 2, 4, 4, 1)).astype(dtype)
    at = x, np.array([0.3, -0.6], dtype), {n: np.array([0.4, 1.1], dtype) for n in NUMBERS}
    moved = {n: np.array([0.2, -0.1], dtype) for n in NUMBERS}
    return at, (dx, np.array([0.02, -0.01], dtype), moved), {'label': np.array([0, -1])}, w


def relative(value, expected):
    value, expected = np.asarray(value), np.asarray(expected)
    return np.abs(value - expected).max() / np.abs(expected).max()


def difference(f, h):
    """f'(0) by central differences, extrapolated twice (Richardson): an error of h^6."""
    first = [(f(s) - f(-s)) / (2 * s) for s in (h, h / 2, h / 4)]
    second = [(4 * b - a) / 3 for a, b in zip(first, first[1:])]
    return (16 * second[1] - second[0]) / 15


def moved(tree, direction, h):
    return jax.tree.map(lambda a, b: a + h * b, tree, direction)


@pytest.mark.parametrize('name', every(SMALL, ('mlp', 'dit', 'ddpmpp')))
def test_derivatives_of_networks_are_those_of_differences(name, few):
    """Forward, and backward over forward. In float64 with chunked attention, as jax rounds weights
    of plain attention to float32, and in float32 with plain attention."""
    network, rounded = (
        build(name, numbers=NUMBERS, attention=attention) for attention in ('chunked', 'plain')
    )

    def forward(network, label, params, at, tangents):
        def apply(x, c_noise, numbers):
            return network.apply(params, x, c_noise, {**label, **numbers})[0]

        return jax.jvp(apply, at, tangents)

    with jax.enable_x64(True):
        at, tangents, label, w = inputs(np.float64)
        params, direction = drawn(network, (*at[:2], label), np.float64)
        both = compiled(functools.partial(forward, network, label))
        value, tangent = both(params, at, tangents)
        assert value.dtype == tangent.dtype == jnp.float64
        expected = difference(lambda h: both(params, moved(at, tangents, h), tangents)[0], 1e-3)
        assert relative(tangent, expected) < 1e-9
        dx, dc, numbers = tangents
        for other in ((dx, 0 * dc, numbers), (dx, dc, {n: 0 * dc for n in NUMBERS})):
            # Without one of the times it is seen to be another.
            assert relative(both(params, at, other)[1], expected) > 1e-5

        def loss(h):
            return np.sum(np.sin(w * both(moved(params, direction, h), at, tangents)[1]))

        slope = difference(loss, 1e-3)

    @compiled
    def gradient(params, at, tangents):
        def loss(params):
            value, tangent = forward(rounded, label, params, at, tangents)
            return jnp.sum(jnp.sin(w * tangent)), (value, tangent)

        return jax.grad(loss, has_aux=True)(params)

    at, tangents, label, w = inputs(np.float32)
    found, values = gradient(jax.tree.map(np.float32, params), at, tangents)
    assert {leaf.dtype for leaf in jax.tree.leaves((found, values))} == {jnp.float32.dtype}
    assert relative(values[0], value) < 1e-4 and relative(values[1], expected) < 1e-3
    along = sum(map(np.vdot, *map(jax.tree.leaves, (found, direction))))
    assert abs(along - slope) < 1e-3 * abs(slope)


def named(tree):
    """{path: leaf}, paths in words."""
    paths = jax.tree.leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator='.'): leaf for path, leaf in paths}


def laid(tree, over):
    """The tree with other leaves, {path: leaf}, where there are some."""
    leaves = [over.get(path, leaf) for path, leaf in named(tree).items()]
    return jax.tree.unflatten(jax.tree.structure(tree), leaves)


@pytest.mark.parametrize('name', sorted(SMALL.keys() - {'ncsnpp'}))  # Which embeds as ddpmpp does.
def test_a_network_begins_as_one_without_its_numbers(name):
    """Its other arrays are drawn alike, and those of the numbers have no effect."""
    (x, c_noise, numbers), _, label, _ = inputs(np.float32)
    plain, network = build(name), build(name, numbers=NUMBERS)
    assert network.takes == (*plain.takes, *NUMBERS)

    def init(network):
        return lambda key: network.init(key, x, c_noise, label)

    key = jax.random.key(0, impl='rbg')
    less, more = (jax.eval_shape(init(one), key) for one in (plain, network))
    added = [one for one in named(more) if one not in named(less)]
    last = list(named(less))[-1]
    shapes = {one: leaf.shape for one, leaf in named(more).items()}
    assert all(shapes[one] == leaf.shape for one, leaf in named(less).items())
    assert len(added) == (4 if name == 'edm2' else 2) and all('number' in one for one in added)

    @compiled
    def begun(key):
        own, without = named(init(network)(key)), named(init(plain)(key))
        return {one: own[one] for one in added}, own[last], without[last]

    fresh, *alike = begun(key)
    np.testing.assert_array_equal(*alike)

    params = drawn(network, (x, c_noise, label), np.float32)[0]
    expected = compiled(plain.apply)(laid(less, named(params)), x, c_noise, label)[0]
    apply = compiled(lambda *of: network.apply(*of)[0])
    given = {**label, **numbers}
    assert relative(apply(laid(params, fresh), x, c_noise, given), expected) < 1e-6
    for number in NUMBERS:
        assert relative(apply(params, x, c_noise, given | {number: c_noise}), expected) > 1e-3


def test_a_number_that_is_not_given_is_zero():
    c_noise, until = jnp.array([0.5, -0.5]), jnp.array([0.25, 1.0])
    features = layers.features_of({'until': until, 'label': None}, NUMBERS, c_noise)
    np.testing.assert_array_equal(features['guidance'], layers.number_features(0 * c_noise))
    angles = np.pi / 2 * np.outer(until, [1, 2, 4, 8])
    expected = np.concatenate([until[:, None], np.sin(angles), np.cos(angles)], axis=1)
    np.testing.assert_allclose(features['until'], expected, atol=1e-6)
    assert features['until'].shape == (2, layers.NUMBER_FEATURES)


@pytest.mark.parametrize('numbers', [('label',), ('until', 'until'), ('a number',)])
@pytest.mark.parametrize('name', ['mlp', 'adm', 'edm2', 'dit', 'unet2d'])
def test_numbers_are_names(name, numbers):
    with pytest.raises(ValueError, match='numbers='):
        build(name, numbers=numbers)


def attended(q, k, v):
    """By the formula."""
    scores = jnp.einsum('bqhc,bkhc->bhqk', q, k) / np.sqrt(q.shape[-1])
    return jnp.einsum('bhqk,bkhc->bqhc', jax.nn.softmax(scores, axis=-1), v)


def chunked(q, k, v):
    return layers.attention(q, k, v, 'chunked')


def derivatives(attention, primals, tangents, w):
    """Value, JVP, gradient, and the gradient of a function of the JVP."""
    y, t_y = jax.jvp(attention, primals, tangents)
    gradient = jax.grad(lambda *of: jnp.vdot(w, attention(*of)), (0, 1, 2))(*primals)

    def of_jvp(primals, tangents):
        return jnp.sum(jnp.sin(w * jax.jvp(attention, primals, tangents)[1]))

    return y, t_y, gradient, jax.grad(of_jvp, (0, 1))(primals, tangents)


def heads(dtype, tokens=12, others=20):
    random = np.random.RandomState(0)
    sizes = (tokens, others, others)
    drawn = [random.standard_normal((2, n, 3, 5)).astype(dtype) for n in sizes * 2]
    return tuple(drawn[:3]), tuple(drawn[3:]), random.standard_normal((2, tokens, 3, 5))


@pytest.mark.parametrize('dtype, bar', [(np.float32, 1e-6), (np.float64, 1e-12)])
def test_chunked_attention_has_the_derivatives_of_plain_attention(dtype, bar, few, x64):
    """Twelve queries and twenty keys, four at a time."""
    primals, tangents, w = heads(dtype)
    w = w.astype(dtype)
    found = compiled(functools.partial(derivatives, chunked))(primals, tangents, w)
    wide = jax.tree.map(np.float64, (primals, tangents, w))
    expected = compiled(functools.partial(derivatives, attended))(*wide)
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {jnp.dtype(dtype)}
    for one, other in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        assert relative(one, other) < bar
    # The derivative of the denominators is seen.
    (q, k, v), (t_q, t_k, t_v) = wide[:2]
    scores = [np.einsum('bqhc,bkhc->bhqk', a, b) / 5**0.5 for a, b in ((q, k), (t_q, k), (q, t_k))]
    p = np.asarray(jax.nn.softmax(scores[0], axis=-1))
    without = np.einsum('bhqk,bkhc->bqhc', p * (scores[1] + scores[2]), v)
    without += np.einsum('bhqk,bkhc->bqhc', p, t_v)
    assert relative(without, expected[1]) > 0.1


def test_chunked_attention_of_large_scores_is_finite(few):
    (q, k, v), tangents, _ = heads(np.float32)
    found = compiled(lambda *of: jax.jvp(chunked, *of))((100 * q, 10 * k, v), tangents)
    plain = compiled(lambda *of: jax.jvp(attended, *of))((100 * q, 10 * k, v), tangents)
    assert relative(found[0], plain[0]) < 1e-4 and np.isfinite(found[1]).all()


def test_chunks_are_equal_and_of_at_most_their_size():
    for tokens, count in ((100, 1), (256, 1), (257, 257), (576, 3), (1024, 4)):
        x = jnp.zeros((2, tokens, 3))
        parts = jax.eval_shape(layers._chunks, x)
        assert parts.shape == (count, 2, tokens // count, 3)
    x = jnp.arange(2 * 512.0).reshape(2, 512, 1)
    np.testing.assert_array_equal(layers._joined(layers._chunks(x)), x)


USES = {
    'forward': lambda attention, x, t: jax.jvp(attention, x, t)[1],
    'backward': lambda attention, x, t: jax.grad(lambda x: jnp.sum(attention(*x) ** 2))(x),
    'backward over forward': lambda attention, x, t: jax.grad(
        lambda x: jnp.sum(jax.jvp(attention, x, t)[1] ** 2)
    )(x),
}


@pytest.mark.parametrize('use', USES)
def test_memory_of_chunked_attention_is_linear_in_the_tokens(use):
    def temporary(attention, tokens):
        x = (jax.ShapeDtypeStruct((1, tokens, 1, 16), jnp.float32),) * 3
        program = compiled(functools.partial(USES[use], attention)).lower(x, x).compile()
        return program.memory_analysis().temp_size_in_bytes

    assert temporary(chunked, 2048) <= 2.2 * temporary(chunked, 1024)
    assert temporary(layers.attention, 2048) > 3.5 * temporary(layers.attention, 1024)


@pytest.mark.parametrize(
    'settings, message',
    [
        (dict(attention='flash'), "attention='flash': known are plain, chunked"),
        (dict(attention='chunked', remat='elementwise'), "remat='elementwise': keeps the products"),
    ],
)
def test_an_attention_that_cannot_be_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        build('dit', **settings)


def recorder(*takes):
    """A network that keeps what it is given, and answers with its input."""
    seen = {}

    def apply(params, x, c_noise, condition, key=None):
        seen.update(c_noise=c_noise, condition=condition)
        return x, ()

    return Network(lambda *of: {}, apply, takes), seen


SIGMA, UNTIL = np.array([2.0, 0.5]), np.array([0.5, 0.0])


def test_numbers_as_a_network_sees_them(x64):
    x, given = jnp.ones((2, 3)), {'until': UNTIL, 'guidance': np.array([3.0, 1.0]), 'other': SIGMA}
    network, seen = recorder('until', 'guidance', 'other')
    model = denoiser.precondition(network, sigma_data=0.7)
    assert model.takes == ('until', 'guidance', 'other')
    model.apply({}, x, SIGMA, given)
    np.testing.assert_allclose(seen['condition']['until'], np.arctan(UNTIL / 0.7), rtol=1e-15)
    np.testing.assert_allclose(seen['condition']['guidance'], [np.log(3), 0], rtol=1e-15)
    np.testing.assert_array_equal(seen['condition']['other'], SIGMA)
    np.testing.assert_allclose(seen['c_noise'], np.log(SIGMA) / 4, rtol=1e-15)
    model.apply({}, x, SIGMA, {})
    np.testing.assert_allclose(seen['condition']['until'], np.arctan(SIGMA / 0.7), rtol=1e-15)
    np.testing.assert_array_equal(seen['condition']['guidance'], [0, 0])
    # A network that takes none sees the condition as it is.
    network, seen = recorder('label')
    denoiser.precondition(network).apply({}, x, SIGMA, given)
    assert seen['condition'] is given


def test_noise_may_be_told_as_an_angle(x64):
    network, seen = recorder('until')
    model = denoiser.precondition(network, sigma_data=0.7, noise_input='angle')
    model.apply({}, jnp.ones((2, 3)), SIGMA, {})
    np.testing.assert_allclose(seen['c_noise'], np.arctan(SIGMA / 0.7), rtol=1e-15)
    np.testing.assert_array_equal(seen['c_noise'], seen['condition']['until'])

    def slope(noise_input, t):
        """d c_noise / dt at the time t of TrigFlow."""
        sigma = lambda t: 0.7 * jnp.tan(t)  # noqa: E731
        return jax.grad(lambda t: denoiser.NOISE_INPUTS[noise_input](sigma(t), 0.7))(t)

    for t in (1e-3, 0.8, 1.57):
        np.testing.assert_allclose(slope('angle', t), 1, rtol=1e-9)
        np.testing.assert_allclose(slope('log', t), 1 / (2 * np.sin(2 * t)), rtol=1e-6)
    with pytest.raises(ValueError, match="noise_input='time': known are log, angle"):
        denoiser.precondition(network, noise_input='time')


def test_an_average_velocity_is_the_output_under_flow(x64):
    """u(z_t, r, t) = (z_t - D)/t of a network that predicts the velocity."""

    def apply(params, x, c_noise, condition, key=None):
        return jnp.sin(x) * c_noise[:, None] + condition['until'][:, None], ()

    network = Network(lambda *of: {}, apply, ('until',))
    model = denoiser.from_prediction(network, prediction='flow', schedule=noise.SCHEDULES['flow']())
    x, t = jnp.asarray([[1.0, -2.0], [0.3, 0.4]]), SIGMA / (1 + SIGMA)
    z_t = (1 - t)[:, None] * x
    u = (z_t - model.apply({}, x, SIGMA, {'until': UNTIL})[0]) / t[:, None]
    expected = jnp.sin(z_t) * t[:, None] + np.arctan(UNTIL)[:, None]
    np.testing.assert_allclose(u, expected, rtol=1e-12)


def test_a_student_with_more_numbers_starts_as_its_teacher():
    batch = {'x': jnp.ones((2, 2)), 'condition': {}}
    teacher, student, wider = (
        denoiser.precondition(NETWORKS['mlp'](width=width, blocks=1, embedding=4, numbers=numbers))
        for width, numbers in ((8, ()), (8, ('until',)), (16, ()))
    )
    key = jax.random.key(0)
    base = teacher.init(jax.random.key(1), *batch.values())
    begun = start(key, student, batch, base)
    assert begun.keys() - base.keys() == {'number_until'}
    jax.tree.map(np.testing.assert_array_equal, {n: begun[n] for n in base}, base)
    assert begun['input']['kernel'] is not base['input']['kernel']
    sigma, condition = jnp.array([0.5, 2.0]), {'until': jnp.array([0.1, 0.0])}
    made = [
        model.apply(params, batch['x'], sigma, condition)[0]
        for model, params in ((teacher, base), (student, begun))
    ]
    np.testing.assert_array_equal(*made)
    with pytest.raises(ValueError, match='first is block0.dense0.bias'):
        start(key, wider, batch, base)
    with pytest.raises(ValueError, match='of its 1 arrays'):
        start(key, teacher, batch, begun)


NETWORK = dict(name='mlp', width=8, blocks=1, embedding=4)
OF_TEACHER = dict(
    network=NETWORK,
    denoiser=dict(name='edm', sigma_data=0.7),
    image=dict(shape=[2], num_classes=0),
)
POINTS = Source(np.zeros((4, 2), np.float32), np.zeros(4, np.int32), 1, 0, 'points')


def resolved(**sections):
    """The config of a student of a teacher's folder, which is not there."""
    grid = dict(name='karras', steps=4, sigma_min=0.02, sigma_max=5.0)
    method = dict(name='consistency', grid=grid, sigma_init=5.0)
    plain = dict(data=dict(name='points'), method=method, teacher=dict(workdir='teacher'))
    return resolve(ConfigDict(plain | sections), POINTS, {'teacher': OF_TEACHER})


def test_a_network_without_a_name_is_the_teachers_with_other_settings():
    plain = resolved(network=dict(numbers=('until',)))
    assert plain['network'] == NETWORK | {'numbers': ['until']}
    assert plain['teacher']['network'] == NETWORK
    assert plain['denoiser'] == OF_TEACHER['denoiser']
    assert resolved()['network'] == NETWORK
    own = dict(name='mlp', width=16)
    assert resolved(network=own)['network'] == own

    made = experiment(plain)
    assert made.student.takes == ('until',) and made.parts['teacher'].takes == ()
    batch = {'x': jnp.ones((2, 2)), 'condition': {}}
    base = made.parts['teacher'].init(jax.random.key(0), *batch.values())
    begun = made.method.init(jax.random.key(1), batch, {'teacher': base})[0]['student']
    assert begun.keys() - base.keys() == {'number_until'}


def test_a_student_may_have_more_than_what_it_starts_as_and_not_less(tmp_path):
    (tmp_path / 'config.json').write_text(json.dumps(OF_TEACHER))
    there = dict(start=dict(workdir=str(tmp_path)))
    plain = resolved(**there, network=dict(numbers=('until', 'guidance')))
    assert experiment(plain).student.takes == ('until', 'guidance')
    for sections, message in (
        (there, 'config.start; leave it out, or change only'),
        ({}, 'config.teacher; leave it out.*or set config.method.from_teacher'),
    ):
        plain = resolved(**sections, network=dict(width=16))
        with pytest.raises(UserError, match=f'config.network: has other .* of {message}'):
            experiment(plain)
    plain['method']['from_teacher'] = False
    experiment(plain)


def test_diffusers_has_no_such_network(tmp_path):
    network, image = dict(name='unet2d', numbers=['until']), dict(shape=[8, 8, 3], num_classes=0)
    with pytest.raises(UserError, match='OUT: diffusers has no network that embeds until'):
        diffusers.export(tmp_path, dict(network=network, denoiser={}, image=image), {}, 'OUT')
