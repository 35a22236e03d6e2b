"""The state of a run: arrays only, so that it can be sharded, donated and restored bit for bit."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from clu import metrics as clu_metrics

from fdistill.methods.method import Method


class Norms(NamedTuple):
    """What is known of the gradient norms of a role; all 0 at first.

    count: int32, of the norms seen.
    mean, variance: of their logarithms, running.
    skipped: int32, updates that were not applied because their norm was a spike.
    """

    count: jax.Array
    mean: jax.Array
    variance: jax.Array
    skipped: jax.Array


class TrainState(NamedTuple):
    """All that changes in training; what is frozen is not part of it.

    step: int32, steps done.
    params, opt_state: {role: pytree}.
    averages: {name: pytree}, of `Method.averages`.
    aux: the method's own statistics.
    skipped, skipped_in_a_row: {role: int32}, updates that were not applied because something was
      not finite.
    metrics: {role: {name: clu Average}} of the updates applied since the last log; part of the
      state so that logs are equal after a resume.
    spikes: {role: `Norms`} where spikes are skipped, else {}.
    """

    step: jax.Array
    params: Any
    opt_state: Any
    averages: Any
    aux: Any
    skipped: Any
    skipped_in_a_row: Any
    metrics: Any
    spikes: Any = {}


def average(value: jax.typing.ArrayLike, count: jax.typing.ArrayLike = 1) -> clu_metrics.Average:
    """clu's Average of a metric, element by element, as for the cells of a histogram; its own
    constructor would take one mean over them."""
    return clu_metrics.Average(
        total=jnp.asarray(value, jnp.float32), count=jnp.asarray(count, jnp.int32)
    )


def measured(state: TrainState) -> dict[str, Any]:
    """The fields of a state whose names are known once a step has been traced."""
    return {'metrics': state.metrics, 'spikes': state.spikes}


def bare(state: TrainState) -> TrainState:
    """The state without what is measured."""
    return state._replace(metrics={}, spikes={})


def empty_metrics(metrics: Any) -> Any:
    """The same names, with nothing averaged yet; from arrays or from their shapes."""
    return jax.tree.map(jnp.zeros_like, metrics)


def init_state(
    method: Method,
    optimizers: Mapping[str, optax.GradientTransformation],
    key: jax.Array,
    batch: Any,
    frozen: Mapping[str, Any],
) -> TrainState:
    """A fresh `TrainState`; trace it with jax.eval_shape or jit it with shardings.

    It has neither metrics nor norms yet: what is measured is known once a step has been traced, see
    `with_metrics`.

    Args:
      method: `Method`.
      optimizers: {role: optax.GradientTransformation}, a row for each of method.losses.
      key: of the run, jax.random.key(seed).
      batch: of the shapes of training.
      frozen: {name: parameters} of what is not trained, as the teacher's.
    """
    params, aux = method.init(jax.random.fold_in(key, 0), batch, frozen)
    averages = {
        name: jax.tree.map(jnp.copy, params[average.of])
        for name, average in method.averages.items()
    }

    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state={role: optimizers[role].init(params[role]) for role in method.losses},
        averages=averages,
        aux=aux,
        skipped={role: jnp.zeros((), jnp.int32) for role in method.losses},
        skipped_in_a_row={role: jnp.zeros((), jnp.int32) for role in method.losses},
        metrics={},
    )


def with_metrics(
    state: TrainState,
    step: Callable[..., TrainState],
    frozen: Mapping[str, Any],
    batch: Any,
    key: jax.Array,
) -> TrainState:
    """The state with the names that a step measures, nothing measured yet: what all steps take and
    give, so that a program serves them all.

    Args:
      state: of `init_state`.
      step: of `make_step`.
      frozen, batch, key: of the step.
    """
    everything = functools.partial(step, roles=tuple(state.skipped))
    after = jax.eval_shape(everything, state, frozen, batch, key)
    return state._replace(**empty_metrics(measured(after)))
