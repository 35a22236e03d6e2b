"""What a method is: losses over named roles, the order in which the roles are trained, the averages
that are kept, and how to generate."""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fdistill.diffusion.denoiser import NULLS, Denoiser, column
from fdistill.methods.generator import Generator
from fdistill.types import Continuous


class Context(NamedTuple):
    """What a loss may read and does not train.

    frozen: {name: parameters} of networks that stay as they are, as the teacher's.
    averages: {name: tree} of `Method.averages`.
    aux: the method's own statistics.
    step: int32, steps done.
    """

    frozen: Mapping[str, Any]
    averages: Mapping[str, Any] = {}
    aux: Any = {}
    step: jax.Array | int = 0


class Average(NamedTuple):
    """A moving average of a role's parameters, d average + (1 - d) parameters at each update.

    of: the role.
    decay: step -> d; None for the trainer's own, of `training.ema_half_life`.
    """

    of: str
    decay: Callable[[jax.Array], jax.Array] | None = None


DEPLOYED = 'ema'  # the average that a checkpoint is sampled from


class Method(NamedTuple):
    """Pure functions that a trainer needs.

    init(key, batch, frozen) -> (params, aux): params is {role: pytree}, aux the method's own
      statistics (arrays).
    losses: role -> loss(params, context, batch, key) -> (scalar, (metrics, aux)); differentiated in
      params[role] only. A metric is a scalar, averaged from log to log; an `estimate`, logged with
      its standard error; or a histogram [levels, cells] as of `losses.histogram`, summed.
    cycle(step) -> the roles trained in that step, in order; later roles see the earlier ones'
      update.
    generator: `Generator`, which samples with the average named `DEPLOYED`.
    averages: {name: `Average`}, `DEPLOYED` among them.
    begins: names in `frozen` that `init` alone reads.

    `batch` is {'x': [B,...], 'condition': {name: [B,...]}}, of pairs with a 'pair' (see `pairing`),
    `frozen` the parameters of what is not trained ({} where there is nothing).
    """

    init: Callable[..., Any]
    losses: Mapping[str, Callable[..., Any]]
    cycle: Callable[[int], tuple[str, ...]]
    generator: Generator
    averages: Mapping[str, Average] = {DEPLOYED: Average('student')}
    begins: tuple[str, ...] = ()


def estimate(values: jax.Array) -> jax.Array:
    """A metric with its noise: (mean of the values [B], variance of that mean), [2]."""
    return jnp.stack([jnp.mean(values), jnp.var(values) / max(len(values) - 1, 1)])


# name -> n -> cycle with one student update in n steps. The critic is trained n times per student
# update in the first two and n - 1 times in FastGen's, whose phases exclude each other.
CYCLES = {
    'alternate': lambda n: (
        lambda step: ('critic', 'student') if (step + 1) % n == 0 else ('critic',)
    ),
    'dmd2': lambda n: lambda step: ('student', 'critic') if step % n == 0 else ('critic',),
    'fastgen': lambda n: lambda step: ('student',) if (step + 1) % n == 0 else ('critic',),
}


def make_cycle(name: str, student_every: int, burn_in: int = 0) -> Callable[[int], tuple[str, ...]]:
    """The update cycle of a student and its critic.

    Args:
      name: key of `CYCLES`. 'alternate' (Diff-Instruct, SiD, SIM: n = 1) trains the critic in every
        step and, in every n-th step, the student after it. 'dmd2' trains the student first, in step
        0 too; the critic of that step learns from the updated student (DMD2's code reuses the batch
        made before the update). 'fastgen' trains the student alone in every n-th step and the
        critic alone in the others.
      student_every: n, >= 1 ('fastgen': >= 2). DMD2 and f-distill: 5.
      burn_in: >= 0, of the first steps, which train the critic alone.

    Raises:
      ValueError: on an unknown name or numbers out of range.
    """
    if name not in CYCLES:
        raise ValueError(f'cycle={name!r}: known are {", ".join(CYCLES)}')
    lowest = 2 if name == 'fastgen' else 1
    if student_every < lowest or student_every != int(student_every):
        raise ValueError(
            f'student_every={student_every} for cycle {name!r}: need a whole number >= {lowest}'
        )
    if burn_in < 0 or burn_in != int(burn_in):
        raise ValueError(f'burn_in={burn_in}: need a whole number of steps, >= 0')
    cycle = CYCLES[name](int(student_every))
    return lambda step: ('critic',) if step < burn_in else cycle(step)


