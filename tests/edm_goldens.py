"""Small U-Nets with weights drawn by name, and how their outputs were recorded from EDM's own
PyTorch networks.

`python tests/edm_goldens.py CHECKOUT` writes data/edm_goldens.npz; CHECKOUT is a clone of
github.com/NVlabs/edm. Recorded at its commit 008a4e5 with torch 2.13.0+cpu in float32, in an
environment of its own with requests and pillow.
"""

import functools
import json
import pathlib
import sys
import zlib

import numpy as np

GOLDENS = pathlib.Path(__file__).parent / 'data' / 'edm_goldens.npz'
_COMMON = dict(num_classes=5, augment_dim=9)
_SONG = dict(resolution=16, model_channels=16, channel_mult=(1, 2, 2), num_blocks=1, **_COMMON)
# Three levels, so that the residual encoder feeds on itself; in ADM one head at 8x8 and two at 4x4.
CASES = {
    'ddpmpp': dict(attn_resolutions=(8,), **_SONG),
    'ncsnpp': dict(attn_resolutions=(16, 4), **_SONG),
    'adm': dict(
        resolution=16,
        model_channels=32,
        channel_mult=(1, 2, 4),
        num_blocks=1,
        attn_resolutions=(8, 4),
        **_COMMON,
    ),
}


def weight(name, shape):
    """The array of EDM's state dict entry `name`, in EDM's layout: unit gain, norms near one.

    The first convolution is small, so that the norm after it shows its eps.
    """
    draw = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    if name.endswith('freqs'):
        draw = 16 * draw
    elif 'norm' in name:
        draw = 0.2 * draw + name.endswith('weight')
    elif len(shape) > 1:
        draw = draw / np.sqrt(np.prod(shape[1:]))
    return np.float32(0.02 * draw if name.startswith('enc.16x16_conv') else draw)


def inputs():
    """x[3,16,16,3], c_noise = ln(sigma)/4 over EDM's range, labels with one -1, augment[3,9]."""
    random = np.random.RandomState(0)
    x = random.standard_normal((3, 16, 16, 3)).astype(np.float32)
    augment = random.standard_normal((3, 9)).astype(np.float32)
    return (
        x,
        np.log(np.array([0.002, 0.5, 80.0])).astype(np.float32) / 4,
        np.array([3, -1, 0]),
        augment,
    )


def record(checkout):
    """Runs EDM's networks and writes GOLDENS: outputs, the encoder activations of the first image,
    names and shapes."""
    sys.path.insert(0, checkout)
    import torch
    from training import networks

    fourier = dict(
        embedding_type='fourier',
        encoder_type='residual',
        channel_mult_noise=2,
        resample_filter=[1, 3, 3, 1],
    )
    types = {
        'ddpmpp': (networks.SongUNet, {}),
        'ncsnpp': (networks.SongUNet, fourier),
        'adm': (networks.DhariwalUNet, {}),
    }

    def keep(activations, level, block, args, out):
        activations[level] = out

    x, c_noise, label, augment = inputs()
    one_hot = (label[:, None] == np.arange(_COMMON['num_classes'])).astype(np.float32)
    arrays = {}
    for case, (network, options) in types.items():
        settings = dict(
            CASES[case], img_resolution=CASES[case]['resolution'], label_dim=_COMMON['num_classes']
        )
        settings = {
            key: value
            for key, value in settings.items()
            if key not in ('resolution', 'num_classes')
        }
        model = network(in_channels=3, out_channels=3, **settings, **options).eval()
        entries = {name: list(array.shape) for name, array in model.state_dict().items()}
        drawn = {
            name: weight(name, shape)
            for name, shape in entries.items()
            if not name.endswith('resample_filter')
        }
        model.load_state_dict(
            {name: torch.from_numpy(array) for name, array in drawn.items()}, strict=False
        )
        activations = {}
        for name, block in model.enc.items():
            block.register_forward_hook(functools.partial(keep, activations, name.split('_')[0]))
        with torch.no_grad():
            out = model(
                *map(torch.from_numpy, (x.transpose(0, 3, 1, 2), c_noise, one_hot, augment))
            )
        arrays[f'{case}/out'] = out.numpy().transpose(0, 2, 3, 1)
        for i, activation in enumerate(activations.values()):
            arrays[f'{case}/feature{i}'] = activation.numpy()[0].transpose(1, 2, 0)
        arrays[f'{case}/entries'] = np.array(json.dumps(entries))
    GOLDENS.parent.mkdir(exist_ok=True)
    np.savez_compressed(GOLDENS, **arrays)


if __name__ == '__main__':
    record(sys.argv[1])
