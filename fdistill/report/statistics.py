"""Means, intervals and paired tests over seeds. A ranking is given only as far as they allow."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import special

LEVEL = 0.95


class Interval(NamedTuple):
    """The mean of n values and half the width of its interval.

    half and std are None for n < 2, mean is None for n = 0.
    """

    mean: float | None
    half: float | None
    std: float | None
    n: int


class Paired(NamedTuple):
    """A test of a against b over the n seeds that both have.

    difference: mean of a - b.
    half: half the width of its interval.
    t, p: of the test.
    note: why there is no p, or ''.

    What is undefined is None.
    """

    n: int
    difference: float | None
    half: float | None
    t: float | None
    p: float | None
    note: str


class Comparison(NamedTuple):
    """Group a against group b, by name.

    test: of the two.
    holm: its p, corrected for all comparisons of the family.
    separated: holm < 1 - LEVEL.
    """

    a: str
    b: str
    test: Paired
    holm: float
    separated: bool


def interval(values: Sequence[float], level: float = LEVEL) -> Interval:
    """Student's interval of a mean, m +- t_{(1 + level)/2, n - 1} s / sqrt(n).

    Args:
      values: [n]; those that are not finite must have been left out.
      level: coverage, in (0, 1).

    Returns:
      `Interval`.

    Raises:
      ValueError: a value is not finite, or a level out of range.
    """
    values = np.asarray(values, np.float64)
    if not 0 < level < 1:
        raise ValueError(f'level={level}: must lie strictly between 0 and 1')
    if not np.isfinite(values).all():
        raise ValueError(f'values={values}: must be finite')
    n = len(values)
    if n < 2:
        return Interval(float(values[0]) if n else None, None, None, n)
    std = float(values.std(ddof=1))
    return Interval(
        float(values.mean()),
        float(special.stdtrit(n - 1, (1 + level) / 2)) * std / math.sqrt(n),
        std,
        n,
    )


def paired(a: Mapping[int, float], b: Mapping[int, float], level: float = LEVEL) -> Paired:
    """Student's paired t test, two-sided, over the seeds that both have.

    t = m sqrt(n) / s, m and s the mean and standard deviation of a_seed - b_seed. With equal
    differences in all seeds t is 0/0 or infinite: no number of seeds then tells how far the
    difference would vary, and there is no p.

    Args:
      a, b: {seed: finite value}.
      level: of the interval of the difference.

    Returns:
      `Paired`; `note` says why there is no p.
    """
    from scipy import stats  # Slow to import.

    common = sorted(a.keys() & b.keys())
    if not common:
        return Paired(0, None, None, None, None, 'no common seed')
    values = np.array([a[seed] - b[seed] for seed in common], np.float64)
    found = interval(values, level)
    if found.n < 2:
        return Paired(1, found.mean, None, None, None, 'one common seed: n is too small for a test')
    # Equal up to the rounding of the values that were subtracted.
    scale = max(max(abs(a[seed]), abs(b[seed])) for seed in common)
    if found.std <= 1e-12 * scale:
        return Paired(
            found.n, found.mean, found.half, None, None, 'all differences are equal: t is undefined'
        )
    test = stats.ttest_rel(*([group[seed] for seed in common] for group in (a, b)))
    return Paired(found.n, found.mean, found.half, float(test.statistic), float(test.pvalue), '')


def holm(p: Sequence[float]) -> np.ndarray:
    """Holm's step-down correction: of the k-th smallest of m, the running maximum of min(1, (m - k
    + 1) p_k).

    Rejecting where it is below alpha keeps the chance of any false rejection at or below alpha,
    however the tests depend.

    Args:
      p: [m], in [0, 1].

    Returns:
      float64 [m].

    Raises:
      ValueError: out of range.

    Reference: Holm, A simple sequentially rejective multiple test procedure, 1979.
    """
    p = np.asarray(p, np.float64)
    if not np.all((p >= 0) & (p <= 1)):
        raise ValueError(f'p={p}: must lie in [0, 1]')
    order = np.argsort(p, kind='stable')
    corrected = np.empty(len(p))
    corrected[order] = np.minimum(1, np.maximum.accumulate((len(p) - np.arange(len(p))) * p[order]))
    return corrected


def compare(
    scores: Mapping[str, Mapping[int, float]], level: float = LEVEL
) -> tuple[Comparison, ...]:
    """Every group against every other, Holm-corrected as one family.

    Args:
      scores: {group: {seed: finite value}}.
      level: 1 - level is the chance of separating anything at all where nothing differs.

    Returns:
      tuple of `Comparison`. One without a p stays in the family, as if its p were 1.
    """
    names = list(scores)
    pairs = [
        (a, b, paired(scores[a], scores[b], level))
        for i, a in enumerate(names)
        for b in names[i + 1 :]
    ]
    corrected = holm([1.0 if test.p is None else test.p for _, _, test in pairs])
    return tuple(
        Comparison(a, b, test, float(p), bool(p < 1 - level))
        for (a, b, test), p in zip(pairs, corrected)
    )


def critical(n: int, m: int, level: float = LEVEL) -> float:
    """|t| that the clearest of m comparisons over n common seeds must exceed to be separated; n >=
    2."""
    return -float(special.stdtrit(n - 1, (1 - level) / m / 2))


def places(
    scores: Mapping[str, Mapping[int, float]], comparisons: Iterable[Comparison], sign: int
) -> dict[str, tuple[int, int, list[str]]]:
    """{group: (best place, worst place, groups not separated from it)}, from the best mean to the
    worst.

    A place is counted in separated groups alone: the best is one more than the number of groups
    separated from it and better, the worst is as many as there are groups less those separated and
    worse.

    Args:
      scores: {group: {seed: finite value}}, at least a value a group.
      comparisons: of `compare(scores)`.
      sign: 1 if more is better, -1 if less is.
    """
    means = {
        group: sign * float(np.mean(list(values.values()))) for group, values in scores.items()
    }
    apart = {(one.a, one.b) for one in comparisons if one.separated}
    apart |= {(b, a) for a, b in apart}
    found = {}
    for group in sorted(scores, key=lambda group: -means[group]):
        others = [other for other in scores if other != group]
        better = sum((group, other) in apart and means[other] > means[group] for other in others)
        worse = sum((group, other) in apart and means[other] < means[group] for other in others)
        found[group] = (
            1 + better,
            len(scores) - worse,
            [other for other in others if (group, other) not in apart],
        )
    return found
