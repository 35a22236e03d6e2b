"""f-divergences as their generators; the weight h that distillation needs is derived from f.

Convention (f-distill, arXiv 2502.15681): r = p_teacher / q_student and D_f(p||q) = E_q[f(r)], with
f convex and f(1) = 0. For any such f the gradient of D_f with respect to the student is (Theorem 1
there)

    grad D_f(p_t || q_t) = -E[ h(r(x_t)) (s_p - s_q)(x_t)^T dx_t/dtheta ],    h(r) = r^2 f''(r),

so f is all that has to be given. f is defined up to c (r - 1), which changes neither D_f nor h: the
rows below use that freedom to keep the second derivative free of cancellation in float32.
"KL(a : b)" in the comments is KL(a||b), and m = (p + q)/2.
"""

import difflib
import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# f(r), as h(r) elementwise in r.
Generator = Callable[[jax.Array], jax.Array]
# What `get` takes.
Named = str | Generator


def alpha(a: float) -> Generator:
    """Cressie-Read family, f(r) = (r^a - a r - (1 - a)) / (a (a - 1)), h(r) = r^a.

    Args:
      a: any real number. 0 gives reverse KL and 1 forward KL (the limits), 1/2 four times squared
        Hellinger, 2 half of Pearson, -1 half of Neyman. Below 1 seeks modes, above 1 covers them.

    Raises:
      ValueError: if a is not finite.
    """
    if not np.isfinite(a):
        raise ValueError(f'alpha({a}): a must be a finite number, e.g. alpha(0.5)')
    if a == 0:
        return DIVERGENCES['reverse_kl']
    if a == 1:
        return DIVERGENCES['forward_kl']
    return lambda r: (r**a - a * r - (1 - a)) / (a * (a - 1))


def skew_js(pi: float) -> Generator:
    """Skew Jensen-Shannon, pi KL(p : m) + (1 - pi) KL(q : m) with m = pi p + (1 - pi) q.

        f(r) = pi r log r - (pi r + 1 - pi) log(pi r + 1 - pi)
        h(r) = pi (1 - pi) r / (pi r + 1 - pi)

    Args:
      pi: in (0, 1). Small pi behaves like forward KL (after division by pi), pi near 1 like reverse
        KL; 1/2 is JS / 2.

    Raises:
      ValueError: if pi is outside (0, 1).
    """
    if not 0 < pi < 1:
        raise ValueError(
            f'skew_js({pi}): pi must lie strictly between 0 and 1; use forward_kl or reverse_kl '
            'for the ends'
        )
    # The slope is given because 1/r - pi/(pi r + 1 - pi), its derivative as written out, cancels
    # for large r.
    return _with_derivative(
        lambda r: pi * r * jnp.log(r) - (pi * r + 1 - pi) * jnp.log1p(pi * (r - 1)),
        lambda r: -pi * jnp.log(pi + (1 - pi) / r),
    )


def smooth_tv(e: float) -> Generator:
    """Smoothed total variation.

        f(r) = (sqrt((r-1)^2 + e^2) - e) / 2,    h(r) = r^2 (e^2/2) / ((r-1)^2 + e^2)^(3/2)

    Args:
      e: smoothing, > 0; total variation as e -> 0, but h is a spike of width e around r = 1.

    Raises:
      ValueError: if e is not positive.
    """
    if not e > 0:
        raise ValueError(f'smooth_tv({e}): e must be positive, e.g. smooth_tv(0.5)')

    def root(r):
        return jnp.sqrt((r - 1) ** 2 + e**2)

    # Differentiating the square root twice subtracts two nearly equal numbers once |r - 1| >> e.
    slope = _with_derivative(lambda r: 0.5 * (r - 1) / root(r), lambda r: 0.5 * e**2 / root(r) ** 3)
    return _with_derivative(lambda r: 0.5 * (root(r) - e), slope)


def _with_derivative(function, derivative):
    function = jax.custom_jvp(function)
    function.defjvps(lambda tangent, _, r: derivative(r) * tangent)
    return function


DIVERGENCES = {
    'reverse_kl': lambda r: -jnp.log(r),  # KL(q : p), h = 1
    # 2 KL(m : p), h = 1/(r+1)
    'softened_reverse_kl': lambda r: (r + 1) * (jnp.log1p(1 / r) - jnp.log(2.0)),
    # Twice the usual JS, h = r/(r+1)
    'js': lambda r: r * jnp.log(r) - (r + 1) * jnp.log((r + 1) / 2),
    'squared_hellinger': lambda r: 1 - jnp.sqrt(r),  # 1 - Bhattacharyya coefficient, h = sqrt(r)/4
    'forward_kl': lambda r: r * jnp.log(r),  # KL(p : q), h = r
    'jeffreys': lambda r: (r - 1) * jnp.log(r),  # KL(p : q) + KL(q : p), h = r + 1
    'neyman': lambda r: r - 2 + 1 / r,  # (1-r)^2/r, int (p-q)^2/p, h = 2/r
    'pearson': lambda r: (r - 1) ** 2,  # int (p-q)^2/q, h = 2 r^2
    'softened_forward_kl': lambda r: (r + 1) * jnp.log((r + 1) / 2),  # 2 KL(m : q), h = r^2/(r+1)
    'le_cam': lambda r: r - 3 + 4 / (r + 1),  # (r-1)^2/(r+1), int (p-q)^2/(p+q), h = 8 r^2/(r+1)^3
    'smooth_tv': smooth_tv(0.5),
}

