"""The critic role: a fake score that follows the student's distribution and, where needed, a
discriminator."""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient

from fdistill.diffusion import noise
from fdistill.diffusion.denoiser import Denoiser, column, guide
from fdistill.methods import losses
from fdistill.methods.generator import Generator
from fdistill.methods.method import (
    Context,
    Tracking,
    check_guidable,
    estimate,
    leave_out,
    start,
)
from fdistill.types import Continuous

LEFT_OUT = 0.1  # share of conditions, where the fake score is guided (SiD-LSG's code)
R1_STEP = 0.1  # standard deviation of the perturbation in the finite-difference R1
# Between which quantiles of a law of noise a divergence is integrated: levels that are hardly ever
# drawn would bring a noise without bound.
QUANTILES = 0.01, 0.99


class Gan(NamedTuple):
    """The discriminator and its part in the losses: settings of methods with a critic.

    discriminator: `networks.Head`; None where there is none.
    gan_weight: of the student's term softplus(-logit), >= 0.
    gan_weighting: key of `losses.WEIGHTS`, of that term's samples: 'unit' in DMD2 and f-distill,
      'dmd', that of its score term, in SiDA.
    gan_from: step from which that term counts.
    gan_fresh_noise: draw noise anew for that term (DMD2) instead of sharing x_t with the score gap
      (FastGen).
    discriminator_weight, r1_weight: of the critic's terms, >= 0. DMD2: 1e-2 and 0; f-distill: 1 and
      0 or 1.
    features: what the discriminator sees: 'fake_score' (DMD2; trained by both losses), 'teacher'
      (FastGen; frozen) or 'input', x_t itself.
    """

    discriminator: Any = None
    gan_weight: Annotated[float, Continuous(off=0)] = 0.0
    gan_weighting: str = 'unit'
    gan_from: int = 0
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


def perturb(
    key: jax.Array, x: jax.Array, law: noise.NoiseLaw | None
) -> tuple[jax.Array, jax.Array]:
    """x_t = x + sigma eps with sigma from the law: (x_t, sigma[B]); without a law x itself, and 0.

    The same key gives another x the same levels and noise."""
    if law is None:
        return x, jnp.zeros(x.shape[0], x.dtype)
    key_sigma, key_noise = jax.random.split(key)
    sigma = law.sample(key_sigma, x.shape[0]).astype(x.dtype)
    return x + column(sigma, x) * jax.random.normal(key_noise, x.shape, x.dtype), sigma


class Judge(NamedTuple):
    """What tells noised samples from noised data, as pure functions of the parameters of the role
    `critic`.

    init(key, params, batch, frozen) -> parameters of the head; `params` has those of what it sees
    logits(params, context, x_t, sigma, condition, key=None, **known) -> [B, heads]; `known` are
      features that are there already, by the names of their networks
    roughness(params, context, x_t, sigma, condition, logits, key, dropout=None) ->
      E (l(x_t + step n) - l(x_t))^2, n of unit variance: for a small step step^2 E |grad l|^2
    """

    init: Callable[..., Any]
    logits: Callable[..., Any]
    roughness: Callable[..., Any]


def make_judge(
    head: Any,
    features: str,
    networks: Mapping[str, Callable[..., Any]],
    step: Annotated[float, Continuous()] = R1_STEP,
) -> Judge:
    """A discriminator on the features of a network, or on noised images themselves.

    Args:
      head: `networks.Head`.
      features: what it sees, a name of `networks`, or 'input', x_t itself on its scale.
      networks: {name: run(params, context, x_t, sigma, condition, key) -> features}.
      step: of the finite differences, > 0.

    Raises:
      ValueError: on unknown features.
    """
    known_here = {
        **networks,
        'input': lambda params, context, x_t, sigma, condition, key: (
            x_t / column(jnp.sqrt(1 + sigma**2), x_t),
        ),
    }
    if features not in known_here:
        raise ValueError(f'features={features!r}: known are {", ".join(known_here)}')

    def logits(params, context, x_t, sigma, condition, key=None, **known):
        seen = known.get(features) or known_here[features](
            params, context, x_t, sigma, condition, key
        )
        # An image without noise has no level to tell.
        c_noise = jnp.log(jnp.where(sigma > 0, sigma, 1)) / 4
        return head.apply(params['discriminator'], seen, c_noise, condition)

    def init(key, params, batch, frozen):
        x, condition = batch['x'], batch['condition']
        sigma = jnp.ones(x.shape[0], x.dtype)
        seen = known_here[features](params, Context(frozen), x, sigma, condition, None)
        made = head.init(key, seen, jnp.zeros_like(sigma), condition)
        if features != 'fake_score' and not jax.tree.leaves(made):
            raise ValueError(
                f'features={features!r}: this discriminator has no parameters, and learns by those '
                "of features='fake_score' alone; choose those, or another head"
            )
        return made

    def roughness(params, context, x_t, sigma, condition, before, key, dropout=None):
        moved = x_t + step * jax.random.normal(key, x_t.shape, x_t.dtype)
        after = logits(params, context, moved, sigma, condition, dropout)
        return jnp.mean((after - before) ** 2)

    return Judge(init, logits, roughness)


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


