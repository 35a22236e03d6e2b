"""Distances of two distributions, each known by samples or moments of features, as losses: Frechet,
maximum mean discrepancy, and the field of drifting.

Notation: x are features of generated samples, y those of real ones. Products that a distance is the
small difference of have full precision, whatever the accelerator's own is.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient

_product = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)


def moments(features: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(E x [d], E x x' [d, d]) over a batch [B, d]."""
    return jnp.mean(features, axis=0), _product(features.T, features) / len(features)


def rotated(mean: jax.Array, second: jax.Array, axes: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Moments (q' m, q' S q) of features along the axes q [d, d], one a column."""
    return _product(mean, axes), _product(_product(axes.T, second), axes)


def running(before: Any, batch: Any, share: jax.Array | float) -> tuple[Any, Any]:
    """(Moments as a loss sees them, the moments to keep): of many batches in value, of the last
    one in gradient.

        m <- (1 - share) m + share m_batch,    d m / d theta = d m_batch / d theta

    A batch's raw moments are unbiased, and so is their derivative. Where the kept ones are those of
    the generator, the expected gradient of a function of moments is therefore that of the whole
    population, however small the batch. (FD-loss's code has the gradient of the second term as it
    stands, which is `share` of this one; Adam sees no difference.)

    Args:
      before: kept moments, a tree of arrays without gradient.
      batch: the same of a batch.
      share: in (0, 1].
    """
    kept = jax.tree.map(lambda m, new: stop_gradient(m + share * (new - m)), before, batch)
    return jax.tree.map(lambda m, new: m + (new - stop_gradient(new)), kept, batch), kept


def frechet(mean: jax.Array, covariance: jax.Array, variances: jax.Array) -> jax.Array:
    """Squared Frechet distance of N(mean, covariance) and N(0, diag(variances)), scalar.

        |mean|^2 + tr C + sum v - 2 tr (V^(1/2) C V^(1/2))^(1/2),    V = diag(v)

    The last trace is the sum of the roots of the eigenvalues, whose derivative is infinite at 0,
    where the samples do not vary in some direction. What rounding makes of an eigenvalue is added
    to each before the root, so that there, too, the gradient is finite and widens them.

    Args:
      mean: [d], less that of the other distribution.
      covariance: C, symmetric positive semi-definite [d, d].
      variances: v >= 0, [d], of the other distribution along its principal axes, in which all is
        given.

    Reference: Dowson and Landau, The Frechet distance between multivariate normal distributions,
      1982, eq. 4; FD-loss, arXiv 2604.28190.
    """
    root = jnp.sqrt(variances)
    inner = root[:, None] * covariance * root
    values = jnp.linalg.eigvalsh((inner + inner.T) / 2)
    # Below 0 by rounding alone; with the gradient of what is above.
    values = values - stop_gradient(jnp.minimum(values, 0))
    kind = jnp.finfo(values.dtype)
    noise = jnp.maximum(kind.eps * stop_gradient(values[-1]), kind.tiny)
    overlap = jnp.sum(jnp.sqrt(values + noise))
    return jnp.sum(mean**2) + jnp.trace(covariance) + jnp.sum(variances) - 2 * overlap


def squared_distances(x: jax.Array, y: jax.Array) -> jax.Array:
    """|x_i - y_j|^2 for x [n, d], y [m, d]: [n, m], >= 0."""
    squares = jnp.sum(x**2, axis=1)[:, None] + jnp.sum(y**2, axis=1) - 2 * _product(x, y.T)
    return jnp.maximum(squares, 0)


def gaussian(x: jax.Array, y: jax.Array, width: jax.Array | float) -> jax.Array:
    """exp(-|x - y|^2 / (2 width^2)), [n, m]."""
    return jnp.exp(squared_distances(x, y) / (-2 * width**2))


def rational(x: jax.Array, y: jax.Array, width: jax.Array | float) -> jax.Array:
    """1 / (1 + |x - y|^2 / (2 width^2)), [n, m]: rational quadratic, which does not vanish far
    away."""
    return 1 / (1 + squared_distances(x, y) / (2 * width**2))


def cubic(x: jax.Array, y: jax.Array, width: jax.Array | float) -> jax.Array:
    """(x.y / (d width^2) + 1)^3, [n, m]; KID's is of width 1."""
    return (_product(x, y.T) / (x.shape[1] * width**2) + 1) ** 3


# name -> kernel(x[n, d], y[m, d], width) -> [n, m].
KERNELS = {'gaussian': gaussian, 'rational': rational, 'cubic': cubic}


def mmd(
    x: jax.Array,
    y: jax.Array,
    kernel: Callable[[jax.Array, jax.Array], jax.Array],
    alike: jax.Array | None = None,
) -> jax.Array:
    """Unbiased squared maximum mean discrepancy, scalar; it may be below 0.

        mean over i != j of k(x_i, x_j) + k(y_i, y_j) - 2 k(x_i, y_j)

    Args:
      x, y: [n, d], [n, d], n >= 2.
      kernel: (x[n, d], y[n, d]) -> [n, n].
      alike: bool [n, n], which samples have one label, that of x_i being that of y_i. The kernel is
        0 between others: its product with that of labels, so that the discrepancy is that of
        features and labels together. (This is why the last mean, too, leaves out i = j.)

    Reference: Gretton et al., A kernel two-sample test, JMLR 2012, eq. 4; generative moment
      matching networks, arXiv 1502.02761.
    """
    n = len(x)
    pairs = 1 - jnp.eye(n, dtype=x.dtype)
    pairs = pairs if alike is None else pairs * alike
    return jnp.sum((kernel(x, x) + kernel(y, y) - 2 * kernel(x, y)) * pairs) / (n * (n - 1))


# Logarithm of a kernel: (squared distances, temperature) -> [n, m].
LOG_KERNELS = {
    'laplace': lambda squares, temperature: -jnp.sqrt(squares) / temperature,
    'gaussian': lambda squares, temperature: squares / (-2 * temperature**2),
}


def mean_shift(positive: jax.Array, negative: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The kernel divided by its sum over the positives, and over the negatives, of each sample
    (drifting, arXiv 2602.04770, section 3.3)."""
    return tuple(jnp.exp(logits - _log_sum(logits, 1)) for logits in (positive, negative))


def two_sided(positive: jax.Array, negative: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The kernel divided by the root of its sum over positives and negatives of a sample times its
    sum over all samples (drifting, algorithm 2)."""
    logits = jnp.concatenate([positive, negative], axis=1)
    weights = jnp.exp(logits - (_log_sum(logits, 0) + _log_sum(logits, 1)) / 2)
    return tuple(jnp.split(weights, [positive.shape[1]], axis=1))


def _log_sum(logits, axis):
    """Of exp, kept as an axis; 0 where there is nothing to sum."""
    found = jax.nn.logsumexp(logits, axis=axis, keepdims=True)
    return jnp.where(jnp.isfinite(found), found, 0)


# name -> (logarithms of the kernel [n, p], [n, m]) -> the kernel normalised, [n, p], [n, m].
COUPLINGS = {'two_sided': two_sided, 'mean_shift': mean_shift}


def drift(
    positive: jax.Array,
    negative: jax.Array,
    y_positive: jax.Array,
    y_negative: jax.Array,
    coupling: Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]],
) -> jax.Array:
    """The field along which samples drift, towards positives and away from negatives, [n, d].

        V(x) = sum_{j, k} A+_j A-_k (y+_j - y-_k)

    It changes its sign when the two sets are exchanged, and is 0 where they are one. With
    `mean_shift` and a Gaussian kernel of temperature h it is h^2 times the difference of the scores
    of the two distributions, each smoothed by N(0, h^2 I).

    Args:
      positive, negative: logarithms of the kernel between samples and each set, [n, p], [n, m];
        -inf between a sample and what it does not see. A logarithm of weights may be added.
      y_positive, y_negative: features [p, d], [m, d].
      coupling: of `COUPLINGS`; makes A.

    Reference: drifting, arXiv 2602.04770, section 3.3 and algorithm 2.
    """
    attract, repel = coupling(positive, negative)
    pull, push = (jnp.sum(weights, axis=1, keepdims=True) for weights in (attract, repel))
    return _product(attract, y_positive) * push - _product(repel, y_negative) * pull
