"""Files that are whole or absent, the places to put them, JSON, and digests."""

import contextlib
import hashlib
import itertools
import json
import math
import os
import pathlib
import platform
import re
import secrets
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

import fdistill
from fdistill.errors import UserError
from fdistill.types import misfit

Path = str | os.PathLike

# Of JSON that a stranger may have written: bytes of a file, levels of lists and dicts in it.
MOST_BYTES = 2**28
MOST_DEPTH = 32
REMOTE = re.compile(r'\w{2,}:/')  # How the path of an object store begins.
STORE = 'gs://'  # of those, the one that orbax writes checkpoints to
AGAIN = 'bring it back from a copy, or remove it'


def place(path: Path) -> pathlib.Path:
    """Where a run lies: a path of this machine, or one of an object store, as gs://bucket/run. That
    is no `pathlib.Path` and yet reads, lists and writes as one does.

    What takes no other than the first makes a `pathlib.Path` itself, which `exists` refuses.
    """
    if not os.fspath(path).startswith(STORE):
        return pathlib.Path(path)
    from etils import epath

    return epath.Path(path)


def write(path: Path, save: Callable[[str], Any]) -> None:
    """Writes a file so that `path` holds all of the old content or all of the new, even if this
    process is killed or another one writes at the same time.

    Args:
        path: of the file; its folder is made when missing.
        save: save(temporary path) makes a file with the content; that path has the suffix of
          `path`.
    """
    path = place(path)
    if not isinstance(path, pathlib.Path):
        with tempfile.TemporaryDirectory() as folder:
            temporary = pathlib.Path(folder, path.name)
            save(str(temporary))
            put(temporary, path)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    # A name of its own, so that two writers do not meet; hidden, for it may outlive this process.
    temporary = path.with_name(f'.{path.stem}.{secrets.token_hex(8)}{path.suffix}')
    try:
        temporary.touch(exist_ok=False)
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


def put(file: pathlib.Path, there: pathlib.Path) -> None:
    """Copies a file into an object store, where it is seen once it is whole."""
    type(there)(file).copy(there, overwrite=True)


def write_bytes(path: Path, data: bytes) -> None:
    """Writes bytes to a file as `write` does."""
    write(path, lambda temporary: pathlib.Path(temporary).write_bytes(data))


def write_text(path: Path, text: str) -> None:
    """Writes text as UTF-8, whatever the locale, to a file as `write` does. Of the name of a file
    that is no Unicode, bytes stand there as backslashes."""
    write_bytes(path, shown(text).encode())


def shown(text: str) -> str:
    """Text that UTF-8 has: of the name of a file that has not, bytes become backslashes."""
    return text.encode(errors='backslashreplace').decode()


def array(path: Path, dtype: Any, shape: tuple[int, ...]) -> np.memmap:
    """A new .npy file, memory-mapped, whose place on the disk is taken already: a write to memory
    that then finds the disk full ends the process without a word.

    Raises:
        OSError: there is no room.
    """
    made = np.lib.format.open_memmap(path, 'w+', dtype, shape)
    if hasattr(os, 'posix_fallocate'):  # On all but macOS.
        with open(path, 'r+b') as file:
            try:
                os.posix_fallocate(file.fileno(), 0, os.path.getsize(path))
            except OSError as error:
                folder = os.path.dirname(path)
                raise OSError(error.errno, error.strerror, folder) from error
    return made


def append(path: Path, text: str) -> None:
    """Adds text to a file, which is made when missing; OSError where there is a link in its place,
    which may have been planted."""
    with open(path, 'a', opener=_no_link) as file:
        file.write(text)


def _no_link(path, flags):
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


def write_json(path: Path, value: Any) -> None:
    """Writes `plain(value)` to a file as `write` does."""
    write_bytes(path, (json.dumps(plain(value), indent=2, allow_nan=False) + '\n').encode())


def from_json(data: bytes | str, shape: Any = dict) -> Any:
    """The value that JSON stands for, whoever wrote it.

    Args:
        data: UTF-8.
        shape: the type it must have, see `types.misfit`.

    Raises:
        ValueError: no JSON, nested too deeply, a number that 64 bits do not hold, text that is no
          Unicode, or another shape.
    """
    if len(data) > MOST_BYTES:
        raise ValueError(f'has more than {MOST_BYTES:,} bytes')
    try:
        value = json.loads(data)
    except RecursionError:
        raise ValueError(f'is nested more than {MOST_DEPTH} deep') from None
    level, depth = [value], 0
    while level:
        inside = [part for part in level if isinstance(part, (dict, list))]
        if inside and depth == MOST_DEPTH:
            raise ValueError(f'is nested more than {MOST_DEPTH} deep')
        for part in level:
            if isinstance(part, str):
                part.encode()  # Of half a surrogate pair there is no UTF-8.
            elif isinstance(part, int) and part.bit_length() > 63:
                raise ValueError('holds an integer of more than 64 bits')
            elif isinstance(part, float) and not math.isfinite(part):
                # Ours are strings, see `plain`.
                raise ValueError('holds a number that is not finite')
        parts = ((*part, *part.values()) if isinstance(part, dict) else part for part in inside)
        level, depth = list(itertools.chain.from_iterable(parts)), depth + 1
    if found := misfit(value, shape):
        raise ValueError(found.removeprefix(': '))
    return value


