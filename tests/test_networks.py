"""What holds for every registered network and head, and what theory says of the U-Nets' layers."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick import compiled
from registered import every

from fdistill.config import call, parameters
from fdistill.networks import HEADS, NETWORKS
from fdistill.networks.compute import Compute
from fdistill.networks.heads import conv_head, patch_head
from fdistill.networks.layers import GroupNorm, attend, downsample, group_count, upsample
from fdistill.networks.unet import adm, ddpmpp, ncsnpp

CLASSES = 3
# One level and one block: compilation is most of the time here; test_unet_parity.py has the deeper
# networks.
UNET = dict(
    resolution=8,
    model_channels=8,
    channel_mult=(1,),
    num_blocks=1,
    attn_resolutions=(8,),
    augment_dim=2,
    dropout=0.5,
)
SMALL = {
    'ddpmpp': UNET,
    'ncsnpp': UNET,
    'adm': dict(UNET, channels_per_head=8),
    'edm2': {k: v for k, v in UNET.items() if k != 'augment_dim'} | dict(channels_per_head=8),
    'mlp': dict(width=16, blocks=2, dropout=0.5),
    'dit': dict(resolution=8, channels=3, width=16, depth=2, heads=2, patch=2),
    'unet2d': dict(
        resolution=8,
        block_out_channels=(8,),
        layers_per_block=1,
        norm_num_groups=2,
        attention_head_dim=8,
        down_block_types=('AttnDownBlock2D',),
        up_block_types=('AttnUpBlock2D',),
        dropout=0.5,
    ),
}
assert SMALL.keys() == NETWORKS.keys() - {'gaussian'}  # Which has no layers, and a test of its own.
UNETS = ('ddpmpp', 'ncsnpp', 'adm')
LAST_LAYER = {
    'ddpmpp': 'dec_8x8_aux_conv',
    'ncsnpp': 'dec_8x8_aux_conv',
    'adm': 'out_conv',
    'edm2': 'out_gain',
    'mlp': 'output',
    'dit': 'final_layer',
    'unet2d': 'conv_out',
}


def build(name, **changes):
    """The network of a section of a config."""
    section = {**SMALL[name], 'num_classes': CLASSES, **changes}
    return call(NETWORKS[name], section, 'config.network')


def batch():
    """Four inputs of which the first two differ in the label only."""
    x = jax.random.normal(jax.random.key(1), (4, 8, 8, 3)).at[1].set(0.5).at[0].set(0.5)
    return x, jnp.array([0.2, 0.2, -1.0, 0.6]), {'label': jnp.array([-1, 0, 1, 2])}


def key_of(seed):
    """A key whose draws compile in a quarter of threefry's time."""
    return jax.random.key(seed, impl='rbg')


@functools.cache
def params_of(name):
    """Unit gain everywhere, also where networks start at zero."""
    random = np.random.RandomState(0)

    def draw(path, leaf):
        values = random.standard_normal(leaf.shape).astype(np.float32)
        return (
            values / np.sqrt(np.prod(leaf.shape[:-1]))
            if leaf.ndim > 1
            else 0.2 * values + path[-1].key.endswith(('scale', 'norm.weight'))
        )

    return jax.tree.map_with_path(draw, jax.eval_shape(build(name).init, key_of(0), *batch()))


@functools.cache
def apply_of(name):
    return compiled(build(name).apply)


def accepting(argument):
    return [name for name, network in NETWORKS.items() if argument in parameters(network)]


def assert_close(value, expected, relative):
    value, expected = np.asarray(value), np.asarray(expected)
    assert np.abs(value - expected).max() <= relative * np.abs(expected).max()


@pytest.mark.parametrize('bfloat16', [False, True])
@pytest.mark.parametrize('name', SMALL)
def test_shapes_and_types(name, bfloat16):
    network = build(name, bfloat16=bfloat16)
    params = jax.eval_shape(network.init, key_of(0), *batch())
    out, features = jax.eval_shape(network.apply, params, *batch())
    assert out.shape == (4, 8, 8, 3)
    assert isinstance(features, tuple) and all(feature.shape[0] == 4 for feature in features)
    assert {leaf.dtype for leaf in jax.tree.leaves((params, out, features))} == {jnp.float32.dtype}


