"""Optimizers from a config section."""

from collections.abc import Callable
from typing import Annotated

import jax
import optax

from fdistill.networks.edm2 import unit
from fdistill.types import Continuous

MOST_STEPS = 10**8
CONSTANTS = ('freqs', 'phases')


def adam(
    *,
    steps: int,
    learning_rate: Annotated[float, Continuous()],
    b1: Annotated[float, Continuous()] = 0.9,
    b2: Annotated[float, Continuous()] = 0.999,
    eps: Annotated[float, Continuous()] = 1e-8,
    weight_decay: Annotated[float, Continuous(off=0)] = 0.0,
    clip: Annotated[float, Continuous(off=0)] = 0.0,
    warmup: int = 0,
    schedule: str = 'constant',
    final: Annotated[float, Continuous()] = 0.0,
    unit_weights: bool = False,
) -> optax.GradientTransformation:
    """Adam, with decoupled weight decay if any (AdamW), gradient clipping by global norm and a
    learning-rate schedule.

    Args:
      steps: number of updates of this role, the length of the cosine.
      learning_rate: peak, > 0.
      b1, b2, eps: Adam's. SiD, SIM, Diff-Instruct: b1 = 0.
      weight_decay: >= 0.
      clip: largest global norm of the gradient; 0 for none.
      warmup: updates of linear warm-up.
      schedule: 'constant' or 'cosine'.
      final: last learning rate of the cosine as a share of the peak, in [0, 1].
      unit_weights: keep the weights of a network `edm2` at unit magnitude, see `forced`.

    Raises:
      ValueError: on values out of range or an unknown schedule.
    """
    if (
        not learning_rate > 0
        or not 0 <= b1 < 1
        or not 0 <= b2 < 1
        or weight_decay < 0
        or clip < 0
        or warmup < 0
    ):
        raise ValueError(
            f'optimizer: learning_rate={learning_rate} must be > 0, b1={b1}, b2={b2} in [0, 1), '
            f'weight_decay={weight_decay}, clip={clip}, warmup={warmup} >= 0'
        )
    if not 0 <= final <= 1:
        raise ValueError(f'optimizer: final={final} must lie in [0, 1]')
    schedules = {
        'constant': lambda: optax.schedules.constant_schedule(learning_rate),
        'cosine': lambda: optax.schedules.cosine_decay_schedule(
            learning_rate, max(steps - warmup, 1), alpha=final
        ),
    }
    if schedule not in schedules:
        raise ValueError(f'optimizer: schedule={schedule!r}: known are {", ".join(schedules)}')
    rate = schedules[schedule]()
    if warmup:
        rate = optax.schedules.join_schedules(
            [optax.schedules.linear_schedule(0, learning_rate, warmup), rate], [warmup]
        )
    if weight_decay:
        base = optax.adamw(rate, b1, b2, eps, weight_decay=weight_decay, mask=_decayed)
    else:
        base = optax.adam(rate, b1, b2, eps)
    chained = optax.chain(optax.clip_by_global_norm(clip), base) if clip else base
    return optax.chain(chained, forced()) if unit_weights else chained


def forced() -> optax.GradientTransformation:
    """Updates after which every row of a weight has unit magnitude (EDM2's forced weight
    normalisation, arXiv 2312.02696, equation 66).

    The network uses rows at unit magnitude anyway; kept there, they do not grow, and the learning
    rate stays what it is. Weights are the arrays whose names end with '.weight'; their rows lie
    along the first axis.
    """

    def update(updates, state, params=None):
        def of(path, update, weight):
            if not str(getattr(path[-1], 'key', '')).endswith('.weight'):
                return update
            return unit(weight + update, tuple(range(1, weight.ndim))) - weight

        return jax.tree_util.tree_map_with_path(of, updates, params), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def continued(
    begun: optax.GradientTransformation, now: optax.GradientTransformation
) -> optax.GradientTransformation:
    """The updates of `now` with the state of `begun`, as checkpoints of the run have it; both are
    of `adam`, whose settings change the shape of the state but not the arrays in it."""

    def update(gradient, state, params=None):
        structure = jax.tree.structure(jax.eval_shape(now.init, params))
        own = jax.tree.unflatten(structure, jax.tree.leaves(state))
        updates, own = now.update(gradient, own, params)
        return updates, jax.tree.unflatten(jax.tree.structure(state), jax.tree.leaves(own))

    return optax.GradientTransformation(begun.init, update)


def _decayed(params):
    """All parameters but the Fourier features of NCSN++ and EDM2: these are constants without a
    gradient, which decay would change."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: str(getattr(path[-1], 'key', '')).split('.')[-1] not in CONSTANTS, params
    )


def role_updates(cycle: Callable[[int], tuple[str, ...]], steps: int) -> dict[str, int]:
    """How often each role is trained in `steps` steps, {role: count}; ValueError where they are too
    many to be counted."""
    if steps > MOST_STEPS:
        raise ValueError(f'steps={steps}: must be at most {MOST_STEPS}')
    counts = {}
    for step in range(steps):
        for role in cycle(step):
            counts[role] = counts.get(role, 0) + 1
    return counts
