"""What all floors share: types of arrays and functions that many take, and what a signature says
about a setting.

A setting of a config is an argument of a function; its annotation may say more than its type:

    def adam(*, learning_rate: Annotated[float, Continuous()], ...)
    class Training(NamedTuple): log_every: Annotated[int, Free] = 100
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

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
