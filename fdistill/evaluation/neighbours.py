"""Precision, recall, density and coverage by nearest neighbours, in float64 on the host."""

import numpy as np
import tqdm

from fdistill.evaluation.metrics import feature_pair
from fdistill.evaluation.protocol import Measure

# What `prdc` gives, for people.
MEASURES = {
    'precision': Measure('samples within the real manifold', 'share', 1),
    'recall': Measure('real images within the manifold of samples', 'share', 1),
    'density': Measure(
        'real neighbourhoods a sample lies in', 'of those expected', 0, '1 for real images'
    ),
    'coverage': Measure('real neighbourhoods that hold a sample', 'share', 1),
}
# The neighbours of the papers.
K, K_DENSITY = 3, 5


def prdc(
    samples: np.ndarray,
    reference: np.ndarray,
    k: int = K,
    k_density: int = K_DENSITY,
    block: int = 2000,
    progress: bool = True,
) -> dict[str, float]:
    """Improved precision and recall, density and coverage of samples against real data, in one
    pass.

    B_k(y) is the ball about y that reaches to its k-th nearest neighbour within its own set, y
    itself not counted.

    precision = share of the samples x that lie in B_k(y) of some real y        quality
    recall    = share of the real y that lie in B_k(x) of some sample x         diversity
    density   = mean over the samples of #{real y: x in B_k_density(y)} / k_density
    coverage  = share of the real y with some sample in B_k_density(y)

    The two papers' code differs on the edge of a ball: it belongs to the ball (<=) for precision
    and recall, and does not (<) for density and coverage. This matters for copies of real data; as
    it is, a copy of the whole set has 1, 1, 1, 1. A ball of radius 0, about a point that occurs
    more than k times, holds its copies for precision and recall, and nothing for the other two.

    |x|^2 + |y|^2 - 2 x.y only finds the neighbours, and what is clearly inside or outside. Radii,
    and distances that differ from a radius by no more than rounding, are computed from the
    difference. So copies are at distance 0 and ties are ties (up to the rounding of a sum of d
    squares), whatever the block. Only neighbours that are nearer to a point than about 1e-6 of its
    distance from the mean of the data, without being copies, may be mistaken for one another.

    Time for 50000 each and d = 2048: two full products of the sets, 2e13 operations.

    Args:
      samples, reference: [N, d], [M, d]: generated features and real ones. The order decides which
        is precision: exchanged, precision and recall are too, as they were in the betas of
        torch-fidelity 0.4.
      k: neighbour of precision and recall, >= 1; 3 in the paper.
      k_density: neighbour of density and coverage, >= 1; 5 in the paper.
      block: features of either set compared at once; memory beside the features is about
        block (4 block + 4 d) numbers.
      progress: show a bar if it takes longer than two seconds.

    Returns:
      dict of floats precision, recall, coverage in [0, 1], and density >= 0, which may exceed 1.

    Raises:
      ValueError: N <= k or M <= max(k, k_density), features that are not finite, shapes that do not
        match, or a setting out of range.

    Reference: Kynkaanniemi et al., Improved precision and recall metric for assessing generative
      models, NeurIPS 2019, eq. 1-2; Naeem et al., Reliable fidelity and diversity metrics for
      generative models, ICML 2020, and clovaai/generative-evaluation-prdc, prdc.py.
    """
    if min(k, k_density, block) < 1:
        raise ValueError(f'k={k}, k_density={k_density}, block={block}: must be at least 1')
    samples, reference = feature_pair(samples, reference, (k + 1, max(k, k_density) + 1))
    d = samples.shape[1]
    # Nearer to the origin less is lost to rounding.
    centre = reference.mean(axis=0, dtype=np.float64)
    starts, sample_starts = range(0, len(reference), block), range(0, len(samples), block)
    total = len(starts) * len(sample_starts) + sum(
        len(s) * (len(s) + 1) // 2 for s in (starts, sample_starts)
    )
    slack = (d + 8) * np.finfo(np.float64).eps
    precise, dense = np.zeros(len(samples), bool), 0
    recalled, covered = np.zeros(len(reference), bool), np.zeros(len(reference), bool)
    with tqdm.tqdm(
        desc='nearest neighbours',
        total=total,
        unit='block',
        disable=None if progress else True,
        delay=2,
        leave=False,
    ) as bar:
        real = _radii(reference, max(k, k_density), centre, block, bar)
        real, real_density = real[:, k - 1, None], real[:, k_density - 1, None]
        fake = _radii(samples, k, centre, block, bar)[:, k - 1]
        for i in starts:
            rows = slice(i, i + block)
            y = _part(reference, i, block, centre)
            for j in sample_starts:
                columns = slice(j, j + block)
                x = _part(samples, j, block, centre)
                distance = _squares(y, x)
                doubt = 4 * slack * (y[1][:, None] + x[1])
                unsure = np.zeros(distance.shape, bool)
                for radius in (real[rows], real_density[rows], fake[columns]):
                    unsure |= np.abs(distance - radius) <= doubt
                at, to = np.nonzero(unsure)
                for s in range(0, len(at), block):
                    some = slice(s, s + block)
                    distance[at[some], to[some]] = _exact(
                        reference[i + at[some]], samples[j + to[some]]
                    )
                precise[columns] |= (distance <= real[rows] * (1 + slack)).any(axis=0)
                recalled[rows] |= (distance <= fake[columns] * (1 + slack)).any(axis=1)
                inside = distance < real_density[rows] * (1 - slack)
                covered[rows] |= inside.any(axis=1)
                dense += np.count_nonzero(inside)
                bar.update()
    return {
        'precision': float(precise.mean()),
        'recall': float(recalled.mean()),
        'density': float(dense / (k_density * len(samples))),
        'coverage': float(covered.mean()),
    }