def read_json(path: Path, shape: Any = dict, remedy: str = AGAIN) -> Any:
    """What a JSON file holds that anyone may have written.

    Args:
        path: of the file.
        shape: the type that its value must have, see `types.misfit`.
        remedy: what the user can do about a damaged file.

    Raises:
        UserError: it is damaged, or of another shape.
    """
    try:
        with place(path).open('rb') as file:
            return from_json(file.read(MOST_BYTES + 1), shape)
    except ValueError as error:
        raise UserError(f'{path} is damaged: {error}; {remedy}') from error


def read_json_lines(path: Path, shape: Any = dict, remedy: str = AGAIN) -> list[Any]:
    """What the lines of a file hold, each as of `read_json`; [] where there is no file.

    A last line that is not whole is left out: it is being written, or a crash tore it.
    """
    path = place(path)
    if not path.is_file():
        return []
    with path.open('rb') as file:
        *lines, last = file.read(MOST_BYTES + 1).split(b'\n')
    found = []
    try:
        if sum(map(len, lines)) + len(last) > MOST_BYTES:
            raise ValueError(f'has more than {MOST_BYTES:,} bytes')
        for line in lines:
            found.append(from_json(line, shape))
    except ValueError as error:
        where = f'line {len(found) + 1}: ' if lines else ''
        raise UserError(f'{path} is damaged: {where}{error}; {remedy}') from error
    with contextlib.suppress(ValueError):
        found.append(from_json(last, shape))
    return found


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


def changed(path: Path) -> float:
    """When a file was last written, in seconds since 1970."""
    about = place(path).stat()
    return about.st_mtime if isinstance(about, os.stat_result) else about.mtime


def folder_for(path: Path, where: str, ours: bool = False) -> pathlib.Path:
    """A folder that can be written to, or made; checking leaves nothing behind.

    To be called before the work whose results go there.

    Args:
        path: as the user gave it, or a `place`.
        where: what the user calls it, such as '--out'.
        ours: the user gave the folder above it; a link in its place may have been planted.

    Returns:
        pathlib.Path of the folder.

    Raises:
        UserError: as of `exists`, there is a file in its way, or it may not be written to.
    """
    if ours and os.path.islink(path):
        raise UserError(f'{where}={path}: is a link; remove it or choose another place')
    folder = path if isinstance(path, pathlib.PurePath) else pathlib.Path(path)
    return _writable(path, where, folder)


def file_for(path: Path, where: str, suffixes: tuple[str, ...] = ()) -> pathlib.Path:
    """A file that can be written, or written anew; arguments and errors as of `folder_for`.

    Args:
        suffixes: those the file may have; none: any.
    """
    file = path if isinstance(path, pathlib.PurePath) else pathlib.Path(path)
    if suffixes and file.suffix not in suffixes:
        raise UserError(f'{where}={path}: give the name of a {" or ".join(suffixes)} file')
    if exists(file, path, where) and not file.is_file():
        what = 'a folder' if file.is_dir() else 'no ordinary file'
        raise UserError(f'{where}={path}: is {what}; give the name of a file')
    _writable(path, where, file.parent)
    return file


def exists(place: pathlib.Path, path: Path, where: str) -> bool:
    """Whether there is something in a place that comes of a path as the user gave it.

    Raises:
        UserError: the path is empty, too long, or of an object store that `place` was not asked
          for, as s3://bucket/run: pathlib would make a folder `s3:` here. Or the store cannot be
          reached.
    """
    if not os.fspath(path):
        raise UserError(f"{where}='': is empty; give the name of a file or folder")
    if not isinstance(place, pathlib.Path):
        return _asked(place.exists, path, where)
    if REMOTE.match(os.fspath(path)):
        raise UserError(
            f'{where}={path}: is not on this machine; give a folder that is, and copy it when the '
            f'work is done, or as --workdir of a single run one of {STORE}'
        )
    try:
        return place.exists()
    except OSError as error:  # As of a name that is too long.
        raise UserError(f'{where}={path}: {error.strerror}; choose another place') from error


def _asked(ask, path, where):
    """What an object store answers; in one line, what its library says against it."""
    try:
        return ask()
    except ImportError as error:
        raise UserError(
            f'{where}={path}: what reads and writes {STORE} is not installed: pip install '
            "'fdistill[remote]'"
        ) from error
    except Exception as error:  # A store's own.
        said = f'{type(error).__name__}: {str(error).strip()}'.split('\n')[0]
        raise UserError(
            f'{where}={path}: the object store says no ({said[:300]}); see that there is such a '
            'bucket, and that this machine is logged in and may write there'
        ) from error


def _writable(path, where, folder):
    """`folder`, once it is known that files can be made in it or in its nearest ancestor that
    exists."""
    if not isinstance(folder, pathlib.Path):
        file = folder / f'.{secrets.token_hex(8)}'
        _asked(lambda: file.write_bytes(b''), path, where)
        _asked(file.unlink, path, where)
        return folder
    nearest = next(there for there in (folder, *folder.parents) if exists(there, path, where))
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
