"""One writer a folder: a lock that ends with the process that holds it."""

import contextlib
import errno
import fcntl
import os
import pathlib
from collections.abc import Iterator

from fdistill.errors import UserError
from fdistill.files.disk import Path, place

NAME = '.lock'
# What a file system without locks says; there a run goes on without one.
WITHOUT = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EINVAL}


class Held(UserError):
    """Another process is writing there."""


def check(folder: Path, where: str = '--workdir') -> None:
    """Raises Held where another process holds the folder; makes nothing.

    To be called before long work at whose end `held` is asked for.

    Args:
        folder: that may be missing.
        where: what the user calls it.
    """
    if (place(folder) / NAME).is_file():
        with held(folder, where):
            pass


@contextlib.contextmanager
def held(folder: Path, where: str = '--workdir', name: str = NAME) -> Iterator[None]:
    """Holds a folder, which is made when missing, against every other process of this machine.

    The system gives the lock back when the process ends, however it ends; the file stays. Network
    file systems hold it for other machines as far as they support `flock`. In an object store
    nothing ends with a process, and nothing is held: see `mirror.Mirror`.

    Args:
        folder: to be written to.
        where: what the user calls it.
        name: of the file; one who holds the folder for longer than its writer has another.

    Raises:
        Held: another process holds it.
        UserError: there is something else in the file's place.
    """
    path = place(folder) / name
    if not isinstance(path, pathlib.Path):
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        # Not through a link, which may have been planted.
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
    except OSError as error:
        raise UserError(
            f'{where}={folder}: its {name} cannot be opened ({error.strerror}); remove it or give '
            'another folder'
        ) from error
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(file, 0)
            os.write(file, f'{os.getpid()}\n'.encode())
        except BlockingIOError:
            holder = os.read(file, 32).decode('ascii', 'replace').strip()
            raise Held(
                f'{where}={folder}: process {holder or "?"} is writing there; wait for it, or give '
                'another folder'
            ) from None
        except OSError as error:
            if error.errno not in WITHOUT:
                raise
        yield
    finally:
        os.close(file)
