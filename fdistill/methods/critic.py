"""The critic role: a fake score that follows the student's distribution and, where needed, a
discriminator."""

from typing import Any, Callable, NamedTuple

import jax
import jax.numpy as jnp

from fdistill.diffusion import noise
from fdistill.methods import losses
from fdistill.methods.method import column

R1_STEP = 0.1  # standard deviation of the perturbation in the finite-difference R1


class Critic(NamedTuple):
    """init(key, batch, frozen) -> params; loss as in `Method`; denoise and logits for the student's
    loss.

    evaluate(params, frozen, x_t, sigma, label) -> (d_teacher, d_fake, logits or None)
    logits(params, frozen, x_t, sigma, label) -> logits alone, at a noise level of its own
    """

    init: Callable[..., Any]
    loss: Callable[..., Any]
    evaluate: Callable[..., Any]
    logits: Callable[..., Any]


def copy(params):
    """Fresh buffers: a student that starts as the teacher must not share arrays that a donated
    state would delete."""
    return jax.tree.map(jnp.copy, params)


def perturb(key, x, law):
    """x_t = x + sigma eps with sigma from the law: (x_t, sigma[B])."""
    key_sigma, key_noise = jax.random.split(key)
    sigma = law.sample(key_sigma, x.shape[0]).astype(x.dtype)
    return x + column(sigma, x) * jax.random.normal(key_noise, x.shape, x.dtype), sigma


FEATURES = ('fake_score', 'teacher', 'input')


def make_critic(
    generate,
    teacher,
    fake_score,
    discriminator=None,
    *,
    law,
    weighting='edm',
    sigma_data=0.5,
    from_teacher=True,
    features='teacher',
    discriminator_weight=1.0,
    r1_weight=0.0,
):
    """A fake score trained by denoising score matching on student samples, and a discriminator on
    noised images.

    loss = E weight(sigma) mean|D_F(x_t) - x|^2 + discriminator_weight (softplus(l_fake) +
    softplus(-l_real))
           + r1_weight (l(x_real,t + 0.1 n) - l(x_real,t))^2.

    The last is the approximate R1 of APT (arXiv 2501.08316), on the *noised* image; FastGen
    perturbs the clean image and skips the noise, which leaves its time input. Fake and real have
    the same labels, and independent sigma and noise.

    Args:
      generate: student(params, noise, label) -> x.
      teacher, fake_score: `Denoiser`; the teacher's parameters are frozen['teacher'].
      discriminator: `Head` or None.
      law: `NoiseLaw` of sigma for all of it.
      weighting: key of `noise.WEIGHTINGS`: 'edm' in DMD2, SiD, Diff-Instruct; 'unit' in FastGen.
      sigma_data: for the weighting.
      from_teacher: start the fake score as a copy of the teacher; else from its own initialisation.
      features: what the discriminator sees: 'fake_score' (DMD2; trained by both losses), 'teacher'
        (FastGen; frozen) or
        'input', x_t itself.
      discriminator_weight, r1_weight: >= 0. DMD2: 1e-2 and 0; f-distill: 1 and 0 or 1.

    Raises:
      ValueError: on unknown names or negative weights.
    """
    if weighting not in noise.WEIGHTINGS:
        raise ValueError(f'critic weighting={weighting!r}: known are {", ".join(noise.WEIGHTINGS)}')
    if features not in FEATURES:
        raise ValueError(f'features={features!r}: known are {", ".join(FEATURES)}')
    if discriminator_weight < 0 or r1_weight < 0:
        raise ValueError(
            f'discriminator_weight={discriminator_weight}, r1_weight={r1_weight}: must be >= 0'
        )

    def run_teacher(frozen, x_t, sigma, label):
        return teacher.apply(frozen.get('teacher', {}), x_t, sigma, label)

    def run_fake(params, x_t, sigma, label, key=None):
        return fake_score.apply(params['fake_score'], x_t, sigma, label, key=key)

    select = {
        'fake_score': lambda params, frozen, x_t, sigma, label, key: run_fake(
            params, x_t, sigma, label, key
        )[1],
        'teacher': lambda params, frozen, x_t, sigma, label, key: run_teacher(
            frozen, x_t, sigma, label
        )[1],
        'input': lambda params, frozen, x_t, sigma, label, key: (
            x_t / column(jnp.sqrt(1 + sigma**2), x_t),
        ),
    }[features]

    def head(params, seen, sigma, label):
        return discriminator.apply(params['discriminator'], seen, jnp.log(sigma) / 4, label)

    def logits(params, frozen, x_t, sigma, label, key=None):
        return head(params, select(params, frozen, x_t, sigma, label, key), sigma, label)

    def evaluate(params, frozen, x_t, sigma, label):
        d_teacher, teacher_features = run_teacher(frozen, x_t, sigma, label)
        d_fake, fake_features = run_fake(params, x_t, sigma, label)
        if discriminator is None:
            return d_teacher, d_fake, None
        seen = {'fake_score': fake_features, 'teacher': teacher_features}.get(features)
        if seen is None:
            seen = select(params, frozen, x_t, sigma, label, None)
        return d_teacher, d_fake, head(params, seen, sigma, label)

    def init(key, batch, frozen):
        key_fake, key_head = jax.random.split(key)
        x, label, sigma = (
            batch['image'],
            batch['label'],
            jnp.ones(batch['image'].shape[0], batch['image'].dtype),
        )
        params = {
            'fake_score': copy(frozen['teacher'])
            if from_teacher
            else fake_score.init(key_fake, x, label)
        }
        if discriminator is not None:
            seen = select(params, frozen, x, sigma, label, None)
            params['discriminator'] = discriminator.init(
                key_head, seen, jnp.zeros_like(sigma), label
            )
        return params

    def loss(params, frozen, batch, key, aux):
        key_z, key_fake, key_real, key_dropout, key_dropout_real, key_r1 = jax.random.split(key, 6)
        image, label, critic = batch['image'], batch['label'], params['critic']
        x = generate(params['student'], jax.random.normal(key_z, image.shape, image.dtype), label)
        x_t, sigma = perturb(key_fake, x, law)
        d_fake, fake_features = run_fake(critic, x_t, sigma, label, key_dropout)
        weight = noise.WEIGHTINGS[weighting](sigma, sigma_data)
        total = jnp.mean(losses.denoising(d_fake, x, weight))
        metrics = {'denoising': total}
        if discriminator is not None:
            real_t, real_sigma = perturb(key_real, image, law)
            seen = (
                fake_features
                if features == 'fake_score'
                else select(critic, frozen, x_t, sigma, label, None)
            )
            fake_logits = head(critic, seen, sigma, label)
            real_logits = logits(critic, frozen, real_t, real_sigma, label, key_dropout_real)
            gan = jnp.mean(losses.gan_discriminator(fake_logits, real_logits))
            correct = 0.5 * (jnp.mean(fake_logits < 0) + jnp.mean(real_logits > 0))
            metrics |= {'gan': gan, 'discriminator_accuracy': correct}
            total += discriminator_weight * gan
            if r1_weight:
                moved = real_t + R1_STEP * jax.random.normal(key_r1, image.shape, image.dtype)
                moved_logits = logits(critic, frozen, moved, real_sigma, label, key_dropout_real)
                r1 = jnp.mean((moved_logits - real_logits) ** 2)
                metrics['r1'] = r1
                total += r1_weight * r1
        return total, (metrics, aux)

    return Critic(init, loss, evaluate, logits)
