"""Distribution matching: Diff-Instruct / VSD, DMD2 and f-distill with any f-divergence, one method
with three defaults.

The student x = G(z) moves along h(r) (D_T - D_F)(x_t), where D_F follows the student, D_T is the
teacher and r = p/q is read from a discriminator: the gradient of D_f(p_t||q_t), weighted over noise
levels (f-distill, arXiv 2502.15681, Theorem 1).
"""

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient

from fdistill import divergences
from fdistill.methods import losses
from fdistill.methods.critic import copy, make_critic, perturb
from fdistill.methods.method import Method, counted, make_cycle, one_step, updates


def distribution_matching(
    student,
    teacher,
    fake_score,
    discriminator=None,
    *,
    divergence='reverse_kl',
    sigma_init=80.0,
    student_law,
    critic_law,
    weighting='dmd',
    critic_weighting='edm',
    sigma_data=0.5,
    from_teacher=True,
    features='teacher',
    gan_weight=0.0,
    gan_fresh_noise=False,
    discriminator_weight=1.0,
    r1_weight=0.0,
    logit_clip=10.0,
    ratio_low=0.1,
    ratio_high=20.0,
    normalise=True,
    bins=10,
    bins_decay=0.9,
    cycle='alternate',
    student_every=1,
):
    """min over G of E_sigma w(sigma) D_f(p_sigma || q_sigma) + gan_weight E softplus(-logit).

    Student loss: `losses.score_gap` with weight w h(r), h = r^2 f''. Where h is constant (reverse
    KL) no ratio and, with gan_weight 0, no discriminator is used. Without a GAN term f-distill is
    not in its paper; it is here, as a comparison of divergences needs it.

    Args:
      student, teacher, fake_score: `Denoiser`; classifier-free guidance is part of the teacher
        (`denoiser.guide`), the fake score is never guided. The ratio then estimates p_data/q, not
        p_guided/q: the discriminator sees data.
      discriminator: `Head`, needed where h(r) is not constant or gan_weight > 0.
      divergence: anything `divergences.weighting` takes.
      sigma_init: the student is D(sigma_init z, sigma_init).
      student_law, critic_law: `NoiseLaw` of sigma for the student's loss and the critic's.
      weighting: key of `losses.WEIGHTS`, 'dmd' = 1/mean|x - D_T|.
      critic_weighting, sigma_data, from_teacher, features, discriminator_weight, r1_weight: see
        `critic.make_critic`.
      from_teacher: also starts the student as the teacher.
      gan_fresh_noise: draw noise anew for the GAN term (DMD2) instead of sharing x_t with the score
        gap (FastGen).
      logit_clip, ratio_low, ratio_high: clamp of the logit, clip of r. The narrower, the closer to
        reverse KL.
      normalise: both stages of f-distill, r by its mean per noise bin and h by its batch mean. Off,
        h is exact.
      bins, bins_decay: number of noise bins, even in the law's cdf, and decay of their running
        means (FastGen: 10, 0 at batch 2048, 0.5 on ImageNet).
      cycle, student_every: see `method.make_cycle`.

    Raises:
      ValueError: on values out of range, or a missing discriminator.
    """
    weights = divergences.weighting(divergence)
    needs_ratio = not weights.constant
    if (needs_ratio or gan_weight) and discriminator is None:
        raise ValueError(
            f'divergence={divergence!r}, gan_weight={gan_weight}: needs a discriminator; add one to the config'
        )
    if weighting not in losses.WEIGHTS:
        raise ValueError(f'weighting={weighting!r}: known are {", ".join(losses.WEIGHTS)}')
    if not 0 < ratio_low < 1 < ratio_high or not logit_clip > 0:
        raise ValueError(
            f'ratio_low={ratio_low}, ratio_high={ratio_high}, logit_clip={logit_clip}: need 0 < low < 1 < high, clip > 0'
        )
    if bins < 1 or not 0 <= bins_decay < 1 or gan_weight < 0:
        raise ValueError(
            f'bins={bins} must be >= 1, bins_decay={bins_decay} in [0, 1), gan_weight={gan_weight} >= 0'
        )
    if not needs_ratio and not gan_weight:
        discriminator = None
    roles = make_cycle(cycle, student_every)
    generate = one_step(student, sigma_init)
    critic = make_critic(
        generate,
        teacher,
        fake_score,
        discriminator,
        law=critic_law,
        weighting=critic_weighting,
        sigma_data=sigma_data,
        from_teacher=from_teacher,
        features=features,
        discriminator_weight=discriminator_weight,
        r1_weight=r1_weight,
    )

    def init(key, batch, frozen):
        key_student, key_critic = jax.random.split(key)
        params = {
            'student': copy(frozen['teacher'])
            if from_teacher
            else student.init(key_student, batch['image'], batch['label']),
            'critic': critic.init(key_critic, batch, frozen),
        }
        return params, (
            {'ratio_bins': jnp.ones(bins)} if needs_ratio and normalise else {}
        ) | updates(weights)

    def weigh(logits, sigma, aux):
        """h(r) per sample with the two normalisations, the new bins, and what is worth watching."""
        r = losses.ratio_from_logits(logits, logit_clip=logit_clip, low=ratio_low, high=ratio_high)
        metrics = {'ratio': jnp.mean(r), 'clipped': jnp.mean((r <= ratio_low) | (r >= ratio_high))}
        position = student_law.cdf(sigma)
        if normalise:
            r, ratio_bins = losses.normalise_ratio(r, position, aux['ratio_bins'], bins_decay)
            aux = aux | {'ratio_bins': ratio_bins}
        h = stop_gradient(weights.h(r, sigma, aux.get('updates', 0)))
        metrics |= {
            'h': jnp.mean(h),
            'h_max': jnp.max(h),
            'log_ratio': losses.histogram(jnp.mean(logits, axis=-1), position),
            'log_h': losses.histogram(jnp.log(h), position),
        }
        return losses.normalise_weight(h) if normalise else h, metrics, counted(aux)

    def loss(params, frozen, batch, key, aux):
        key_z, key_t, key_gan = jax.random.split(key, 3)
        label = batch['label']
        x = generate(
            params['student'],
            jax.random.normal(key_z, batch['image'].shape, batch['image'].dtype),
            label,
        )
        x_t, sigma = perturb(key_t, x, student_law)
        d_teacher, d_fake, logits = critic.evaluate(params['critic'], frozen, x_t, sigma, label)
        weight, metrics = losses.WEIGHTS[weighting](x, d_teacher, sigma), {}
        if needs_ratio:
            h, metrics, aux = weigh(logits, sigma, aux)
            weight = weight * h
        gap = jnp.mean(losses.score_gap(x, d_teacher, d_fake, weight))
        total, metrics = gap, metrics | {'score_gap': gap}
        if gan_weight:
            if gan_fresh_noise:
                x_t, sigma = perturb(key_gan, x, critic_law)
                logits = critic.logits(params['critic'], frozen, x_t, sigma, label)
            gan = jnp.mean(losses.gan_generator(logits))
            total, metrics = total + gan_weight * gan, metrics | {'gan': gan}
        return total, (metrics, aux)

    return Method(init, {'critic': critic.loss, 'student': loss}, roles, generate, 1)