@pytest.mark.parametrize('name', UNETS)
def test_unet_features_go_from_the_highest_resolution_to_the_bottleneck(name):
    network = build(
        name, channel_mult=(1, 2, 4), channel_mult_emb=1, resolution=16, attn_resolutions=()
    )
    inputs = (jnp.zeros((4, 16, 16, 3)), *batch()[1:])
    params = jax.eval_shape(network.init, key_of(0), *inputs)
    features = jax.eval_shape(network.apply, params, *inputs)[1]
    assert [feature.shape for feature in features] == [(4, 16, 16, 8), (4, 8, 8, 16), (4, 4, 4, 32)]


@pytest.mark.parametrize('name', SMALL)
def test_output_starts_at_zero(name):
    def last_layer(key):
        params = build(name).init(key, *batch())
        return {layer: params[layer] for layer in params if layer.startswith(LAST_LAYER[name])}

    out, _ = apply_of(name)(params_of(name) | compiled(last_layer)(key_of(0)), *batch())
    # Song's last layer starts at 1e-5 of its ordinary scale, the others at zero.
    assert np.abs(out).max() <= (1e-4 if name in ('ddpmpp', 'ncsnpp') else 0)


@pytest.mark.parametrize(
    'name, layer, bound',
    [
        ('ddpmpp', 'conv0', (6 / (9 * 128 + 9 * 128)) ** 0.5),
        ('ddpmpp', 'qkv', (0.2 * 6 / (128 + 384)) ** 0.5),
        ('adm', 'conv0', (9 * 128) ** -0.5),
    ],
)
def test_kernels_start_uniform_within_edms_bounds(name, layer, bound):
    network = build(name, model_channels=128, num_classes=0)
    draw = compiled(lambda key: network.init(key, *batch())['enc_8x8_block0'][layer])(key_of(0))
    np.testing.assert_allclose(np.abs(draw['kernel']).max(), bound, rtol=1e-2)
    np.testing.assert_allclose(np.std(draw['kernel']), bound / 3**0.5, rtol=1e-2)
    # Biases are 0 in Song's networks, and within the kernel's bound in Dhariwal's.
    np.testing.assert_allclose(np.abs(draw['bias']).max(), bound if name == 'adm' else 0, rtol=0.1)


@pytest.mark.parametrize('name', SMALL)
def test_each_image_is_on_its_own(name):
    order = jnp.array([2, 0, 3, 1])
    out, _ = apply_of(name)(params_of(name), *batch())
    permuted, _ = apply_of(name)(
        params_of(name), *jax.tree.map(lambda array: array[order], batch())
    )
    assert_close(permuted, out[order], 1e-5)


@pytest.mark.parametrize('name', SMALL)
def test_label_matters(name):
    out, _ = apply_of(name)(params_of(name), *batch())
    assert np.abs(out[0] - out[1]).max() > 1e-3


@pytest.mark.parametrize('name', UNETS)
def test_no_label_and_no_augmentation_are_zeros(name):
    x, c_noise, condition = batch()
    params = params_of(name)
    blind = dict(
        params,
        map_label=dict(params['map_label'], kernel=jnp.zeros_like(params['map_label']['kernel'])),
    )
    apply = apply_of(name)
    unlabelled, _ = apply(params, x, c_noise, {'label': jnp.full(4, -1)})
    np.testing.assert_array_equal(apply(blind, x, c_noise, condition)[0], unlabelled)

    augmented = compiled(
        lambda augment: build(name).apply(params, x, c_noise, condition | {'augment': augment})[0]
    )
    out, _ = apply(params, x, c_noise, condition)
    assert_close(augmented(jnp.zeros((4, 2))), out, 1e-6)
    assert np.abs(augmented(jnp.ones((4, 2))) - out).max() > 1e-3


@pytest.mark.parametrize('name', accepting('dropout'))
def test_dropout_acts_only_with_a_key(name):
    out, _ = apply_of(name)(params_of(name), *batch())
    again, _ = apply_of(name)(params_of(name), *batch())
    np.testing.assert_array_equal(out, again)
    dropped = [apply_of(name)(params_of(name), *batch(), key=key_of(seed))[0] for seed in (0, 0, 1)]
    np.testing.assert_array_equal(dropped[0], dropped[1])
    assert np.abs(dropped[0] - out).max() > 1e-3
    assert np.abs(dropped[0] - dropped[2]).max() > 1e-3


