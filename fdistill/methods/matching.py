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
from fdistill.methods.critic import Gan, Real, divergence, make_critic, perturb
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


class Preference(NamedTuple):
    """A reward besides the teacher: settings of distribution matching, SIM, SiD, Uni-Instruct and
    `exact`.

    The teacher's divergence is the only leash (DI++, DI*). A reward of |dr/dx| <= 1 has no optimum
    under a distance of bounded slope, as SIM's pseudo-Huber, where reward_weight is larger than
    the sum of the slopes: the student runs away. Classifier-free guidance is a reward too, log
    p(condition | x), and is a setting of the teacher.

    reward: a `rewards.Reward`, whose parameters are frozen['reward'].
    reward_weight: lambda, >= 0; at 0 the reward is only measured. The score gap is a mean over the
      n elements of a sample, so that its price is n lambda; SIM's is a sum.
    reward_normalised: take the direction of the gradient alone, see `losses.rewarded`.
    """

    reward: Any = None
    reward_weight: Annotated[float, Continuous()] = 0.0
    reward_normalised: bool = False


def preferred(preference: Preference) -> Callable[..., tuple[jax.Array | float, dict[str, Any]]]:
    """(context, x[B,...], condition) -> (-reward_weight E r, {'reward': E r}), for a student's
    loss; (0, {}) where there is no reward.

    Raises:
      ValueError: on a weight out of range, or one without a reward.
    """
    reward, weight, normalised = preference
    if not weight >= 0:
        raise ValueError(f'reward_weight={weight}: must be >= 0')
    if reward is None:
        if weight or normalised:
            raise ValueError(
                f'reward_weight={weight}, reward_normalised={normalised}: this needs a reward; add '
                'one to the config'
            )
        return lambda context, x, condition: (0.0, {})

    def of(context, x, condition):
        params = context.frozen.get('reward', {})
        loss, r = losses.rewarded(lambda x: reward.apply(params, x, condition), x, normalised)
        return weight * jnp.mean(loss), {'reward': jnp.mean(r)}

    return of


class Seen(NamedTuple):
    """What an objective of the student sees; x, x_t, D_T, D_F and the logits carry gradient.

    x, x_t: samples [B,...], without and with noise.
    sigma: their levels [B].
    d_teacher, d_fake: D_T(x_t), D_F(x_t), [B,...].
    logits: of the discriminator at x_t, [B, heads], or None.
    batch: {'x', 'condition'}.
    ratio: r = p/q, [B], without gradient; None, as the next two, where h is constant.
    clipped: whether r lies at an end of its range, bool [B].
    h: weight of the divergence, elementwise in r.
    """

    x: jax.Array
    x_t: jax.Array
    sigma: jax.Array
    d_teacher: jax.Array
    d_fake: jax.Array
    logits: jax.Array | None
    batch: Mapping[str, Any]
    ratio: jax.Array | None = None
    clipped: jax.Array | None = None
    h: Callable[[jax.Array], jax.Array] | None = None


def weight_of(weighting: str) -> Callable[[Seen], jax.Array]:
    """A function of `Seen`: the weight [B] of `losses.WEIGHTS`, without gradient.

    Raises:
      ValueError: on an unknown weighting.
    """
    if weighting not in losses.WEIGHTS:
        raise ValueError(f'weighting={weighting!r}: known are {", ".join(losses.WEIGHTS)}')

    def of(seen):
        weight = losses.WEIGHTS[weighting](seen.x, seen.d_teacher, seen.sigma)
        return stop_gradient(weight)

    return of


class Objective(NamedTuple):
    """What a method makes of its networks.

    loss: the student's of each sample and what is worth watching, `Seen` -> ([B], metrics).
    weights: of a divergence, by which r and h are found; None where the loss has no use for them.
    real: what the fake score learns of real data; None for nothing.
    """

    loss: Callable[[Seen], tuple[jax.Array, dict[str, jax.Array]]]
    weights: divergences.Weighting | None = None
    real: Real | None = None


