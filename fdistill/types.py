"""What all floors share: types of arrays and functions that many take, what a signature says about
a setting, and whether a value has the type that is said.

A setting of a config is an argument of a function; its annotation may say more than its type:

    def adam(*, learning_rate: Annotated[float, Continuous()], ...)
    class Training(NamedTuple): log_every: Annotated[int, Free] = 100
"""

import os
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

# What a sample is to be like: arrays [B, ...] by name, as {'label': int32[B]}, -1 being "no label".
Condition = Mapping[str, jax.Array]

# A denoiser bound to its parameters and condition: (x[B, ...], sigma[B]) -> x0[B, ...].
Denoise = Callable[[jax.Array, jax.Array], jax.Array]

# Levels of noise [N + 1], falling: float64 where they are known, or traced.
Sigmas = np.ndarray | jax.Array


class Continuous(NamedTuple):
    """A number that enters the arithmetic of a step and nothing else, so that runs that differ in
    it can be trained as lanes of one program.

    off: the value, if any, that leaves a part of the step out: it has a program of its own.
    """

    off: float | None = None


class Free:
    """May differ between a run and its resumption without making it another run."""


class Place:
    """Where something is stored: may differ likewise, as long as the same thing is stored there."""


# What configs and JSON files hold; anything else, such as a number of several lanes, was put there
# by us.
PLAIN = (bool, int, float, str, tuple, list, dict, types.NoneType)


def misfit(value: Any, annotation: Any, name: str = '') -> str:
    """Why a value has not a type: 'row.step: 1.5 is of type float; expected int', or ''.

    Args:
        value: any; one that is not made of `PLAIN` values fits.
        annotation: made of int, float, bool, str, PathLike, None, Literal, tuple, list, dict and
          TypedDict, whose other keys may hold anything; any other type fits every value.
        name: of the value in that sentence.
    """
    if not isinstance(value, PLAIN):
        return ''
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Annotated, typing.Required, typing.NotRequired):
        return misfit(value, arguments[0], name)
    if origin in (typing.Union, types.UnionType):
        fits = any(not misfit(value, argument) for argument in arguments)
    elif origin is typing.Literal:
        fits = any(type(value) is type(known) and value == known for known in arguments)
    elif typing.is_typeddict(annotation):
        fits = isinstance(value, dict)
        kinds = typing.get_type_hints(annotation, include_extras=True) if fits else {}
        for key, kind in kinds.items():
            where = f'{name}.{key}' if name else key
            if key not in value and key in annotation.__required_keys__:
                return f'{where}: missing'
            if key in value and (found := misfit(value[key], kind, where)):
                return found
    elif annotation in (list, dict) or origin in (list, dict):
        kind = origin or annotation
        fits = isinstance(value, kind)
        if fits and arguments:
            parts = value.items() if kind is dict else enumerate(value)
            found = (misfit(part, arguments[-1], f'{name}.{key}') for key, part in parts)
            return next(filter(None, found), '')
    elif annotation is tuple or origin is tuple:
        fits = isinstance(value, tuple)
        if fits and arguments:
            kinds = arguments[:1] * len(value) if arguments[1:] == (...,) else arguments
            fits = len(kinds) == len(value) and not any(map(misfit, value, kinds))
    elif annotation in (int, float):
        kinds = (int, float) if annotation is float else int
        fits = isinstance(value, kinds) and not isinstance(value, bool)
    elif annotation in (None, types.NoneType):
        fits = value is None
    else:
        fits = annotation not in (bool, str, os.PathLike) or isinstance(value, annotation)
    if fits:
        return ''
    wanted = annotation.__name__ if isinstance(annotation, type) and not arguments else annotation
    shown = repr(value) if len(repr(value)) <= 80 else f'{repr(value)[:80]}...'
    return f'{name}: {shown} is of type {type(value).__name__}; expected {wanted}'
