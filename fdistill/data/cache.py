"""Files that are made once and kept: decoded data sets, the evaluation classifier."""

import os
import pathlib
import tempfile


def folder(*parts):
    """$FDISTILL_CACHE (default ~/.cache/fdistill) with `parts` below it, made if missing ->
    pathlib.Path."""
    root = os.environ.get('FDISTILL_CACHE') or pathlib.Path.home() / '.cache' / 'fdistill'
    path = pathlib.Path(root, *parts)
    path.mkdir(parents=True, exist_ok=True)
    return path


def write(path, save):
    """Writes a file so that `path` is either absent or whole, whoever is killed or writes at the
    same time.

    Args:
      path: pathlib.Path of the file; its folder exists.
      save: save(temporary_path) writes the content.
    """
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=path.suffix)
    os.close(handle)
    try:
        save(temporary)
        # As any other file that the user makes; mkstemp's are for no one else to read.
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
