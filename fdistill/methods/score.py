"""Score-based distillation through the networks: SIM, SiD, SiDA and Uni-Instruct. The student's
loss has no stop_gradient on samples and denoisers."""

import functools
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp

from fdistill import divergences
from fdistill.diffusion.denoiser import Denoiser
from fdistill.diffusion.noise import NoiseLaw
from fdistill.methods import generator, losses
from fdistill.methods.critic import Gan, Real
from fdistill.methods.generator import Steps
from fdistill.methods.matching import Objective, Preference, Ratio, Seen, matched, weight_of
from fdistill.methods.method import Method, Tracking
from fdistill.types import Continuous


def through_networks(
    values_of: Callable[[Seen], jax.Array],
    student: Denoiser,
    teacher: Denoiser,
    fake_score: Denoiser,
    *,
    steps: Steps,
    weights: divergences.Weighting | None = None,
    real: Real | None = None,
    **settings: Any,
) -> Method:
    """A student trained by values_of(seen) -> [B], where x, D_T(x_t) and D_F(x_t) all carry
    gradient.

    Args:
      values_of: the loss of each sample.
      student, teacher, fake_score, settings: see `matched`.
      steps: settings of the student.
      weights, real: see `Objective`.
    """

    def loss(seen):
        values = values_of(seen)
        gap = jnp.mean((seen.d_teacher - seen.d_fake) ** 2)
        return values, {'score': jnp.mean(values), 'denoiser_gap': gap}

    return matched(
        generator.student(student, steps),
        student,
        teacher,
        fake_score,
        objective=Objective(loss, weights, real),
        **settings,
    )


# scale(sigma) of the denoiser gap in SIM's y.
SCALES = {'score': lambda sigma: sigma**-2, 'eps': lambda sigma: 1 / sigma, 'unit': jnp.ones_like}


def sim(
    student: Denoiser,
    teacher: Denoiser,
    fake_score: Denoiser,
    *,
    student_law: NoiseLaw,
    critic_law: NoiseLaw,
    distance: str = 'pseudo_huber',
    c: Annotated[float, Continuous()] = 0.1,
    scale: str = 'eps',
    total_gradient: bool = False,
    steps: Steps = Steps(sigma_init=2.5),
    tracking: Tracking = Tracking(),
    preference: Preference = Preference(),
) -> Method:
    """Score implicit matching (SIM, arXiv 2410.16794), `losses.implicit`; data-free.

    The paper's c and w(sigma) are not published. Here y = (D_F - D_T)/sigma by default, the gap
    between the two noise predictions, which the pseudo-Huber distance normalises further.

    Args:
      student, teacher, fake_score: `Denoiser`.
      distance: 'pseudo_huber' or 'squared_l2'.
      c: of pseudo-Huber, > 0, on the scale of y; ignored by squared_l2.
      scale: key of `SCALES`, what y measures: scores, noise predictions or denoisers.
      total_gradient: add d(y), see `losses.implicit`.
      student_law, critic_law: `NoiseLaw` of sigma for the student's loss and the critic's.
      steps, tracking, preference: settings.

    Raises:
      ValueError: on unknown names or c <= 0.
    """
    distances = {
        'pseudo_huber': lambda: losses.pseudo_huber(c),
        'squared_l2': lambda: losses.squared_l2,
    }
    if distance not in distances:
        raise ValueError(f'distance={distance!r}: known are {", ".join(distances)}')
    if scale not in SCALES:
        raise ValueError(f'scale={scale!r}: known are {", ".join(SCALES)}')
    d, scale_of = distances[distance](), SCALES[scale]

    def values(seen):
        return losses.implicit(
            seen.x, seen.d_teacher, seen.d_fake, scale_of(seen.sigma), d, total_gradient
        )

    return through_networks(
        values,
        student,
        teacher,
        fake_score,
        student_law=student_law,
        critic_law=critic_law,
        steps=steps,
        tracking=tracking,
        preference=preference,
    )


def sid(
    student: Denoiser,
    teacher: Denoiser,
    fake_score: Denoiser,
    *,
    student_law: NoiseLaw,
    critic_law: NoiseLaw,
    alpha: Annotated[float, Continuous()] = 1.2,
    weighting: str = 'dmd',
    steps: Steps = Steps(sigma_init=2.5),
    gan: Gan = Gan(),
    tracking: Tracking = Tracking(),
    preference: Preference = Preference(),
) -> Method:
    """Score identity distillation (SiD, arXiv 2404.04057), `losses.sid`; data-free unless there is
    a GAN term.

    Args:
      student, teacher, fake_score: `Denoiser`.
      alpha: 1.2 in the paper, 1/2 for the exact Fisher gradient, 1 for SIM with squared l2.
      weighting: key of `losses.WEIGHTS`; 'dmd' is the paper's, but depends on x and so breaks the
        exact identities.
      gan: settings, see `sida`.
      student_law, critic_law, steps, tracking, preference: as for `sim`.

    Raises:
      ValueError: on an unknown weighting, or a missing discriminator.
    """
    weight = weight_of(weighting)

    def values(seen):
        return losses.sid(seen.x, seen.d_teacher, seen.d_fake, weight(seen), alpha)

    return through_networks(
        values,
        student,
        teacher,
        fake_score,
        student_law=student_law,
        critic_law=critic_law,
        steps=steps,
        gan=gan,
        tracking=tracking,
        preference=preference,
    )


