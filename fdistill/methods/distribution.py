"""Distribution matching: Diff-Instruct / VSD, DMD2 and f-distill with any f-divergence, one method
with three sets of defaults.

The student x = G(z) moves along h(r) (D_T - D_F)(x_t), where D_F follows the student, D_T is the
teacher and r = p/q is read from a discriminator: the gradient of D_f(p_t||q_t), weighted over noise
levels (f-distill, arXiv 2502.15681, Theorem 1).
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient

from fdistill import divergences
from fdistill.diffusion.denoiser import Denoiser
from fdistill.diffusion.noise import NoiseLaw
from fdistill.methods import generator, losses
from fdistill.methods.critic import Gan
from fdistill.methods.generator import Generator, Steps
from fdistill.methods.matching import Objective, Preference, Ratio, Seen, matched, weight_of
from fdistill.methods.method import Method, Tracking


def distribution_matching(
    student: Denoiser,
    teacher: Denoiser,
    fake_score: Denoiser,
    *,
    student_law: NoiseLaw,
    critic_law: NoiseLaw,
    divergence: str = 'reverse_kl',
    weighting: str = 'dmd',
    steps: Steps = Steps(sigma_init=80.0),
    ratio: Ratio = Ratio(),
    gan: Gan = Gan(),
    tracking: Tracking = Tracking(),
    preference: Preference = Preference(),
) -> Method:
    """min over G of E_sigma w(sigma) D_f(p_sigma || q_sigma) + gan_weight E softplus(-logit)
    - reward_weight E r(x).

    Student loss: `losses.score_gap` with weight w h(r), h = r^2 f''. Where h is constant (reverse
    KL) no ratio is used and, with gan_weight 0, no discriminator. f-distill without a GAN term is
    not in its paper; it is possible here, because a comparison of divergences needs it.

    Args:
      student, teacher, fake_score: `Denoiser`; classifier-free guidance is part of the teacher
        (`denoiser.guide`), the fake score is never guided. The ratio then estimates p_data/q, not
        p_guided/q: the discriminator sees data.
      student_law, critic_law: `NoiseLaw` of sigma for the student's loss and the critic's.
      divergence: anything `divergences.weighting` takes.
      weighting: key of `losses.WEIGHTS`, 'dmd' = 1/mean|x - D_T|.
      gan: settings; the discriminator is needed where h(r) is not constant or gan_weight > 0.
      steps, ratio, tracking, preference: settings.

    Raises:
      ValueError: on values out of range, a missing discriminator or a missing reward.
    """
    return matching(
        generator.student(student, steps),
        student,
        teacher,
        fake_score,
        student_law=student_law,
        critic_law=critic_law,
        divergence=divergence,
        weighting=weighting,
        ratio=ratio,
        gan=gan,
        tracking=tracking,
        preference=preference,
    )


def matching(
    generate: Generator,
    student: Denoiser,
    teacher: Denoiser | None,
    fake_score: Denoiser | None,
    *,
    student_law: NoiseLaw,
    critic_law: NoiseLaw,
    divergence: str = 'reverse_kl',
    weighting: str = 'dmd',
    ratio: Ratio = Ratio(),
    gan: Gan = Gan(),
    tracking: Tracking = Tracking(),
    preference: Preference = Preference(),
) -> Method:
    """`distribution_matching` of a student that makes its samples in another way.

    Args:
      generate: `Generator` of the student.
      student, teacher, fake_score, student_law, critic_law, divergence, weighting, ratio, gan,
        tracking, preference: see there.

    Raises:
      ValueError: on values out of range, a missing discriminator or a missing reward.
    """
    return matched(
        generate,
        student,
        teacher,
        fake_score,
        objective=Objective(along_gap(weighting), divergences.weighting(divergence)),
        student_law=student_law,
        critic_law=critic_law,
        ratio=ratio,
        gan=gan,
        tracking=tracking,
        preference=preference,
    )


def along_gap(weighting: str) -> Callable[[Seen], tuple[jax.Array, dict[str, jax.Array]]]:
    """`Objective.loss` of `losses.score_gap`, times h(r) where that is not constant.

    Args:
      weighting: key of `losses.WEIGHTS`.

    Raises:
      ValueError: on an unknown weighting.
    """
    weigh = weight_of(weighting)

    def loss(seen):
        weight = weigh(seen)
        if seen.h is not None:
            weight = weight * stop_gradient(seen.h(seen.ratio))
        gap = losses.score_gap(seen.x, seen.d_teacher, seen.d_fake, weight)
        return gap, {'score_gap': jnp.mean(gap)}

    return loss


def joined(own: Method, matched: Method, weight: float) -> Method:
    """A method of the student alone, joined with `matching` on the student's own samples:

        L = L_own + weight L_matched

    Cycle, critic, generator and averages are those of the second, and of metrics with one name its
    are kept; statistics are those of the first. Hence the second is to have no statistics, and the
    first no average but the deployed one.

    Args:
      own, matched: `Method`.
      weight: >= 0.

    Raises:
      ValueError: on a weight out of range.
    """
    if not weight >= 0:
        raise ValueError(f'score_weight={weight}: must be >= 0')

    def init(key, batch, frozen):
        params, _ = matched.init(key, batch, frozen)
        return params, own.init(key, batch, frozen)[1]

    def loss(params, context, batch, key):
        key_own, key_gap = jax.random.split(key)
        value, (metrics, aux) = own.losses['student'](params, context, batch, key_own)
        gap, (more, _) = matched.losses['student'](params, context, batch, key_gap)
        return value + weight * gap, (metrics | more, aux)

    return matched._replace(init=init, losses=matched.losses | {'student': loss})


# Diff-Instruct (arXiv 2305.18455): reverse KL without a GAN, weight 1 on D_F - D_T, critic and
# student 1:1. With weighting='dmd' it is variational score distillation with DMD's weight.
diff_instruct = functools.partial(
    distribution_matching, weighting='unit', steps=Steps(sigma_init=1.0)
)

# DMD2 (arXiv 2405.14867): reverse KL with DMD's weight, a GAN on the fake score's features, five
# critic updates to one.
dmd2 = functools.partial(
    distribution_matching,
    steps=Steps(sigma_init=80.0, last=0.0),
    gan=Gan(
        gan_weight=3e-3, gan_fresh_noise=True, discriminator_weight=1e-2, features='fake_score'
    ),
    tracking=Tracking(cycle='dmd2', student_every=5),
)

# f-distill (arXiv 2502.15681): any f-divergence, r from a discriminator on the frozen teacher's
# features. Defaults are the paper's for CIFAR-10 (whose best divergence is forward KL,
# ImageNet-64's JS). Its critic uses 'edm' weighting here, as DMD2's does; FastGen's code leaves it
# unweighted, which spends the fake score on large sigma.
f_distill = functools.partial(
    distribution_matching,
    divergence='js',
    gan=Gan(gan_weight=1e-3),
    tracking=Tracking(cycle='fastgen', student_every=5),
)

# Diff-Instruct++ (arXiv 2410.18881): Diff-Instruct with a reward on the student's samples, and its
# divergence at all levels of noise as the price; guidance of the teacher is the other reward of the
# paper, whose laws and weights are not published. Noise makes a change cheaper: the mean of a
# Gaussian of variance v moves (v + sigma^2)/v times as far as under the KL of clean samples.
di_plus_plus = functools.partial(
    distribution_matching,
    weighting='unit',
    steps=Steps(sigma_init=1.0),
    preference=Preference(reward_weight=0.1),
)

# The smallest config of each, sections that differ from a common one: with it tests train whatever
# is registered. A critic-only and a student step lie among the first four of each cycle.
_HEAD = {'name': 'mlp', 'width': 16, 'layers': 2}
_GAN = {'gan_weight': 0.1, 'features': 'input'}
TINY = {
    'diff_instruct': {'method': {'cycle': 'alternate', 'student_every': 2}},
    'dmd2': {
        'method': _GAN
        | {'cycle': 'dmd2', 'student_every': 3, 'features': 'fake_score', 'r1_weight': 0.1},
        'discriminator': _HEAD,
    },
    'f_distill': {
        'method': _GAN | {'cycle': 'fastgen', 'student_every': 3, 'divergence': 'forward_kl'},
        'discriminator': _HEAD,
    },
    'di_plus_plus': {
        'method': {'cycle': 'alternate', 'student_every': 2},
        'reward': {'name': 'quadratic', 'centre': (0.3,)},
    },
}
