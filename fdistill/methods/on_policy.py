"""Flow maps that also learn from what they make themselves, in any number of jumps."""

from typing import Annotated, NamedTuple

from fdistill.diffusion.denoiser import Denoiser
from fdistill.diffusion.noise import NoiseLaw
from fdistill.methods import generator
from fdistill.methods.average import Times, Weight, flow_map_distill
from fdistill.methods.distribution import joined, matching
from fdistill.methods.generator import Jumps
from fdistill.methods.method import Method, Tracking
from fdistill.types import Continuous


class OnPolicy(NamedTuple):
    """How a flow map learns from its own samples.

    score_weight: of the score gap, >= 0; 2 is the gradient of AnyFlow's term of weight 1, for
      `score_gap` has half the square.
    rollouts: numbers of jumps that are drawn, each >= 1; AnyFlow's. More cost no more.
    """

    score_weight: Annotated[float, Continuous()] = 2.0
    rollouts: tuple[int, ...] = (2, 4, 8, 16, 50)


def any_flow(
    student: Denoiser,
    teacher: Denoiser,
    fake_score: Denoiser,
    law: NoiseLaw,
    *,
    student_law: NoiseLaw,
    critic_law: NoiseLaw,
    form: str = 'eulerian',
    on_policy: OnPolicy = OnPolicy(),
    times: Times = Times(share_equal=0.5, share_zero=0.25),
    weight: Weight = Weight(),
    tracking: Tracking = Tracking(cycle='dmd2'),
    jumps: Jumps = Jumps(),
) -> Method:
    """AnyFlow (arXiv 2605.13724), its second stage: a flow map joined with DMD2.

        L = L_map + score_weight L_dmd

    The first is `average.flow_map_distill`; the second `losses.score_gap` with DMD's weight
    (reverse KL) on the student's own samples, made as in any of several numbers of jumps
    (`generator.rollout`), so that it sees the errors of each and more jumps do not make samples
    worse. Both have the teacher with its guidance; the paper's first has the velocity of data and
    noise, of which that is the mean, and a difference of 0.01 in t for the derivative. The section
    `start` names the flow map of the first stage, a run of `flow_map_distill` or of MeanFlow's.

    Args:
      student, teacher, fake_score: `Denoiser`; the student takes the condition `until`, the
        teacher's parameters are frozen['teacher'].
      law: of both levels of the flow map; uniform in the flow time in the paper, shifted by 5.
      student_law, critic_law: of the score gap's and of the fake score's, there likewise and
        logit-normal.
      form: of `average.FORMS`; the paper's is eulerian.
      on_policy: settings.
      times: sorted; half of the levels are equal in the paper, and a quarter lead to 0.
      weight: of the flow map's errors. The paper's code weighs levels by t sqrt(1 - t) and divides
        the errors of r < t by themselves, times the mean error of r = t; here one power holds for
        all, so that the two losses stand in another ratio.
      tracking: settings, also sigma_data and whether the student begins as the teacher.
      jumps: settings.

    Raises:
      ValueError: on unknown names, values out of range, or a network without `until`.
    """
    if times.pairing != 'sorted':
        raise ValueError(f"pairing={times.pairing!r}: must be 'sorted' here, of one law")
    own = flow_map_distill(
        student,
        teacher,
        law,
        form=form,
        times=times,
        weight=weight,
        from_teacher=tracking.from_teacher,
        jumps=jumps,
    )
    draw = generator.rollout(student, jumps.levels[0], on_policy.rollouts)
    matched = matching(
        own.generator._replace(draw=draw),
        student,
        teacher,
        fake_score,
        student_law=student_law,
        critic_law=critic_law,
        tracking=tracking,
    )
    return joined(own, matched, on_policy.score_weight)


# See `distribution.TINY`.
_NETWORK = {'name': 'mlp', 'width': 16, 'blocks': 1, 'embedding': 8, 'numbers': ('until',)}
TINY = {
    'any_flow': {
        'network': _NETWORK,
        'method': {'levels': (5.0,), 'cycle': 'alternate', 'student_every': 2},
    }
}
