"""What is found in a published file: a type that all origins share."""

import hashlib
import math
import pathlib
import types
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from fdistill.files import disk
from fdistill.types import misfit

# What weights are published in, and kept in.
DTYPES = ('float32', 'float16', 'bfloat16')
# Of a model, as sections of a config, the shapes of its parameters: {our name: shape}.
ShapesOf = Callable[[Mapping[str, Any]], Mapping[str, tuple[int, ...]]]


class Refused(ValueError):
    """Why a file is not what it should be, and what to do."""


class Found(NamedTuple):
    """A network out of a published file.

    model: sections of a config, {'network', 'denoiser', 'image'}.
    arrays: {our name: array}, in the types of the file.
    sources: {our name: names in the file}.
    licence: of the weights, None where the file does not say.
    unused: {name in the file: why it is left out}.
    """

    model: Mapping[str, Any]
    arrays: Mapping[str, np.ndarray]
    sources: Mapping[str, tuple[str, ...]]
    licence: str | None
    unused: Mapping[str, str] = {}


# Of a default's type, that of the setting; numbers are looked at where they are used.
KINDS = {
    bool: bool,
    int: float,
    float: float,
    str: str,
    list: list[float | str],
    types.NoneType: int | None,
}


def settled(given: Mapping[str, Any], known: Mapping[str, Any], what: str) -> dict[str, Any]:
    """The settings of a network: those given, and defaults of the others.

    Args:
      given: of the file.
      known: {name: default} of all that there are.
      what: they are of, in words.

    Raises:
      Refused: on a setting that is not known, which might change the computation; or one that is
        not of the type of its default, or not finite.
    """
    found = dict(known)
    for name, value in given.items():
        if name not in known:
            raise Refused(
                f'{what} has the setting {name!r:.40}, which is not known here; take the network '
                'as it was published'
            )
        default = known[name]
        value = list(value) if isinstance(value, tuple) else value
        if fault := misfit(value, KINDS[type(default)], name):
            raise Refused(f'{what}: {fault}; take the network as it was published')
        if isinstance(value, float) and not math.isfinite(value) and value != default:
            raise Refused(f'{what}: {name}={value} is not finite; take it as it was published')
        found[name] = value
    return found


def matched(
    arrays: Mapping[str, np.ndarray], names: Mapping[str, str], unused: Mapping[str, str]
) -> None:
    """Checks that every array of a file has its place.

    Args:
      arrays: {name in the file: array}.
      names: {our name: name in the file}.
      unused: as of `Found`.

    Raises:
      Refused: some are missing or left over.
    """
    wanted = set(names.values())
    faults = [f'{name!r:.80} is missing' for name in sorted(wanted - arrays.keys())]
    left = arrays.keys() - wanted - unused.keys()
    faults += [f'{name!r:.80} has no place' for name in sorted(left)]
    if faults:
        more = f'; and {len(faults) - 3} more' if len(faults) > 3 else ''
        raise Refused(
            f'its arrays are not those of the network that it says it is: '
            f'{"; ".join(faults[:3])}{more}; take the file as it was published, whole'
        )


def sha256(source: pathlib.Path) -> str:
    """Of a file; of a folder that of its weight files' in their order."""
    if source.is_file():
        return disk.sha256(source)
    kinds = ('.safetensors', '.bin')
    files = sorted(file for file in source.rglob('*') if file.suffix in kinds and file.is_file())
    return hashlib.sha256(' '.join(disk.sha256(file) for file in files).encode()).hexdigest()