def _radii(features, k, centre, block, bar):
    """Squared distances to the 1st, ..., k-th nearest other feature of the set, float64 [N, k]."""
    count = len(features)
    nearest, best = np.zeros((count, k), np.int64), np.full((count, k), np.inf)

    def merge(i, j, distance):
        """Merges the nearest from a block of distances: of the features from i on to those from j
        on."""
        rows = np.flatnonzero(distance.min(axis=1) < best[i : i + len(distance)].max(axis=1))
        values = np.concatenate([best[i + rows], distance[rows]], axis=1)
        found = np.argpartition(values, k - 1, axis=1)[:, :k]
        before = np.take_along_axis(nearest[i + rows], found.clip(max=k - 1), axis=1)
        nearest[i + rows] = np.where(found < k, before, found - k + j)
        best[i + rows] = np.take_along_axis(values, found, axis=1)

    for i in range(0, count, block):
        one = _part(features, i, block, centre)
        for j in range(i, count, block):
            distance = _squares(one, _part(features, j, block, centre))
            if i == j:
                np.fill_diagonal(distance, np.inf)
            else:
                merge(j, i, distance.T)
            merge(i, j, distance)
            bar.update()
    for i in range(0, count, block):
        rows = slice(i, i + block)
        for column in range(k):
            best[rows, column] = _exact(features[rows], features[nearest[rows, column]])
    return np.sort(best, axis=1)


def _part(features, start, block, centre):
    """A block of features about the centre in float64, and their squared norms."""
    x = features[start : start + block].astype(np.float64) - centre
    return x, np.square(x).sum(axis=1)


def _squares(one, other):
    """Squared distances [B, C] of two `_part`s by their products, with an error of about 1e-16 d
    times the norms."""
    distance = -2 * one[0] @ other[0].T
    distance += one[1][:, None]
    distance += other[1]
    return distance


def _exact(x, y):
    """Squared distances of rows from their differences; the same, whatever other rows there are."""
    return np.square(x.astype(np.float64) - y).sum(axis=1)
