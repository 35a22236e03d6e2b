"""Kernel distances of two sets of features: KID and the Gaussian MMD of CMMD, in float64 on the
host."""

import itertools

import numpy as np
import tqdm

from fdistill.evaluation.metrics import feature_pair


def kid(
    samples: np.ndarray,
    reference: np.ndarray,
    subsets: int = 100,
    subset_size: int = 1000,
    seed: int = 0,
    progress: bool = True,
) -> tuple[float, float]:
    """Kernel inception distance: unbiased squared MMD with a cubic kernel, averaged over random
    subsets.

        MMD^2 = mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j) - 2 mean_{i, j} k(x_i, y_j)
        k(x, y) = (x.y / d + 1)^3

    A subset has no feature twice; different subsets share features. The estimate is unbiased, so
    that values just below 0 are right for equal distributions. Papers often give it times 1000.

    Args:
      samples, reference: [N, d], [M, d].
      subsets: how many, >= 1.
      subset_size: features of each set in a subset, from 2 to the smaller of N and M.
      seed: integer >= 0, of the subsets.
      progress: show a bar if it takes longer than two seconds.

    Returns:
      (mean, std) over the subsets, floats. The std is that of one subset's value, not the error of
      the mean.

    Raises:
      ValueError: a setting out of range, too few features, not finite ones, or shapes that do not
        match.

    Reference: Binkowski et al., Demystifying MMD GANs, ICLR 2018, section 4; subsets and their
      number as in torch-fidelity, metric_kid.py.
    """
    if subsets < 1 or subset_size < 2:
        raise ValueError(f'subsets={subsets}, subset_size={subset_size}: must be at least 1 and 2')
    samples, reference = feature_pair(samples, reference, (subset_size, subset_size))
    rng = np.random.default_rng(seed)

    def off_diagonal_mean(kernel):
        return (kernel.sum() - np.trace(kernel)) / (subset_size * (subset_size - 1))

    values = []
    for _ in tqdm.tqdm(
        range(subsets),
        'KID',
        unit='subset',
        disable=None if progress else True,
        delay=2,
        leave=False,
    ):
        x, y = (
            features[rng.choice(len(features), subset_size, replace=False)].astype(np.float64)
            for features in (samples, reference)
        )
        kxx, kyy, kxy = ((a @ b.T / a.shape[1] + 1) ** 3 for a, b in ((x, x), (y, y), (x, y)))
        values.append(off_diagonal_mean(kxx) + off_diagonal_mean(kyy) - 2 * kxy.mean())
    return float(np.mean(values)), float(np.std(values))


def mmd_rbf(
    samples: np.ndarray,
    reference: np.ndarray,
    sigma: float = 10.0,
    block: int = 2000,
    progress: bool = True,
) -> float:
    """Squared MMD with a Gaussian kernel between directions of features, times 1000: CMMD if the
    features are CLIP's.

        1000 (mean_{i, j} k(x_i, x_j) + mean_{i, j} k(y_i, y_j) - 2 mean_{i, j} k(x_i, y_j))
        k(x, y) = exp(-|x / |x| - y / |y||^2 / (2 sigma^2))

    This is the biased estimate, i = j included, as in the paper's code; there, CLIP itself scales
    its embeddings to length 1.

    Args:
      samples, reference: [N, d], [M, d], none of them 0.
      sigma: bandwidth, > 0; 10 in the paper.
      block: features compared at once; memory is about block (block + 2 d) numbers, never N M.
      progress: show a bar if it takes longer than two seconds.

    Returns:
      float >= 0 but for rounding.

    Raises:
      ValueError: no features, some that are zero or not finite, shapes that do not match, or a
        setting out of range.

    Reference: Jayasumana et al., Rethinking FID: towards a better evaluation metric for image
      generation, CVPR 2024, and google-research/cmmd/distance.py; Gretton et al., A kernel
      two-sample test, JMLR 2012, eq. 5.
    """
    if sigma <= 0 or block < 1:
        raise ValueError(f'sigma={sigma}, block={block}: sigma must be > 0 and block >= 1')
    samples, reference = feature_pair(samples, reference, (1, 1))
    x_starts, y_starts = range(0, len(samples), block), range(0, len(reference), block)
    # Of a symmetric sum, blocks above the diagonal count twice. Of the two sets, each product
    # counts -2.
    pairs = [
        (samples, i, samples, j, (1 + (i < j)) / len(samples) ** 2)
        for i, j in itertools.combinations_with_replacement(x_starts, 2)
    ]
    pairs += [
        (reference, i, reference, j, (1 + (i < j)) / len(reference) ** 2)
        for i, j in itertools.combinations_with_replacement(y_starts, 2)
    ]
    pairs += [
        (samples, i, reference, j, -2 / (len(samples) * len(reference)))
        for i, j in itertools.product(x_starts, y_starts)
    ]

    def directions(features, start):
        x = features[start : start + block].astype(np.float64)
        lengths = np.linalg.norm(x, axis=1, keepdims=True)
        if not lengths.all():
            raise ValueError(
                'a feature is zero and has no direction: the network that made it is broken'
            )
        return x / lengths

    total = 0.0
    for one, i, other, j, weight in tqdm.tqdm(
        pairs, 'MMD', unit='block', disable=None if progress else True, delay=2, leave=False
    ):
        # |x - y|^2 = 2 - 2 x.y for unit vectors.
        total += weight * np.exp((directions(one, i) @ directions(other, j).T - 1) / sigma**2).sum()
    return float(1000 * total)