FAMILIES = {'alpha': alpha, 'skew_js': skew_js, 'smooth_tv': smooth_tv}


class Weighting(NamedTuple):
    """What a method multiplies the score difference with: h(r[B], sigma[B], step) -> [B].

    h: the weight.
    constant: h is the same for all r, sigma and steps, so that no density ratio is needed.
    stepwise: h depends on step, the number of the student's updates so far.
    shown: {label: (sigma, step)} where h as a function of r is worth showing.
    """

    h: Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
    constant: bool
    stepwise: bool
    shown: Mapping[str, tuple[float, float]]


def mix(first: Named, second: Named, share: float) -> Generator:
    """The generator (1 - share) f/f''(1) + share g/g''(1): both on the same scale near r = 1, and a
    divergence again.

    Args:
      first, second: divergences, as of `get`.
      share: in [0, 1].
    """
    f, g = get(first), get(second)
    if not 0 <= share <= 1:
        raise ValueError(f'mix({first}, {second}, {share}): the share must lie in [0, 1]')
    a, b = (1 - share) / _at_one(f), share / _at_one(g)
    return lambda r: a * f(r) + b * g(r)


def anneal(first: Named, second: Named, steps: float) -> Weighting:
    """h goes linearly from that of the first divergence to that of the second, within `steps`
    updates of the student; each h is divided by its h(1).

    Args:
      first, second: divergences, as of `get`.
      steps: of the student, >= 1; 'anneal(reverse_kl, forward_kl, 1000)' seeks first and covers
        later.
    """
    h, g = _normalised(first), _normalised(second)
    if not steps >= 1:
        raise ValueError(f'anneal({first}, {second}, {steps}): need at least one step')

    def weigh(r, sigma, step):
        share = jnp.clip(step / steps, 0, 1)
        return (1 - share) * h(r) + share * g(r)

    shown = {
        'first update': (1.0, 0),
        'half way': (1.0, steps / 2),
        f'from update {steps:g} on': (1.0, steps),
    }
    return Weighting(weigh, False, True, shown)


def by_sigma(low: Named, high: Named, sigma: float) -> Weighting:
    """h of one divergence at levels below sigma, and of another from there on; each h is divided by
    its h(1).

    Args:
      low, high: divergences, as of `get`.
      sigma: > 0; 'by_sigma(reverse_kl, forward_kl, 1.0)' covers the modes at high noise and
        sharpens them at low noise.
    """
    below, above, at = _normalised(low), _normalised(high), sigma
    if not at > 0:
        raise ValueError(f'by_sigma({low}, {high}, {sigma}): sigma must be > 0')
    shown = {f'sigma below {at:g}': (at / 2, 0), f'sigma from {at:g} on': (at, 0)}
    return Weighting(
        lambda r, sigma, step: jnp.where(sigma < at, below(r), above(r)), False, False, shown
    )


def _normalised(name):
    f = get(name)
    h, scale = weight(f), _at_one(f)
    return lambda r: h(r) / scale


def _at_one(f):
    return float(_float64(weight(f), 1.0))


# Of two divergences and a number: 'mix(js, reverse_kl, 0.5)' is a divergence, the others are
# weightings only.
COMBINATIONS = {'mix': mix, 'anneal': anneal, 'by_sigma': by_sigma}


def weighting(spec: Named) -> Weighting:
    """The `Weighting` of a divergence, as of `get`, or of two of them by `anneal` and `by_sigma`.

    Raises:
      ValueError: as in `get`, or on a bad number.
    """
    combined = _combined(spec)
    if isinstance(combined, Weighting):
        return combined
    f = get(spec)
    h = weight(f)
    return Weighting(lambda r, sigma, step: h(r), is_constant(f), False, {'': (1.0, 0)})


def _combined(spec):
    """What `COMBINATIONS` make of 'name(first, second, number)', or None."""
    match = re.fullmatch(r'\s*(\w+)\((.*)\)\s*', spec) if isinstance(spec, str) else None
    if not match or match[1] not in COMBINATIONS:
        return None
    # Commas outside of parentheses, for a member of a family is an argument like any other.
    arguments = [part.strip() for part in re.split(r',(?![^()]*\))', match[2])]
    try:
        first, second, number = arguments
        number = float(number)
    except ValueError:
        raise ValueError(
            f'divergence {spec!r}: give two divergences and a number, as {match[1]}(reverse_kl, '
            'js, 1)'
        ) from None
    return COMBINATIONS[match[1]](first, second, number)


# Cells of histograms of log r and log h, in nats; what lies outside belongs to the first and the
# last. 0 is the middle of one.
EDGES = np.linspace(-10.25, 10.25, 42)

