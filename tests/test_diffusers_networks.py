"""Our networks against diffusers', tiny and with every parameter random; diffusers_networks.py says
which, and how their answers were recorded."""

import functools
import sys

import diffusers_networks
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from diffusers_networks import CASES

from fdistill.config import call
from fdistill.networks import NETWORKS, blocks2d
from fdistill.networks.autoencoder import AUTOENCODERS
from fdistill.networks.unet2d import unet2d
from fdistill.weights import diffusers_config

BAR = 1e-5  # of the largest number of the answer
UNETS = [name for name, case in CASES.items() if case.kind == 'UNet2DModel']
VAES = [name for name in CASES if name not in UNETS]


def built(name, **changes):
    """(network, params) of a case."""
    case = CASES[name]
    config = {'_class_name': case.kind, **case.config, **changes}
    row, options = diffusers_config.settings(config, 'config.json')
    made = call((NETWORKS | AUTOENCODERS)[row], options, 'config.network')
    if case.kind == 'UNet2DModel':
        images, t, labels, _ = diffusers_networks.inputs(case)
        shapes = jax.eval_shape(made.init, jax.random.key(0), images, t, {'label': labels})
        shapes = {key: value.shape for key, value in shapes.items()}
    else:
        shapes = made.shapes()
    return made, diffusers_networks.arrays(shapes)


def answers(name, **changes):
    """What ours say to the inputs of a case, by name."""
    network, params = built(name, **changes)
    images, t, labels, latents = diffusers_networks.inputs(CASES[name])
    if name in UNETS:
        condition = {'label': labels} if network.takes else {}
        return {'out': network.apply(params, images, t, condition)[0]}
    # Ours decodes what a diffusion model makes; theirs what an encoder does.
    moments = jnp.concatenate([latents, latents], axis=-1)
    decoded = network.decode(params, network.latents(moments))
    return {'moments': network.encode(params, images), 'images': decoded}


@functools.cache
def recorded():
    with np.load(diffusers_networks.GOLDENS) as file:
        return dict(file)


def distance(ours, name):
    """Largest difference to what was recorded, over the largest number there."""
    return max(
        np.abs(value - expected).max() / np.abs(expected).max()
        for part, value in ours.items()
        for expected in [recorded()[f'{name}/{part}']]
    )


@pytest.mark.parametrize('name', CASES)
def test_agrees_with_what_was_recorded(name):
    assert distance(answers(name), name) < BAR


@pytest.mark.parametrize('name', CASES)
def test_agrees_with_the_installed_library(name):
    for package in ('torch', 'diffusers'):
        pytest.importorskip(package, reason=f'{package} is not installed')
    network, params = built(name)
    theirs = diffusers_networks.answers(CASES[name], diffusers_networks.model(CASES[name], params))
    for part, value in answers(name).items():
        assert np.abs(value - theirs[part]).max() < BAR * np.abs(theirs[part]).max()


@pytest.mark.parametrize(
    'name, changes',
    [
        ('unet ddpm', {'norm_eps': 1e-5}),
        ('unet ddpm', {'downsample_padding': 1}),
        ('unet ddpm', {'flip_sin_to_cos': True}),
        ('unet ddpm', {'freq_shift': 0}),
        ('unet ddpm', {'attention_head_dim': 8}),
        ('unet', {'attn_norm_num_groups': 4}),
        ('unet', {'norm_num_groups': 4}),
        ('unet', {'attention_head_dim': 4}),
        ('unet resnet', {'center_input_sample': False}),
    ],
)
def test_another_setting_gives_another_answer(name, changes):
    assert distance(answers(name, **changes), name) > 2 * BAR


@pytest.mark.parametrize(
    'name, piece, other',
    [
        ('unet resnet', 'halved', lambda x: x[:, ::2, ::2]),
        ('unet', 'doubled', lambda x: jnp.tile(x, (1, 2, 2, 1))),
        ('vae', 'EPS', 1e-5),
    ],
)
def test_another_piece_gives_another_answer(name, piece, other, monkeypatch):
    for module in ('autoencoder', 'unet2d'):
        monkeypatch.setattr(sys.modules[f'fdistill.networks.{module}'], piece, other, raising=False)
    assert distance(answers(name), name) > 2 * BAR


