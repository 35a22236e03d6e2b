"""Frechet distance of two Gaussians, its limit for many samples, and the moments it needs, in
float64 on the host."""

from typing import NamedTuple

import numpy as np
import scipy.linalg
import tqdm


class Moments(NamedTuple):
    """Count, mean and scatter sum_i (x_i - mean)(x_i - mean)' of features seen so far.

    Pieces are combined by the formula of Chan, Golub and LeVeque, which, unlike sums of x x', loses
    no digits when the mean is large against the spread. The order and the size of the pieces do not
    matter beyond rounding.

    count: number of features.
    mean: float64 [d].
    scatter: float64 [d, d].

    Reference: Chan, Golub, LeVeque, Algorithms for computing the sample variance, The American
      Statistician 37 (1983).
    """

    count: int
    mean: np.ndarray
    scatter: np.ndarray

    @classmethod
    def empty(cls, d: int) -> 'Moments':
        """Moments of no features of d dimensions."""
        return cls(0, np.zeros(d), np.zeros((d, d)))

    def update(self, features: np.ndarray) -> 'Moments':
        """Adds features [B, d] -> Moments; ValueError if they are not finite or not [B, d]."""
        features = np.asarray(features, np.float64)
        if features.ndim != 2 or features.shape[1] != len(self.mean):
            raise ValueError(f'features of shape {features.shape}: expected [B, {len(self.mean)}]')
        if not np.isfinite(features).all():
            raise ValueError(
                'features are not finite: the samples or the network that made them diverged'
            )
        if not len(features):
            return self
        mean = features.mean(axis=0)
        centred = features - mean
        return self.merge(Moments(len(features), mean, centred.T @ centred))

    def merge(self, other: 'Moments') -> 'Moments':
        """Moments of the union of two disjoint sets; ValueError if their dimensions differ."""
        if len(other.mean) != len(self.mean):
            raise ValueError(
                f'moments of {len(self.mean)} and of {len(other.mean)} dimensions cannot be merged'
            )
        count = self.count + other.count
        if not count:
            return self
        delta = other.mean - self.mean
        mean = self.mean + delta * (other.count / count)
        scatter = (
            self.scatter
            + other.scatter
            + np.outer(delta, delta) * (self.count * other.count / count)
        )
        return Moments(count, mean, scatter)

    @property
    def covariance(self) -> np.ndarray:
        """scatter / (count - 1), float64 [d, d]; ValueError for fewer than two features."""
        if self.count < 2:
            raise ValueError(
                f'the covariance of {self.count} features does not exist: give at least two'
            )
        return self.scatter / (self.count - 1)


class Extrapolation(NamedTuple):
    """The line distance(N) = value + slope / N through Frechet distances of N features.

    value: the distance for infinitely many features; may be slightly below 0 where the true one is
      about 0.
    slope: of the line, in distance times features; the bias of N features is about slope / N.
    error: standard error of `value` as least squares has it. Of the fit only: the subsets share
      features, so what another set of features would change is not in it.
    """

    value: float
    slope: float
    error: float


def frechet_distance(
    mu1: np.ndarray, sigma1: np.ndarray, mu2: np.ndarray, sigma2: np.ndarray
) -> float:
    """Squared Frechet (2-Wasserstein) distance of N(mu1, sigma1) and N(mu2, sigma2).

    d^2 = |mu1 - mu2|^2 + tr(sigma1) + tr(sigma2) - 2 tr((sigma1 sigma2)^(1/2))

    The last trace is the sum of the singular values of F1' F2, where F F' = sigma. Unlike the
    eigenvalues of the product they need no square root, which would make 1e-8 of a rounding of
    1e-16, so singular covariances (fewer samples than dimensions) lose no digits and need no
    regularisation.

    Args:
      mu1, mu2: [d].
      sigma1, sigma2: symmetric positive semi-definite [d, d].

    Returns:
      float >= 0, finite; 0 where rounding would give a little less.

    Raises:
      ValueError: shapes that do not match, values not finite, or a covariance that is not
        symmetric.

    Reference: Dowson and Landau, The Frechet distance between multivariate normal distributions,
      1982, eq. 4.
    """
    mu1, sigma1, mu2, sigma2 = _checked(mu1, sigma1, mu2, sigma2)
    return float(max(_distance(mu1, _factor(sigma1), mu2, _factor(sigma2)), 0.0))


