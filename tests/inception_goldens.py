"""Weights of the FID InceptionV3 drawn by name, and how their features were recorded from
pytorch-fid's network.

`python tests/inception_goldens.py` writes data/inception_goldens.npz, in an environment of its own
with pytorch-fid. Recorded with pytorch-fid 0.3.0 and torch 2.13.0+cpu in float64, so that all of
the difference is ours.
"""

import pathlib
import zlib

import numpy as np

GOLDENS = pathlib.Path(__file__).parent / 'data' / 'inception_goldens.npz'
# The smallest, an even and an odd side, and the size of the FID.
SIZES = [(75, 75), (98, 107), (299, 299)]


def weight(name, shape):
    """The array of the state dict's entry `name`: no statistic of the batch norms is trivial,
    activations stay of order one."""
    draw = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    if name.endswith('running_var'):
        draw = np.exp(0.3 * draw)
    elif name.endswith('bn.weight'):
        draw = 1 + 0.2 * draw
    elif len(shape) == 1:
        draw = 0.2 * draw
    else:
        draw = draw * np.sqrt(2 / np.prod(shape[1:]))
    return draw.astype(np.float32)


def images(height, width):
    """Two images [2, height, width, 3] in [-1, 1]: a smooth one and noise."""
    random = np.random.RandomState(height * 1000 + width)
    y, x = np.mgrid[:height, :width] / 20
    smooth = np.stack([np.sin(y + 2 * x), np.cos(x - y), np.sin(x * y)], -1)
    return np.stack([smooth, random.uniform(-1, 1, smooth.shape)]).astype(np.float32)


def network():
    """pytorch-fid's FID network before it is cut into blocks, with the weights above, in
    float64."""
    import pytorch_fid.inception
    import torch

    from fdistill.networks import inception

    # In place of the download. Torch refuses names and shapes that are not the network's.
    state = {
        name: torch.from_numpy(weight(name, shape)) for name, shape in inception.shapes().items()
    }
    pytorch_fid.inception.load_state_dict_from_url = lambda *args, **kwargs: state
    return pytorch_fid.inception.fid_inception_v3().eval().double()


def features(inception, images):
    """(pool, spatial, logits) of float32 images [B,H,W,3]."""
    import torch

    kept = {}
    hooks = [
        layer.register_forward_hook(
            lambda module, inputs, output, name=name: kept.update({name: output})
        )
        for name, layer in [('pool', inception.avgpool), ('spatial', inception.Mixed_6d.branch1x1)]
    ]
    with torch.no_grad():
        logits = (
            inception(torch.from_numpy(images).permute(0, 3, 1, 2).double()) - inception.fc.bias
        )
    for hook in hooks:
        hook.remove()
    spatial = kept['spatial'][:, :7].permute(0, 2, 3, 1).flatten(1)
    return [array.numpy() for array in (kept['pool'].flatten(1), spatial, logits)]


def record():
    """Writes GOLDENS: names and shapes of the state dict, and the features for SIZES."""
    inception = network()
    arrays = {}
    for size in SIZES:
        for name, array in zip(('pool', 'spatial', 'logits'), features(inception, images(*size))):
            arrays[f'{size[0]}x{size[1]}/{name}'] = array.astype(np.float32)
    state = {name: tuple(array.shape) for name, array in inception.state_dict().items()}
    kept = [
        f'{name} {" ".join(map(str, shape))}'
        for name, shape in state.items()
        if not name.endswith('num_batches_tracked')
    ]
    np.savez_compressed(GOLDENS, shapes=np.array(kept), **arrays)


if __name__ == '__main__':
    record()
