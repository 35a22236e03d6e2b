"""A generator as StableHLO, by `jax.export`: programs, weights, and a loader that needs jax."""

import inspect
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from fdistill.export import loader
from fdistill.export.model import Exportable

PLATFORMS = ('cpu', 'cuda', 'tpu')
# Of a serialised program: documentation of jax.export, "Compatibility guarantees".
WINDOW = (
    'jax reads these programs for six months after the version that wrote them, and up to three '
    'weeks before it; the loader is plain Python'
)


def write(model: Exportable, folder: pathlib.Path) -> None:
    """Writes start.jax, sample.jax, weights.npz and loader.py.

    The programs are of any batch size and of all of PLATFORMS. `start` draws noise and classes, so
    that their bits do not depend on the random numbers of the jax that reads it; `sample` takes
    noise of any making.

    Args:
      model: a trained generator.
      folder: that exists.
    """
    (size,) = jax.export.symbolic_shape('batch')
    label = jax.ShapeDtypeStruct((size,), jnp.int32)
    noise = jax.ShapeDtypeStruct((size, *model.run.shape), jnp.float32)
    number = jax.ShapeDtypeStruct((), jnp.int32)
    weights = {
        name: jax.ShapeDtypeStruct(array.shape, array.dtype) for name, array in model.arrays.items()
    }
    programs = {
        'start': (model.start, (number, number, label)),
        'sample': (model.sample, (weights, noise, label)),
    }
    for name, (function, given) in programs.items():
        exported = jax.export.export(jax.jit(function), platforms=PLATFORMS)(*given)
        (folder / f'{name}.jax').write_bytes(exported.serialize())
    np.savez(folder / 'weights.npz', **model.arrays)
    (folder / 'loader.py').write_text(inspect.getsource(loader))
