"""The critic role: a fake score that follows the student's distribution and, where needed, a
discriminator."""

from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient

from fdistill.diffusion import noise
from fdistill.diffusion.denoiser import Denoiser, column
from fdistill.methods import losses
from fdistill.methods.generator import Generator
from fdistill.methods.method import Context, Tracking, estimate, start
from fdistill.types import Continuous

R1_STEP = 0.1  # standard deviation of the perturbation in the finite-difference R1
# Between which quantiles of a law of noise a divergence is integrated: levels that are hardly ever
# drawn would bring a noise without bound.
QUANTILES = 0.01, 0.99


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


class Critic(NamedTuple):
    """Pure functions for the role `critic`.

    init(key, batch, frozen) -> params
    loss: as in `Method`.
    evaluate(params, context, x_t, sigma, condition) -> (d_teacher, d_fake, logits or None)
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


def nats(sigma: jax.Array, law: noise.NoiseLaw) -> jax.Array:
    """w(sigma) = sigma^-3 / density(sigma) between the `QUANTILES` of a law, and 0 outside, [B]: by
    de Bruijn's identity the mean of w |D_p - D_q|^2 over the law and q_sigma is KL(q||p) at the one
    less KL(q||p) at the other."""
    place, density = jax.jvp(law.cdf, (sigma,), (jnp.ones_like(sigma),))
    inside = (QUANTILES[0] <= place) & (place <= QUANTILES[1])
    return jnp.where(inside, sigma**-3 / jnp.where(inside, density, 1), 0)


def relative_entropy(
    x: jax.Array, d_teacher: jax.Array, d_fake: jax.Array, sigma: jax.Array, law: noise.NoiseLaw
) -> tuple[jax.Array, jax.Array]:
    """What each sample says of KL(q||p) by way of the denoisers, in nats: (kl[B], seen[B]).

        KL(q_a||p_a) - KL(q_b||p_b) = int_a^b E|D_T - D_q|^2 sigma^-3 dsigma = E kl + lag
        kl   = w (|x - D_T|^2 - |x - D_F|^2),    w of `nats`
        seen = w |D_T - D_F|^2

    with a and b the `QUANTILES` of the law and D_q = E[x|x_t] of the student, which D_F follows.
    The lag, E w|D_F - D_q|^2 >= 0, is what the critic has not learned, so that the mean of kl is
    never above the divergence, whatever the critic; below 0, the critic is further from the student
    than the teacher is. The mean of `seen` is wrong in the first order: E seen - E kl =
    2 E w (D_T - D_F)(D_q - D_F), positive where the student is nearer to the teacher than its
    critic knows. At the exact critic both are the divergence.

    Times h(r(x_t)) of the exact ratio, kl is likewise of the divergence D_f(p||q) of that weight. A
    learned ratio does not do: with it the JS divergence of digits came out as 1.9, above log 2.

    Args:
      x: student samples [B,...].
      d_teacher, d_fake: of x_t, [B,...].
      sigma: [B], drawn from the law.
      law: `NoiseLaw`.

    Reference: de Bruijn's identity; Verdu, Mismatched estimation and relative entropy (IEEE
    Transactions on Information Theory 56, 2010), theorem 1.
    """
    weight = nats(sigma, law) * x[0].size
    of_teacher, of_fake = (losses.denoising(D, x, weight) for D in (d_teacher, d_fake))
    return of_teacher - of_fake, losses.denoising(d_teacher, d_fake, weight)


def divergence(
    x: jax.Array, d_teacher: jax.Array, d_fake: jax.Array, sigma: jax.Array, law: noise.NoiseLaw
) -> dict[str, jax.Array]:
    """Metrics that tell how far the student is from its teacher, where losses do not: `kl`, an
    estimate, and `kl_seen`; arguments as of `relative_entropy`."""
    # Apart from the loss, as in `generator.spread`.
    given = jax.lax.optimization_barrier(stop_gradient((x, d_teacher, d_fake, sigma)))
    kl, seen = relative_entropy(*given, law)
    return {'kl': estimate(kl), 'kl_seen': jnp.mean(seen)}


# What a discriminator sees, from x_t, sigma and two functions that give the features of a network.
FEATURES = {
    'fake_score': lambda x_t, sigma, teacher, fake: fake(),
    'teacher': lambda x_t, sigma, teacher, fake: teacher(),
    'input': lambda x_t, sigma, teacher, fake: (x_t / column(jnp.sqrt(1 + sigma**2), x_t),),
}


def make_critic(
    generator: Generator,
    teacher: Denoiser,
    fake_score: Denoiser,
    discriminator: Any = None,
    *,
    law: noise.NoiseLaw,
    tracking: Tracking,
    gan: Gan = Gan(),
) -> Critic:
    """A fake score trained by denoising score matching on student samples, and a discriminator on
    noised images.

    loss = E weight(sigma) mean|D_F(x_t) - x|^2
           + discriminator_weight (softplus(l_fake) + softplus(-l_real))
           + r1_weight (l(x_real,t + 0.1 n) - l(x_real,t))^2.

    The last is the approximate R1 of APT (arXiv 2501.08316), on the *noised* image. FastGen
    perturbs the clean image instead and leaves out the noise, but not the time input. Fake and
    real images have the same conditions, and independent sigma and noise.

    Args:
      generator: of the student.
      teacher, fake_score: `Denoiser`; the teacher's parameters are frozen['teacher'].
      discriminator: `networks.Head` or None.
      law: `NoiseLaw` of sigma for all of it.
      tracking, gan: settings.

    Raises:
      ValueError: on unknown names or negative weights.
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
        base = frozen['teacher'] if tracking.from_teacher else None
        params = {'fake_score': start(key_fake, fake_score, batch, base)}
        if discriminator is not None:
            seen = seen_alone(params, Context(frozen), x, sigma, condition)
            c_noise = jnp.zeros_like(sigma)
            params['discriminator'] = discriminator.init(key_head, seen, c_noise, condition)
        return params

    def loss(params, context, batch, key):
        keys = jax.random.split(key, 6)
        key_z, key_fake, key_real, key_dropout, key_dropout_real, key_r1 = keys
        real, condition, critic = batch['x'], batch['condition'], params['critic']
        x = generator.draw(key_z, params['student'], batch)
        x_t, sigma = perturb(key_fake, x, law)
        d_fake, of_fake = run_fake(critic, x_t, sigma, condition, key_dropout)
        weight = noise.WEIGHTINGS[weighting](sigma, tracking.sigma_data)
        total = jnp.mean(losses.denoising(d_fake, x, weight))
        metrics = {'denoising': total}
        if discriminator is not None:
            real_t, real_sigma = perturb(key_real, real, law)
            of_teacher = lambda: run_teacher(context, x_t, sigma, condition)[1]  # noqa: E731
            seen = see(x_t, sigma, of_teacher, lambda: of_fake)
            fake_logits = head(critic, seen, sigma, condition)
            real_logits = logits(critic, context, real_t, real_sigma, condition, key_dropout_real)
            adversarial = jnp.mean(losses.gan_discriminator(fake_logits, real_logits))
            correct = 0.5 * (jnp.mean(fake_logits < 0) + jnp.mean(real_logits > 0))
            metrics |= {'gan': adversarial, 'discriminator_accuracy': correct}
            total += gan.discriminator_weight * adversarial
            if gan.r1_weight:
                moved = real_t + R1_STEP * jax.random.normal(key_r1, real.shape, real.dtype)
                moved_logits = logits(
                    critic, context, moved, real_sigma, condition, key_dropout_real
                )
                r1 = jnp.mean((moved_logits - real_logits) ** 2)
                metrics['r1'] = r1
                total += gan.r1_weight * r1
        return total, (metrics, context.aux)

    return Critic(init, loss, evaluate, logits)
