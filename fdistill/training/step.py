"""One training step: a pure function of state, frozen networks and batch; all else is given when it
is made."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, get_abstract_mesh, use_abstract_mesh

from fdistill.methods.method import Context, Method
from fdistill.training import sharding
from fdistill.training.state import Norms, TrainState, average

# Of the gradient norms that a spike stands out from: over about how many updates their mean and
# variance run, how many there must be, and the least standard deviation of their logarithms (one
# that is a little larger than all the others, which hardly vary, is no spike).
WINDOW, FIRST, LEAST = 128, 20, 0.1


def ema_decay(
    half_life: float, batch_size: int, ramp_up: float = 0.05
) -> Callable[[jax.Array], jax.Array]:
    """decay(step) = 0.5^(batch_size / min(half_life, ramp_up images seen)) (EDM, training loop;
    arXiv 2206.00364, table 7).

    Args:
      half_life: in images, > 0; 0.5 M for CIFAR-10 in SiD and EDM.
      batch_size: images per update.
      ramp_up: share of the images seen so far that caps the half-life, > 0.

    Raises:
      ValueError: on values out of range.
    """
    if not half_life > 0 or not ramp_up > 0:
        raise ValueError(
            f'ema_half_life={half_life}, ema_ramp_up={ramp_up}: must be > 0 (half-life in images)'
        )

    def decay(step):
        images = (step + 1).astype(jnp.float32) * batch_size
        return 0.5 ** (batch_size / jnp.minimum(half_life, ramp_up * images))

    return decay


class Found(NamedTuple):
    """What a loss gives: its value, its gradient, its metrics and the method's own statistics."""

    value: jax.Array
    gradient: Any
    metrics: Mapping[str, jax.Array]
    aux: Any


def ends(roles: Sequence[str]) -> tuple[tuple[str, bool], ...]:
    """((role, whether it is the last of its step), ...)."""
    return tuple((role, index == len(roles)) for index, role in enumerate(roles, 1))


class Halves(NamedTuple):
    """One step in two: what is heavy, and what changes the state. As two programs, they are read
    from the cache in half the time of one, for XLA looks for parts of a program in all of it.

    gradient(state, frozen, batch, key, role=...) -> `Found`; it reads nothing that is measured.
    update(state, found, role=..., last=...) -> state; the `last` role of a step ends it.
    unmeasured(found) -> (averages of metrics, `Norms`) of a role with nothing measured yet; None
      for norms where no update is a spike.
    """

    gradient: Callable[..., Found]
    update: Callable[..., TrainState]
    unmeasured: Callable[[Found], tuple[dict[str, Any], Norms | None]]


def make_step(*args: Any, **settings: Any) -> Callable[..., TrainState]:
    """step(state, frozen, batch, key, roles) -> state: one update of each of `roles`, in order, and
    of the averages of their parameters. Arguments as of `make_halves`."""
    halves = make_halves(*args, **settings)

    def step(state, frozen, batch, key, roles):
        for role, last in ends(roles):
            found = halves.gradient(state, frozen, batch, key, role=role)
            state = halves.update(state, found, role=role, last=last)
        return state

    return step


