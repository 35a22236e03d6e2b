"""Metrics beside the Frechet distance: accuracy, inception score, diversity, memorisation, modes in
the plane."""

import numpy as np
from scipy import special

from fdistill.data.sources import to_float

EDGE = 1 / 32  # of the range of data, at either end: 8 of 256 grey levels


def accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Share of samples that the classifier sees in the class they were asked for.

    Args:
      logits: [N, classes].
      labels: int [N].

    Returns:
      float in [0, 1].
    """
    return float((np.argmax(logits, axis=1) == labels).mean())


def inception_score(
    logits: np.ndarray, splits: int = 10, seed: int | None = None
) -> tuple[float, float]:
    """Inception score: how sure a classifier is of each sample, and how evenly the samples fill its
    classes.

    exp(mean_i KL(p(y|x_i) || p(y))), p(y) = mean_i p(y|x_i), of each split; float64

    Scores that can be compared are of the 1008 outputs of the FID network without their bias and of
    50000 samples. The order matters: sorted by class, each split misses most classes. ADM takes
    splits in the order of the file, torch-fidelity shuffles. The std over the splits is no error
    bar of the score.

    Args:
      logits: [N, classes], N >= splits; of probabilities give np.log(p), where -inf stands for a
        probability of 0.
      splits: number of parts of N / splits samples, >= 1; 10 in the paper.
      seed: integer >= 0 to shuffle the samples by first; None takes them in order.

    Returns:
      (mean, std) over the splits, floats; the mean is in [1, classes].

    Raises:
      ValueError: a wrong shape, fewer samples than splits, or logits that are nan or infinite.

    Reference: Salimans et al., Improved techniques for training GANs, 2016, section 4.
    """
    logits = np.asarray(logits)
    if logits.ndim != 2 or not logits.size:
        raise ValueError(f'logits of shape {logits.shape}: expected [N, classes]')
    if not 1 <= splits <= len(logits):
        raise ValueError(
            f'splits={splits} of {len(logits)} samples: must be from 1 to the number of samples'
        )
    if not np.isfinite(logits.max(axis=1)).all():
        raise ValueError(
            'logits are not finite: the samples or the network that made them diverged'
        )
    order = (
        np.arange(len(logits))
        if seed is None
        else np.random.default_rng(seed).permutation(len(logits))
    )
    edges = np.arange(splits + 1) * len(logits) // splits
    scores = []
    for start, stop in zip(edges[:-1], edges[1:]):
        p = np.exp(special.log_softmax(logits[order[start:stop]].astype(np.float64), axis=1))
        scores.append(np.exp(special.rel_entr(p, p.mean(axis=0)).sum(axis=1).mean()))
    return float(np.mean(scores)), float(np.std(scores))


def diversity(images: np.ndarray, labels: np.ndarray) -> float:
    """Standard deviation of a pixel within a class, averaged over pixels and then over the classes
    that occur.

    Args:
      images: float [N, ...] in [-1, 1].
      labels: int [N].

    Returns:
      float in [0, 1]; 0 if all samples of a class are the same.
    """
    images, labels = np.asarray(images, np.float64), np.asarray(labels)
    return float(
        np.mean([images[labels == label].std(axis=0).mean() for label in np.unique(labels)])
    )


def saturation(samples: np.ndarray, real: np.ndarray) -> float:
    """Share of the values that lie in the outermost `EDGE` of the range of real data or beyond it,
    less the share of the real values that do: what is over-saturated has more.

    The range is that of each channel, or coordinate of points.

    Args:
      samples, real: float [N, ..., C], [M, ..., C].

    Returns:
      float in [-1, 1], about 0 for samples like the data.
    """
    samples, real = (np.asarray(of).reshape(-1, of.shape[-1]) for of in (samples, real))
    low, high = real.min(axis=0), real.max(axis=0)
    margin = EDGE * (high - low)

    def share(values):
        return np.mean((values < low + margin) | (values > high - margin))

    return float(share(samples) - share(real))


def health(samples: np.ndarray, real: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """{'diversity': `diversity` of samples over that of real data, `saturation`}: 1 and 0 for
    samples like the data.

    Args:
      samples, real: float [N, ...], of the same conditions.
      labels: int [N].
    """
    of_data = diversity(real, labels)
    share = diversity(samples, labels) / of_data if of_data else 1.0
    return {'diversity': share, 'saturation': saturation(samples, real)}


def nearest(
    samples: np.ndarray, train: np.ndarray, levels: int = 0, block: int = 2000
) -> np.ndarray:
    """Which training image is nearest to each sample, over pixels in [-1, 1].

    argmin_j |x_i - t_j|_2, searched in float32 as |t|^2 - 2 x.t

    Args:
      samples: float [N, ...].
      train: [M, ...], M >= 1; uint8 in 0..levels, or float if levels is 0.
      levels: largest grey level of `train`.
      block: how many of either are compared at once; only so many training images are floats at the
        same time.

    Returns:
      int64 [N], in 0..M - 1.
    """
    samples = np.asarray(samples, np.float32).reshape(len(samples), -1)
    found, best = np.zeros(len(samples), np.int64), np.full(len(samples), np.inf, np.float32)
    for j in range(0, len(train), block):
        columns = to_float(train[j : j + block], levels).reshape(-1, samples.shape[1])
        norms = np.square(columns).sum(axis=1)
        for i in range(0, len(samples), block):
            distance = norms - 2 * samples[i : i + block] @ columns.T
            closest = distance.argmin(axis=1)
            value = distance[np.arange(len(closest)), closest]
            found[i : i + block] = np.where(
                value < best[i : i + block], closest + j, found[i : i + block]
            )
            best[i : i + block] = np.minimum(value, best[i : i + block])
    return found


def nearest_neighbour(
    samples: np.ndarray, train: np.ndarray, levels: int = 0, block: int = 2000
) -> np.ndarray:
    """Distance of each sample to its nearest training image, over pixels in [-1, 1].

    min_j |x_i - t_j|_2, from the difference in float64: an exact copy gives exactly 0

    Args:
      samples, train, levels, block: as of `nearest`.

    Returns:
      float64 [N].
    """
    samples = np.asarray(samples, np.float32).reshape(len(samples), -1)
    found = nearest(samples, train, levels, block)
    matches = to_float(train[found], levels).reshape(samples.shape)
    return np.linalg.norm(samples.astype(np.float64) - matches, axis=1)


def nn_ratio(
    samples: np.ndarray, train: np.ndarray, held_out_distance: float, levels: int = 0
) -> float:
    """Mean distance to the nearest training image, against that of real images that were not
    trained on.

    mean_i min_j |x_i - t_j| / mean_i min_j |h_i - t_j|

    Args:
      samples: float [N, ...] in [-1, 1].
      train: [M, ...]; uint8 in 0..levels, or float if levels is 0.
      held_out_distance: mean of `nearest_neighbour(held_out, train)`, > 0.
      levels: largest grey level of `train`.

    Returns:
      float >= 0: about 1 for new images as good as real ones, 0 for copies of training images,
      above 1 for poor ones.
    """
    return float(nearest_neighbour(samples, train, levels).mean() / held_out_distance)


def spread(samples: np.ndarray, train: np.ndarray) -> float:
    """Standard deviation of points against that of the data, sqrt(tr Cov(samples)/tr Cov(train)).

    Below 1 where modes are missed or too narrow. For a student that can have one mode only, it
    shows which divergence it was trained with.

    Args:
      samples: float [N, D].
      train: float [M, D].

    Returns:
      float >= 0; 1 for exact samples.
    """
    return float(
        np.sqrt(
            np.var(samples, axis=0, dtype=np.float64).sum()
            / np.var(train, axis=0, dtype=np.float64).sum()
        )
    )


def mode_coverage(
    samples: np.ndarray, weights: np.ndarray, means: np.ndarray, stds: np.ndarray
) -> dict[str, float]:
    """How well points cover a mixture of round Gaussians. Each point belongs to the mode nearest in
    units of its std.

    Args:
      samples: float [N, D].
      weights: [K], sums to 1.
      means: [K, D].
      stds: [K].

    Returns:
      dict of
      modes: number of modes that get at least a tenth of their share: that have 0.1 weight N points
        within 3 std.
      kl: KL divergence of the histogram of modes from the weights, in nats; about (K - 1) / 2N for
        exact samples.
      high_quality: share of the points within 3 std of their mode; 1 - exp(-4.5) = .989 for exact
        samples in the plane.
      within: std of those points about their mode's sample mean, against the true std; .974 for
        exact samples in the plane, because the tails are cut off; nan if there are no such points.
    """
    samples = np.asarray(samples, np.float64)
    distance = np.linalg.norm(samples[:, None] - means, axis=-1) / stds
    mode = distance.argmin(axis=1)
    good = distance.min(axis=1) <= 3
    share = np.bincount(mode, minlength=len(weights)) / len(samples)
    good_share = np.bincount(mode[good], minlength=len(weights)) / len(samples)
    occupied = share > 0
    squares = sum(
        np.square(
            (samples[good & (mode == k)] - samples[good & (mode == k)].mean(axis=0)) / stds[k]
        ).sum()
        for k in np.flatnonzero(good_share)
    )
    return {
        'modes': int((good_share >= 0.1 * np.asarray(weights)).sum()),
        'kl': float(
            (share[occupied] * np.log(share[occupied] / np.asarray(weights)[occupied])).sum()
        ),
        'high_quality': float(good.mean()),
        'within': float(np.sqrt(squares / (good.sum() * samples.shape[1])))
        if good.any()
        else float('nan'),
    }


def feature_pair(
    samples: np.ndarray, reference: np.ndarray, fewest: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Checks two sets of features that are to be compared.

    Args:
      samples, reference: [N, d], [M, d].
      fewest: (of samples, of reference), the smallest numbers that will do.

    Returns:
      The two as numpy arrays, not copied if they are.

    Raises:
      ValueError: they are not [N, d] and [M, d], too few, or not finite.
    """
    samples, reference = np.asarray(samples), np.asarray(reference)
    if not (samples.ndim == reference.ndim == 2 and samples.shape[1] == reference.shape[1] >= 1):
        raise ValueError(
            f'features of shapes {samples.shape} and {reference.shape}: expected [N, d] and [M, d]'
        )
    for name, features, least in zip(('samples', 'reference'), (samples, reference), fewest):
        if len(features) < least:
            raise ValueError(f'{len(features)} features of the {name}: at least {least} are needed')
        if not np.isfinite(features).all():
            raise ValueError(
                f'features of the {name} are not finite: the samples or their network diverged'
            )
    return samples, reference
