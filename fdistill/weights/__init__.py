"""Published weights: read from foreign files without running them, converted once, kept as
safetensors."""

import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from fdistill.errors import UserError, pick
from fdistill.files import disk
from fdistill.networks.lpips import lpips as lpips_network
from fdistill.weights import lpips, store
from fdistill.weights.detectors import DETECTORS


class Converter(NamedTuple):
    """How the arrays of one network are found in foreign files.

    rename({foreign name: array}) -> {our name: array}; a name that it does not know stays as it is.
    shapes() -> {our name: shape}, all float32 and all there must be.
    licence: what to know before using them.
    beside: what a second file is that they come in; '' where there is none.
    """

    rename: Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]
    shapes: Callable[[], Mapping[str, tuple[int, ...]]]
    licence: str
    beside: str = ''


def _shapes(detector):
    return detector.network(None).shapes()


CONVERTERS = {
    name: Converter(row.rename, functools.partial(_shapes, row), row.licence)
    for name, row in DETECTORS.items()
} | {
    name: Converter(lpips.rename, lpips_network(net).shapes, lpips.LICENCE, lpips.BESIDE)
    for name, net in lpips.KINDS.items()
}


def convert(
    kind: str, source: disk.Path, out: disk.Path, beside: Sequence[disk.Path] = ()
) -> dict[str, str]:
    """Writes the weights of a published file, or of two, as ours; a file that holds them already
    stays as it is.

    Args:
      kind: a name of CONVERTERS.
      source: a file that `reader.read` reads.
      out: the safetensors file; its folder is made when missing.
      beside: the second file, where the converter says what it is.

    Returns:
      The metadata of the written file, {str: str}.

    Raises:
      UserError: unknown kind, unreadable source, its arrays are not those of the network, `out`
        holds something else, or there are too few or too many files.
    """
    from fdistill.weights import reader  # What reads a stranger's file is there only for that.

    converter = pick(CONVERTERS, kind, 'weights')
    if len(beside) != bool(converter.beside):
        wanted = f'also {converter.beside}, as --with=FILE' if converter.beside else 'none'
        raise UserError(f'{kind}: {len(beside)} files beside SRC; give {wanted}')
    sources, out = [pathlib.Path(path) for path in (source, *beside)], disk.file_for(out, 'OUT')
    trees = [reader.read(path) for path in sources]
    try:
        arrays = {}
        for found in map(reader.flatten, trees):
            if again := arrays.keys() & found.keys():
                raise ValueError(f'both files have an array {min(again)!r:.80}')
            arrays |= found
        renamed = converter.rename(arrays)
        store.check(renamed, converter.shapes())
    except ValueError as error:
        raise UserError(
            f'{" and ".join(map(str, sources))}: does not hold the weights {kind!r}: {error}; take '
            'the file as it was published'
        ) from error
    if store.is_there(out, kind, renamed):
        return store.metadata(out)
    metadata = {
        'kind': kind,
        'source': ' and '.join(path.name for path in sources),
        'source_sha256': ' and '.join(disk.sha256(path) for path in sources),
        'licence': converter.licence,
    }
    store.save(out, renamed, metadata)
    return store.load(out, converter.shapes())[1]
