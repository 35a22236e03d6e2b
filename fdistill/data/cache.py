"""Files that are made once and kept: decoded data sets, the evaluation classifier."""

import os
import pathlib
import sys
from collections.abc import Callable, Iterable, Mapping

import numpy as np

from fdistill.errors import UserError
from fdistill.files import disk


def folder(*parts: str) -> pathlib.Path:
    """$FDISTILL_CACHE (default ~/.cache/fdistill) with `parts` below it, made if missing."""
    root = os.environ.get('FDISTILL_CACHE') or pathlib.Path.home() / '.cache' / 'fdistill'
    path = pathlib.Path(root, *parts)
    path.mkdir(parents=True, exist_ok=True)
    return path


def arrays(
    key: str,
    kinds: Iterable[str],
    what: str,
    make: Callable[[Mapping[str, pathlib.Path]], str],
) -> tuple[dict[str, np.ndarray], str]:
    """Arrays that are decoded once and kept, memory-mapped.

    A note, written last, has their digests: what does not fit it is made anew.

    Args:
      key: for a file's name, of what they are made from: of anything else they are other files.
      kinds: their names.
      what: they are, for a message.
      make: ({kind: .npy file}) -> digest of what they are made from, once all are written.

    Returns:
      ({kind: array}, that digest).
    """
    place = folder('data')
    paths = {kind: place / f'{key}-{kind}.npy' for kind in kinds}
    note = place / f'{key}.json'
    known = _noted(note, paths)
    if known is None:
        if note.exists():
            print(
                f'fdistill: the {what} in {place} are not those that were written; they are made '
                'anew',
                file=sys.stderr,
            )
        stored = make(paths)
        known = {kind: disk.sha256(path) for kind, path in paths.items()} | {'stored': stored}
        disk.write_json(note, known)
    # asarray, because indexing a memmap object gives memmap objects, which are slow.
    found = {kind: np.asarray(np.load(path, mmap_mode='r')) for kind, path in paths.items()}
    return found, known['stored']


def _noted(note, paths):
    """What the note says, or None where the arrays are not so."""
    try:
        known = disk.read_json(note)
        found = {kind: disk.sha256(path) for kind, path in paths.items()}
        return known if known == {**found, 'stored': str(known['stored'])} else None
    except (OSError, LookupError, UserError):
        return None