@pytest.mark.parametrize('name', accepting('bfloat16'))
def test_bfloat16_stays_close(name):
    exact = apply_of(name)(params_of(name), *batch())
    rounded = compiled(build(name, bfloat16=True).apply)(params_of(name), *batch())
    for value, expected in zip(jax.tree.leaves(rounded), jax.tree.leaves(exact), strict=True):
        assert_close(value, expected, 0.05)
    assert np.abs(rounded[0] - exact[0]).max() > 0


@pytest.mark.parametrize('name', every(accepting('remat'), ('ddpmpp', 'dit', 'edm2')))
def test_remat_leaves_gradients_alone(name):
    """With dropout, whose mask the second pass must draw again."""
    params = params_of(name)
    first = ('map_', 't_embedder', 'time_embedding')
    mapping = {layer: params[layer] for layer in params if layer.startswith(first)}

    def gradient(remat):
        apply = build(name, remat=remat).apply
        return jax.grad(
            lambda mapping: jnp.sum(apply({**params, **mapping}, *batch(), key=key_of(3))[0] ** 2)
        )

    kinds = ['nothing', 'elementwise', 'blocks'] if name == 'ddpmpp' else [False, True]
    traced = [jax.jit(gradient(remat)).trace(mapping) for remat in kinds]
    assert ['remat' in str(one.jaxpr) for one in traced] == [
        kind not in ('nothing', False) for kind in kinds
    ]
    plain, *others = [one.lower().compile()(mapping) for one in traced]
    for layer in plain:
        for other in others:
            jax.tree.map(
                lambda value, expected: assert_close(value, expected, 1e-4),
                other[layer],
                plain[layer],
            )
        # The frequencies are constants, and there are no augmentation labels here.
        moves = any(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(plain[layer]))
        assert moves == (layer not in ('map_noise', 'map_augment'))


@pytest.mark.parametrize(
    'network, changes, message',
    [
        (ddpmpp, dict(resolution=10, channel_mult=(1, 1, 1)), 'resolution=10'),
        (ddpmpp, dict(attn_resolutions=(16,)), r'attn_resolutions=\(16,\)'),
        (ncsnpp, dict(num_blocks=0), 'num_blocks=0'),
        (ncsnpp, dict(dropout=1.0), 'dropout=1.0'),
        (adm, dict(compute=Compute(remat='all')), "remat='all'"),
        (ncsnpp, dict(channel_mult=()), 'channel_mult'),
        (adm, dict(channels_per_head=64), 'channels_per_head=64'),
        (adm, dict(model_channels=9, channels_per_head=3), '9 channels'),
        (adm, dict(num_classes=-1), 'num_classes=-1'),
    ],
)
def test_bad_arguments_are_named(network, changes, message):
    with pytest.raises(ValueError, match=message):
        network(**{**UNET, **changes})


def test_bad_inputs_are_named():
    x, c_noise, condition = batch()
    with pytest.raises(ValueError, match=r'\[B, 16, 16, 3\]'):
        jax.eval_shape(
            build('ddpmpp', resolution=16, attn_resolutions=()).init,
            jax.random.key(0),
            x,
            c_noise,
            condition,
        )
    network = build('ddpmpp', augment_dim=0)
    params = jax.eval_shape(network.init, jax.random.key(0), x, c_noise, condition)
    with pytest.raises(ValueError, match='augment_dim=0'):
        given = condition | {'augment': jnp.zeros((4, 9))}
        jax.eval_shape(network.apply, params, x, c_noise, given)


@pytest.mark.parametrize('channels', [130, 144])
def test_groups_must_be_equal(channels):
    assert [group_count(c) for c in (8, 48, 128, 768)] == [2, 12, 32, 32]
    with pytest.raises(ValueError, match=f'{channels} channels'):
        group_count(channels)


