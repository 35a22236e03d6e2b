"""Real data without a GAN: RealUID, data forcing and DiffRatio.

In the first two the fake score is trained on real samples too, with targets that make it meet the
teacher where the student is right. The third has no score: D_T - D_F is the gradient of a density
ratio of data and student.
"""

from typing import Annotated

from fdistill.diffusion.denoiser import Denoiser
from fdistill.diffusion.noise import NoiseLaw
from fdistill.methods import generator, losses
from fdistill.methods.critic import Gan, Real
from fdistill.methods.distribution import along_gap, matching
from fdistill.methods.generator import Steps
from fdistill.methods.matching import Objective, Ratio, matched, weight_of
from fdistill.methods.method import Method, Tracking
from fdistill.methods.score import through_networks
from fdistill.types import Continuous


def split(alpha: float, beta: float) -> Real:
    """RealUID's regression: weights alpha and 1 - alpha, targets `losses.scaled` by beta/alpha and
    (1 - beta)/(1 - alpha) from `losses.still`.

    Args:
      alpha: in (0, 1).
      beta: any number.
    """

    def target(scale):
        return lambda x, x_t, sigma, teacher: losses.scaled(x, losses.still(x_t, sigma), scale)

    return Real((alpha, 1 - alpha), (target(beta / alpha), target((1 - beta) / (1 - alpha))))


def reflected(forcing: float) -> Real:
    """Data forcing's regression: a sample of the student's has itself as target, a real one, of
    weight `forcing`, what it is as D_T(x_t) reflects it."""
    return Real(
        (1.0, forcing),
        (lambda x, x_t, sigma, teacher: x, lambda x, x_t, sigma, teacher: 2 * teacher() - x),
    )


def real_uid(
    student: Denoiser,
    teacher: Denoiser,
    fake_score: Denoiser,
    *,
    student_law: NoiseLaw,
    critic_law: NoiseLaw,
    alpha: Annotated[float, Continuous(off=1)] = 0.92,
    beta: Annotated[float, Continuous()] = 0.94,
    weighting: str = 'flow',
    steps: Steps = Steps(sigma_init=80.0),
    tracking: Tracking = Tracking(critic_weighting='flow', cycle='fastgen', student_every=6),
) -> Method:
    """Universal inverse distillation with real data (RealUID, arXiv 2509.22459 and its code),
    `losses.real_uid`.

        fake score: min E_q alpha w |D_F(x_t) - y(beta/alpha)|^2
                      + E_p (1 - alpha) w |D_F(x_t) - y((1 - beta)/(1 - alpha))|^2

    with y(s) = o + s (x - o), o = `losses.still(x_t)`. Of an exact teacher the optimum is q = p. Of
    a flawed one p_T it is not: where beta = alpha the data only join the fake score's samples, so
    that the student seeks alpha q + (1 - alpha) p = p_T, on the far side of p_T. The term that
    compares densities has (beta - alpha)/(1 - alpha) for weight, which is small where the paper's
    settings lie: a mode that the teacher lacks stays out. `data_forcing` finds it.

    Args:
      student, teacher, fake_score: `Denoiser`.
      student_law, critic_law: `NoiseLaw` of sigma for the student's loss and the critic's; in the
        code both are 'uniform_time', a flow's.
      alpha: share of the student's samples, in (0, 1]; 1 leaves the data out.
      beta: share of their targets, > 0, and 1 if alpha is. On CIFAR-10 the code has .92 and .94,
        with classes .98 and .96; it advises .85 to 1, beta/alpha .98 or 1.02, and .94 or 1.06 to
        refine a student.
      weighting: key of `losses.WEIGHTS`; 'flow' is the paper's.
      steps, tracking: settings. In the code five updates of the critic stand between the student's.

    Raises:
      ValueError: on values out of range.
    """
    if not 0 < alpha <= 1 or not beta > 0 or (alpha == 1 and beta != 1):
        raise ValueError(
            f'alpha={alpha}, beta={beta}: need alpha in (0, 1] and beta > 0; alpha = 1 leaves the '
            'data out, and beta must then be 1 too'
        )
    weight = weight_of(weighting)

    def values(seen):
        networks = seen.d_teacher, seen.d_fake
        return losses.real_uid(seen.x, seen.x_t, seen.sigma, *networks, weight(seen), alpha, beta)

    return through_networks(
        values,
        student,
        teacher,
        fake_score,
        steps=steps,
        real=None if alpha == 1 else split(alpha, beta),
        student_law=student_law,
        critic_law=critic_law,
        tracking=tracking,
    )


