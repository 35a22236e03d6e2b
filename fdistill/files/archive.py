"""Zip archives from strangers: their directory is checked before anything is expanded."""

import io
import re
import stat
import struct
import zipfile
from collections.abc import Mapping
from typing import BinaryIO


class Refused(ValueError):
    """Why an archive is not read, beginning with a verb. `large`: it has more than was allowed."""

    def __init__(self, what: str, large: bool = False) -> None:
        super().__init__(what)
        self.large = large


def open_archive(
    file: BinaryIO, names: str, most: int
) -> tuple[zipfile.ZipFile, Mapping[str, zipfile.ZipInfo]]:
    """Opens a zip archive that is what numpy and torch write: one directory and nothing around it,
    plain files of sane, distinct names, none over another.

    Args:
        file: open for reading, seekable.
        names: regular expression of all of a member's name.
        most: members at most.

    Returns:
        (the archive, {name: member}).

    Raises:
        Refused: it is something else.
        zipfile.BadZipFile: its directory is damaged.
    """
    size = file.seek(0, io.SEEK_END)
    _check_directory(file, size, most)
    archive = zipfile.ZipFile(file)
    members = {}
    for info in archive.infolist():
        name = info.orig_filename
        if not re.fullmatch(names, name, re.ASCII):
            raise Refused(f'is a zip archive with a member of the name {_shown(name)}')
        if name in members:
            raise Refused(f'is a zip archive with two members {_shown(name)}')
        if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG):
            raise Refused(f'is a zip archive whose member {_shown(name)} is a link or a device')
        members[name] = info
    if len(members) > most:
        raise Refused(f'is a zip archive with more than {most} members', large=True)
    if sum(info.compress_size for info in members.values()) > size:
        raise Refused('is a zip archive whose members overlap')
    return archive, members


def _check_directory(file, size, most):
    """Checks that the archive ends in its one directory, and that this is not too large: zipfile
    reads it whole before it can be asked."""
    length = min(size, 98)
    file.seek(size - length)
    tail = file.read(length).rjust(98, b'\0')
    if tail[76:80] != b'PK\5\6' or tail[96:] != b'\0\0':
        raise Refused('is no zip archive, or ends early, or has something behind its end')
    end, (length, offset) = size - 22, struct.unpack('<2L', tail[88:96])
    if tail[56:60] == b'PK\6\7':  # Sizes of 64 bits, which torch always writes.
        if tail[:4] != b'PK\6\6' or struct.unpack('<Q', tail[64:72]) != (size - 98,):
            raise Refused('is a zip archive with a damaged end')
        end, (length, offset) = size - 98, struct.unpack('<2Q', tail[40:56])
    if offset + length != end:
        raise Refused('is a zip archive with something before or behind it')
    if length > 1024 * most:
        raise Refused(f'is a zip archive with more than {most} members', large=True)


def _shown(name):
    shown = repr(name)
    return shown if len(shown) <= 80 else f'{shown[:80]}...'