def make_halves(
    method: Method,
    optimizers: Mapping[str, optax.GradientTransformation],
    decay: Callable[[jax.Array], jax.Array],
    *,
    max_skipped: int = 10,
    spike_sigmas: float = 0.0,
    mesh: Mesh | None = None,
    rules: sharding.Rules = (),
) -> Halves:
    """The `Halves` of a step.

    Randomness comes from (key, step, role), where key is that of the run. An update whose loss,
    gradient or step is not finite is not applied: parameters, optimizer, averages and aux of that
    role stay, and the skip is counted. After max_skipped skips of a role in a row no update is
    applied any more: a loop that looks only now and then finds the state as it was when it should
    have stopped. The metrics average over the updates applied. Of skips, only those that end a run
    go into them, so that its error can name them.

    A spike is an update whose gradient norm lies more than spike_sigmas standard deviations of its
    logarithm above the mean of those before it. It is not applied either, and is counted apart. It
    enters the statistics as what would just have been allowed: were it left out, norms that have
    risen for good would be skipped for ever.

    Args:
      method: `Method`.
      optimizers: {role: optax.GradientTransformation}.
      decay: step -> decay of the averages that have none of their own, see `ema_decay`.
      max_skipped: > 0.
      spike_sigmas: >= 3, or 0: no update is a spike.
      mesh: where it splits the state, a loss gets weights that are whole, or split over `model`
        alone, and gradients are split again; None on one device.
      rules: see `sharding.state_sharding`.
    """
    order, whole, split = sorted(method.losses), lambda tree: tree, lambda tree: tree
    if mesh is not None and mesh.size > mesh.shape['data']:
        whole = functools.partial(sharding.gather, mesh=mesh, rules=rules)
        split = functools.partial(sharding.scatter, mesh=mesh, rules=rules)

    # Traced once for all programs of a role: for its metrics and for each set of roles.
    @functools.partial(jax.jit, static_argnames='role', inline=True)
    @functools.partial(jax.value_and_grad, has_aux=True)
    def derived(params, others, context, batch, key, *, role):
        return method.losses[role](others | {role: params}, context, batch, key)

    def gradient(state, frozen, batch, key, *, role):
        # fold_in(key, 0) belongs to the initialisation.
        own = jax.random.fold_in(jax.random.fold_in(key, 1 + order.index(role)), state.step)
        context = Context(whole(frozen), whole(state.averages), state.aux, state.step)
        others = {name: whole(tree) for name, tree in state.params.items() if name != role}
        with use_abstract_mesh(mesh.abstract_mesh if mesh else get_abstract_mesh()):
            (value, (metrics, aux)), grads = derived(
                whole(state.params[role]), others, context, batch, own, role=role
            )
        return Found(value, split(grads), metrics, aux)

    def update(state, found, *, role, last):
        """The state after the update of one role, or after it was skipped."""
        params, opt_state = state.params[role], state.opt_state[role]
        updates, new_opt_state = optimizers[role].update(found.gradient, opt_state, params)
        grad_norm = optax.tree.norm(found.gradient)
        in_a_row = state.skipped_in_a_row[role]
        # Behind the barrier, else XLA finds it anew in the program of each array.
        judged_by = jnp.stack([found.value, grad_norm, optax.tree.norm(updates)])
        finite = jnp.isfinite(jax.lax.optimization_barrier(judged_by)).all()
        allowed = applied = finite & (in_a_row < max_skipped)
        spikes = state.spikes
        if spike_sigmas:
            before = spikes.get(role) or unmeasured(found)[1]
            seen, spike = judged(before, jnp.log(grad_norm), allowed)
            applied, spikes = allowed & ~spike, spikes | {role: seen}

        def choose(new, old):
            return jax.tree.map(lambda a, b: jnp.where(applied, a, b), new, old)

        params = choose(optax.apply_updates(params, updates), params)
        averages = dict(state.averages)
        for name, kept in method.averages.items():
            if kept.of == role:
                d = (kept.decay or decay)(state.step)
                averages[name] = choose(_moved(averages[name], params, d), averages[name])
        metrics = {**found.metrics, 'grad_norm': grad_norm}
        before = state.metrics.get(role) or unmeasured(found)[0]
        measured = {name: before[name].merge(average(metrics[name])) for name in metrics}
        counts = applied | (~allowed & (in_a_row + 1 >= max_skipped))
        measured = jax.tree.map(lambda a, b: jnp.where(counts, a, b), measured, before)
        in_a_row = jnp.where(allowed, 0, in_a_row + 1)
        return state._replace(
            step=state.step + last,
            params=state.params | {role: params},
            opt_state=state.opt_state | {role: choose(new_opt_state, opt_state)},
            averages=averages,
            aux=choose(found.aux, state.aux),
            skipped=state.skipped | {role: state.skipped[role] + ~allowed},
            skipped_in_a_row=state.skipped_in_a_row | {role: in_a_row},
            metrics=state.metrics | {role: measured},
            spikes=spikes,
        )

    def judged(before, log_norm, allowed):
        """(The statistics with one more norm, if it is a finite one; whether it is a spike.)"""
        deviation = jnp.maximum(jnp.sqrt(before.variance), LEAST)
        highest = before.mean + spike_sigmas * deviation
        spike = allowed & (before.count >= FIRST) & (log_norm > highest)
        # Welford's over the first updates, then an exponential mean.
        share = jnp.maximum(1 / (before.count + 1), 1 / WINDOW)
        gap = jnp.where(spike, highest, log_norm) - before.mean
        after = Norms(
            before.count + 1,
            before.mean + share * gap,
            (1 - share) * (before.variance + share * gap**2),
            before.skipped + spike,
        )
        known = allowed & jnp.isfinite(log_norm)  # A gradient of 0 has no logarithm.
        return jax.tree.map(lambda a, b: jnp.where(known, a, b), after, before), spike

    def unmeasured(found):
        values = {**found.metrics, 'grad_norm': found.value}
        metrics = {name: average(jnp.zeros_like(value), 0) for name, value in values.items()}
        none, zero = jnp.zeros((), jnp.int32), jnp.zeros_like(optax.tree.norm(found.gradient))
        return metrics, Norms(none, zero, zero, none) if spike_sigmas else None

    return Halves(gradient, update, unmeasured)


def _moved(averages, params, d):
    """d average + (1 - d) parameters. In this order: `optax.incremental_update` takes 1 - (1 - d)
    for d, which is another number in its last bits."""
    return jax.tree.map(lambda average, p: d * average + (1 - d) * p, averages, params)
