"""Throughput of the FID InceptionV3 on 32 x 32 images, with torch's beside it where torch and
pytorch-fid can be imported.

    python experiments/bench_inception.py [--images 10000] [--batch 48] [--chunk 4]

Random weights, the same on both sides. Timed from uint8 pixels to pool features on the host, with
the bilinear resize to 299 x 299; the two take turns batch by batch, as the speed of a shared
machine moves. Compilation and a first batch are not timed. torch and pytorch-fid are optional and
no dependency of fdistill: install them into an environment of their own.
"""

import argparse
import os
import statistics
import sys
import time

import numpy as np

from fdistill.errors import UserError

SIDE = 299


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        raise UserError(f'{message}; see --help')


def parse(words):
    parser = _Parser(description=__doc__.split('\n')[0], allow_abbrev=False)
    parser.add_argument(
        '--images',
        type=int,
        default=10_000,
        help='rounded up to whole batches; default: %(default)s',
    )
    parser.add_argument('--batch', type=int, default=48, help='default: %(default)s')
    parser.add_argument(
        '--chunk',
        type=int,
        help='images at a time in our network, 0 for all; default: 4 on CPU, else 0',
    )
    options = parser.parse_args(words)
    for name, least in (('images', 1), ('batch', 1), ('chunk', 0)):
        value = getattr(options, name)
        if value is not None and value < least:
            parser.error(f'--{name}={value}: need at least {least}')
    return options


def ours(arrays, chunk):
    """pixels uint8 [B,h,w,3] -> pool features [B,2048], as numpy."""
    import jax

    from fdistill.networks import inception

    params = inception.from_arrays(arrays)

    @jax.jit
    def features(params, pixels):
        shape = (len(pixels), SIDE, SIDE, 3)
        images = jax.image.resize(
            pixels / np.float32(127.5) - 1, shape, 'bilinear', antialias=False, precision='highest'
        )
        return inception.apply(params, images, chunk or None).pool

    return lambda pixels: np.asarray(features(params, pixels))


def theirs(arrays):
    """The same by pytorch-fid with as many threads as torch takes, and a line that describes it."""
    import pytorch_fid.inception
    import torch

    # In place of the download of the trained weights.
    state = {name: torch.from_numpy(array) for name, array in arrays.items()}
    pytorch_fid.inception.load_state_dict_from_url = lambda *args, **kwargs: state
    network = pytorch_fid.inception.InceptionV3().eval()

    def features(pixels):
        with torch.inference_mode():
            images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
            return network(images)[0].flatten(1).numpy()

    return features, f'torch {torch.__version__}, {torch.get_num_threads()} threads'


def measure(sides, images, batch):
    """Seconds of every batch, {side: list}, and the first batch's features, {side: array}; a
    progress bar on stderr."""
    import tqdm

    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (batch, 32, 32, 3), dtype=np.uint8)
    first = {name: side(pixels) for name, side in sides.items()}
    seconds = {name: [] for name in sides}
    rounds = -(-images // batch)
    with tqdm.tqdm(total=rounds * batch, unit='image') as bar:
        for _ in range(rounds):
            pixels = random.integers(0, 256, pixels.shape, dtype=np.uint8)
            for name, side in sides.items():
                began = time.perf_counter()
                side(pixels)
                seconds[name].append(time.perf_counter() - began)
            bar.update(batch)
    return seconds, first


def main(words=None):
    options = parse(words)
    import jax

    from fdistill.networks import inception

    chunk = options.chunk
    if chunk is None:
        chunk = 4 if jax.default_backend() == 'cpu' else 0
    arrays = inception.draw(jax.random.key(0))
    sides = {'fdistill': ours(arrays, chunk)}
    try:
        sides['torch'], note = theirs(arrays)
    except (
        ImportError,
        RuntimeError,
    ) as error:  # torchvision raises RuntimeError where it does not fit torch
        note = f'torch not measured: {str(error).splitlines()[0]}'
    seconds, first = measure(sides, options.images, options.batch)
    affinity = getattr(os, 'sched_getaffinity', None)
    cores = len(affinity(0)) if affinity else os.cpu_count()
    count = len(seconds['fdistill']) * options.batch
    print(
        f'{count} images of 32 x 32, batch {options.batch}, '
        f'{f"chunks of {chunk}" if chunk else "no chunks"}'
    )
    print(f'{jax.devices()[0].device_kind}, {cores} cores, jax {jax.__version__}; {note}')
    print(f'{"":10}{"images/s":>10}{"median":>10}{"best":>10}')
    for name, times in seconds.items():
        rates = [options.batch / value for value in times]
        print(
            f'{name:10}{count / sum(times):10.2f}{statistics.median(rates):10.2f}{max(rates):10.2f}'
        )
    if 'torch' in sides:
        ratio = statistics.median(b / a for a, b in zip(seconds['fdistill'], seconds['torch']))
        error = np.abs(first['fdistill'] - first['torch']).max() / np.abs(first['torch']).max()
        print(
            f'fdistill/torch {ratio:.2f} (median over batches), features differ by {error:.1e} of '
            'the largest'
        )
    return 0


if __name__ == '__main__':
    try:
        sys.exit(main())
    except UserError as error:
        print(f'bench_inception: {error}', file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
