"""Distribution matching where only the student is learned: its fake score and density ratio are
closed forms."""

from collections.abc import Callable
from typing import Annotated, Any

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient

from fdistill import divergences
from fdistill.diffusion.denoiser import Denoiser
from fdistill.diffusion.noise import NoiseLaw
from fdistill.diffusion.oracle import GaussianMixture
from fdistill.methods import generator, losses
from fdistill.methods.critic import perturb
from fdistill.methods.generator import Generator
from fdistill.methods.matching import Preference, preferred
from fdistill.methods.method import Method, counted, start, updates
from fdistill.types import Continuous


def law_of(generate: Generator, params: Any, like: jax.Array) -> GaussianMixture:
    """The distribution of an affine and round student's samples, found from its outputs for 0 and
    for a unit vector; without gradient.

    Args:
      generate: `Generator` of a student with the network `gaussian`.
      params: its parameters.
      like: [B, D], of whose width and type the samples are.
    """
    unit = jnp.eye(1, like.shape[1], dtype=like.dtype)
    ends = generate.sample(params, jnp.concatenate([0 * unit, unit]), {})
    mean, std = ends[0], jnp.abs(ends[1, 0] - ends[0, 0])
    return GaussianMixture(
        jnp.ones(1, like.dtype), stop_gradient(mean)[None], stop_gradient(std)[None]
    )


def critic_lag(
    denoise: Callable[[jax.Array, jax.Array], jax.Array],
    own: GaussianMixture,
    x_t: jax.Array,
    sigma: jax.Array,
    weight: jax.Array,
) -> jax.Array:
    """How far a fake score is behind its student, E weight mean|D_F(x_t) - D_q(x_t)|^2 with the
    denoiser D_q of the student's own distribution q.

    Of a network's q nothing is known in closed form, so that this is for the student `gaussian`
    and for oracles; its minimum 0 is reached by the exact critic alone.

    Args:
      denoise: (x_t[B, D], sigma[B]) -> D_F, the fake score.
      own: q, of `law_of`.
      x_t: [B, D], noised samples of q.
      sigma: [B], their noise levels.
      weight: [B].
    """
    return jnp.mean(losses.denoising(denoise(x_t, sigma), own.denoise(x_t, sigma), weight))


def exact(
    student: Denoiser,
    mixture: GaussianMixture,
    *,
    student_law: NoiseLaw,
    divergence: str = 'reverse_kl',
    sigma_init: Annotated[float, Continuous()] = 1.0,
    ratio_low: Annotated[float, Continuous()] = 1e-4,
    ratio_high: Annotated[float, Continuous()] = 1e4,
    preference: Preference = Preference(),
) -> Method:
    """min E_sigma D_f(p_sigma || q_sigma) - reward_weight E r(x) over round Gaussians q =
    N(m, s^2 I) (f-distill, arXiv 2502.15681, theorem 1).

    The student is x = m + s z (`networks.gaussian`), so that its score at any sigma and r =
    p_sigma/q_sigma are known, and the divergences can be compared without an error of critics: what
    differs is what the divergence prefers. Weight h(r)/sigma^2.

    Args:
      student: `Denoiser` used as a one-step generator; affine and round.
      mixture: the teacher, `oracle.GaussianMixture`.
      student_law: `NoiseLaw` of sigma.
      divergence: see `divergences.weighting`.
      sigma_init: level of the generator's input noise, > 0.
      ratio_low, ratio_high: clip of r, which bounds the variance of divergences with unbounded h; 0
        < low < 1 < high.
      preference: settings.

    Raises:
      ValueError: on values out of range, or a missing reward.
    """
    if not 0 < ratio_low < 1 < ratio_high:
        raise ValueError(f'ratio_low={ratio_low}, ratio_high={ratio_high}: need 0 < low < 1 < high')
    weighting, prefer = divergences.weighting(divergence), preferred(preference)
    generate = generator.student(student, generator.Steps(sigma_init))

    def init(key, batch, frozen):
        return {'student': start(key, student, batch, frozen.get('start'))}, updates(weighting)

    def loss(params, context, batch, key):
        key_z, key_t = jax.random.split(key)
        x = generate.draw(key_z, params['student'], batch)
        x_t, sigma = perturb(key_t, x, student_law)
        own = law_of(generate, params['student'], x)
        log_r = mixture.log_prob(x_t, sigma) - own.log_prob(x_t, sigma)
        r = losses.ratio_from_logits(
            log_r[:, None], logit_clip=80.0, low=ratio_low, high=ratio_high
        )
        h = stop_gradient(weighting.h(r, sigma, context.aux.get('updates', 0)))
        gap = losses.score_gap(
            x, mixture.denoise(x_t, sigma), own.denoise(x_t, sigma), h / sigma**2
        )
        position = student_law.cdf(sigma)
        metrics = {
            'score_gap': jnp.mean(gap),
            'ratio': jnp.mean(r),
            'clipped': jnp.mean((r <= ratio_low) | (r >= ratio_high)),
            'h': jnp.mean(h),
            'h_min': jnp.min(h),
            'h_max': jnp.max(h),
            'log_ratio': losses.histogram(log_r, position),
            'log_h': losses.histogram(jnp.log(h), position),
            'std': own.stds[0],
        } | generator.spread(x, batch)
        wish, more = prefer(context, x, batch['condition'])
        return jnp.mean(gap) + wish, (metrics | more, counted(context.aux))

    return Method(init, {'student': loss}, lambda step: ('student',), generate)


# See `distribution.TINY`.
TINY = {'exact': {'network': {'name': 'gaussian', 'scale': 0.5}}}
