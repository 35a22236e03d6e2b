"""Metrics beside the Frechet distance: accuracy, diversity, memorisation, and mode coverage in the plane."""

import numpy as np

from fdistill.data.sources import to_float


def accuracy(logits, labels):
    """Share of samples that the classifier sees in the class they were asked for.

    Args:
      logits: [N, classes].
      labels: int [N].

    Returns:
      float in [0, 1].
    """
    return float((np.argmax(logits, axis=1) == labels).mean())


def diversity(images, labels):
    """Standard deviation of a pixel within a class, averaged over pixels and then over the classes that occur.

    Args:
      images: float [N, ...] in [-1, 1].
      labels: int [N].

    Returns:
      float in [0, 1]; 0 if all samples of a class are the same.
    """
    images, labels = np.asarray(images, np.float64), np.asarray(labels)
    return float(np.mean([images[labels == label].std(axis=0).mean() for label in np.unique(labels)]))


def nearest_neighbour(samples, train, levels=0, block=2000):
    """Distance of each sample to its nearest training image, over pixels in [-1, 1].

    min_j |x_i - t_j|_2

    The nearest is searched in float32 as |t|^2 - 2 x.t, the distance to the one found is computed from the difference
    in float64: an exact copy gives exactly 0.

    Args:
      samples: float [N, ...].
      train: [M, ...], M >= 1; uint8 in 0..levels, or float if levels is 0.
      levels: largest grey level of `train`.
      block: how many of either are compared at once; only so many training images are floats at the same time.

    Returns:
      float64 [N].
    """
    samples = np.asarray(samples, np.float32).reshape(len(samples), -1)
    nearest, best = np.zeros(len(samples), np.int64), np.full(len(samples), np.inf, np.float32)
    for j in range(0, len(train), block):
        columns = to_float(train[j:j + block], levels).reshape(-1, samples.shape[1])
        norms = np.square(columns).sum(axis=1)
        for i in range(0, len(samples), block):
            distance = norms - 2 * samples[i:i + block] @ columns.T
            found = distance.argmin(axis=1)
            value = distance[np.arange(len(found)), found]
            nearest[i:i + block] = np.where(value < best[i:i + block], found + j, nearest[i:i + block])
            best[i:i + block] = np.minimum(value, best[i:i + block])
    matches = to_float(train[nearest], levels).reshape(samples.shape)
    return np.linalg.norm(samples.astype(np.float64) - matches, axis=1)


def nn_ratio(samples, train, held_out_distance, levels=0):
    """Mean distance to the nearest training image, against that of real images that were not trained on.

    mean_i min_j |x_i - t_j| / mean_i min_j |h_i - t_j|

    Args:
      samples: float [N, ...] in [-1, 1].
      train: [M, ...]; uint8 in 0..levels, or float if levels is 0.
      held_out_distance: mean of `nearest_neighbour(held_out, train)`, > 0.
      levels: largest grey level of `train`.

    Returns:
      float >= 0: about 1 for new images as good as real ones, 0 for copies of training images, above 1 for poor ones.
    """
    return float(nearest_neighbour(samples, train, levels).mean() / held_out_distance)


def spread(samples, train):
    """Standard deviation of points against that of the data, sqrt(tr Cov(samples)/tr Cov(train)).

    Below 1 where modes are missed or too narrow; a student that can have one mode only is told by it which divergence it
    was trained with.

    Args:
      samples: float [N, D].
      train: float [M, D].

    Returns:
      float >= 0; 1 for exact samples.
    """
    return float(np.sqrt(np.var(samples, axis=0, dtype=np.float64).sum() / np.var(train, axis=0, dtype=np.float64).sum()))


def mode_coverage(samples, weights, means, stds):
    """How well points cover a mixture of round Gaussians. Each point belongs to the mode nearest in units of its std.

    Args:
      samples: float [N, D].
      weights: [K], sums to 1.
      means: [K, D].
      stds: [K].

    Returns:
      dict of
      modes: number of modes that get at least a tenth of their share: that have 0.1 weight N points within 3 std.
      kl: KL divergence of the histogram of modes from the weights, in nats; about (K - 1) / 2N for exact samples.
      high_quality: share of the points within 3 std of their mode; 1 - exp(-4.5) = .989 for exact samples in the plane.
      within: std of those points about their mode's sample mean, against the true std; .974 for exact samples in the
        plane, because the tails are cut off; nan if there are no such points.
    """
    samples = np.asarray(samples, np.float64)
    distance = np.linalg.norm(samples[:, None] - means, axis=-1) / stds
    mode = distance.argmin(axis=1)
    good = distance.min(axis=1) <= 3
    share = np.bincount(mode, minlength=len(weights)) / len(samples)
    good_share = np.bincount(mode[good], minlength=len(weights)) / len(samples)
    occupied = share > 0
    squares = sum(np.square((samples[good & (mode == k)] - samples[good & (mode == k)].mean(axis=0)) / stds[k]).sum()
                  for k in np.flatnonzero(good_share))
    return {
        'modes': int((good_share >= 0.1 * np.asarray(weights)).sum()),
        'kl': float((share[occupied] * np.log(share[occupied] / np.asarray(weights)[occupied])).sum()),
        'high_quality': float(good.mean()),
        'within': float(np.sqrt(squares / (good.sum() * samples.shape[1]))) if good.any() else float('nan'),
    }
