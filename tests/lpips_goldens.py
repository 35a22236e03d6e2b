"""Weights of LPIPS drawn by name, and how distances were recorded from two packages with them.

`python tests/lpips_goldens.py` writes data/lpips_goldens.npz, in an environment of its own with
lpips and piq. Recorded with lpips 0.1.4, piq 0.8.0, torchvision 0.28.0 and torch 2.13.0 on a CPU in
float64, so that all of the difference is ours.
"""

import pathlib
import zlib

import numpy as np

GOLDENS = pathlib.Path(__file__).parent / 'data' / 'lpips_goldens.npz'
# Network, pooling, and sizes: the smallest, odd sides, and one of small images resized.
CASES = {
    'vgg': ('vgg', 'max', [(16, 16), (35, 46)]),
    'alex': ('alex', 'max', [(31, 31), (64, 75)]),
    'piq': ('vgg', 'average', [(35, 46)]),
}
RESIZED = (8, 40)  # pixels of a side before and after


def weight(name, shape):
    """The array of torchvision's or LPIPS's state dict entry `name`: activations of order one, some
    channels that are never active and some that do not count."""
    draw = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    if name.startswith('lin'):
        draw = np.maximum(draw, 0)
    elif len(shape) > 1:
        draw *= np.sqrt(2 / np.prod(shape[1:]))
    else:
        draw *= 0.2
    return draw.astype(np.float32)


def images(height, width):
    """Two pairs (x, y), each [2, height, width, 3] in [-1, 1]: a smooth image, and noise, beside
    the same disturbed."""
    random = np.random.RandomState(height * 1000 + width)
    rows, columns = np.mgrid[:height, :width] / 10
    smooth = [np.sin(rows + 2 * columns), np.cos(columns - rows), np.sin(rows * columns)]
    noise = random.uniform(-1, 1, (height, width, 3))
    x = np.stack([np.stack(smooth, -1), noise])
    y = np.clip(x + 0.3 * random.standard_normal(x.shape), -1, 1)
    return x.astype(np.float32), y.astype(np.float32)


def _torch(array):
    import torch

    return torch.from_numpy(array.transpose(0, 3, 1, 2)).double()


def _lpips(net):
    """The package's network of these weights: (x, y) -> distances [B, layers]."""
    import lpips
    import torch

    # Neither with the weights that come with the package nor with any that are fetched.
    made = lpips.LPIPS(net=net, pretrained=False, pnet_rand=True, verbose=False)
    state = made.state_dict()
    for name, array in state.items():
        # 'net.slice2.5.weight' is torchvision's 'features.5.weight'.
        trunk = 'features.' + name.split('.', 2)[-1]
        own = trunk if name.startswith('net.') else name.replace('lins.', 'lin')
        if own.split('.')[0] in ('features', *(f'lin{k}' for k in range(5))):
            state[name] = torch.from_numpy(weight(own, tuple(array.shape)))
    made.load_state_dict(state)
    made.double()

    def distances(x, y):
        return torch.stack([one[:, 0, 0, 0] for one in made(x, y, retPerLayer=True)[1]], 1)

    return distances


def _piq():
    """piq's LPIPS of these weights with average pooling, as 2-RF++ has it; (x, y) -> their sum over
    layers [B, 1]."""
    import piq.perceptual
    import torch
    import torchvision

    def vgg16(**options):
        network = torchvision.models.vgg16(weights=None)
        state = network.features.state_dict()
        drawn = {
            name: torch.from_numpy(weight(f'features.{name}', tuple(array.shape)))
            for name, array in state.items()
        }
        network.features.load_state_dict(drawn)
        return network

    channels = (64, 128, 256, 512, 512)
    judged = [
        torch.from_numpy(weight(f'lin{k}.model.1.weight', (1, width, 1, 1)))
        for k, width in enumerate(channels)
    ]
    # In place of the downloads.
    torch.hub.load_state_dict_from_url = lambda *args, **kwargs: judged
    piq.perceptual.vgg16 = vgg16
    made = piq.perceptual.LPIPS(replace_pooling=True, reduction='none')
    return lambda x, y: made((x + 1) / 2, (y + 1) / 2)[:, None]


def record():
    """Writes GOLDENS: names and shapes of the files, distances, and slopes of their sum in x of the
    first size."""
    import torch
    import torchvision

    arrays = {}
    for case, (net, _, sizes) in CASES.items():
        distances = _piq() if case == 'piq' else _lpips(net)
        for size in sizes:
            x, y = map(_torch, images(*size))
            x.requires_grad_()
            found = distances(x, y)
            found.sum().backward()
            arrays[f'{case}/{size[0]}x{size[1]}'] = found.detach().numpy()
            if size == sizes[0]:
                slope = x.grad.permute(0, 2, 3, 1).numpy()
                arrays[f'{case}/slope'] = slope.astype(np.float32)
        if case != 'piq':
            before, after = RESIZED
            x, y = (
                torch.nn.functional.interpolate(_torch(image), size=after, mode='bilinear')
                for image in images(before, before)
            )
            arrays[f'{case}/resized'] = distances(x, y).detach().numpy()
            name = {'vgg': 'vgg16', 'alex': 'alexnet'}[net]
            network = getattr(torchvision.models, name)(weights=None)
            entries = [
                f'{entry} {" ".join(map(str, array.shape))}'
                for entry, array in network.state_dict().items()
            ]
            arrays[f'{case}/entries'] = np.array(entries)
    np.savez_compressed(GOLDENS, **arrays)


if __name__ == '__main__':
    record()
