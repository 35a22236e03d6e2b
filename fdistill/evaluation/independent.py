"""Distances to the training data in several encoders, each relative to what real data has: scores
that no single network decides."""

from typing import NamedTuple

import numpy as np

from fdistill.evaluation.features import Features
from fdistill.evaluation.frechet import Moments, frechet_distance
from fdistill.evaluation.protocol import Measure
from fdistill.evaluation.sliced import scales, sliced_wasserstein

# Rows of `features.FEATURES` and their seeds: one that was taught classes, one that was taught
# nothing about them, one that was taught nothing. Neither the classifier of the other distances nor
# the one of seed 1, which rewards are of, nor the pixels, so that who was trained on those is
# measured by others.
ENCODERS = (('classifier', 2), ('turns', 0), ('random', 0))

MEASURES = {
    'fd_ratio': Measure(
        'Fréchet distance to training data, mean of encoders', 'of that of held-out images', -1
    ),
    'sliced_wasserstein': Measure(
        'sliced Wasserstein distance to training data, mean of encoders',
        'of that of held-out images',
        -1,
    ),
}


class Encoder(NamedTuple):
    """Features, and what real data is in them.

    features: `Features`.
    train: Moments of the training images.
    seen: float32 [m, d], features of some of them.
    scale: float64 [d], standard deviations of all; 1 where there is none.
    held_out: float32 [M, d], features of held-out images.
    labels: int [M], of those.
    """

    features: Features
    train: Moments
    seen: np.ndarray
    scale: np.ndarray
    held_out: np.ndarray
    labels: np.ndarray


def encoder(
    features: Features, train: Moments, seen: np.ndarray, held_out: np.ndarray, labels: np.ndarray
) -> Encoder:
    """`Encoder`; arguments as there."""
    return Encoder(features, train, seen, scales(train.covariance), held_out, labels)


def relative(encoder: Encoder, values: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """How far samples are from the training data, in units of how far held-out images are.

        FDr = FD(samples, train) / FD(held-out, train), and the same with SW_2 of standardised
        features

    Both distances are of n = min(N, M) images, averaged over as many disjoint parts of that size as
    there are: either is biased by the number, and in the quotient that cancels. Parts have the
    shares of the classes of the whole.

    Args:
      encoder: `Encoder`.
      values: [N, d], features of samples.
      labels: int [N], classes they were asked for.

    Returns:
      {'fd_ratio', 'sliced_wasserstein'}, floats >= 0: 1 for what is as good as held-out images.

    Reference: Yang et al., Representation Fréchet loss for visual generation, arXiv 2604.28190: FDr
      of a representation is the FD of 50,000 samples over that of the validation set, both to the
      training set, and FDr^k its arithmetic mean over k of them.
    """
    n = min(len(values), len(encoder.held_out))
    ours, theirs = (
        np.mean([_distances(encoder, of[part]) for part in parts(known, n)], axis=0)
        for of, known in ((values, labels), (encoder.held_out, encoder.labels))
    )
    with np.errstate(
        divide='ignore', invalid='ignore'
    ):  # Held-out images may be those of training.
        return dict(zip(MEASURES, map(float, ours / theirs)))


def parts(labels: np.ndarray, n: int) -> list[np.ndarray]:
    """As many disjoint parts of n as there are, int [n] indices each, that have about the same
    number of each label."""
    order, k = np.argsort(labels, kind='stable'), len(labels) // n
    chosen = order[np.arange(k * n) * len(labels) // (k * n)]
    return [chosen[start::k] for start in range(k)]


def _distances(encoder, values):
    moments = Moments.empty(values.shape[1]).update(values)
    train = encoder.train
    return (
        frechet_distance(moments.mean, moments.covariance, train.mean, train.covariance),
        sliced_wasserstein(values / encoder.scale, encoder.seen / encoder.scale),
    )
