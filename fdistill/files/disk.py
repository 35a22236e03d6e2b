"""Files that are whole or absent, the places to put them, JSON, and digests."""

import hashlib
import json
import math
import os
import pathlib
import platform
import secrets
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

import fdistill
from fdistill.errors import UserError

Path = str | os.PathLike


def write(path: Path, save: Callable[[str], Any]) -> None:
    """Writes a file so that `path` holds all of the old content or all of the new, even if this
    process is killed or another one writes at the same time.

    Args:
        path: of the file; its folder is made when missing.
        save: save(temporary path) makes a file with the content; that path has the suffix of
          `path`.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # A name of its own, so that two writers do not meet; hidden, for it may outlive this process.
    temporary = path.with_name(f'.{path.stem}.{secrets.token_hex(8)}{path.suffix}')
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        save(str(temporary))
        os.chmod(temporary, mode)  # safetensors' files are for no one else to read.
        # Else the new name may reach the disk before the content does.
        with open(temporary, 'rb') as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_bytes(path: Path, data: bytes) -> None:
    """Writes bytes to a file as `write` does."""
    write(path, lambda temporary: pathlib.Path(temporary).write_bytes(data))


def write_json(path: Path, value: Any) -> None:
    """Writes `plain(value)` to a file as `write` does."""
    write_bytes(path, (json.dumps(plain(value), indent=2, allow_nan=False) + '\n').encode())


def plain(value: Any) -> Any:
    """Turns numpy and jax values, at any depth, into what JSON holds; numbers that are not finite
    become 'nan', 'inf', '-inf'."""
    if isinstance(value, dict):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    if isinstance(value, (np.ndarray, np.generic, jax.Array)):
        return plain(np.asarray(value).tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def flat(values: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
    """{dotted key: leaf} of nested dicts; an empty one has no leaf."""
    if not isinstance(values, dict):
        return {prefix: values}
    parts = (flat(value, f'{prefix}.{name}' if prefix else name) for name, value in values.items())
    return {key: leaf for part in parts for key, leaf in part.items()}


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with open(path, 'rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


def versions() -> dict[str, str]:
    """Versions of what numbers and reports are made with."""
    return {
        'fdistill': fdistill.__version__,
        'python': platform.python_version(),
        'jax': jax.__version__,
        'numpy': np.__version__,
    }


def folder_for(path: Path, where: str) -> pathlib.Path:
    """A folder that can be written to, or made; checking leaves nothing behind.

    To be called before the work whose results go there.

    Args:
        path: as the user gave it.
        where: what the user calls it, such as '--out'.

    Returns:
        pathlib.Path of the folder.

    Raises:
        UserError: the path is empty, there is a file in its way, or it may not be written to.
    """
    return _place(path, where, _named(path, where, 'folder'))


def file_for(path: Path, where: str, suffixes: tuple[str, ...] = ()) -> pathlib.Path:
    """A file that can be written, or written anew; arguments and errors as of `folder_for`.

    Args:
        suffixes: those the file may have; none: any.
    """
    file = _named(path, where, 'file')
    if suffixes and file.suffix not in suffixes:
        raise UserError(f'{where}={path}: give the name of a {" or ".join(suffixes)} file')
    if _exists(file, path, where) and not file.is_file():
        what = 'a folder' if file.is_dir() else 'no ordinary file'
        raise UserError(f'{where}={path}: is {what}; give the name of a file')
    _place(path, where, file.parent)
    return file


def _named(path, where, kind):
    if not os.fspath(path):
        raise UserError(f"{where}='': is empty; give the name of a {kind}")
    return pathlib.Path(path)


def _exists(place, path, where):
    try:
        return place.exists()
    except OSError as error:  # As of a name that is too long.
        raise UserError(f'{where}={path}: {error.strerror}; choose another place') from error


def _place(path, where, folder):
    """`folder`, once it is known that files can be made in it or in its nearest ancestor that
    exists."""
    nearest = next(place for place in (folder, *folder.parents) if _exists(place, path, where))
    if not nearest.is_dir():
        raise UserError(f'{where}={path}: {nearest} is no folder; choose another place')
    try:
        # Trying says more than permissions do: of a file system that is read-only, or holds no
        # files. Linux gives this file no name.
        tempfile.TemporaryFile(dir=nearest).close()
    except OSError as error:
        raise UserError(
            f'{where}={path}: nothing can be written in {nearest.absolute()} ({error.strerror}); '
            'mend its permissions or choose another place'
        ) from error
    return folder
