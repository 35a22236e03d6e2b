"""Errors that are said in one line: what the user got wrong, numbers that are not finite, and a
stop that was asked for."""

import difflib
import signal
from collections.abc import Iterable, Mapping
from typing import Any


class UserError(ValueError):
    """An input that only the user can correct; the command line prints it as one line. Other errors
    keep their traceback."""


class NotFinite(RuntimeError):
    """Training stopped because a role's updates were not finite many times in a row; one line, exit
    code 1."""


class Stopped(KeyboardInterrupt):
    """Training stopped before its last step, with a checkpoint, because of a signal; exit code 128
    + its number, as of a process that it ended."""

    def __init__(self, message: str = '', signum: int = signal.SIGINT):
        super().__init__(message)
        self.signum = signum


def suggest(name: Any, known: Iterable[Any], prefix: str = '') -> str:
    """The end of a sentence about an unknown name: the nearest known one, or all of them.

    Args:
        name: what was given, of any type.
        known: the names that would have been right.
        prefix: written before a known name.
    """
    known = [str(entry) for entry in known]
    nearest = difflib.get_close_matches(str(name), known, n=1)
    if nearest:
        return f'; did you mean {prefix}{nearest[0]}?'
    return '; known: ' + ', '.join(prefix + entry for entry in known) if known else ''


def pick(table: Mapping[str, Any], name: str, what: str) -> Any:
    """`table[name]`, with an error that helps.

    Args:
        table: by name.
        name: what was given.
        what: what the name is of, or where it stands: 'protocol', 'config.method.name'.

    Raises:
        UserError: `name` is not in the table.
    """
    if name not in table:
        raise UserError(f'{what}: unknown {name!r}{suggest(name, table)}')
    return table[name]
