"""SuperDiff (arXiv 2412.17762): several denoisers sampled as one, by the densities they assign to the sample on its way."""

import jax
import jax.numpy as jnp
import numpy as np

from fdistill.diffusion import samplers


def superpose(denoisers, x, sigmas, key, *, operator='or', temperature=1.0, bias=None, lift=0.0):
    """Samples of several models at once by the reverse SDE dx = V s_mix + sqrt(V) z, with s_mix = sum_i kappa_i s_i.

    V = sigma_n^2 - sigma_{n+1}^2 is the step's variance.
    Each model's log-density along the path needs no divergence (Ito's formula, the paper's theorem 1):
    log q_i += <s_i, dx> - V |s_i|^2/2, exact up to a common constant as the steps become small, with an error like N^(-1/2).
      'or': kappa = softmax_i(temperature log q_i + bias_i), a sample of one of them; with temperature 1 and bias the log of
        weights, s_mix is the score of their mixture.
      'and': kappa such that all log q_i grow by the same, with the very noise of the step: a sample likely under all.
    The step to 0, where scores are singular, returns the mixed estimate of x0 and leaves the log q_i as they are.

    Args:
      denoisers: M >= 2 functions denoise(x[B,...], sigma[B]) -> x0 over the same space.
      x: noise at sigmas[0], in a prior common to all.
      sigmas: as of any sampler, `samplers`.
      key: one jax.random.key, or one a sample.
      operator: 'or', 'and'.
      temperature: > 0; the paper's 1e6 is a hard choice. Of 'or' only.
      bias: [M], of 'or' only; default zeros.
      lift: by how much the log-density of each model but the last grows more than that of the last in a step; [M - 1] or one
        number. Of 'and' only.

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
    if not temperature > 0:
        raise ValueError(f'temperature={temperature}: must be > 0')
    bias = jnp.zeros(count) if bias is None else jnp.asarray(bias)
    if bias.shape != (count,):
        raise ValueError(f'bias of shape {bias.shape}: need one number for each of the {count} denoisers')
    lift = jnp.broadcast_to(jnp.asarray(lift), (count - 1,))

    def dot(scores, other):
        return jnp.sum(scores * other, tuple(range(2, x.ndim + 1)))

    def either(log_q, scores, variance, noise):
        return jax.nn.softmax(temperature * log_q + bias[:, None].astype(x.dtype), axis=0)

    def both(log_q, scores, variance, noise):
        last = scores[-1]
        delta = scores[:-1] - last
        # Of kappa_1..M-1: V <delta_i, delta_j> kappa_j = V (|s_i|^2 - |s_M|^2)/2 - <delta_i, V s_M + noise> + lift_i.
        matrix = variance * jnp.einsum('ibd,jbd->bij', *(delta.reshape(count - 1, x.shape[0], -1),) * 2)
        norms = 0.5 * variance * (dot(scores[:-1], scores[:-1]) - dot(last[None], last[None]))
        right = norms - dot(delta, variance * last + noise) + lift[:, None]
        # Where models agree there is nothing to choose: a pseudo-inverse takes the last.
        kappa = jnp.einsum('bij,jb->ib', jnp.linalg.pinv(matrix, hermitian=True), right)
        return jnp.concatenate([kappa, 1 - jnp.sum(kappa, 0, keepdims=True)])

    choose = {'or': either, 'and': both}[operator]

    denoisers, x, sigmas = samplers.prepare(denoisers, x, sigmas)
    draw, choose = samplers.draws(key, x), {'or': either, 'and': both}[operator]

    def step(carry, now):
        x, log_q = carry
        n, sigma, sigma_next = now
        variance = sigma**2 - sigma_next**2
        noise = jnp.where(sigma_next > 0, jnp.sqrt(variance), 0) * draw(n)
        scores = jnp.stack([(denoise(x, sigma) - x) / sigma**2 for denoise in denoisers])
        kappa = choose(log_q, scores, variance, noise)
        dx = variance * jnp.einsum('mb,mb...->b...', kappa, scores) + noise
        grown = log_q + dot(scores, dx) - 0.5 * variance * dot(scores, scores)
        return (x + dx, jnp.where(sigma_next > 0, grown, log_q)), None

    levels = np.arange(len(sigmas) - 1), sigmas[:-1], sigmas[1:]
    return samplers.scan(step, (x, jnp.zeros((count, x.shape[0]), x.dtype)), levels, x.dtype)[0]
