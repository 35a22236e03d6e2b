"""Published weights: read from foreign files without running them, converted once, kept as
safetensors."""

import functools
import pathlib
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from fdistill.errors import UserError, pick
from fdistill.files import disk
from fdistill.weights import store
from fdistill.weights.detectors import DETECTORS


class Converter(NamedTuple):
    """How the arrays of one network are found in foreign files.

    rename({foreign name: array}) -> {our name: array}; a name that it does not know stays as it is.
    shapes() -> {our name: shape}, all float32 and all there must be.
    licence: what to know before using them.
    """

    rename: Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]
    shapes: Callable[[], Mapping[str, tuple[int, ...]]]
    licence: str


def _shapes(detector):
    return detector.network(None).shapes()


CONVERTERS = {
    name: Converter(row.rename, functools.partial(_shapes, row), row.licence)
    for name, row in DETECTORS.items()
}


def convert(kind: str, source: disk.Path, out: disk.Path) -> dict[str, str]:
    """Writes the weights of a published file as ours; a file that holds them already stays as it
    is.

    Args:
      kind: a name of CONVERTERS.
      source: a file that `reader.read` reads.
      out: the safetensors file; its folder is made when missing.

    Returns:
      The metadata of the written file, {str: str}.

    Raises:
      UserError: unknown kind, unreadable source, its arrays are not those of the network, or `out`
        holds something else.
    """
    from fdistill.weights import reader  # What reads a stranger's file is there only for that.

    converter = pick(CONVERTERS, kind, 'weights')
    source, out = pathlib.Path(source), disk.file_for(out, 'OUT')
    tree = reader.read(source)
    try:
        renamed = converter.rename(reader.flatten(tree))
        store.check(renamed, converter.shapes())
    except ValueError as error:
        raise UserError(
            f'{source}: does not hold the weights {kind!r}: {error}; take the file as it was '
            'published'
        ) from error
    if store.is_there(out, kind, renamed):
        return store.metadata(out)
    metadata = {
        'kind': kind,
        'source': source.name,
        'source_sha256': disk.sha256(source),
        'licence': converter.licence,
    }
    store.save(out, renamed, metadata)
    return store.load(out, converter.shapes())[1]
