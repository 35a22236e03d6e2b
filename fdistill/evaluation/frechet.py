"""Frechet distance of two Gaussians, and the moments it needs, in float64 on the host."""

from typing import Any, NamedTuple

import numpy as np


class Moments(NamedTuple):
    """Count, mean and scatter sum_i (x_i - mean)(x_i - mean)' of features seen so far.

    Pieces are combined by the formula of Chan, Golub and LeVeque, which, unlike sums of x x', loses no digits when the
    mean is large against the spread. The order and the size of the pieces do not matter beyond rounding.

    count: number of features.
    mean: float64 [d].
    scatter: float64 [d, d].

    Reference: Chan, Golub, LeVeque, Algorithms for computing the sample variance, The American Statistician 37 (1983).
    """

    count: int
    mean: Any
    scatter: Any

    @classmethod
    def empty(cls, d):
        """Moments of no features of d dimensions."""
        return cls(0, np.zeros(d), np.zeros((d, d)))

    def update(self, features):
        """Adds features [B, d] -> Moments; ValueError if they are not finite or not [B, d]."""
        features = np.asarray(features, np.float64)
        if features.ndim != 2 or features.shape[1] != len(self.mean):
            raise ValueError(f'features of shape {features.shape}: expected [B, {len(self.mean)}]')
        if not np.isfinite(features).all():
            raise ValueError('features are not finite: the samples or the network that made them diverged')
        if not len(features):
            return self
        mean = features.mean(axis=0)
        centred = features - mean
        return self.merge(Moments(len(features), mean, centred.T @ centred))

    def merge(self, other):
        """Moments of the union of two disjoint sets; ValueError if their dimensions differ."""
        if len(other.mean) != len(self.mean):
            raise ValueError(f'moments of {len(self.mean)} and of {len(other.mean)} dimensions cannot be merged')
        count = self.count + other.count
        if not count:
            return self
        delta = other.mean - self.mean
        mean = self.mean + delta * (other.count / count)
        scatter = self.scatter + other.scatter + np.outer(delta, delta) * (self.count * other.count / count)
        return Moments(count, mean, scatter)

    @property
    def covariance(self):
        """scatter / (count - 1), float64 [d, d]; ValueError for fewer than two features."""
        if self.count < 2:
            raise ValueError(f'the covariance of {self.count} features does not exist: give at least two')
        return self.scatter / (self.count - 1)


def frechet_distance(mu1, sigma1, mu2, sigma2):
    """Squared Frechet (2-Wasserstein) distance of N(mu1, sigma1) and N(mu2, sigma2).

    d^2 = |mu1 - mu2|^2 + tr(sigma1) + tr(sigma2) - 2 tr((R sigma2 R)^(1/2)), R = sigma1^(1/2)

    Both roots come from the eigenvalues of symmetric matrices, those that rounding made negative taken as 0, so
    singular covariances (fewer samples than dimensions) need no regularisation. Zero, where rounding would give less.

    Args:
      mu1, mu2: [d].
      sigma1, sigma2: symmetric positive semi-definite [d, d].

    Returns:
      float >= 0, finite.

    Raises:
      ValueError: shapes that do not match, values not finite, or a covariance that is not symmetric.

    Reference: Dowson and Landau, The Frechet distance between multivariate normal distributions, 1982, eq. 4.
    """
    mu1, sigma1, mu2, sigma2 = (np.asarray(a, np.float64) for a in (mu1, sigma1, mu2, sigma2))
    d = mu1.size
    if not (mu1.shape == mu2.shape == (d,) and sigma1.shape == sigma2.shape == (d, d)):
        raise ValueError(f'shapes {mu1.shape}, {sigma1.shape}, {mu2.shape}, {sigma2.shape}: '
                         'expected [d], [d, d], [d], [d, d] with the same d')
    for name, value in (('mu1', mu1), ('sigma1', sigma1), ('mu2', mu2), ('sigma2', sigma2)):
        if not np.isfinite(value).all():
            raise ValueError(f'{name} is not finite: the features diverged')
        # Symmetric up to single precision, since statistics are often stored in it.
        if value.ndim == 2 and np.abs(value - value.T).max(initial=0) > 1e-5 * np.abs(value).max(initial=0):
            raise ValueError(f'{name} is not symmetric: give a covariance')
    values, vectors = np.linalg.eigh(sigma1)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    product = np.linalg.eigvalsh(root @ sigma2 @ root)
    overlap = np.sqrt(product.clip(min=0)).sum()
    distance = np.square(mu1 - mu2).sum() + np.trace(sigma1) + np.trace(sigma2) - 2 * overlap
    return float(max(distance, 0.0))
