"""What a method is: losses over named roles, the order in which the roles are trained, and how to
generate."""

from typing import Any, Callable, Mapping, NamedTuple

import jax.numpy as jnp


class Method(NamedTuple):
    """Pure functions that a trainer needs.

    init(key, batch, frozen) -> (params, aux): params is {role: pytree}, aux the method's own
      statistics (arrays).
    losses: role -> loss(params, frozen, batch, key, aux) -> (scalar, (metrics, aux));
      differentiated in params[role] only. A metric is a scalar, averaged from log to log, or a
      histogram [levels, cells] as of `losses.histogram`, summed.
    cycle(step) -> the roles trained in that step, in order; later roles see the earlier ones'
      update.
    generate(student_params, noise[B,...] ~ N(0, 1), label[B]) -> x0[B,...]
    nfe: network evaluations of one generate.
    trajectory(student_params, noise[B,...], label[B]) -> (x0[B,...], D[N,B,...]), also the
      estimates of x0 at each of N levels; None where generate takes one step.

    The role `student` is the network that the method trains and deploys. `batch` is {'image',
    'label'}, `frozen` the teacher's parameters ({} where there is none).
    """

    init: Callable[..., Any]
    losses: Mapping[str, Callable[..., Any]]
    cycle: Callable[[int], tuple]
    generate: Callable[..., Any]
    nfe: int
    trajectory: Callable[..., Any] | None = None


# name -> n -> cycle with one student update in n steps. The critic is trained n times per student
# update in the first two and n - 1 times in FastGen's, whose phases exclude each other.
CYCLES = {
    'alternate': lambda n: (
        lambda step: ('critic', 'student') if (step + 1) % n == 0 else ('critic',)
    ),
    'dmd2': lambda n: lambda step: ('student', 'critic') if step % n == 0 else ('critic',),
    'fastgen': lambda n: lambda step: ('student',) if (step + 1) % n == 0 else ('critic',),
}


def make_cycle(name, student_every):
    """The update cycle of a student and its critic.

    Args:
      name: key of `CYCLES`. 'alternate' (Diff-Instruct, SiD, SIM: n = 1) trains the critic in every
        step and after it, in every n-th, the student. 'dmd2' trains the student first, in step 0
        too; the critic of that step learns from the updated student (DMD2's code reuses the batch
        made before the update). 'fastgen' trains the student alone in every n-th step and the
        critic alone in the others.
      student_every: n, >= 1 ('fastgen': >= 2). DMD2 and f-distill: 5.

    Raises:
      ValueError: on an unknown name or n out of range.
    """
    if name not in CYCLES:
        raise ValueError(f'cycle={name!r}: known are {", ".join(CYCLES)}')
    lowest = 2 if name == 'fastgen' else 1
    if student_every < lowest or student_every != int(student_every):
        raise ValueError(
            f'student_every={student_every} for cycle {name!r}: need a whole number >= {lowest}'
        )
    return CYCLES[name](int(student_every))


def column(values, like):
    """values[B] shaped to multiply like[B,...]."""
    return jnp.reshape(values, values.shape + (1,) * (like.ndim - values.ndim))


def one_step(denoiser, sigma_init):
    """generate(params, noise, label) = D(sigma_init noise, sigma_init, label): a denoiser used as a
    generator.

    sigma_init is part of the student: 80 in DMD2 and FastGen, 2.5 in SiD and SIM, 1 in
    Diff-Instruct. A checkpoint made with one must not be sampled with another.
    """
    if not sigma_init > 0:
        raise ValueError(f'sigma_init={sigma_init}: must be > 0, e.g. 2.5 (SiD) or 80 (DMD2)')

    def generate(params, noise, label):
        sigma = jnp.full(noise.shape[0], sigma_init, noise.dtype)
        return denoiser.apply(params, sigma_init * noise, sigma, label)[0]

    return generate


def updates(weighting):
    """The part of aux in which the student's updates are counted, where the weight of a divergence
    depends on them."""
    return {'updates': jnp.zeros((), jnp.int32)} if weighting.stepwise else {}


def counted(aux):
    """aux after one more update of the student."""
    return aux | {'updates': aux['updates'] + 1} if 'updates' in aux else aux