def test_latents_are_drawn_shifted_and_scaled():
    network, _ = built('vae bare')  # shift 0.1, scale 1.5
    moments = np.zeros((1, 2, 2, 32), np.float32)
    moments[..., :16], moments[..., 16:] = 0.7, 2 * np.log(0.5)
    np.testing.assert_allclose(network.latents(moments), (0.7 - 0.1) * 1.5, rtol=1e-6)
    noise = np.full((1, 2, 2, 16), 2.0)
    np.testing.assert_allclose(network.latents(moments, noise), (0.7 + 1 - 0.1) * 1.5, rtol=1e-6)


def test_latents_may_have_numbers_a_channel():
    network, params = built('vae', latents_mean=[1, 2, 3, 4], latents_std=[1, 2, 4, 8])
    z = network.latents(jnp.zeros((1, 8, 8, 8)))
    np.testing.assert_allclose(z[0, 0, 0], -0.18215 * np.array([1, 1, 0.75, 0.5]), rtol=1e-6)
    plain, _ = built('vae')
    np.testing.assert_allclose(
        network.decode(params, z), plain.decode(params, jnp.zeros_like(z)), atol=1e-5
    )


@pytest.mark.parametrize('logvar, kept', [(-1e3, -30), (50.0, 20), (0.5, 0.5)])
def test_the_variance_of_latents_is_bounded(logvar, kept):
    network, params = built('vae')
    params = dict(params)
    params['quant_conv.weight'] = np.zeros_like(params['quant_conv.weight'])
    params['quant_conv.bias'] = np.full(8, logvar, np.float32)
    moments = network.encode(params, np.zeros((1, 4, 4, 3), np.float32))
    np.testing.assert_allclose(moments[..., 4:], kept)


SIZES = [
    (
        'unet2d',
        dict(
            resolution=32,
            block_out_channels=(128, 256, 256, 256),
            down_block_types=('DownBlock2D', 'AttnDownBlock2D', 'DownBlock2D', 'DownBlock2D'),
            up_block_types=('UpBlock2D', 'UpBlock2D', 'AttnUpBlock2D', 'UpBlock2D'),
            attention_head_dim=None,
        ),
        328,
        35_746_307,
    ),
    (
        'autoencoder_kl',
        dict(block_out_channels=(128, 256, 512, 512), layers_per_block=2),
        248,
        83_653_863,
    ),
]


@pytest.mark.parametrize('name, options, arrays, numbers', SIZES)
def test_published_networks_have_their_size(name, options, arrays, numbers):
    made = call((NETWORKS | AUTOENCODERS)[name], options, 'config.network')
    if name == 'unet2d':
        x = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
        t = jax.ShapeDtypeStruct((1,), jnp.float32)
        shapes = jax.eval_shape(made.init, jax.random.key(0), x, t, {})
        shapes = {key: value.shape for key, value in shapes.items()}
    else:
        shapes = made.shapes()
    assert (len(shapes), sum(int(np.prod(shape)) for shape in shapes.values())) == (arrays, numbers)


def test_parameters_begin_as_torchs_do():
    wanted = {
        'conv.weight': (64, 32, 3, 3),
        'conv.bias': (64,),
        'norm.weight': (8,),
        'norm.bias': (8,),
        'table.weight': (500, 8),
        'last.weight': (8, 8),
        'last.bias': (8,),
    }
    drawn = blocks2d.draw(jax.random.key(0), wanted, zeros=('last',))
    bound = (32 * 9) ** -0.5
    for name in ('conv.weight', 'conv.bias'):
        np.testing.assert_allclose(np.abs(drawn[name]).max(), bound, rtol=0.1)
    np.testing.assert_allclose(np.std(drawn['conv.weight']), bound / 3**0.5, rtol=0.02)
    np.testing.assert_allclose(np.std(drawn['table.weight']), 1, rtol=0.05)
    assert (drawn['norm.weight'] == 1).all() and not drawn['norm.bias'].any()
    assert not drawn['last.weight'].any() and not drawn['last.bias'].any()


