"""Weights of linear multistep methods, of constant and of variable step, and of heavy-ball
momentum.

One step of every method here is x_{n+1} = keep_n x_n + gain_n g_n. Here g_n = sum_j weights[n, j]
y_{n-j} combines what the network said at the last levels, y being eps = (x - D)/sigma or D itself.
Rows sum to one, so that a method is a matrix [N, order], and a network that says the same at all
levels is integrated exactly. A method that has no history yet is of lower order: row n has the
order min(n + 1, order), and its other entries are zero.

Tables are computed in float64 where the grid is known, and in the grid's dtype where it is traced.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fdistill.types import Sigmas

# Exact for polynomials up to degree 31, and to 1e-12 for e^u over five units of u.
_POINTS, _MASSES = np.polynomial.legendre.leggauss(16)
_POINTS, _MASSES = (_POINTS + 1) / 2, _MASSES / 2

# Of Adams and Bashforth in backward differences, sum_j gamma_j nabla^j f (Hairer, Norsett and
# Wanner, III.1.5).
_GAMMA = (1, 1 / 2, 5 / 12, 3 / 8, 251 / 720)


class Table(NamedTuple):
    """x_{n+1} = keep[n] x_n + gain[n] sum_j weights[n, j] y_{n-j} + noise[n] z_n; y is 'eps' or
    'x0'.

    scale[n] multiplies y_n, and sum_j weights[n, j] scale_{n-j} divides the sum: it makes a method
    of constant step one in another coordinate than sigma. `noise` and `scale` may be None, which
    stands for zeros and for ones.
    """

    of: str
    keep: Any
    gain: Any
    weights: Any
    noise: Any = None
    scale: Any = None


def momentum_weights(order: int, beta: float = 1.0) -> np.ndarray:
    """c_j of GHVB, where x_{n+1} = x_n + delta_n sum_j c_j v_{n+1-j} and
    v_{n+1} = (1 - beta) v_n + beta f_n.

    beta = 1 is Adams-Bashforth. The rule is

        sum_j c_j E^-j = 1 + sum_{j=1}^{order-1} (gamma_j - gamma_{j-1} + gamma_{j-1}/beta) nabla^j

    with E the shift by one step, nabla = 1 - E^-1 and gamma = 1, 1/2, 5/12, 3/8, 251/720
    (Diffusion Sampling with Momentum, arXiv 2307.11118, theorem 2, where equation 19 has the sign
    of v_n's coefficient wrong: it is -(2 - beta)/(2 beta)).

    Returns:
      c[order], float64 numpy, of sum 1.
    """
    weights = np.zeros(order)
    for j in range(order):
        size = 1.0 if j == 0 else _GAMMA[j] - _GAMMA[j - 1] + _GAMMA[j - 1] / beta
        weights[: j + 1] += [size * (-1) ** i * math.comb(j, i) for i in range(j + 1)]
    return weights


def adams_bashforth(sigmas: Sigmas, order: int, beta: float = 1.0, coords: str = 'sigma') -> Table:
    """The weights that hold on a uniform grid, used on any grid.

    Where the grid is not uniform in `coords`, the order is two at best. coords='index' integrates
    dx/du = (dsigma/du) eps over the index u of the grid, in which every grid is uniform.
    """
    xp, steps = _numpy(sigmas), len(sigmas) - 1

    def weights(k):
        return xp.asarray(np.tile(momentum_weights(k, beta), (max(steps - k + 1, 0), 1)))

    scale = _index_speed(sigmas) if coords == 'index' else None
    return Table(
        'eps', xp.ones(steps), sigmas[1:] - sigmas[:-1], _rows(sigmas, weights, order), scale=scale
    )


def lms(sigmas: Sigmas, order: int) -> Table:
    """Adams-Bashforth of variable step: int L_j dsigma over the step, where L_j is the Lagrange
    basis in sigma through the last levels."""
    xp, steps = _numpy(sigmas), len(sigmas) - 1
    start, step = sigmas[:-1, None], (sigmas[1:] - sigmas[:-1])[:, None]
    weights = _lagrange(sigmas, start + step * _POINTS, xp.ones((steps, 1)) * _MASSES)
    return Table('eps', xp.ones(steps), step[:, 0], _rows(sigmas, weights, order))


def deis(sigmas: Sigmas, order: int) -> Table:
    """int L_j dsigma with L_j in ln sigma (DEIS, arXiv 2204.13902, tAB in log rho); the step to 0
    is an Euler step."""
    xp, steps = _numpy(sigmas), len(sigmas) - 1
    weights = _rows(sigmas, _in_log_sigma(sigmas, 1.0), order, lowered=1)
    return Table('eps', xp.ones(steps), sigmas[1:] - sigmas[:-1], weights)


def dpmpp(sigmas: Sigmas, order: int, eta: float = 0.0) -> Table:
    """DPM-Solver++ (arXiv 2211.01095): D interpolated in lambda = -ln sigma; with eta > 0 the SDE
    of its section 5.

    keep = (sigma_{n+1}/sigma_n)^(1+eta), gain = 1 - keep,
    noise = sigma_{n+1} sqrt(1 - (sigma_{n+1}/sigma_n)^(2 eta)).

    Order 2 is the paper's 2M: the weights are 1 + 1/(2r) and -1/(2r) with r = h_{n-1}/h_n. Order 3
    integrates the interpolating parabola exactly: the published codes of 3M halve its quadratic
    term, which leaves them of order 2. On a grid that ends in 0 the last steps have the orders
    ..., 2, 1.
    """
    xp = _numpy(sigmas)
    exact = _in_log_sigma(sigmas, -(1.0 + eta))
    u = _log(sigmas)

    def weights(k):
        if k != 2:
            return exact(k)
        half = 0.5 * (u[2:] - u[1:-1]) / (u[1:-1] - u[:-2])
        return xp.stack([1 + half, -half], 1)

    # 1 - ratio^(2 eta), from the difference of the levels so that no rounding makes it negative.
    levels = _positive(sigmas)
    fall = (levels[1:] - levels[:-1]) / levels[:-1]
    noise = sigmas[1:] * xp.sqrt(-xp.expm1(2 * eta * xp.log1p(fall))) if eta else None
    keep = (sigmas[1:] / sigmas[:-1]) ** (1 + eta)
    return Table('x0', keep, 1 - keep, _rows(sigmas, weights, order, lowered=order - 1), noise)


def unipc(sigmas: Sigmas, order: int, variant: str) -> tuple[Table, Sigmas]:
    """(predictor `Table`, corrector weights[N, order + 1]) of UniPC, which predicts D here
    (arXiv 2302.04867, theorem 3.1).

    Both add (B/expm1(-h)) sum_k rho_k (D_k - D_n)/r_k to D_n. Here h = ln(sigma_n/sigma_{n+1}), k
    runs over the earlier levels and, in the corrector, also n+1, r_k = (lambda_k - lambda_n)/h with
    lambda = -ln sigma, and rho solves

        sum_k r_k^(m-1) rho_k = -(h/B) int_0^1 e^(-h(1-s)) s^m ds    for m = 1, 2, ...

    B is -h ('bh1') or expm1(-h) ('bh2'). With a single k, rho = 1/2 as in the paper's appendix. On
    a grid that ends in 0 the last steps have the orders ..., 2, 1. Row n of the corrector belongs
    to the step from n to n+1 and weighs D_{n+1}, D_n, D_{n-1}, ...
    """
    xp, steps = _numpy(sigmas), len(sigmas) - 1
    u = _log(sigmas)

    def weights(k, corrects):
        n = np.arange(k - 1, steps)
        h = (u[n] - u[n + 1])[:, None]
        size = -h if variant == 'bh1' else xp.expm1(-h)
        r = [(u[n] - u[n - j])[:, None] / h for j in range(1, k)]
        r = xp.concatenate([xp.ones_like(h)] * corrects + r + [h[:, :0]], 1)
        if r.shape[1] > 1:
            power = np.arange(r.shape[1])[:, None]
            moments = (_MASSES * xp.exp(-h * (1 - _POINTS))) @ (_POINTS ** (power + 1)).T
            rho = xp.linalg.solve(r[:, None, :] ** power, (-h / size * moments)[..., None])[..., 0]
        else:
            rho = xp.full_like(r, 0.5)
        parts = size / xp.expm1(-h) * rho / r
        now = 1 - xp.sum(parts, 1, keepdims=True)
        return xp.concatenate([parts[:, :corrects], now, parts[:, corrects:]], 1)

    def rows(corrects):
        return _rows(sigmas, lambda k: weights(k, corrects), order, lowered=order - 1)

    keep = sigmas[1:] / sigmas[:-1]
    return Table('x0', keep, 1 - keep, rows(0)), rows(1)


def delayed(rows: np.ndarray | jax.Array, first: float) -> np.ndarray | jax.Array:
    """Rows of a table one step later, the first being constant."""
    xp = _numpy(rows)
    return xp.concatenate([xp.full_like(rows[:1], first), rows[:-1]])


def _numpy(sigmas):
    return jnp if isinstance(sigmas, jax.core.Tracer) else np


def _positive(sigmas):
    """sigmas with a positive number in place of a last 0; what follows from it is never used."""
    xp = _numpy(sigmas)
    return xp.concatenate([sigmas[:-1], xp.where(sigmas[-1:] > 0, sigmas[-1:], sigmas[-2:-1] / 2)])


def _log(sigmas):
    return _numpy(sigmas).log(_positive(sigmas))


def _rows(sigmas, weights, order, lowered=0):
    """The rows of a table: row n comes out of weights(k)[steps - k + 1, ...], which are those of
    order k for the steps k-1, ..., and is padded with zeros.

    The order of row n is what the history allows, k = min(n + 1, order). On a grid that ends in 0,
    the last `lowered` steps have at most the orders lowered, ..., 2, 1.
    """
    xp, steps = _numpy(sigmas), len(sigmas) - 1
    n = np.arange(steps)
    orders = np.minimum(n + 1, order)
    if lowered:
        # Whether a traced grid ends in 0 is known only when the program runs.
        orders = xp.where(
            sigmas[-1] > 0,
            orders,
            np.where(steps - n <= lowered, np.minimum(orders, steps - n), orders),
        )
    tables = [
        xp.pad(weights(k), ((k - 1, 0), (0, order - k))) for k in range(1, min(order, steps) + 1)
    ]
    return xp.stack(tables)[orders - 1, n]


def _lagrange(nodes, points, masses):
    """weights(k)[n, j] = sum_q masses[n, q] L_j(points[n, q]) / sum_q masses[n, q].

    L_j is the polynomial that is 1 at nodes[n-j] and 0 at the k - 1 others.
    """
    xp = _numpy(nodes)

    def weights(k):
        n = np.arange(k - 1, len(points))
        columns = []
        for j in range(k):
            basis = xp.ones_like(points[n])
            for i in set(range(k)) - {j}:
                basis = (
                    basis
                    * (points[n] - nodes[n - i, None])
                    / (nodes[n - j] - nodes[n - i])[:, None]
                )
            columns.append(xp.sum(masses[n] * basis, 1) / xp.sum(masses[n], 1))
        return xp.stack(columns, 1)

    return weights


def _in_log_sigma(sigmas, power):
    """`_lagrange` weights of int L_j(u) e^(power u) du over each step, u = ln sigma."""
    xp, u = _numpy(sigmas), _log(sigmas)
    moved = (u[1:] - u[:-1])[:, None] * _POINTS
    return _lagrange(u, u[:-1, None] + moved, _MASSES * xp.exp(power * moved))


def _index_speed(sigmas, window=6):
    """dsigma/du [N] at all levels but the last, where u is the index: sigma times the derivative of
    the interpolated ln sigma.

    The last level is left out, because it may be 0 and off the law of the others.
    """
    xp, steps = _numpy(sigmas), len(sigmas) - 1
    if steps < 2:
        return xp.ones(steps)
    derivative = np.zeros((steps, steps))
    for n in range(steps):
        start = min(max(n - window // 2, 0), max(steps - window, 0))
        near = np.arange(start, min(start + window, steps))
        for j in near:
            others = [i for i in near if i != j]
            below = np.prod([j - i for i in others], dtype=float)
            derivative[n, j] = (
                sum(np.prod([n - i for i in others if i != left], dtype=float) for left in others)
                / below
            )
    return sigmas[:-1] * (xp.asarray(derivative) @ xp.log(sigmas[:-1]))
