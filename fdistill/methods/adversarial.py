"""Adversarial distillation, where a discriminator alone says where samples go: LADD, ADD, which
adds a teacher's denoiser, and adversarial flow models, which have no teacher."""

from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient

from fdistill.diffusion.denoiser import Denoiser
from fdistill.diffusion.noise import NoiseLaw
from fdistill.methods import generator, losses
from fdistill.methods.critic import make_judge, perturb, told_apart
from fdistill.methods.generator import Generator, Steps
from fdistill.methods.method import Method, begin, make_cycle
from fdistill.types import Continuous


class Adversary(NamedTuple):
    """The discriminator, how it is trained, and what it makes of the student.

    gan_loss: key of `losses.GANS`.
    features: 'teacher', those of the frozen network at x_t, or 'input', x_t itself.
    r1_weight, r2_weight: of E (l(x_t + step n) - l(x_t))^2 at data and at samples (APT, arXiv
      2501.08316), >= 0. A penalty gamma E |grad l|^2 is gamma/step^2.
    penalty_step: that step, > 0.
    center_weight: of E (l_fake + l_real)^2, >= 0, which says around what the logits of a
      relativistic loss lie.
    gradient_decay: the adversarial gradient in x is given the size of `losses.in_proportion`, by a
      running mean of its square with this decay in [0, 1); 0: it is left as it is.
    cycle, student_every: see `make_cycle`; the discriminator is the critic.
    """

    gan_loss: str = 'softplus'
    features: str = 'teacher'
    r1_weight: Annotated[float, Continuous(off=0)] = 0.0
    r2_weight: Annotated[float, Continuous(off=0)] = 0.0
    penalty_step: Annotated[float, Continuous()] = 0.1
    center_weight: Annotated[float, Continuous(off=0)] = 0.0
    gradient_decay: Annotated[float, Continuous(off=0)] = 0.0
    cycle: str = 'alternate'
    student_every: int = 1


# What a student is to do besides: (x, key of its draw, a key, context, batch) -> ([B], metrics).
Task = Callable[..., tuple[jax.Array, dict[str, jax.Array]]]


def game(
    generate: Generator,
    student: Denoiser,
    teacher: Denoiser | None,
    discriminator: Any,
    *,
    law: NoiseLaw | None,
    adversary: Adversary,
    from_teacher: bool = False,
    task: Task | None = None,
) -> Method:
    """min over G, max over l: the game of `losses.GANS` between noised samples and noised data.

        L_D = E loss_D(l(x_t), l(y_t)) + r1_weight E (l(y_t + step n) - l(y_t))^2
              + r2_weight E (l(x_t + step n) - l(x_t))^2 + center_weight E (l(x_t) + l(y_t))^2
        L_G = E loss_G(l(x_t), l(y_t)) + task

    A sample x and the image y of its pair have the same condition, level and noise.

    Args:
      generate: `Generator` of the student.
      student: `Denoiser`.
      teacher: whose features the discriminator sees, if it does; frozen['teacher'].
      discriminator: `networks.Head`.
      law: `NoiseLaw` of t; None for images without noise.
      adversary: settings.
      from_teacher: start as a copy of the teacher.
      task: further loss of the student.

    Raises:
      ValueError: on values out of range, or a missing discriminator.
    """
    if discriminator is None:
        raise ValueError('this method needs a discriminator; add one to the config')
    if adversary.gan_loss not in losses.GANS:
        raise ValueError(f'gan_loss={adversary.gan_loss!r}: known are {", ".join(losses.GANS)}')
    weights = adversary.r1_weight, adversary.r2_weight, adversary.center_weight
    # Each by itself: in lanes they may lie in any order.
    positive = adversary.penalty_step > 0 and all(weight >= 0 for weight in weights)
    if not positive or not 0 <= adversary.gradient_decay < 1:
        raise ValueError(
            f'r1_weight, r2_weight, center_weight={weights} must be >= 0, '
            f'penalty_step={adversary.penalty_step} > 0, '
            f'gradient_decay={adversary.gradient_decay} in [0, 1)'
        )
    if law is None and adversary.features == 'teacher':
        raise ValueError(
            "features='teacher' are those of noised images: give critic_law, or features='input'"
        )
    gan, decay = losses.GANS[adversary.gan_loss], adversary.gradient_decay

    def of_teacher(params, context, x_t, sigma, condition, key):
        return teacher.apply(context.frozen.get('teacher', {}), x_t, sigma, condition)[1]

    networks = {'teacher': of_teacher} if teacher else {}
    judge = make_judge(discriminator, adversary.features, networks, adversary.penalty_step)
    fresh = begin(student, from_teacher)

    def init(key, batch, frozen):
        key_student, key_head = jax.random.split(key)
        params, _ = fresh(key_student, batch, frozen)
        head = judge.init(key_head, params, batch, frozen)
        aux = {'gradient_square': jnp.zeros((), batch['x'].dtype)} if decay else {}
        return params | {'critic': {'discriminator': head}}, aux

    def pair(params, context, key, x, batch):
        """((x_t, sigma, condition), its logits, the same of the data)."""

        def of(images):
            given = *perturb(key, images, law), batch['condition']
            return given, judge.logits(params['critic'], context, *given)

        return *of(x), *of(batch['x'])

    def critic(params, context, batch, key):
        key_z, key_t, key_r1, key_r2 = jax.random.split(key, 4)
        x = generate.draw(key_z, params['student'], batch)
        at_fake, fake, at_real, real = pair(params, context, key_t, x, batch)
        total = jnp.mean(gan.discriminator(fake, real))
        metrics = {'gan': total, **told_apart(fake, real)}
        for name, at, before, weight, key in (
            ('r1', at_real, real, adversary.r1_weight, key_r1),
            ('r2', at_fake, fake, adversary.r2_weight, key_r2),
        ):
            if weight:
                rough = judge.roughness(params['critic'], context, *at, before, key)
                total, metrics = total + weight * rough, metrics | {name: rough}
        if adversary.center_weight:
            total += adversary.center_weight * jnp.mean((fake + real) ** 2)
        return total, (metrics, context.aux)

    def loss(params, context, batch, key):
        key_z, key_t, key_task = jax.random.split(key, 3)
        x = generate.draw(key_z, params['student'], batch)

        def adversarial(x):
            _, fake, _, real = pair(params, context, key_t, x, batch)
            return jnp.mean(gan.generator(fake, real))

        aux = context.aux
        if decay:
            total, gradient = jax.value_and_grad(adversarial)(stop_gradient(x))
            now, before = gradient.size * jnp.sum(gradient**2), aux['gradient_square']
            square = jnp.where(before > 0, decay * before + (1 - decay) * now, now)
            aux, metrics = aux | {'gradient_square': square}, {'gan': total}
            total = losses.in_proportion(x, gradient, square)
        else:
            total = adversarial(x)
            metrics = {'gan': total}
        metrics |= generator.spread(x, batch)
        if task:
            values, more = task(x, key_z, key_task, context, batch)
            total, metrics = total + jnp.mean(values), metrics | more
        return total, (metrics, aux)

    roles = make_cycle(adversary.cycle, adversary.student_every)
    return Method(init, {'critic': critic, 'student': loss}, roles, generate)


