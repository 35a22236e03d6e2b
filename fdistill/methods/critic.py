"""The critic role: a fake score that follows the student's distribution and, where needed, a
discriminator."""

from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp

from fdistill.diffusion import noise
from fdistill.diffusion.denoiser import Denoiser, column
from fdistill.methods import losses
from fdistill.methods.generator import Generator
from fdistill.methods.method import Context, Tracking, start
from fdistill.types import Continuous

R1_STEP = 0.1  # standard deviation of the perturbation in the finite-difference R1


class Gan(NamedTuple):
    """The discriminator and its part in the losses: settings of `distribution_matching`.

    gan_weight: of the student's term softplus(-logit), >= 0.
    gan_fresh_noise: draw noise anew for that term (DMD2) instead of sharing x_t with the score gap
      (FastGen).
    discriminator_weight, r1_weight: of the critic's terms, >= 0. DMD2: 1e-2 and 0; f-distill: 1 and
      0 or 1.
    features: what the discriminator sees: 'fake_score' (DMD2; trained by both losses), 'teacher'
      (FastGen; frozen) or 'input', x_t itself.
    """

    gan_weight: Annotated[float, Continuous(off=0)] = 0.0
    gan_fresh_noise: bool = False
    discriminator_weight: Annotated[float, Continuous()] = 1.0
    r1_weight: Annotated[float, Continuous(off=0)] = 0.0
    features: str = 'teacher'


# (x, x_t, sigma, teacher) -> target [B,...] of D_F(x_t), where teacher() is D_T(x_t).
Target = Callable[[jax.Array, jax.Array, jax.Array, Callable[[], jax.Array]], jax.Array]


class Real(NamedTuple):
    """Real data in the regression of the fake score, which then has two kinds of samples:

        a E_q weight |D_F(x_t) - y_q(x)|^2 + b E_p weight |D_F(x_t) - y_p(x)|^2

    Its minimiser is (a q E_q[y_q | x_t] + b p E_p[y_p | x_t])/(a q + b p), with q and p the
    densities of the student's and of real samples with noise.

    weights: (a, b), > 0.
    targets: (y_q, y_p), see `Target`.
    """

    weights: tuple[float, float]
    targets: tuple[Target, Target]


class Critic(NamedTuple):
    """Pure functions for the role `critic`.

    init(key, batch, frozen) -> params
    loss: as in `Method`.
    evaluate(params, context, x_t, sigma, condition) -> (d_teacher, d_fake, logits or None); without
      a fake score (sigma^2 grad l, 0, logits), of which only the difference says something.
    logits(params, context, x_t, sigma, condition) -> logits alone, at a noise level of its own
    """

    init: Callable[..., Any]
    loss: Callable[..., Any]
    evaluate: Callable[..., Any]
    logits: Callable[..., Any]


def perturb(key: jax.Array, x: jax.Array, law: noise.NoiseLaw) -> tuple[jax.Array, jax.Array]:
    """x_t = x + sigma eps with sigma from the law: (x_t, sigma[B])."""
    key_sigma, key_noise = jax.random.split(key)
    sigma = law.sample(key_sigma, x.shape[0]).astype(x.dtype)
    return x + column(sigma, x) * jax.random.normal(key_noise, x.shape, x.dtype), sigma


# What a discriminator sees, from x_t, sigma and two functions that give the features of a network.
FEATURES = {
    'fake_score': lambda x_t, sigma, teacher, fake: fake(),
    'teacher': lambda x_t, sigma, teacher, fake: teacher(),
    'input': lambda x_t, sigma, teacher, fake: (x_t / column(jnp.sqrt(1 + sigma**2), x_t),),
}