def diff_instruct(
    student, teacher, fake_score, discriminator=None, *, sigma_init=1.0, weighting='unit', **options
):
    """Diff-Instruct (arXiv 2305.18455): reverse KL without a GAN, weight 1 on D_F - D_T, critic and
    student 1:1.

    With weighting='dmd' it is variational score distillation with DMD's weight. Options as in
    `distribution_matching`.
    """
    return distribution_matching(
        student,
        teacher,
        fake_score,
        discriminator,
        sigma_init=sigma_init,
        weighting=weighting,
        **options,
    )


def dmd2(
    student,
    teacher,
    fake_score,
    discriminator,
    *,
    features='fake_score',
    gan_weight=3e-3,
    gan_fresh_noise=True,
    discriminator_weight=1e-2,
    cycle='dmd2',
    student_every=5,
    **options,
):
    """DMD2 (arXiv 2405.14867): reverse KL with DMD's weight, a GAN on the fake score's features,
    five critic updates to one.

    Options as in `distribution_matching`.
    """
    return distribution_matching(
        student,
        teacher,
        fake_score,
        discriminator,
        features=features,
        gan_weight=gan_weight,
        gan_fresh_noise=gan_fresh_noise,
        discriminator_weight=discriminator_weight,
        cycle=cycle,
        student_every=student_every,
        **options,
    )


def f_distill(
    student,
    teacher,
    fake_score,
    discriminator,
    *,
    divergence='js',
    gan_weight=1e-3,
    cycle='fastgen',
    student_every=5,
    **options,
):
    """f-distill (arXiv 2502.15681): any f-divergence, r from a discriminator on the frozen
    teacher's features.

    Defaults are the paper's for CIFAR-10 (whose best divergence is forward KL, ImageNet-64's JS).
    Its critic uses 'edm' weighting here, as DMD2's does; FastGen's code leaves it unweighted, which
    spends the fake score on large sigma. Options as in `distribution_matching`.
    """
    return distribution_matching(
        student,
        teacher,
        fake_score,
        discriminator,
        divergence=divergence,
        gan_weight=gan_weight,
        cycle=cycle,
        student_every=student_every,
        **options,
    )