def frechet_infinity(
    features: np.ndarray,
    mu: np.ndarray,
    sigma: np.ndarray,
    smallest: int = 5000,
    points: int = 15,
    seed: int = 0,
    progress: bool = True,
) -> Extrapolation:
    """Frechet distance to N(mu, sigma) that infinitely many features would have: FID-infinity.

    The distance of N features is biased by about slope / N, a slope that differs between models. It
    is measured for `points` sizes from `smallest` to all features, at regular steps of N, each with
    a random subset of its own, and a line in 1 / N through them is followed to 0. The bias that
    comes of the reference's own finite number stays.

    Args:
      features: [N, d].
      mu, sigma: [d], [d, d], moments of the reference.
      smallest: size of the smallest subset, d < smallest < N; 5000 in the paper's code.
      points: number of sizes, >= 15 as in the paper.
      seed: integer >= 0, of the subsets.
      progress: show a bar if it takes longer than two seconds.

    Returns:
      Extrapolation.

    Raises:
      ValueError: a setting out of range, or features and moments that do not go together or are not
        finite.

    Reference: Chong and Forsyth, Effectively unbiased FID and Inception Score, CVPR 2020, and their
    code, mchong6/FID_IS_infinity, score_infinity.py.
    """
    from scipy import stats  # Half a second, which nothing else here needs.

    features = np.asarray(features)
    if points < 15:
        raise ValueError(f'points={points}: the line needs at least 15')
    if features.ndim != 2:
        raise ValueError(f'features of shape {features.shape}: expected [N, d]')
    count, d = features.shape
    if not d < smallest < count:
        # Below d the covariance is singular and the distance no line in 1 / N.
        raise ValueError(
            f'smallest={smallest} of {count} features in {d} dimensions: must be above {d}, below '
            f'{count}'
        )
    mu, sigma, _, _ = _checked(mu, sigma, np.zeros(d), np.zeros((d, d)))
    factor = _factor(sigma)
    rng = np.random.default_rng(seed)
    sizes = np.linspace(smallest, count, points).astype(int)
    distances = []
    for size in tqdm.tqdm(
        sizes, 'FID-infinity', unit='size', disable=None if progress else True, delay=2, leave=False
    ):
        chosen = rng.permutation(count)[:size]
        moments = Moments.empty(d)
        for start in range(0, size, 5000):
            moments = moments.update(features[chosen[start : start + 5000]])
        distances.append(_distance(moments.mean, _factor(moments.covariance), mu, factor))
    inputs = 1 / sizes
    line = stats.linregress(inputs, distances)
    # Not its intercept_stderr: that comes of 1 - r^2, which of so straight a line is rounding.
    residual = distances - line.intercept - line.slope * inputs
    variance = residual @ residual / (points - 2) * np.mean(inputs**2) / (points * inputs.var())
    return Extrapolation(float(line.intercept), float(line.slope), float(np.sqrt(variance)))


def _checked(mu1, sigma1, mu2, sigma2):
    """The four as float64, or ValueError; see `frechet_distance`."""
    mu1, sigma1, mu2, sigma2 = (np.asarray(a, np.float64) for a in (mu1, sigma1, mu2, sigma2))
    d = mu1.size
    if not (d and mu1.shape == mu2.shape == (d,) and sigma1.shape == sigma2.shape == (d, d)):
        raise ValueError(
            f'shapes {mu1.shape}, {sigma1.shape}, {mu2.shape}, {sigma2.shape}: '
            'expected [d], [d, d], [d], [d, d] with the same d >= 1'
        )
    for name, value in (('mu1', mu1), ('sigma1', sigma1), ('mu2', mu2), ('sigma2', sigma2)):
        if not np.isfinite(value).all():
            raise ValueError(f'{name} is not finite: the features diverged')
        # Symmetric up to single precision, since statistics are often stored in it.
        if value.ndim == 2 and np.abs(value - value.T).max(initial=0) > 1e-5 * np.abs(value).max(
            initial=0
        ):
            raise ValueError(f'{name} is not symmetric: give a covariance')
    return mu1, sigma1, mu2, sigma2


def _factor(sigma):
    """F [d, r] with F F' = sigma, r the numerical rank of sigma."""
    noise = len(sigma) * np.finfo(np.float64).eps
    try:
        # A tenth of the time of the eigenvectors.
        factor = np.linalg.cholesky(sigma)
        if np.square(np.diagonal(factor)).min() > noise * np.diagonal(sigma).max():
            return factor
    except np.linalg.LinAlgError:
        pass
    values, vectors = np.linalg.eigh(sigma)
    # What rounding makes of an eigenvalue of 0, whose root would not be small, is left out.
    kept = values > noise * values[-1]
    return vectors[:, kept] * np.sqrt(values[kept])


def _distance(mu1, factor1, mu2, factor2):
    """d^2 of `frechet_distance` by the factors of the covariances; not below 0 but for rounding,
    whatever the factors.

    tr(sigma1) + tr(sigma2) - 2 tr((sigma1 sigma2)^(1/2)) = min over orthogonal Q of |F1 - F2 Q|^2
    """
    # For singular values alone LAPACK's gesvd takes a third of the time of numpy's gesdd.
    overlap = scipy.linalg.svd(factor1.T @ factor2, compute_uv=False, lapack_driver='gesvd').sum()
    return (
        np.square(mu1 - mu2).sum()
        + np.square(factor1).sum()
        + np.square(factor2).sum()
        - 2 * overlap
    )
