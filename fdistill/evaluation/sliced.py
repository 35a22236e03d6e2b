"""Sliced Wasserstein distance of two sets of features, in float64 on the host."""

import numpy as np

from fdistill.evaluation.metrics import feature_pair

# What a number of ours is measured with, and is named by.
P, DIRECTIONS = 2, 128
BLOCK = 32  # directions at once, so that memory is that of 64 columns of the features
ROWS = 10_000  # features turned into float64 at once


def directions(d: int, count: int = DIRECTIONS, seed: int = 0) -> np.ndarray:
    """Random directions, uniform on the sphere, float64 [d, count], of length 1.

    RandomState, whose stream is frozen: a number must not change with numpy.
    """
    drawn = np.random.RandomState(seed).normal(size=(count, d)).T
    return drawn / np.linalg.norm(drawn, axis=0)


def scales(covariance: np.ndarray) -> np.ndarray:
    """Standard deviations of features, [d] of [d, d], by which they are divided; 1 where a feature
    has none."""
    std = np.sqrt(np.diagonal(covariance))
    return np.where(std > 0, std, 1.0)


def sliced_wasserstein(
    samples: np.ndarray,
    reference: np.ndarray,
    p: float = P,
    count: int = DIRECTIONS,
    seed: int = 0,
) -> float:
    """Wasserstein distance of the projections on random lines, averaged over the lines.

        SW_p = (mean_theta W_p(theta.x, theta.y)^p)^(1/p)
        W_p(a, b)^p = int_0^1 |A^-1(u) - B^-1(u)|^p du

    A^-1 is the quantile function, so that a line takes a sort; sets of different sizes need no
    interpolation, for both functions are constant between the multiples of 1/N and 1/M. Like any
    Wasserstein distance it is biased upwards by the sampling: compare with that of real data of
    the same number.

    Args:
      samples, reference: [N, d], [M, d].
      p: order, >= 1.
      count: of directions, >= 1.
      seed: integer >= 0, of the directions.

    Returns:
      float >= 0; 0 for the same set, and of a shift by c about |c| / sqrt(d) for p = 2.

    Raises:
      ValueError: no features, some that are not finite, shapes that do not match, or a setting out
        of range.

    Reference: Rabin et al., Wasserstein barycenter and its application to texture mixing, 2011;
      Bonneel et al., Sliced and Radon Wasserstein barycenters of measures, 2015, section 3.
    """
    if p < 1 or count < 1:
        raise ValueError(f'p={p}, count={count}: both must be at least 1')
    samples, reference = feature_pair(samples, reference, (1, 1))
    lines = directions(samples.shape[1], count, seed)
    n, m = len(samples), len(reference)
    # Exact in integers: multiples of m / (n m) and n / (n m).
    edges = np.union1d(np.arange(n + 1, dtype=np.int64) * m, np.arange(m + 1, dtype=np.int64) * n)
    shares, of_n, of_m = np.diff(edges) / (n * m), edges[:-1] // m, edges[:-1] // n
    total = 0.0
    for start in range(0, count, BLOCK):
        a, b = (
            np.sort(_projected(features, lines[:, start : start + BLOCK]), axis=0)
            for features in (samples, reference)
        )
        total += (shares @ np.abs(a[of_n] - b[of_m]) ** p).sum()
    return float((total / count) ** (1 / p))


def _projected(features, lines):
    starts = range(0, len(features), ROWS)
    return np.concatenate(
        [features[start : start + ROWS].astype(np.float64) @ lines for start in starts]
    )
