"""What is measured, a generator and what is known of it, and the rows that come of it."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, NotRequired, TypedDict


class Subject(NamedTuple):
    """A generator, as an evaluator wants it.

    sample(noise float32 [B, ...] ~ N(0, 1), condition) -> samples [B, ...], jitted.
    shape, num_classes: of noise and data; num_classes 0 or 1 for none.
    nfe: network evaluations of one sample.
    step, digest: of the checkpoint and its weights.
    given(index) -> {name: [n, ...]}: the conditions of the samples of an index, where there is more
      to them than a label that a protocol could choose.
    decoded: shape of samples, where it is another than the noise's, as of decoded latents.
    trained_on: names of the features that it was trained on, as in a protocol.
    """

    sample: Callable[..., Any]
    shape: tuple[int, ...]
    num_classes: int = 0
    nfe: int = 1
    step: int = 0
    digest: str = ''
    given: Callable[[Any], Mapping[str, Any]] = lambda index: {}
    decoded: tuple[int, ...] | None = None
    trained_on: tuple[str, ...] = ()

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Of one sample."""
        return self.shape if self.decoded is None else self.decoded


class Rules(TypedDict):
    """The published protocol that a row was measured under."""

    name: str


class File(TypedDict, total=False):
    """A file that a row was measured with."""

    sha256: str
    reference: str


class Details(TypedDict, total=False):
    """How a row was measured, besides the full names of its numbers."""

    rules: Rules
    detector: File
    statistics: File
    digests: dict[str, list[str]]
    over_ranges: dict[str, Any]
    ranges: list[dict]
    versions: dict[str, str]
    checkpoint: str
    encoders: dict[str, dict]


class Row(TypedDict):
    """A row as `eval/` and `result.json` keep it; what has a key in `protocol` is a number, or the
    name of one that is not finite. `trained_on` has the keys of those whose features the generator
    was trained on."""

    step: int
    protocol: dict[str, str]
    trained_on: NotRequired[list[str]]
    details: NotRequired[Details]