@pytest.mark.parametrize('dim, shift', [(8, 0), (9, 1)])
def test_sinusoid(dim, shift):
    t = np.array([0.0, 3.0, 999.0])
    angles = t[:, None] * 1e4 ** (-np.arange(4) / (4 - shift))
    expected = np.concatenate([np.sin(angles), np.cos(angles), np.zeros((3, dim % 2))], axis=1)
    np.testing.assert_allclose(
        blocks2d.sinusoid(jnp.asarray(t), dim, False, shift), expected, atol=1e-4
    )


@pytest.mark.parametrize(
    'row, options, message',
    [
        ('unet2d', dict(down_block_types=('SkipDownBlock2D', 'DownBlock2D')), 'SkipDownBlock2D'),
        ('unet2d', dict(up_block_types=('KUpBlock2D', 'UpBlock2D')), 'known are UpBlock2D'),
        ('unet2d', dict(down_block_types=('DownBlock2D',)), 'one for each'),
        ('unet2d', dict(attention_head_dim=5), 'attention_head_dim=5'),
        ('unet2d', dict(norm_num_groups=3), 'norm_num_groups=3'),
        ('unet2d', dict(attn_norm_num_groups=5), 'attn_norm_num_groups=5'),
        ('unet2d', dict(resolution=9), 'resolution=9'),
        ('unet2d', dict(block_out_channels=(2**17, 32)), 'block_out_channels'),
        ('unet2d', dict(layers_per_block=0), 'layers_per_block=0'),
        ('unet2d', dict(dropout=1.0), 'dropout=1.0'),
        ('unet2d', dict(norm_eps=0.0), 'norm_eps=0.0'),
        ('unet2d', dict(downsample_padding=2), 'downsample_padding=2'),
        ('unet2d', dict(resnet_time_scale_shift='spatial'), 'spatial'),
        ('autoencoder_kl', dict(norm_num_groups=3), 'norm_num_groups=3'),
        ('autoencoder_kl', dict(scaling_factor=0.0), 'scaling_factor=0.0'),
        ('autoencoder_kl', dict(latents_mean=(1.0,)), 'give both'),
        ('autoencoder_kl', dict(latents_mean=(1.0,), latents_std=(1.0,)), 'has 1 numbers'),
        ('autoencoder_kl', dict(latent_channels=0), 'latent_channels=0'),
        ('autoencoder_kl', dict(block_out_channels=(8,) * 99), 'at most 16 resolutions'),
    ],
)
def test_bad_settings_are_named(row, options, message):
    name = 'unet' if row == 'unet2d' else 'vae'
    made, given = diffusers_config.settings(
        {'_class_name': CASES[name].kind, **CASES[name].config}, 'config.json'
    )
    with pytest.raises(ValueError, match=message):
        call((NETWORKS | AUTOENCODERS)[row], given | options, 'config.network')


def test_bad_inputs_are_named():
    network, params = built('vae')
    with pytest.raises(ValueError, match='multiples of 2 pixels'):
        network.encode(params, np.zeros((1, 5, 4, 3), np.float32))
    with pytest.raises(ValueError, match='has 4 channels'):
        network.decode(params, np.zeros((1, 2, 2, 3), np.float32))
    network, params = built('unet')
    with pytest.raises(ValueError, match='was built for'):
        network.apply(params, np.zeros((1, 4, 4, 3), np.float32), np.zeros(1), {})


def test_the_gradient_of_a_class_is_no_sum_in_any_order():
    """As a look-up's is on a GPU, where a resumed run would be another."""
    settings = dict(
        num_classes=3,
        block_out_channels=(8,),
        down_block_types=('DownBlock2D',),
        up_block_types=('UpBlock2D',),
        norm_num_groups=4,
    )
    network = call(unet2d, settings, 'network', resolution=4)
    x, t, condition = jnp.ones((2, 4, 4, 3)), jnp.ones(2), {'label': jnp.array([2, -1])}
    params = network.init(jax.random.key(0), x, t, condition)

    def loss(params):
        return network.apply(params, x, t, condition)[0].sum()

    assert 'scatter' not in str(jax.make_jaxpr(jax.grad(loss))(params))