# SiDA (arXiv 2410.14919): SiD with alpha = 1 and a GAN term on the fake score's own encoder
# (`networks.HEADS['channel_mean']`, no parameters), each sample with the weight of its score term.
# The code's losses are sums, of which the student's is (100 SiD + 0.01 n GAN)/2, and the
# discriminator's has EDM's weight, of mean 200 for CIFAR-10's law, over 2: here, means over n
# elements, 1e-4, and 100/3072. SiD2A is this with a student of SiD in the section `start`.
sida = functools.partial(
    sid,
    alpha=1.0,
    gan=Gan(
        gan_weight=1e-4,
        gan_weighting='dmd',
        gan_from=782,  # Of 256 images: 200 thousand.
        discriminator_weight=100 / 3072,
        features='fake_score',
    ),
    tracking=Tracking(burn_in=391),
)


class Fisher(NamedTuple):
    """How the weighted Fisher divergence is followed: settings of `uni_instruct`.

    weighting: key of `losses.WEIGHTS`, as for `sid`.
    alpha: 1/2 for the exact gradient; 1 leaves out that of sampling, as SIM does and the paper's
      code.
    moving_ratio: whether r moves with x, along the two scores (`losses.along`), where it is not
      clipped: so in the exact gradient, not so in the paper's code.
    """

    weighting: str = 'dmd'
    alpha: Annotated[float, Continuous()] = 1.0
    moving_ratio: bool = False


def uni_instruct(
    student: Denoiser,
    teacher: Denoiser,
    fake_score: Denoiser,
    *,
    student_law: NoiseLaw,
    critic_law: NoiseLaw,
    divergence: str = 'forward_kl',
    fisher: Fisher = Fisher(),
    steps: Steps = Steps(sigma_init=2.5),
    ratio: Ratio = Ratio(),
    gan: Gan = Gan(),
    tracking: Tracking = Tracking(),
    preference: Preference = Preference(),
) -> Method:
    """Uni-Instruct (arXiv 2505.20755), `losses.uni_instruct`: min over G of
    E_sigma w(sigma) E_q[h(r) |s_p - s_q|^2], which is D_f(p_0||q_0) where w dsigma is dsigma^2.

    Args:
      student, teacher, fake_score: `Denoiser`.
      divergence: anything `divergences.weighting` takes; reverse KL is `sid`, and needs no
        discriminator.
      fisher: settings.
      ratio, gan: settings, as for `distribution.distribution_matching`.
      student_law, critic_law, steps, tracking, preference: as for `sim`.

    Raises:
      ValueError: on values out of range, or a missing discriminator.
    """
    weight, alpha = weight_of(fisher.weighting), fisher.alpha

    def values(seen):
        given, r = (seen.x, seen.d_teacher, seen.d_fake), seen.ratio
        if r is None:
            return losses.sid(*given, weight(seen), alpha)
        if fisher.moving_ratio:
            r = jnp.where(seen.clipped, r, losses.along(r, *given, seen.sigma))
        return losses.uni_instruct(*given, weight(seen), r, seen.h, alpha)

    return through_networks(
        values,
        student,
        teacher,
        fake_score,
        student_law=student_law,
        critic_law=critic_law,
        weights=divergences.weighting(divergence),
        steps=steps,
        ratio=ratio,
        gan=gan,
        tracking=tracking,
        preference=preference,
    )


# Diff-Instruct* (arXiv 2410.20898): SIM with a reward on the student's samples. The guided teacher
# within the distance is the paper's DI*-IN. See `matching.Preference` for what reward_weight a
# pseudo-Huber distance can hold.
di_star = functools.partial(sim, preference=Preference(reward_weight=0.1))

# See `distribution.TINY`.
_ALTERNATE = {'cycle': 'alternate', 'student_every': 2}
TINY = {name: {'method': _ALTERNATE} for name in ('sim', 'sid', 'di_star')} | {
    'sida': {
        'method': _ALTERNATE | {'gan_weight': 0.1, 'burn_in': 2, 'gan_from': 4},
        'discriminator': {'name': 'channel_mean'},
    },
    'uni_instruct': {
        'method': _ALTERNATE
        | {'features': 'input', 'divergence': 'js', 'alpha': 0.5, 'moving_ratio': True},
        'discriminator': {'name': 'mlp', 'width': 16, 'layers': 2},
    },
}
TINY['di_star']['reward'] = {'name': 'linear', 'direction': (0.5,)}