class Tracking(NamedTuple):
    """How a fake score follows the student: settings of every method that has one.

    critic_weighting: key of `noise.WEIGHTINGS`: 'edm' in DMD2, SiD, Diff-Instruct; 'unit' in
      FastGen.
    sigma_data: standard deviation of the data, for the weighting.
    from_teacher: start the student as a copy of the teacher; else from its own initialisation, or
      as a copy of frozen['start']. The fake score begins as the teacher in any case, where that has
      parameters.
    cycle, student_every, burn_in: see `make_cycle`.
    critic_guidance, fake_guidance: classifier-free guidance of the fake score, in its own loss and
      in the student's: kappa_1 and kappa_2 = kappa_3 of long and short guidance (SiD-LSG, arXiv
      2406.01561), which has both equal to the teacher's. 1 in all other methods.
    """

    critic_weighting: str = 'edm'
    sigma_data: Annotated[float, Continuous()] = 0.5
    from_teacher: bool = True
    cycle: str = 'alternate'
    student_every: int = 1
    burn_in: int = 0
    critic_guidance: Annotated[float, Continuous(off=1)] = 1.0
    fake_guidance: Annotated[float, Continuous(off=1)] = 1.0


def start(key: jax.Array, model: Denoiser, batch: Mapping[str, Any], base: Any = None) -> Any:
    """Parameters of a network at the start of training: a copy of `base`, or its own.

    Where the network has more arrays than `base`, as those that embed a further number of a
    condition, these are its own. The copy has fresh buffers: a donated state must not delete arrays
    that something else holds.

    Raises:
      ValueError: an array of `base` is not among the network's, or has another shape.
    """
    given = key, batch['x'], batch['condition']
    if base is None:
        return model.init(*given)
    own = jax.eval_shape(model.init, *given)
    shapes = {path: jnp.shape(leaf) for path, leaf in jax.tree.leaves_with_path(own)}
    missing = [
        jax.tree_util.keystr(path, simple=True, separator='.')
        for path, leaf in jax.tree.leaves_with_path(base)
        if shapes.get(path) != jnp.shape(leaf)
    ]
    if missing:
        raise ValueError(
            f'a student cannot start as another network: of its {len(missing)} arrays that the '
            f'student lacks, or has in another shape, the first is {missing[0]}'
        )
    if jax.tree.structure(own) == jax.tree.structure(base):
        return jax.tree.map(jnp.copy, base)
    over, own = dict(jax.tree.leaves_with_path(base)), model.init(*given)
    return jax.tree.map_with_path(lambda path, leaf: jnp.copy(over.get(path, leaf)), own)


def begin(student: Denoiser, from_teacher: bool = False) -> Callable[..., Any]:
    """`Method.init` of a method that trains the student alone: a copy of frozen['start'] where that
    is given, else of the teacher, or its own initialisation.

    Args:
      student: `Denoiser`.
      from_teacher: a copy of frozen['teacher'].
    """

    def init(key, batch, frozen):
        base = frozen.get('start', frozen['teacher'] if from_teacher else None)
        return {'student': start(key, student, batch, base)}, {}

    return init


def evenly(n: int, share: float) -> jax.Array:
    """Which of n samples are a share of them, bool [n]: spread over the batch, so that each device
    has its part.

    Args:
      n: samples.
      share: in (0, 1).
    """
    place = np.arange(n + 1) * share // 1
    return jnp.asarray(place[1:] > place[:-1])


def updates(weighting: Any) -> dict[str, jax.Array]:
    """The part of aux that counts the student's updates, where the weight of a divergence depends
    on them (`divergences.Weighting.stepwise`). Steps would not do: an update may be skipped."""
    return {'updates': jnp.zeros((), jnp.int32)} if weighting.stepwise else {}


def counted(aux: dict[str, Any]) -> dict[str, Any]:
    """aux after one more update of the student."""
    return aux | {'updates': aux['updates'] + 1} if 'updates' in aux else aux


def check_guidable(condition: Mapping[str, Any], what: str) -> None:
    """Raises ValueError where nothing of a condition can be left out, which guidance compares.

    Args:
      condition: {name: [B,...]}.
      what: asks for guidance, in words.
    """
    if not NULLS.keys() & condition.keys():
        raise ValueError(f'{what}: the data have no condition to guide by; leave it out')


def leave_out(
    key: jax.Array, share: float, model: Denoiser, params: Any, condition: Mapping[str, Any]
) -> tuple[dict[str, jax.Array], jax.Array]:
    """(The condition, left out of a share of the samples as `Denoiser.null` says; of which, [B]).

    Args:
      key: random key.
      share: in [0, 1).
      model, params: whose null it is.
      condition: {name: [B,...]}, not empty.
    """
    count = len(next(iter(condition.values())))
    dropped = jax.random.bernoulli(key, share, (count,))
    nothing = model.null(params, condition)
    kept = {
        name: jnp.where(column(dropped, value), nothing[name], value)
        for name, value in condition.items()
    }
    return kept, dropped
