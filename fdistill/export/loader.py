"""Samples of the generator in this folder; needs jax and numpy, and not fdistill.

from loader import load, to_uint8
sample = load()
images = to_uint8(sample(seed=0, n=16, label=3))
"""

import pathlib
from collections.abc import Callable

import jax
import numpy as np

BATCH = 1000  # samples at once, as `fdistill sample` makes them
RANDOM = -2  # a label that stands for a random class; -1 is none


def load(
    folder: str | pathlib.Path = pathlib.Path(__file__).parent,
) -> Callable[..., np.ndarray]:
    """sample(seed, n, label=None) -> float32 [n, ...]: the images in about [-1, 1] that `fdistill
    sample --seed=SEED --n=N --label=LABEL` draws; without a label, each of a random class."""
    folder = pathlib.Path(folder)
    start, generate = (
        jax.export.deserialize(bytearray((folder / f'{name}.jax').read_bytes())).call
        for name in ('start', 'sample')
    )
    with np.load(folder / 'weights.npz') as file:
        weights = {name: jax.numpy.asarray(file[name]) for name in file}

    def sample(seed: int, n: int, label: int | None = None) -> np.ndarray:
        labels = np.full(min(n, BATCH), RANDOM if label is None else label, np.int32)
        made = []
        for batch in range(-(-n // BATCH)):
            noise, classes = start(np.int32(seed), np.int32(batch), labels)
            made.append(np.asarray(generate(weights, noise, classes)))
        return np.concatenate(made)[:n]

    return sample


def to_uint8(images: np.ndarray) -> np.ndarray:
    """Images in [-1, 1], cut to that range, as levels 0 to 255."""
    return np.round(np.clip(images, -1, 1) * 127.5 + 127.5).astype(np.uint8)
