"""Small networks of EDM and EDM2 under each preconditioning, with weights drawn by name, and how
their outputs and gradients were recorded from NVIDIA's own code.

`python tests/teachers_goldens.py EDM EDM2` writes data/teachers_goldens.npz; EDM and EDM2 are
clones of github.com/NVlabs/edm (008a4e5) and github.com/NVlabs/edm2 (4bf8162). Recorded with torch
2.13.0+cpu in float32, in an environment of its own with requests, pillow and psutil.
"""

import json
import pathlib
import subprocess
import sys
import zlib

import numpy as np

GOLDENS = pathlib.Path(__file__).parent / 'data' / 'teachers_goldens.npz'

_COMMON = dict(img_resolution=8, img_channels=3)
_SONG = dict(
    model_type='SongUNet',
    model_channels=8,
    channel_mult=[1, 2],
    num_blocks=1,
    attn_resolutions=[4],
    **_COMMON,
)
_NCSNPP = dict(
    embedding_type='fourier',
    encoder_type='residual',
    decoder_type='standard',
    channel_mult_noise=2,
    resample_filter=[1, 3, 3, 1],
)
_EDM2 = dict(
    model_channels=16,
    channel_mult=[1, 2],
    num_blocks=1,
    attn_resolutions=[8],
    channels_per_head=8,
    **_COMMON,
)
# Name: repository, class of the preconditioning, its keyword arguments.
CASES = {
    'ddpmpp': ('edm', 'EDMPrecond', dict(label_dim=5, augment_dim=9, use_fp16=False, **_SONG)),
    'ddpmpp-vp': ('edm', 'VPPrecond', dict(label_dim=0, **_SONG)),
    'ncsnpp': ('edm', 'EDMPrecond', dict(label_dim=0, augment_dim=9, **_NCSNPP, **_SONG)),
    'ncsnpp-ve': ('edm', 'VEPrecond', dict(label_dim=5, **_NCSNPP, **_SONG)),
    'adm': (
        'edm',
        'EDMPrecond',
        dict(
            label_dim=5,
            model_channels=32,
            channel_mult=[1, 2],
            num_blocks=1,
            attn_resolutions=[4],
            use_fp16=True,
            **_COMMON,
        ),
    ),
    'edm2': ('edm2', 'Precond', dict(label_dim=5, use_fp16=True, **_EDM2)),
    'edm2-uncond': ('edm2', 'Precond', dict(label_dim=0, clip_act=1.5, **_EDM2)),
}
SIGMAS = np.float32([0.002, 0.5, 80.0])


def weight(name, shape):
    """The array of a state dict entry, in its layout: unit gain, norms near one."""
    draw = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    if name.endswith('freqs'):
        draw = (6 if 'emb_fourier' in name else 16) * draw
    elif not shape:
        draw = 0.8 + 0.1 * draw
    elif 'norm' in name:
        draw = 0.2 * draw + name.endswith('weight')
    elif len(shape) > 1:
        draw = draw / np.sqrt(np.prod(shape[1:]))
    return np.asarray(draw, np.float32)


def inputs(case):
    """x[3,8,8,3], labels with one -1 or None, augment[3,9] or None, and what the output is weighed
    with for the gradients."""
    random = np.random.RandomState(1)
    x, probe = random.standard_normal((2, 3, 8, 8, 3)).astype(np.float32)
    x = x * np.sqrt(SIGMAS**2 + 0.25)[:, None, None, None]
    augment = random.standard_normal((3, 9)).astype(np.float32)
    settings = CASES[case][2]
    label = np.array([3, -1, 0]) if settings['label_dim'] else None
    return x, label, augment if settings.get('augment_dim') else None, probe


def probe_of(name, shape):
    """What the gradient of an array is weighed with, so that a number is left of it."""
    return np.random.RandomState(zlib.crc32(name.encode()) ^ 1).standard_normal(shape)


def record(repository, checkout):
    """Runs the networks of one repository; {name: array}."""
    sys.path.insert(0, checkout)
    import torch

    if repository == 'edm':
        from training import networks
    else:
        from training import networks_edm2 as networks
    arrays = {}
    for case, (own, kind, settings) in CASES.items():
        if own != repository:
            continue
        model = getattr(networks, kind)(**settings).eval()
        entries = {name: list(array.shape) for name, array in model.state_dict().items()}
        drawn = {
            name: torch.from_numpy(weight(name, shape))
            for name, shape in entries.items()
            if not name.endswith('resample_filter')
        }
        model.load_state_dict(drawn, strict=False)
        kept = {
            name: array.numpy()
            for name, array in model.state_dict().items()
            if name.endswith('resample_filter')
        }
        x, label, augment, probe = inputs(case)
        if label is not None:
            label = torch.from_numpy((label[:, None] == np.arange(5)).astype(np.float32))
        more = {} if augment is None else {'augment_labels': torch.from_numpy(augment)}
        unet, activations = getattr(model, 'unet', None) or model.model, {}
        for name, block in unet.enc.items():

            def keep(block, args, out, kept=activations, level=name.split('_')[0]):
                kept[level] = out

            block.register_forward_hook(keep)
        image = torch.from_numpy(x.transpose(0, 3, 1, 2).copy()).requires_grad_()
        out = model(image, torch.from_numpy(SIGMAS), label, **more)
        (out * torch.from_numpy(probe.transpose(0, 3, 1, 2).copy())).sum().backward()
        arrays[f'{case}/out'] = out.detach().numpy().transpose(0, 2, 3, 1)
        arrays[f'{case}/image'] = image.grad.numpy().transpose(0, 2, 3, 1)
        for i, activation in enumerate(activations.values()):
            arrays[f'{case}/feature{i}'] = activation.detach().numpy()[0].transpose(1, 2, 0)
        gradients = {
            name: float((p.grad.double().numpy() * probe_of(name, p.shape)).sum())
            for name, p in model.named_parameters()
            if p.grad is not None
        }
        arrays[f'{case}/entries'] = np.array(json.dumps(entries))
        arrays[f'{case}/gradients'] = np.array(json.dumps(gradients))
        arrays |= {f'{case}/kept/{name}': array for name, array in kept.items()}
    return arrays


if __name__ == '__main__':
    if len(sys.argv) == 4:  # One repository: both have a package `training`.
        np.savez(sys.argv[3], **record(*sys.argv[1:3]))
        sys.exit()
    found = {}
    for number, repository in enumerate(('edm', 'edm2')):
        part = GOLDENS.with_suffix(f'.{repository}.npz')
        subprocess.run(
            [sys.executable, __file__, repository, sys.argv[1 + number], str(part)], check=True
        )
        with np.load(part) as arrays:
            found |= dict(arrays)
        part.unlink()
    np.savez_compressed(GOLDENS, **found)