@pytest.mark.parametrize('channels, offset', [(8, 0.0), (64, 3.0), (256, 1000.0)])
def test_group_norm_is_flaxs_without_a_fifth_axis(channels, offset):
    key, other = jax.random.split(jax.random.key(0))
    x = jax.random.normal(key, (2, 4, 4, channels)) * 2 + offset
    ours = GroupNorm(1e-6)
    theirs = nn.GroupNorm(group_count(channels), epsilon=1e-6, use_fast_variance=False)
    params = jax.tree.map(
        lambda p: p + jax.random.normal(other, p.shape), theirs.init(key, x)['params']
    )
    assert jax.tree.map(jnp.shape, ours.init(key, x)['params']) == jax.tree.map(jnp.shape, params)

    def run(module):
        return jax.jit(jax.vjp(lambda *of: module.apply({'params': of[0]}, of[1]), params, x)[1])

    for a, b in zip(*(jax.tree.leaves(run(module)(x - offset)) for module in (ours, theirs))):
        np.testing.assert_allclose(a, b, atol=2e-6 * (1 + offset) * jnp.abs(b).max())
    # What is slow on CPU is a sum over channels that are split into groups.
    program = jax.make_jaxpr(lambda x: ours.apply({'params': params}, x))(x)
    assert max(v.aval.ndim for e in program.eqns for v in e.outvars) == 4


def test_a_fusion_reads_no_more_in_a_deeper_network():
    # Else the sum of a block is computed anew wherever that of a later one is read.
    def most(num_blocks):
        network = ddpmpp(**dict(UNET, num_blocks=num_blocks, attn_resolutions=()))
        inputs = jnp.ones((2, 8, 8, 3)), jnp.zeros(2), {}
        params = jax.eval_shape(network.init, jax.random.key(0), *inputs)
        program = compiled(lambda params: network.apply(params, *inputs)[0]).lower(params).compile()
        return max(
            part.count(' parameter(') for part in program.as_text().split('ENTRY')[0].split('}\n\n')
        )

    assert most(num_blocks=4) == most(num_blocks=2)


def test_box_filter_averages_and_repeats():
    x = np.random.RandomState(0).standard_normal((2, 6, 4, 3)).astype(np.float32)
    down, up = compiled(lambda x: (downsample(x, (1, 1)), upsample(x, (1, 1))))(x)
    np.testing.assert_allclose(down, x.reshape(2, 3, 2, 2, 2, 3).mean((2, 4)), atol=1e-6)
    np.testing.assert_allclose(up, x.repeat(2, 1).repeat(2, 2), rtol=1e-6)


@pytest.mark.parametrize('taps', [(1, 1), (1, 3, 3, 1), (1, 5, 10, 10, 5, 1)])
def test_upsample_is_four_times_the_adjoint_of_downsample(taps):
    random = np.random.RandomState(0)
    fine, coarse = random.standard_normal((2, 8, 12, 3)), random.standard_normal((2, 4, 6, 3))
    coarse[0] = 1
    up, down = compiled(lambda coarse, fine: (upsample(coarse, taps), downsample(fine, taps)))(
        coarse, fine
    )
    np.testing.assert_allclose(np.sum(up * fine), 4 * np.sum(coarse * down), rtol=1e-4)
    # Away from the border a constant image stays what it is.
    np.testing.assert_allclose(up[0, 2:-2, 2:-2], 1, rtol=1e-5)


def test_attention_over_equal_keys_is_the_mean_of_values():
    qkv = jax.random.normal(jax.random.key(0), (2, 3, 3, 2, 4, 3)).at[..., 1].set(1.0)
    out = attend(qkv.reshape(2, 3, 3, 24), heads=2).reshape(2, 3, 3, 2, 4)
    mean = qkv[..., 2].mean((1, 2), keepdims=True)
    np.testing.assert_allclose(out, jnp.broadcast_to(mean, out.shape), atol=1e-5)


@pytest.mark.parametrize('name', HEADS)
def test_head_gives_float32_logits(name):
    _, c_noise, condition = batch()
    features = tuple(jnp.ones((4, r, r, 8)) for r in (8, 4))
    head = HEADS[name]()
    params = jax.eval_shape(head.init, jax.random.key(0), features, c_noise, condition)
    logits = jax.eval_shape(head.apply, params, features, c_noise, condition)
    places = {'channel_mean': 4 * 4, 'patch': 3 * 3}.get(name, 1)
    assert logits.shape == (4, places) and logits.dtype == jnp.float32


@pytest.mark.parametrize('resolution', [1, 2, 4, 7, 8, 32])
def test_conv_head_takes_any_resolution(resolution):
    features = (jnp.ones((4, resolution, resolution, 8)),) * 2
    head = conv_head(indices=(0, -1))
    params = jax.eval_shape(head.init, jax.random.key(0), features, None, None)
    assert jax.eval_shape(head.apply, params, features, None, None).shape == (4, 2)