def make_critic(
    generator: Generator,
    teacher: Denoiser | None,
    fake_score: Denoiser | None,
    discriminator: Any = None,
    *,
    law: noise.NoiseLaw,
    tracking: Tracking,
    gan: Gan = Gan(),
    real: Real | None = None,
) -> Critic:
    """A fake score trained by denoising score matching on student samples, and a discriminator on
    noised images.

    loss = E weight(sigma) mean|D_F(x_t) - x|^2
           + discriminator_weight (softplus(l_fake) + softplus(-l_real))
           + r1_weight (l(x_real,t + 0.1 n) - l(x_real,t))^2.

    The first is another with `real`, and absent without a fake score. The last is the approximate
    R1 of APT (arXiv 2501.08316), on the *noised* image. FastGen perturbs the clean image instead
    and leaves out the noise, but not the time input. Fake and real images have the same conditions,
    and independent sigma and noise.

    Args:
      generator: of the student.
      teacher, fake_score: `Denoiser`; the teacher's parameters are frozen['teacher']. Or both None:
        then D_T - D_F is read from the logit l, as sigma^2 grad l (DiffRatio, arXiv 2502.08005).
      discriminator: `networks.Head` or None.
      law: `NoiseLaw` of sigma for all of it.
      tracking, gan: settings.
      real: what the fake score learns of real data; None for nothing.

    Raises:
      ValueError: on unknown names or negative weights, or where a part is missing.
    """
    weighting, features = tracking.critic_weighting, gan.features
    if weighting not in noise.WEIGHTINGS:
        raise ValueError(f'critic weighting={weighting!r}: known are {", ".join(noise.WEIGHTINGS)}')
    if features not in FEATURES:
        raise ValueError(f'features={features!r}: known are {", ".join(FEATURES)}')
    if gan.discriminator_weight < 0 or gan.r1_weight < 0:
        raise ValueError(
            f'discriminator_weight={gan.discriminator_weight}, r1_weight={gan.r1_weight}: '
            'must be >= 0'
        )
    if fake_score is None and (discriminator is None or features != 'input'):
        raise ValueError(
            f'discriminator={discriminator}, features={features!r}: without a fake score the '
            "gradient is that of a discriminator of features='input'; add one to the config"
        )
    see = FEATURES[features]

    def run_teacher(context, x_t, sigma, condition):
        return teacher.apply(context.frozen.get('teacher', {}), x_t, sigma, condition)

    def run_fake(params, x_t, sigma, condition, key=None):
        return fake_score.apply(params['fake_score'], x_t, sigma, condition, key=key)

    def head(params, seen, sigma, condition):
        return discriminator.apply(params['discriminator'], seen, jnp.log(sigma) / 4, condition)

    def seen_alone(params, context, x_t, sigma, condition, key=None):
        return see(
            x_t,
            sigma,
            lambda: run_teacher(context, x_t, sigma, condition)[1],
            lambda: run_fake(params, x_t, sigma, condition, key)[1],
        )

    def logits(params, context, x_t, sigma, condition, key=None):
        seen = seen_alone(params, context, x_t, sigma, condition, key)
        return head(params, seen, sigma, condition)

    def ratio_gap(params, context, x_t, sigma, condition):
        def total(at):
            return jnp.sum(jnp.mean(logits(params, context, at, sigma, condition), axis=-1))

        gap = column(sigma**2, x_t) * jax.grad(total)(jax.lax.stop_gradient(x_t))
        return gap, jnp.zeros_like(gap), logits(params, context, x_t, sigma, condition)

    def evaluate(params, context, x_t, sigma, condition):
        d_teacher, of_teacher = run_teacher(context, x_t, sigma, condition)
        d_fake, of_fake = run_fake(params, x_t, sigma, condition)
        if discriminator is None:
            return d_teacher, d_fake, None
        seen = see(x_t, sigma, lambda: of_teacher, lambda: of_fake)
        return d_teacher, d_fake, head(params, seen, sigma, condition)

    def init(key, batch, frozen):
        key_fake, key_head = jax.random.split(key)
        x, condition = batch['x'], batch['condition']
        sigma = jnp.ones(x.shape[0], x.dtype)
        params = {}
        if fake_score is not None:
            base = frozen['teacher'] if tracking.from_teacher else None
            params['fake_score'] = start(key_fake, fake_score, batch, base)
        if discriminator is not None:
            seen = seen_alone(params, Context(frozen), x, sigma, condition)
            c_noise = jnp.zeros_like(sigma)
            params['discriminator'] = discriminator.init(key_head, seen, c_noise, condition)
        return params

    def loss(params, context, batch, key):
        keys = jax.random.split(key, 6)
        key_z, key_fake, key_real, key_dropout, key_dropout_real, key_r1 = keys
        data, condition, critic = batch['x'], batch['condition'], params['critic']
        x = generator.draw(key_z, params['student'], batch)
        x_t, sigma = perturb(key_fake, x, law)
        total, metrics, of_fake = 0.0, {}, ()

        def regression(kind, x, x_t, sigma, key):
            """The error on samples of one kind, and the features."""
            d_fake, of_fake = run_fake(critic, x_t, sigma, condition, key)
            weight = noise.WEIGHTINGS[weighting](sigma, tracking.sigma_data)
            if real is not None:
                d_teacher = lambda: run_teacher(context, x_t, sigma, condition)[0]  # noqa: E731
                x = real.targets[kind](x, x_t, sigma, d_teacher)
            return jnp.mean(losses.denoising(d_fake, x, weight)), of_fake

        if fake_score is not None:
            total, of_fake = regression(0, x, x_t, sigma, key_dropout)
            metrics = {'denoising': total}
        if real is not None:
            data_t, data_sigma = perturb(key_real, data, law)
            on_data, _ = regression(1, data, data_t, data_sigma, key_dropout_real)
            total = real.weights[0] * total + real.weights[1] * on_data
            metrics |= {'denoising_data': on_data}
        if discriminator is not None:
            real_t, real_sigma = perturb(key_real, data, law)
            of_teacher = lambda: run_teacher(context, x_t, sigma, condition)[1]  # noqa: E731
            seen = see(x_t, sigma, of_teacher, lambda: of_fake)
            fake_logits = head(critic, seen, sigma, condition)
            real_logits = logits(critic, context, real_t, real_sigma, condition, key_dropout_real)
            adversarial = jnp.mean(losses.gan_discriminator(fake_logits, real_logits))
            correct = 0.5 * (jnp.mean(fake_logits < 0) + jnp.mean(real_logits > 0))
            metrics |= {'gan': adversarial, 'discriminator_accuracy': correct}
            total += gan.discriminator_weight * adversarial
            if gan.r1_weight:
                moved = real_t + R1_STEP * jax.random.normal(key_r1, data.shape, data.dtype)
                moved_logits = logits(
                    critic, context, moved, real_sigma, condition, key_dropout_real
                )
                r1 = jnp.mean((moved_logits - real_logits) ** 2)
                metrics['r1'] = r1
                total += gan.r1_weight * r1
        return total, (metrics, context.aux)

    return Critic(init, loss, ratio_gap if fake_score is None else evaluate, logits)
