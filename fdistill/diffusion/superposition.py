"""SuperDiff (arXiv 2412.17762): several denoisers sampled as one, by the densities they assign to
the sample on its way."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from fdistill.diffusion import samplers
from fdistill.types import Denoise, Sigmas


def superpose(
    denoisers: Sequence[Denoise],
    x: jax.Array,
    sigmas: Sigmas,
    key: jax.Array,
    *,
    operator: str = 'or',
    temperature: float = 1.0,
    bias: npt.ArrayLike | None = None,
    lift: npt.ArrayLike = 0.0,
) -> tuple[jax.Array, jax.Array]:
    """Samples of several models at once by the reverse SDE dx = V s_mix + sqrt(V) z, with
    s_mix = sum_i kappa_i s_i.

    V = sigma_n^2 - sigma_{n+1}^2 is the step's variance. Each model's log-density along the path
    needs no divergence (Ito's formula, the paper's theorem 1):

        log q_i += <s_i, dx> - V |s_i|^2/2

    exact up to a common constant as the steps become small, with an error like N^(-1/2). The
    operators:

      'or': kappa = softmax_i(temperature log q_i + bias_i), a sample of one of the models. With
        temperature 1 and bias the log of weights, s_mix is the score of their mixture.
      'and': kappa such that all log q_i grow by the same amount, under the very noise of the step:
        a sample that is likely under all models.

    The estimate is Bayes' rule for the step taken: log N(x + dx; x + V s_i, V), without what is
    common to all models. The step to 0, where scores are singular, returns the mixed estimate of x0
    and leaves the log q_i as they are.

    Args:
      denoisers: M >= 2 functions denoise(x[B,...], sigma[B]) -> x0 over the same space; for 'and'
        in D dimensions, M <= D + 1. Where they agree to rounding, each operator takes the step of
        one of them.
      x: noise at sigmas[0], in a prior common to all.
      sigmas: as of any sampler, `samplers`.
      key: one jax.random.key, or one for each sample.
      operator: 'or', 'and'.
      temperature: > 0, finite; the paper's 1e6 is a hard choice. For 'or' only.
      bias: [M], for 'or' only; default zeros.
      lift: by how much more the log-density of each model but the last grows in a step than that of
        the last; [M - 1] or one number. For 'and' only.

    Returns:
      (x0[B,...], log_q[M, B]), relative to their common start.

    Raises:
      ValueError: on fewer than two denoisers or values out of range.
    """
    count = len(denoisers)
    if count < 2:
        raise ValueError(f'{count} denoisers: a superposition needs at least two')
    if operator not in ('or', 'and'):
        raise ValueError(f"operator={operator!r}: must be 'or' or 'and'")
    if not isinstance(temperature, jax.core.Tracer) and not 0 < temperature < math.inf:
        raise ValueError(f'temperature={temperature}: must be > 0 and finite')
    bias, lift = jnp.zeros(count) if bias is None else jnp.asarray(bias), jnp.asarray(lift)
    if bias.shape != (count,):
        raise ValueError(
            f'bias of shape {bias.shape}: need one number for each of the {count} denoisers'
        )
    if lift.shape not in ((), (count - 1,)):
        raise ValueError(
            f'lift of shape {lift.shape}: need one number, or one for each of the {count} '
            'denoisers but the last'
        )
    denoisers, x, sigmas = samplers.prepare(denoisers, x, sigmas)
    dimension = math.prod(x.shape[1:])
    if operator == 'and' and count > dimension + 1:
        raise ValueError(
            f"{count} denoisers in {dimension} dimensions: operator='and' takes at most "
            f'{dimension + 1}'
        )
    bias, lift = (
        jnp.broadcast_to(value.astype(x.dtype), (n,))[:, None]
        for value, n in ((bias, count), (lift, count - 1))
    )

    def dot(a, b):
        return jnp.sum(a * b, tuple(range(2, x.ndim + 1)))

    def combine(factors, vectors):
        # Not a matrix product, which an accelerator would round to a few digits.
        return jnp.sum(factors.reshape(factors.shape + (1,) * (x.ndim - 1)) * vectors, 0)

    def either(log_q, denoised, x, noise, sigma, variance, rise):
        return combine(jax.nn.softmax(temperature * log_q + bias, axis=0), denoised)

    def both(log_q, denoised, x, noise, sigma, variance, rise):
        # D_mix = D_M + sum_j a_j u_j in unit vectors u_i of D_i - D_M, since kappa_i = a_i/|D_i -
        # D_M| itself is unbounded: <u_i, u_j> a_j = |D_i - D_M|/2 - sigma^2/V <u_i, noise> +
        # sigma^4/V lift_i/|D_i - D_M|.
        last = denoised[-1:]
        difference = denoised[:-1] - last
        size = jnp.sqrt(dot(difference, difference))
        # The direction of a rounding error means nothing; to follow it would remove the noise along
        # it.
        apart = size > 16 * jnp.finfo(x.dtype).eps * (
            jnp.sqrt(dot(last, last)) + jnp.sqrt(dot(x[None], x[None]))
        )
        size = jnp.where(apart, size, 1)
        unit = jnp.where(apart, 1 / size, 0).reshape(size.shape + (1,) * (x.ndim - 1)) * difference
        wanted = jnp.where(
            apart, size / 2 + sigma**4 / variance * rise / size, 0
        ) - sigma**2 / variance * dot(unit, noise)
        flat = unit.reshape(count - 1, x.shape[0], dimension)
        gram = jnp.einsum('ibd,jbd->bij', flat, flat, precision='highest')
        a = jnp.einsum(
            'bij,jb->ib', jnp.linalg.pinv(gram, hermitian=True), wanted, precision='highest'
        )
        return last[0] + combine(a, unit)

    draw, choose = samplers.draws(key, x), {'or': either, 'and': both}[operator]

    def step(carry, now):
        x, log_q = carry
        n, sigma, sigma_next = now
        variance, ends = (sigma - sigma_next) * (sigma + sigma_next), sigma_next == 0
        noise = jnp.where(ends, 0, jnp.sqrt(variance)) * draw(n)
        denoised = jnp.stack([denoise(x, sigma) for denoise in denoisers])
        mixed = choose(log_q, denoised, x, noise, sigma, variance, jnp.where(ends, 0, lift))
        dx = variance / sigma**2 * (mixed - x) + noise
        scores = (denoised - x) / sigma**2
        grown = log_q + dot(scores, dx) - 0.5 * variance * dot(scores, scores)
        return (x + dx, jnp.where(ends, log_q, grown)), None

    levels = np.arange(len(sigmas) - 1), sigmas[:-1], sigmas[1:]
    return samplers.scan(step, (x, jnp.zeros((count, x.shape[0]), x.dtype)), levels, x.dtype)[0]