def test_conv_head_of_imagenet_has_the_published_layers():
    """DMD2 at 8x8x768: two 4x4 convolutions, their norms, a 1x1 convolution to one logit."""
    params = jax.eval_shape(
        conv_head().init, jax.random.key(0), (jnp.zeros((1, 8, 8, 768)),), None, None
    )
    assert (
        sum(leaf.size for leaf in jax.tree.leaves(params))
        == 2 * (16 * 768**2 + 768 + 2 * 768) + 768 + 1
    )


def test_conv_head_reads_the_features_it_was_told_to():
    features = [
        np.random.RandomState(r).standard_normal((2, r, r, 8)).astype(np.float32) for r in (8, 4, 2)
    ]
    head = conv_head(indices=(0, -1))
    params = compiled(head.init)(key_of(0), features, None, None)
    apply = compiled(lambda features: head.apply(params, features, None, None))
    changes = [
        np.abs(apply([f + (i == k) * f**2 for i, f in enumerate(features)]) - apply(features))
        for k in range(3)
    ]
    assert [(change.max(0) > 0).tolist() for change in changes] == [
        [True, False],
        [False, False],
        [False, True],
    ]


def test_patch_head_by_hand():
    """Each logit from the 4x4 pixels around its place, zeros beyond the border; a feature after the
    other. GroupNorm of 8 channels has two groups."""
    features = [np.random.RandomState(r).standard_normal((2, r, r, 8)) for r in (4, 2)]
    features = [of.astype(np.float32) for of in features]
    head = patch_head(indices=(0, 1))
    params = compiled(head.init)(key_of(0), features, None, None)
    expected = []
    for k, x in enumerate(features):
        own = jax.device_get(params[f'head{k}'])
        groups = x.reshape(2, -1, 2, 4)
        centred = groups - groups.mean((1, 3), keepdims=True)
        x = (centred / np.sqrt(centred.var((1, 3), keepdims=True) + 1e-5)).reshape(x.shape)
        x = np.pad(x, [(0, 0), (2, 2), (2, 2), (0, 0)])
        for i in range(0, x.shape[1] - 3, 2):
            for j in range(0, x.shape[2] - 3, 2):
                patch = x[:, i : i + 4, j : j + 4]
                y = np.einsum('bijc,ijcd->bd', patch, own['conv']['kernel']) + own['conv']['bias']
                y = y / (1 + np.exp(-y))
                expected.append(y @ own['logit']['kernel'][0, 0] + own['logit']['bias'])
    logits = compiled(head.apply)(params, features, None, None)
    np.testing.assert_allclose(logits, np.hstack(expected), atol=2e-6)


def test_conv_head_names_what_it_cannot_read():
    with pytest.raises(ValueError, match='at least one'):
        conv_head(indices=())
    with pytest.raises(ValueError, match='each once'):
        conv_head(indices=(0, 0))
    with pytest.raises(ValueError, match='none at 2'):
        conv_head(indices=(2,)).init(jax.random.key(0), (jnp.zeros((1, 4, 4, 8)),), None, None)
    with pytest.raises(ValueError, match='square'):
        conv_head().init(jax.random.key(0), (jnp.zeros((1, 8)),), None, None)


def test_gaussian_is_one_scale_and_one_offset():
    x, c_noise, condition = jnp.ones((3, 2)), jnp.zeros(3), {}
    network = NETWORKS['gaussian'](scale=2.0, offset=-0.5)
    params = network.init(jax.random.key(0), x, c_noise, condition)
    assert {name: leaf.shape for name, leaf in params.items()} == {'scale': (), 'offset': (2,)}
    np.testing.assert_allclose(network.apply(params, x, c_noise, condition)[0], 1.5)
    starts = [
        NETWORKS['gaussian'](spread=1.0).init(jax.random.key(seed), x, c_noise, condition)['offset']
        for seed in (0, 1)
    ]
    assert np.abs(starts[0] - starts[1]).min() > 0.01
    with pytest.raises(ValueError, match='num_classes=3'):
        NETWORKS['gaussian'](num_classes=3)
    with pytest.raises(ValueError, match='spread=-1'):
        NETWORKS['gaussian'](spread=-1)
