"""A folder of this machine for what an object store cannot do: add to a file."""

import os
import pathlib
import platform
import secrets
import tempfile
from collections.abc import Iterable

from fdistill.files import disk
from fdistill.files.lock import Held

OWNER = '.owner'


class Mirror:
    """A folder of this machine whose files `push` copies to a place in an object store.

    There is no lock in a store that ends with its process, and a training that was lost with its
    machine must be free to go on elsewhere at once. So the last to begin has the place; the one
    before learns of it at its next `push`, and ends.

    Args:
        place: of a run, as of `disk.place`.
        names: files to begin with, of those that are there.
    """

    def __init__(self, place: pathlib.Path, names: Iterable[str]):
        self._place, self._pushed = place, {}
        self._me = f'process {os.getpid()} of {platform.node()} ({secrets.token_hex(4)})'
        self._temporary = tempfile.TemporaryDirectory()
        self.folder = pathlib.Path(self._temporary.name, place.name)
        for name in names:
            if (place / name).is_file():
                disk.write_bytes(self.folder / name, (place / name).read_bytes())
        disk.write_bytes(place / OWNER, self._me.encode())

    def push(self) -> None:
        """Copies the files that were changed since the last time.

        Raises:
            Held: another process has begun to write there since; nothing is copied.
        """
        if (owner := (self._place / OWNER).read_text()) != self._me:
            raise Held(
                f'--workdir={self._place}: {owner} has begun to train there after this one, which '
                'ends; give one of them another folder'
            )
        for file in filter(pathlib.Path.is_file, sorted(self.folder.rglob('*'))):
            about = file.stat()
            now = about.st_size, about.st_mtime_ns
            if self._pushed.get(file) != now:
                disk.put(file, self._place / file.relative_to(self.folder))
                self._pushed[file] = now

    def close(self) -> None:
        """Pushes what is left, as `push` does, and removes the folder."""
        with self._temporary:
            self.push()
