"""Tiny networks of diffusers with every parameter drawn at random, and what they answer.

`python tests/diffusers_networks.py` writes data/diffusers_networks.npz; it needs torch and
diffusers. Recorded with diffusers 0.42.1 and torch 2.13.0 on a CPU. Parameters are drawn in numpy
from their names and shapes, so that a case is its settings and its answers alone.
"""

import pathlib
from typing import Any, NamedTuple

import numpy as np

GOLDENS = pathlib.Path(__file__).parent / 'data' / 'diffusers_networks.npz'


class Case(NamedTuple):
    """`kind(**config)` on inputs of that size."""

    kind: str
    config: dict[str, Any]
    size: int


_SMALL = {'block_out_channels': (16, 32), 'norm_num_groups': 8}
_UNET = {
    **_SMALL,
    'sample_size': 8,
    'down_block_types': ('DownBlock2D', 'AttnDownBlock2D'),
    'up_block_types': ('AttnUpBlock2D', 'UpBlock2D'),
}
_VAE = {
    **_SMALL,
    'down_block_types': ('DownEncoderBlock2D',) * 2,
    'up_block_types': ('UpDecoderBlock2D',) * 2,
    'layers_per_block': 2,
    'sample_size': 16,
}
CASES = {
    'unet ddpm': Case(
        'UNet2DModel',
        {
            **_UNET,
            'norm_eps': 1e-6,
            'downsample_padding': 0,
            'flip_sin_to_cos': False,
            'freq_shift': 1,
            'attention_head_dim': None,
        },
        8,
    ),
    'unet': Case('UNet2DModel', _UNET, 8),
    'unet resnet': Case(
        'UNet2DModel',
        {
            **_UNET,
            'down_block_types': ('AttnDownBlock2D', 'DownBlock2D'),
            'downsample_type': 'resnet',
            'upsample_type': 'resnet',
            'num_class_embeds': 5,
            'resnet_time_scale_shift': 'scale_shift',
            'center_input_sample': True,
            'in_channels': 1,
            'out_channels': 1,
            'layers_per_block': 1,
        },
        8,
    ),
    'vae': Case('AutoencoderKL', _VAE, 16),
    'vae bare': Case(
        'AutoencoderKL',
        {
            **_VAE,
            'latent_channels': 16,
            'layers_per_block': 1,
            'use_quant_conv': False,
            'use_post_quant_conv': False,
            'mid_block_add_attention': False,
            'shift_factor': 0.1,
            'scaling_factor': 1.5,
        },
        16,
    ),
}


def arrays(shapes):
    """{name: float32 array} of {name: shape}: norms 1 + N/5, biases N/5, all else N/sqrt(fan in); a
    hundredth of it in the first layer, so that the first norms tell one eps from another. A
    function of the names in order."""
    random = np.random.RandomState(0)
    made = {}
    for name in sorted(shapes):
        values = random.standard_normal(shapes[name])
        if values.ndim > 1:
            values /= np.sqrt(np.prod(values.shape[1:]))
        else:
            values = 0.2 * values + name.endswith('weight')
        first = 'conv_in.' in name
        made[name] = (values * (0.01 if first else 1)).astype(np.float32)
    return made


def inputs(case):
    """(images NHWC float32 [2,...], t, labels, latents NHWC) of a case; each takes those it has."""
    random = np.random.RandomState(1)
    channels = case.config.get('in_channels', 3)
    images = random.standard_normal((2, case.size, case.size, channels)).astype(np.float32)
    latent = case.config.get('latent_channels', 4)
    latents = random.standard_normal((2, case.size // 2, case.size // 2, latent))
    return images, np.array([7.0, 931.0], np.float32), np.array([3, 1]), latents.astype(np.float32)


def model(case, params=None):
    """diffusers' model of a case, its parameters `arrays`, or the ones given."""
    import diffusers
    import torch

    made = getattr(diffusers, case.kind)(**case.config).eval()
    shapes = {name: tuple(value.shape) for name, value in made.state_dict().items()}
    params = arrays(shapes) if params is None else params
    made.load_state_dict({name: torch.from_numpy(value) for name, value in params.items()})
    return made


def answers(case, made):
    """{name: NHWC array} of what a diffusers model says to `inputs`."""
    import torch

    images, t, labels, latents = inputs(case)
    images, latents = (torch.from_numpy(x).permute(0, 3, 1, 2) for x in (images, latents))
    with torch.no_grad():
        if case.kind == 'UNet2DModel':
            given = [torch.from_numpy(labels)] if 'num_class_embeds' in case.config else []
            out = {'out': made(images, torch.from_numpy(t), *given).sample}
        else:
            out = {
                'moments': made.encode(images).latent_dist.parameters,
                'images': made.decode(latents).sample,
            }
    return {name: value.permute(0, 2, 3, 1).numpy() for name, value in out.items()}


def record():
    """Writes GOLDENS: '<case>/<answer>'."""
    np.savez_compressed(
        GOLDENS,
        **{
            f'{name}/{part}': value
            for name, case in CASES.items()
            for part, value in answers(case, model(case)).items()
        },
    )


if __name__ == '__main__':
    record()