def make_critic(
    generator: Generator,
    teacher: Denoiser | None,
    fake_score: Denoiser | None,
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
    and independent sigma and noise. Where tracking guides the fake score, a share of all conditions
    is left out, so that it learns what it is without any.

    Args:
      generator: of the student.
      teacher, fake_score: `Denoiser`; the teacher's parameters are frozen['teacher']. Or both None:
        then D_T - D_F is read from the logit l, as sigma^2 grad l (DiffRatio, arXiv 2502.08005).
      law: `NoiseLaw` of sigma for all of it.
      tracking, gan: settings.
      real: what the fake score learns of real data; None for nothing.

    Raises:
      ValueError: on unknown names or negative weights, or where a part is missing.
    """
    weighting, discriminator = tracking.critic_weighting, gan.discriminator
    if weighting not in noise.WEIGHTINGS:
        raise ValueError(f'critic weighting={weighting!r}: known are {", ".join(noise.WEIGHTINGS)}')
    if gan.discriminator_weight < 0 or gan.r1_weight < 0:
        raise ValueError(
            f'discriminator_weight={gan.discriminator_weight}, r1_weight={gan.r1_weight}: '
            'must be >= 0'
        )
    if fake_score is None and (discriminator is None or gan.features != 'input'):
        raise ValueError(
            f'discriminator={discriminator}, features={gan.features!r}: without a fake score the '
            "gradient is that of a discriminator of features='input'; add one to the config"
        )
    trained, asked = (
        fake_score and guide(fake_score, scale)
        for scale in (tracking.critic_guidance, tracking.fake_guidance)
    )
    guides = trained is not fake_score or asked is not fake_score

    def run_teacher(params, context, x_t, sigma, condition, key=None):
        return teacher.apply(context.frozen.get('teacher', {}), x_t, sigma, condition)

    def run_fake(params, context, x_t, sigma, condition, key=None, model=fake_score):
        return model.apply(params['fake_score'], x_t, sigma, condition, key=key)

    judge = make_judge(
        discriminator,
        gan.features,
        {
            'fake_score': lambda *given: run_fake(*given)[1],
            'teacher': lambda *given: run_teacher(*given)[1],
        },
    )

    def ratio_gap(params, context, x_t, sigma, condition):
        def total(at):
            values = judge.logits(params, context, at, sigma, condition)
            return jnp.sum(jnp.mean(values, axis=-1))

        gap = column(sigma**2, x_t) * jax.grad(total)(stop_gradient(x_t))
        return gap, jnp.zeros_like(gap), judge.logits(params, context, x_t, sigma, condition)

    def evaluate(params, context, x_t, sigma, condition):
        d_teacher, of_teacher = run_teacher(params, context, x_t, sigma, condition)
        d_fake, of_fake = run_fake(params, context, x_t, sigma, condition, model=asked)
        if discriminator is None:
            return d_teacher, d_fake, None
        known = {'teacher': of_teacher, 'fake_score': of_fake}
        logits = judge.logits(params, context, x_t, sigma, condition, **known)
        return d_teacher, d_fake, logits

    def init(key, batch, frozen):
        key_fake, key_head = jax.random.split(key)
        params = {}
        if fake_score is not None:
            params['fake_score'] = start(key_fake, fake_score, batch, frozen.get('teacher'))
        if discriminator is not None:
            params['discriminator'] = judge.init(key_head, params, batch, frozen)
        return params

    def loss(params, context, batch, key):
        keys = jax.random.split(key, 6)
        key_z, key_fake, key_real, key_dropout, key_dropout_real, key_r1 = keys
        critic = params['critic']
        if guides:
            check_guidable(batch['condition'], 'critic_guidance, fake_guidance')
            key_left = jax.random.fold_in(key_z, 0)
            own = critic['fake_score']
            kept, _ = leave_out(key_left, LEFT_OUT, fake_score, own, batch['condition'])
            batch = {**batch, 'condition': kept}
        data, condition = batch['x'], batch['condition']
        x = generator.draw(key_z, params['student'], batch)
        x_t, sigma = perturb(key_fake, x, law)
        total, metrics, known = 0.0, {}, {}

        def regression(kind, x, x_t, sigma, key):
            """The error on samples of one kind, and the features."""
            d_fake, of_fake = run_fake(critic, context, x_t, sigma, condition, key, trained)
            weight = noise.WEIGHTINGS[weighting](sigma, tracking.sigma_data)
            if real is not None:
                asked = critic, context, x_t, sigma, condition
                x = real.targets[kind](x, x_t, sigma, lambda: run_teacher(*asked)[0])
            return jnp.mean(losses.denoising(d_fake, x, weight)), of_fake

        if fake_score is not None:
            total, known['fake_score'] = regression(0, x, x_t, sigma, key_dropout)
            metrics = {'denoising': total}
        if real is not None:
            on_data, _ = regression(1, data, *perturb(key_real, data, law), key_dropout_real)
            total = real.weights[0] * total + real.weights[1] * on_data
            metrics |= {'denoising_data': on_data}
        if discriminator is not None:
            given = critic, context, *perturb(key_real, data, law), condition
            fake_logits = judge.logits(critic, context, x_t, sigma, condition, **known)
            real_logits = judge.logits(*given, key_dropout_real)
            adversarial = jnp.mean(losses.gan_discriminator(fake_logits, real_logits))
            metrics |= {'gan': adversarial, **told_apart(fake_logits, real_logits)}
            total += gan.discriminator_weight * adversarial
            if gan.r1_weight:
                r1 = judge.roughness(*given, real_logits, key_r1, key_dropout_real)
                metrics['r1'] = r1
                total += gan.r1_weight * r1
        return total, (metrics, context.aux)

    return Critic(init, loss, ratio_gap if fake_score is None else evaluate, judge.logits)


def told_apart(fake_logits: jax.Array, real_logits: jax.Array) -> dict[str, jax.Array]:
    """The metric of how many images a discriminator sees for what they are."""
    correct = 0.5 * (jnp.mean(fake_logits < 0) + jnp.mean(real_logits > 0))
    return {'discriminator_accuracy': correct}