def data_forcing(
    student: Denoiser,
    teacher: Denoiser,
    fake_score: Denoiser,
    *,
    student_law: NoiseLaw,
    critic_law: NoiseLaw,
    forcing: Annotated[float, Continuous()] = 1.0,
    weighting: str = 'dmd',
    steps: Steps = Steps(sigma_init=80.0),
    tracking: Tracking = Tracking(cycle='dmd2', student_every=5),
) -> Method:
    """DMD's gradient towards the data, by the teacher's discrepancy with them; no GAN.

        fake score: min E_q w |D_F(x_t) - x|^2 + forcing E_p w |D_F(x_t) - (2 D_T(x_t) - x)|^2

    x - D_T(x_t) of a noised real sample is on average D_p - D_T, what the teacher's score lacks;
    the second target is D_T less that. At the optimum, with k = forcing and m = q + k p,

        m (D_F - D_T) = q (D_q - D_T) - k p (D_p - D_T) = sigma^2 p_T grad((q - k p)/p_T)

    so that the student goes where the data are and it is not, and leaves where they are not. It
    rests at q = k p + (1 - k) p_T alone: at the data for k = 1, whatever the teacher, which need
    only have some density everywhere. Its steps are those of int (q - k p)^2/(2 p_T), times
    p_T/m. With an exact teacher they are Diff-Instruct's with h = 1/(1 + k r), for k = 1 softened
    reverse KL.

    Named after Data-Forcing Distillation (arXiv 2606.18478), whose text was not to be had: its
    abstract promises a change of DMD by one line, by a discrepancy of the teacher's score that
    leads to the data. What is here was derived for that end. The difference of D_T at a sample of
    the student's and at one of the data's, which the words suggest too, rests nowhere near the
    data: its mean is D_T(x_t) less the data's mean, a pull to the middle.

    Args:
      student, teacher, fake_score: `Denoiser`.
      student_law, critic_law: `NoiseLaw` of sigma for the student's loss and the critic's.
      forcing: share k of the data in what the student seeks, in (0, 1].
      weighting: key of `losses.WEIGHTS`, of D_F - D_T in the student's gradient.
      steps, tracking: settings.

    Raises:
      ValueError: on values out of range.
    """
    if not 0 < forcing <= 1:
        raise ValueError(
            f'forcing={forcing}: must lie in (0, 1]; without data it is diff_instruct or dmd2'
        )
    return matched(
        generator.student(student, steps),
        student,
        teacher,
        fake_score,
        objective=Objective(along_gap(weighting), real=reflected(forcing)),
        student_law=student_law,
        critic_law=critic_law,
        tracking=tracking,
    )


def diff_ratio(
    student: Denoiser,
    *,
    student_law: NoiseLaw,
    critic_law: NoiseLaw,
    divergence: str = 'reverse_kl',
    weighting: str = 'unit',
    steps: Steps = Steps(sigma_init=80.0),
    ratio: Ratio = Ratio(),
    gan: Gan = Gan(features='input'),
    cycle: str = 'alternate',
    student_every: int = 1,
) -> Method:
    """A student of the data, without a teacher: the score gap is the gradient of a log density
    ratio (DiffRatio, arXiv 2502.08005), for any divergence.

        gradient in x: -w h(r) sigma^2 grad_x l(x_t)/n,    l = log r = log p/q at the optimum

    which is `losses.score_gap` with sigma^2 grad l = D_p - D_q, the data's p in the place of the
    teacher's. A GAN is a special case up to the weight: grad of softplus(-l) is -grad l/(1 + r),
    that is softened reverse KL with w = 1/sigma^2. Here f and the weighting are free, and where r
    is needed it is clipped and normalised as in f-distill.

    The paper was read as its abstract; what it says of networks and weights is not known here. The
    student may start as a teacher, of the section `start`, which the paper advises.

    Args:
      student: `Denoiser`.
      student_law, critic_law: `NoiseLaw` of sigma for the student's loss and the critic's.
      divergence: anything `divergences.weighting` takes.
      weighting: key of `losses.WEIGHTS` but 'dmd', which needs a teacher.
      steps, ratio, gan: settings; the discriminator sees noised samples, `gan.features` 'input'.
      cycle, student_every: see `make_cycle`.

    Raises:
      ValueError: on values out of range, or a missing discriminator.
    """
    if 'dmd' in (weighting, gan.gan_weighting):
        raise ValueError(
            f'weighting={weighting!r}, gan_weighting={gan.gan_weighting!r}: dmd needs a teacher; '
            'give unit, eps, score or flow'
        )
    return matching(
        generator.student(student, steps),
        student,
        None,
        None,
        student_law=student_law,
        critic_law=critic_law,
        divergence=divergence,
        weighting=weighting,
        ratio=ratio,
        gan=gan,
        tracking=Tracking(from_teacher=False, cycle=cycle, student_every=student_every),
    )


# See `distribution.TINY`.
TINY = {
    'real_uid': {'method': {'cycle': 'fastgen', 'student_every': 2}},
    'data_forcing': {'method': {'cycle': 'dmd2', 'student_every': 3}},
    'diff_ratio': {
        'method': {'divergence': 'js'},
        'discriminator': {'name': 'mlp', 'width': 16, 'layers': 2},
    },
}