# Where a generator is checked for f(1) = 0 and convexity.
PROBE = np.geomspace(1e-3, 1e3, 121)


def get(name_or_callable: Named) -> Generator:
    """The generator f of a divergence.

    Args:
      name_or_callable: a key of `DIVERGENCES`, a member of a family such as 'alpha(0.5)', or a
        generator `f(r)` written with jax.numpy.

    Returns:
      f, checked in float64: f(1) = 0 and f'' >= 0 on r in [1e-3, 1e3].

    Raises:
      ValueError: unknown name (with the nearest one), bad parameter of a family, f(1) != 0, f not
        convex or affine.
    """
    if callable(name_or_callable):
        return _checked(name_or_callable, getattr(name_or_callable, '__name__', 'f'))
    name = str(name_or_callable).strip()
    if name in DIVERGENCES:
        return DIVERGENCES[name]
    combined = _combined(name)
    if isinstance(combined, Weighting):
        raise ValueError(
            f'divergence {name!r}: is a schedule of weights and has no generator; a method takes '
            'it, this does not'
        )
    if combined is not None:
        return _checked(combined, name)
    match = re.fullmatch(r'(\w+)\(([^()]*)\)', name)
    if match and match[1] in FAMILIES:
        try:
            parameter = float(match[2])
        except ValueError:
            raise ValueError(
                f'divergence {name!r}: {match[2]!r} is not a number, e.g. {match[1]}(0.5)'
            ) from None
        return _checked(FAMILIES[match[1]](parameter), name)
    known = [
        *DIVERGENCES,
        *(f'{family}(0.5)' for family in FAMILIES),
        *(f'{name}(js, reverse_kl, 1)' for name in COMBINATIONS),
    ]
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    hint = f'did you mean {near[0]!r}? ' if near else ''
    raise ValueError(
        f'unknown divergence {name!r}; {hint}Known: {", ".join(known)}, or a function f(r)'
    )


def weight(f: Generator) -> Generator:
    """h(r) = r^2 f''(r), the weight of the score difference in the gradient of D_f (f-distill,
    Theorem 1).

    Args:
      f: generator, elementwise in r.

    Returns:
      h, elementwise for r > 0 of any shape. In float32 the registered divergences are right to 1e-4
      relative on r in [0.1, 20] and to 1e-3 on [1e-3, 1e3].
    """

    def derivative(g):
        return lambda r: jax.jvp(g, (r,), (jnp.ones_like(r),))[1]

    curvature = derivative(derivative(f))

    def h(r):
        r = jnp.asarray(r)
        return r**2 * curvature(r)

    return h


def reward(f: Generator) -> Generator:
    """rho(r) = r f'(r) - f(r), of which h is the derivative in log r.

    grad D_f(p || q) = -E_q[rho(r) grad log q], so that rho is what samples of q are rewarded with
    where log q is known; and -beta rho is the implicit reward of f-DPO (arXiv 2309.16240). Only
    its differences matter.

    Args:
      f: generator, elementwise in r.

    Returns:
      rho, elementwise for r > 0 of any shape.
    """

    def rho(r):
        r = jnp.asarray(r)
        value, slope = jax.jvp(f, (r,), (jnp.ones_like(r),))
        return r * slope - value

    return rho


def is_constant(f: Generator) -> bool:
    """Whether h(r) does not depend on r (reverse KL and its multiples): then no density ratio is
    needed."""
    h = _float64(weight(f), PROBE)
    return bool(np.all(np.abs(h - h[0]) <= 1e-9 * np.abs(h[0])))


def _float64(function, r):
    with jax.enable_x64(True), jax.ensure_compile_time_eval():
        return np.asarray(function(jnp.asarray(r, jnp.float64)))


def _checked(f, name):
    try:
        at_one, values, h = float(_float64(f, 1.0)), _float64(f, PROBE), _float64(weight(f), PROBE)
    except TypeError as error:
        raise ValueError(
            f'divergence {name}: f must be a function of one jax array ({error})'
        ) from error
    # Written-out constants such as log(2) may be float32 inside a user's f, hence not 1e-12.
    if not abs(at_one) <= 1e-6:
        raise ValueError(
            f'divergence {name}: f(1) = {at_one:g} but must be 0; subtract the constant'
        )
    if not np.all(np.isfinite(h)):
        raise ValueError(
            f"divergence {name}: f'' is not finite at r = {PROBE[~np.isfinite(h)][0]:g}; f must be "
            'smooth on r > 0'
        )
    # Only rounding, which is of the size of f, may make h negative; against the largest h, (r-1)^3
    # would look convex.
    negative = h < -1e-9 * (1 + np.abs(values))
    if np.any(negative):
        raise ValueError(
            f"divergence {name}: f is not convex, f'' < 0 at r = {PROBE[negative][0]:g}; try its "
            'negative'
        )
    if np.max(np.abs(h)) < 1e-12:
        raise ValueError(
            f"divergence {name}: f'' = 0 everywhere, the divergence has no gradient; use a "
            'strictly convex f'
        )
    return f