def ladd(
    student: Denoiser,
    teacher: Denoiser,
    discriminator: Any,
    *,
    critic_law: NoiseLaw,
    from_teacher: bool = True,
    steps: Steps = Steps(sigma_init=80.0),
    adversary: Adversary = Adversary(gan_loss='hinge'),
) -> Method:
    """Latent adversarial diffusion distillation (LADD, arXiv 2403.12015): `game` on the features of
    the frozen teacher at noised samples and data; no fake score, no regression.

    The paper's data are samples of the guided teacher: make a data set of them, or take real data,
    as FastGen does.

    Args:
      student: `Denoiser`.
      teacher: whose features the discriminator sees.
      discriminator: `networks.Head`, as 'conv' with several `indices`: one logit each.
      critic_law: `NoiseLaw` of sigma at which it sees them. The paper's is logit-normal in the
        time of a flow: 'lognormal' in sigma.
      from_teacher: start as a copy of the teacher.
      steps, adversary: settings. FastGen: softplus in place of hinge.

    Raises:
      ValueError: on values out of range, or a missing discriminator.
    """
    return game(
        generator.student(student, steps),
        student,
        teacher,
        discriminator,
        law=critic_law,
        adversary=adversary,
        from_teacher=from_teacher,
    )


# c(sigma) of the distillation of ADD, arXiv 2311.17042; alpha = 1/sqrt(1 + sigma^2) is that of a
# schedule that keeps the variance.
DISTILLATIONS = {
    'exponential': lambda sigma: 1 / jnp.sqrt(1 + sigma**2),  # alpha
    # alpha/(2 sigma_t) w: on the sum of squares, score distillation sampling with w = 1.
    'sds': lambda sigma: 1 / (2 * sigma),
}


