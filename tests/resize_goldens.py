"""Small images, and how the programs that fdistill is compared with resize them.

`python tests/resize_goldens.py` writes data/resize_goldens.npz. Recorded on the CPU with torch
2.13.0, torch-fidelity 0.4.0, clean-fid 0.1.35 and Pillow 13.0.0, in an environment of its own.
"""

import pathlib

import numpy as np

GOLDENS = pathlib.Path(__file__).parent / 'data' / 'resize_goldens.npz'
# Height, width, size after: larger, smaller, both at once, and no change at all.
SHAPES = [(8, 8, 13), (13, 11, 5), (5, 21, 9), (6, 6, 6)]


def images(height, width):
    """uint8 [2, height, width, 3]: random grey levels, of which half are black or white, so that
    cubics overshoot."""
    random = np.random.RandomState(height * width)
    grey = random.randint(0, 256, (2, height, width, 3))
    return np.where(random.rand(*grey.shape) < 0.5, 255 * (grey > 127), grey).astype(np.uint8)


def record():
    """Resizes the images of all SHAPES under the names of RESIZERS and writes GOLDENS."""
    import torch
    from cleanfid.resize import build_resizer, make_resizer
    from torch_fidelity.interpolate_compat_tensorflow import (
        interpolate_bilinear_2d_like_tensorflow1x,
    )

    def interpolated(function, dtype=np.float32, **options):
        def resize(batch, size):
            nchw = torch.from_numpy(batch.astype(dtype).transpose(0, 3, 1, 2))
            return function(nchw, size=(size, size), **options).numpy().transpose(0, 2, 3, 1)

        return resize

    def clean(batch, size):
        resize = make_resizer('PIL', False, 'bicubic', (size, size))
        return np.stack([resize(image) for image in batch])

    assert build_resizer('clean')(images(8, 8)[0]).shape == (
        299,
        299,
        3,
    )  # the mode that `clean` is the inside of
    torch_resize = torch.nn.functional.interpolate
    programs = {
        'tf1': interpolated(interpolate_bilinear_2d_like_tensorflow1x, align_corners=False),
        'torch': interpolated(torch_resize, mode='bilinear', align_corners=False),
        'pil_bicubic': clean,
        # In float64: in float32 torch rounds the weights, by up to 1e-5 of the range for large
        # images.
        'torch_bicubic_antialias': interpolated(
            torch_resize, np.float64, mode='bicubic', antialias=True
        ),
    }
    arrays = {
        f'{name}/{height}x{width}to{size}': program(images(height, width), size).astype(np.float32)
        for name, program in programs.items()
        for height, width, size in SHAPES
    }
    np.savez_compressed(GOLDENS, **arrays)


if __name__ == '__main__':
    record()
