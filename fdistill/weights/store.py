"""Converted weights as safetensors files; the one door to that library.

A file holds its arrays and, as text, what they are: the format's version, the kind of network, the
source's name and SHA-256, the licence, and the SHA-256 of the arrays themselves.
"""

import hashlib
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from fdistill.errors import UserError
from fdistill.files import disk

FORMAT = 'fdistill weights 1'
_DTYPES = (
    'bfloat16',
    'bool',
    'float16',
    'float32',
    'float64',
    'int16',
    'int32',
    'int64',
    'int8',
    'uint8',
)


def _plain(array):
    """The array in rows and in the machine's byte order."""
    return np.array(array, array.dtype.newbyteorder('='), order='C', copy=None)


def digest(arrays: Mapping[str, np.ndarray]) -> str:
    """Hexadecimal SHA-256 of {name: array}: of names in order, dtypes, shapes and bytes, however
    they lie in memory."""
    total = hashlib.sha256()
    for name in sorted(arrays):
        array = _plain(arrays[name])
        total.update(repr((name, array.dtype.name, array.shape)).encode())
        total.update(array.reshape(-1).view(np.uint8))
    return total.hexdigest()


def check(
    arrays: Mapping[str, np.ndarray],
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    dtypes: Sequence[str] = ('float32',),
) -> None:
    """Raises ValueError that tells the first few faults: names, shapes, dtypes, values that are not
    finite.

    Args:
      arrays: {name: array}.
      shapes: {name: shape} that all arrays must have; None allows any names, shapes and dtypes.
      dtypes: names of those that arrays with `shapes` may have.
    """
    faults = []
    if shapes is not None:
        faults += [f'{name!r:.80} is missing' for name in shapes if name not in arrays]
        faults += [f'{name!r:.80} is unknown' for name in arrays if name not in shapes]
    for name, array in arrays.items():
        expected = array.shape if shapes is None else shapes.get(name)
        if expected is None:
            continue
        if array.shape != tuple(expected):
            faults.append(f'{name!r:.80} has the shape {array.shape}, not {tuple(expected)}')
        elif array.dtype.name not in (_DTYPES if shapes is None else dtypes):
            wanted = '' if shapes is None else f', not {" or ".join(dtypes)}'
            faults.append(f'{name!r:.80} is {array.dtype.name}{wanted}')
        elif not np.isfinite(array).all():
            faults.append(f'{name!r:.80} is not finite')
    if faults:
        raise ValueError(
            '; '.join(faults[:3]) + (f'; and {len(faults) - 3} more' if len(faults) > 3 else '')
        )


def save(path: disk.Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Writes {name: array} so that the file is either absent or whole.

    Args:
      path: of the file.
      arrays: {name: finite numpy array}.
      metadata: {str: str}; 'format' and 'content_sha256' are added.

    Raises:
      ValueError: an array is not finite or of a dtype without a place in the format.
    """
    check(arrays)
    write(path, arrays, {**metadata, 'format': FORMAT, 'content_sha256': digest(arrays)})


def write(path: disk.Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Writes {name: array} with that metadata, as other programs may want it, and nothing more."""
    # safetensors writes the memory of an array as it lies.
    arrays = {name: _plain(array) for name, array in arrays.items()}
    metadata = {name: disk.shown(value) for name, value in metadata.items()}
    disk.write(
        pathlib.Path(path),
        lambda temporary: safetensors.numpy.save_file(arrays, temporary, metadata),
    )


CONVERT = 'make one with `fdistill convert`'


def _open(path, ask, remedy=CONVERT):
    """What `ask` takes out of an open file."""
    try:
        with safetensors.safe_open(path, 'np') as file:
            return ask(file)
    except (safetensors.SafetensorError, AttributeError, OSError, ValueError) as error:
        reason = ' '.join(str(error).split())[:200]
        raise UserError(f'{path}: is no whole safetensors file ({reason}); {remedy}') from error


def _metadata(file):
    """In an order that does not change: the library gives another one each time."""
    return dict(sorted((file.metadata() or {}).items()))


def read(path: disk.Path, remedy: str = CONVERT) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """({name: array}, {str: str}) of any safetensors file.

    Args:
      path: of the file.
      remedy: what the user can do about a damaged one.

    Raises:
      UserError: the file is no whole safetensors file.
    """
    return _open(
        path,
        lambda file: (
            {name: file.get_tensor(name) for name in file.keys()},
            _metadata(file),
        ),
        remedy,
    )


def metadata(path: disk.Path) -> dict[str, str]:
    """The metadata of a file that `save` wrote; its arrays are not read.

    Raises:
      UserError: the file is missing, damaged or not ours.
    """
    if not pathlib.Path(path).is_file():
        raise UserError(f'{path}: is no file; convert the weights first')
    return _ours(path, _open(path, _metadata))


def _ours(path, metadata):
    if metadata.get('format') != FORMAT:
        raise UserError(
            f'{path}: its format is {metadata.get("format")!r:.80}, not {FORMAT!r}; delete it and '
            'convert the weights again'
        )
    return metadata


def check_said(metadata: Mapping[str, str], *names: str) -> None:
    """Raises ValueError where the metadata of a file lacks one of these, or its digest."""
    for name in (*names, 'content_sha256'):
        if name not in metadata:
            raise ValueError(f'it has no {name}')


def is_there(path: disk.Path, kind: str, arrays: Mapping[str, np.ndarray]) -> bool:
    """Whether a file that would be written is there already.

    Args:
      path: of the file.
      kind: that its metadata should say.
      arrays: that it should hold.

    Raises:
      UserError: there is something else.
    """
    if not pathlib.Path(path).exists():
        return False
    _, written = load(path)
    if (written.get('kind'), written['content_sha256']) != (kind, digest(arrays)):
        raise UserError(f'{path}: exists and holds other weights; delete it or choose another name')
    return True


def same_said(path: disk.Path, about: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Raises UserError where a file that is there says something else than what is given, as JSON
    has it."""
    for name, value in given.items():
        if json.loads(json.dumps(value)) != about[name]:
            raise UserError(
                f'{path}: exists and holds the same weights with another {name} '
                f'({about[name]!r:.200}); delete it or choose another name'
            )


def load(
    path: disk.Path,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    dtypes: Sequence[str] = ('float32',),
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """({name: array}, metadata) of a file that `save` wrote, checked against its own digest.

    Args:
      path: of the file.
      shapes, dtypes: as of `check`.

    Raises:
      UserError: the file is missing, damaged, not ours, or its arrays are not as they should be.
    """
    if not pathlib.Path(path).is_file():
        raise UserError(f'{path}: is no file; convert the weights first')
    arrays, metadata = read(path)
    _ours(path, metadata)
    if metadata.get('content_sha256') != digest(arrays):
        raise UserError(
            f'{path}: its arrays are not those that were written; delete it and convert the '
            'weights again'
        )
    try:
        check(arrays, shapes, dtypes)
    except ValueError as error:
        raise UserError(f'{path}: {error}; delete it and convert the weights again') from error
    return arrays, metadata