def add(
    student: Denoiser,
    teacher: Denoiser,
    discriminator: Any,
    *,
    student_law: NoiseLaw,
    critic_law: NoiseLaw,
    distillation: str = 'exponential',
    distillation_weight: Annotated[float, Continuous()] = 2.5,
    from_teacher: bool = True,
    steps: Steps = Steps(sigma_init=80.0),
    adversary: Adversary = Adversary(gan_loss='hinge'),
) -> Method:
    """Adversarial diffusion distillation (ADD, arXiv 2311.17042): `game`, and

        distillation_weight E c(sigma) mean|x - sg(D_T(x + sigma eps, sigma))|^2

    The second term pulls samples to the modes of the teacher (that of a Gaussian student of a
    Gaussian teacher has no variance at its minimum), and the first holds them apart. The paper's
    discriminator sees DINOv2's features of images; here it is LADD's.

    Args:
      student, teacher, discriminator, critic_law, from_teacher: see `ladd`.
      student_law: `NoiseLaw` of sigma of the second term.
      distillation: c, key of `DISTILLATIONS`.
      distillation_weight: >= 0; the paper's 2.5 is of its own features and sums.
      steps, adversary: settings.

    Raises:
      ValueError: on values out of range, or a missing discriminator.
    """
    if distillation not in DISTILLATIONS:
        raise ValueError(f'distillation={distillation!r}: known are {", ".join(DISTILLATIONS)}')
    if not distillation_weight >= 0:
        raise ValueError(f'distillation_weight={distillation_weight}: must be >= 0')

    def task(x, key_z, key, context, batch):
        x_t, sigma = perturb(key, stop_gradient(x), student_law)
        given = context.frozen.get('teacher', {}), x_t, sigma, batch['condition']
        target = stop_gradient(teacher.apply(*given)[0])
        values = losses.denoising(x, target, DISTILLATIONS[distillation](sigma))
        return distillation_weight * values, {'distillation': jnp.mean(values)}

    return game(
        generator.student(student, steps),
        student,
        teacher,
        discriminator,
        law=critic_law,
        adversary=adversary,
        from_teacher=from_teacher,
        task=task,
    )


class Transport(NamedTuple):
    """How much a sample's way from its noise counts: settings of `adversarial_flow`.

    ot_weight, ot_final: first and last weight of mean|x - z|^2, >= 0.
    ot_steps: steps from the one to the other, along half a cosine.
    """

    ot_weight: Annotated[float, Continuous()] = 0.2
    ot_final: Annotated[float, Continuous()] = 0.005
    ot_steps: int = 1_000_000


def transport_at(transport: Transport, step: jax.Array | int) -> jax.Array:
    """The weight after `step` steps, see `Transport`."""
    first, last, steps = transport
    done = jnp.clip(jnp.asarray(step, jnp.result_type(float)) / steps, 0, 1)
    return last + (first - last) * 0.5 * (1 + jnp.cos(jnp.pi * done))


def adversarial_flow(
    student: Denoiser,
    discriminator: Any,
    *,
    critic_law: NoiseLaw | None = None,
    sigma_init: Annotated[float, Continuous()] = 1.0,
    transport: Transport = Transport(),
    adversary: Adversary = Adversary(
        gan_loss='relativistic',
        features='input',
        r1_weight=2500.0,
        r2_weight=2500.0,
        penalty_step=0.01,
        center_weight=0.01,
        gradient_decay=0.9,
    ),
) -> Method:
    """Adversarial flow models (arXiv 2511.22475 and code), in one step and without a teacher:
    `game` on images, and

        ot_weight(step) E mean|G(z) - z|^2

    Samples of the same distribution are made by many maps of the noise. The second term chooses
    among them the one with the shortest way, the optimal transport, which the first leaves free;
    its pull on the samples themselves goes with its weight.

    Args:
      student: `Denoiser`, x = D(sigma_init z, sigma_init).
      discriminator: `networks.Head`.
      critic_law: `NoiseLaw` of sigma that is added to samples and data; default: none, as there.
      sigma_init: level of the generator's input noise, > 0.
      transport, adversary: settings; the defaults are the code's for ImageNet-256 (penalties 0.25
        E |grad l|^2).

    Raises:
      ValueError: on values out of range, or a missing discriminator.
    """
    if transport.ot_weight < 0 or transport.ot_final < 0 or transport.ot_steps < 1:
        raise ValueError(f'{transport}: weights must be >= 0, ot_steps >= 1')

    def task(x, key_z, key, context, batch):
        # Of the key that x was drawn with, its noise.
        way = losses.denoising(x, generator.unit_noise(key_z, batch), jnp.ones(len(x), x.dtype))
        weight = transport_at(transport, context.step).astype(x.dtype)
        return weight * way, {'transport': jnp.mean(way), 'ot_weight': weight}

    return game(
        generator.student(student, Steps(sigma_init)),
        student,
        None,
        discriminator,
        law=critic_law,
        adversary=adversary,
        task=task,
    )


# See `distribution.TINY`.
_HEAD = {'discriminator': {'name': 'mlp', 'width': 16, 'layers': 2}}
_TWO = {'cycle': 'alternate', 'student_every': 2}
# Within its margin, hinge has no gradient in the last bias, and what Adam makes of its rounding
# differs from mesh to mesh.
TINY = {
    'ladd': _HEAD
    | {'method': _TWO | {'features': 'input', 'gan_loss': 'softplus', 'r1_weight': 0.1}},
    'add': _HEAD | {'method': _TWO | {'features': 'input', 'gan_loss': 'softplus'}},
    'adversarial_flow': _HEAD | {'method': _TWO | {'ot_steps': 8}},
}
