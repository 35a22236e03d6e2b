"""What every method with a critic does: the student's samples are noised, teacher and fake score
denoise them, and an objective of both is the student's loss, with a density ratio and a GAN term
where they are asked for.

`distribution` and `score` are objectives of it: the first moves samples along D_T - D_F as a
constant (family A), the second differentiates through the two networks (family B).
"""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient

from fdistill import divergences
from fdistill.diffusion.denoiser import Denoiser
from fdistill.diffusion.noise import NoiseLaw
from fdistill.methods import generator, losses
from fdistill.methods.critic import Gan, divergence, make_critic, perturb
from fdistill.methods.generator import Generator
from fdistill.methods.method import Method, Tracking, counted, make_cycle, start, updates
from fdistill.types import Continuous


class Ratio(NamedTuple):
    """How r = p/q is read from the discriminator: settings of every method with a divergence.

    logit_clip, ratio_low, ratio_high: clamp of the logit, clip of r. The narrower, the closer to
      reverse KL.
    normalise: both stages of f-distill, r by its mean per noise bin and h by its batch mean. Off,
      h is exact.
    bins, bins_decay: number of noise bins, even in the law's cdf, and decay of their running means
      (FastGen: 10, 0 at batch 2048, 0.5 on ImageNet).
    """

    logit_clip: Annotated[float, Continuous()] = 10.0
    ratio_low: Annotated[float, Continuous()] = 0.1
    ratio_high: Annotated[float, Continuous()] = 20.0
    normalise: bool = True
    bins: int = 10
    bins_decay: Annotated[float, Continuous()] = 0.9


MOST_BINS = 10_000


class Seen(NamedTuple):
    """What an objective of the student sees; x, x_t, D_T, D_F and the logits carry gradient.

    x, x_t: samples [B,...], without and with noise.
    sigma: their levels [B].
    d_teacher, d_fake: D_T(x_t), D_F(x_t), [B,...].
    logits: of the discriminator at x_t, [B, heads], or None.
    h: weight of the divergence [B], without gradient; None where it is constant.
    batch: {'x', 'condition'}.
    """

    x: jax.Array
    x_t: jax.Array
    sigma: jax.Array
    d_teacher: jax.Array
    d_fake: jax.Array
    logits: jax.Array | None
    h: jax.Array | None
    batch: Mapping[str, Any]


# The student's loss of each sample and what is worth watching: Seen -> ([B], metrics).
Objective = Callable[[Seen], tuple[jax.Array, dict[str, jax.Array]]]


def matched(
    generate: Generator,
    student: Denoiser,
    teacher: Denoiser,
    fake_score: Denoiser,
    discriminator: Any = None,
    *,
    objective: Objective,
    student_law: NoiseLaw,
    critic_law: NoiseLaw,
    weights: divergences.Weighting | None = None,
    ratio: Ratio = Ratio(),
    gan: Gan = Gan(),
    tracking: Tracking = Tracking(),
) -> Method:
    """min over G of E objective + gan_weight E softplus(-logit), beside a critic.

    Args:
      generate: `Generator` of the student.
      student, teacher, fake_score: `Denoiser`; the teacher's parameters are frozen['teacher'].
      discriminator: `networks.Head`, needed where h(r) is not constant or gan_weight > 0; else it
        is left out.
      objective: see `Objective`.
      student_law, critic_law: `NoiseLaw` of sigma for the student's loss and the critic's.
      weights: of a divergence, by which h is found; None where the objective has no use for it.
      ratio, gan, tracking: settings.

    Raises:
      ValueError: on values out of range, or a missing discriminator.
    """
    needs_ratio = weights is not None and not weights.constant
    low, high = ratio.ratio_low, ratio.ratio_high
    if (needs_ratio or gan.gan_weight) and discriminator is None:
        raise ValueError(
            f'gan_weight={gan.gan_weight}, h(r) of the divergence '
            f'{"varies" if needs_ratio else "is constant"}: this needs a discriminator; add one to '
            'the config'
        )
    if not 0 < low < 1 < high or not ratio.logit_clip > 0:
        raise ValueError(
            f'ratio_low={low}, ratio_high={high}, logit_clip={ratio.logit_clip}: '
            'need 0 < low < 1 < high, clip > 0'
        )
    if not 1 <= ratio.bins <= MOST_BINS or not 0 <= ratio.bins_decay < 1 or gan.gan_weight < 0:
        raise ValueError(
            f'bins={ratio.bins} must be in 1..{MOST_BINS}, '
            f'bins_decay={ratio.bins_decay} in [0, 1), gan_weight={gan.gan_weight} >= 0'
        )
    if not needs_ratio and not gan.gan_weight:
        discriminator = None
    roles = make_cycle(tracking.cycle, tracking.student_every)
    critic = make_critic(
        generate, teacher, fake_score, discriminator, law=critic_law, tracking=tracking, gan=gan
    )

    def init(key, batch, frozen):
        key_student, key_critic = jax.random.split(key)
        base = frozen.get('start', frozen['teacher'] if tracking.from_teacher else None)
        params = {
            'student': start(key_student, student, batch, base),
            'critic': critic.init(key_critic, batch, frozen),
        }
        kept = needs_ratio and ratio.normalise
        aux = {'ratio_bins': jnp.ones(ratio.bins)} if kept else {}
        return params, aux | (updates(weights) if weights else {})

    def weigh(logits, sigma, context):
        """h(r) per sample with the two normalisations, what is worth watching, and the new aux."""
        aux, position = context.aux, student_law.cdf(sigma)
        r = losses.ratio_from_logits(logits, logit_clip=ratio.logit_clip, low=low, high=high)
        metrics = {'ratio': jnp.mean(r), 'clipped': jnp.mean((r <= low) | (r >= high))}
        if ratio.normalise:
            r, bins = losses.normalise_ratio(r, position, aux['ratio_bins'], ratio.bins_decay)
            aux = aux | {'ratio_bins': bins}
        h = stop_gradient(weights.h(r, sigma, aux.get('updates', 0)))
        metrics |= {
            'h': jnp.mean(h),
            'h_min': jnp.min(h),
            'h_max': jnp.max(h),
            'log_ratio': losses.histogram(jnp.mean(logits, axis=-1), position),
            'log_h': losses.histogram(jnp.log(h), position),
        }
        return losses.normalise_weight(h) if ratio.normalise else h, metrics, counted(aux)

    def loss(params, context, batch, key):
        key_z, key_t, key_gan = jax.random.split(key, 3)
        condition = batch['condition']
        x = generate.draw(key_z, params['student'], batch)
        x_t, sigma = perturb(key_t, x, student_law)
        d_teacher, d_fake, logits = critic.evaluate(
            params['critic'], context, x_t, sigma, condition
        )
        h, metrics, aux = None, {}, context.aux
        if needs_ratio:
            h, metrics, aux = weigh(logits, sigma, context)
        values, more = objective(Seen(x, x_t, sigma, d_teacher, d_fake, logits, h, batch))
        total, metrics = jnp.mean(values), metrics | more | generator.spread(x, batch)
        metrics |= divergence(x, d_teacher, d_fake, sigma, student_law)
        if gan.gan_weight:
            if gan.gan_fresh_noise:
                x_t, sigma = perturb(key_gan, x, critic_law)
                logits = critic.logits(params['critic'], context, x_t, sigma, condition)
            adversarial = jnp.mean(losses.gan_generator(logits))
            total, metrics = total + gan.gan_weight * adversarial, metrics | {'gan': adversarial}
        return total, (metrics, aux)

    return Method(init, {'critic': critic.loss, 'student': loss}, roles, generate)
