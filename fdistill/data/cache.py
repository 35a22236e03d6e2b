"""Files that are made once and kept: decoded data sets, the evaluation classifier."""

import os
import pathlib


def folder(*parts: str) -> pathlib.Path:
    """$FDISTILL_CACHE (default ~/.cache/fdistill) with `parts` below it, made if missing."""
    root = os.environ.get('FDISTILL_CACHE') or pathlib.Path.home() / '.cache' / 'fdistill'
    path = pathlib.Path(root, *parts)
    path.mkdir(parents=True, exist_ok=True)
    return path
