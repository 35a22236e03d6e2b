"""What is measured: a generator and what is known of it."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple


class Subject(NamedTuple):
    """A generator, as an evaluator wants it.

    sample(noise float32 [B, ...] ~ N(0, 1), condition) -> samples [B, ...], jitted.
    shape, num_classes: of the data; num_classes 0 or 1 for none.
    nfe: network evaluations of one sample.
    step, digest: of the checkpoint and its weights.
    given(index) -> {name: [n, ...]}: the conditions of the samples of an index, where there is more
      to them than a label that a protocol could choose.
    """

    sample: Callable[..., Any]
    shape: tuple[int, ...]
    num_classes: int = 0
    nfe: int = 1
    step: int = 0
    digest: str = ''
    given: Callable[[Any], Mapping[str, Any]] = lambda index: {}