def matched(
    generate: Generator,
    student: Denoiser,
    teacher: Denoiser | None,
    fake_score: Denoiser | None,
    *,
    objective: Objective,
    student_law: NoiseLaw,
    critic_law: NoiseLaw,
    ratio: Ratio = Ratio(),
    gan: Gan = Gan(),
    tracking: Tracking = Tracking(),
    preference: Preference = Preference(),
) -> Method:
    """min over G of E objective + gan_weight E softplus(-logit) - reward_weight E r(x), beside a
    critic.

    Args:
      generate: `Generator` of the student.
      student, teacher, fake_score: `Denoiser`; the teacher's parameters are frozen['teacher']. The
        last two may be None, see `make_critic`.
      objective: what the student's loss is.
      student_law, critic_law: `NoiseLaw` of sigma for the student's loss and the critic's.
      gan: settings; the discriminator is needed where h(r) is not constant, gan_weight > 0 or there
        is no fake score, and is else left out.
      ratio, tracking, preference: settings.

    Raises:
      ValueError: on values out of range, a missing discriminator or a missing reward.
    """
    weights, prefer = objective.weights, preferred(preference)
    needs_ratio = weights is not None and not weights.constant
    low, high = ratio.ratio_low, ratio.ratio_high
    if (needs_ratio or gan.gan_weight) and gan.discriminator is None:
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
    if gan.gan_fresh_noise and gan.gan_weighting != 'unit':
        raise ValueError(
            f'gan_weighting={gan.gan_weighting!r}: is of the noise of the score term; set '
            'gan_fresh_noise to False'
        )
    if gan.gan_weighting not in losses.WEIGHTS:
        known = ', '.join(losses.WEIGHTS)
        raise ValueError(f'gan_weighting={gan.gan_weighting!r}: known are {known}')
    if fake_score is not None and not needs_ratio and not gan.gan_weight:
        gan = gan._replace(discriminator=None)
    roles = make_cycle(tracking.cycle, tracking.student_every, tracking.burn_in)
    critic = make_critic(
        generate,
        teacher,
        fake_score,
        law=critic_law,
        tracking=tracking,
        gan=gan,
        real=objective.real,
    )
    # Of any other fake score the error says nothing of the student.
    plain = tracking.critic_guidance == 1 and tracking.fake_guidance == 1
    follows = fake_score is not None and objective.real is None and plain

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
        """({'ratio', 'clipped', 'h'} of `Seen`, with the two normalisations, what is worth
        watching, and the new aux)."""
        aux, position = context.aux, student_law.cdf(sigma)
        r = losses.ratio_from_logits(logits, logit_clip=ratio.logit_clip, low=low, high=high)
        clipped = (r <= low) | (r >= high)
        metrics = {'ratio': jnp.mean(r), 'clipped': jnp.mean(clipped)}
        if ratio.normalise:
            r, bins = losses.normalise_ratio(r, position, aux['ratio_bins'], ratio.bins_decay)
            aux = aux | {'ratio_bins': bins}
        count = aux.get('updates', 0)
        weight = lambda r: weights.h(r, sigma, count)  # noqa: E731
        h = weight(r)
        metrics |= {
            'h': jnp.mean(h),
            'h_min': jnp.min(h),
            'h_max': jnp.max(h),
            'log_ratio': losses.histogram(jnp.mean(logits, axis=-1), position),
            'log_h': losses.histogram(jnp.log(h), position),
        }
        if ratio.normalise:
            weight = losses.normalise_weight(weight, r)
        return {'ratio': r, 'clipped': clipped, 'h': weight}, metrics, counted(aux)

    def loss(params, context, batch, key):
        key_z, key_t, key_gan = jax.random.split(key, 3)
        condition = batch['condition']
        x = generate.draw(key_z, params['student'], batch)
        x_t, sigma = perturb(key_t, x, student_law)
        d_teacher, d_fake, logits = critic.evaluate(
            params['critic'], context, x_t, sigma, condition
        )
        of_ratio, metrics, aux = {}, {}, context.aux
        if needs_ratio:
            of_ratio, metrics, aux = weigh(logits, sigma, context)
        seen = Seen(x, x_t, sigma, d_teacher, d_fake, logits, batch, **of_ratio)
        values, more = objective.loss(seen)
        total, metrics = jnp.mean(values), metrics | more | generator.spread(x, batch)
        if follows:
            metrics |= divergence(x, d_teacher, d_fake, sigma, student_law)
        if gan.gan_weight:
            weight = losses.WEIGHTS[gan.gan_weighting](x, d_teacher, sigma)
            if gan.gan_fresh_noise:
                x_t, sigma = perturb(key_gan, x, critic_law)
                logits = critic.logits(params['critic'], context, x_t, sigma, condition)
            adversarial = losses.gan_generator(logits)
            metrics |= {'gan': jnp.mean(adversarial)}
            scale = gan.gan_weight
            if gan.gan_from:
                scale = jnp.where(context.step < gan.gan_from, 0.0, scale)
            total += scale * jnp.mean(weight * adversarial)
        wish, more = prefer(context, x, condition)
        return total + wish, (metrics | more, aux)

    return Method(init, {'critic': critic.loss, 'student': loss}, roles, generate)
