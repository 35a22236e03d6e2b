"""Words and numbers for people: clocks and tables."""

from collections.abc import Callable, Iterable
from typing import Any


def clock(seconds: float) -> str:
    """Seconds >= 0 as h:mm:ss."""
    minutes, seconds = divmod(round(seconds), 60)
    return f'{minutes // 60}:{minutes % 60:02}:{seconds:02}'


def table(rows: Iterable[Iterable[Any]], align: Callable[[str, int], str] = str.ljust) -> list[str]:
    """Lines of aligned columns.

    Args:
        rows: of cells, all of one length.
        align: str.ljust or str.rjust.
    """
    rows = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows)]
    return ['  '.join(map(align, row, widths)).rstrip() for row in rows]
