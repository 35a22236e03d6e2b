"""One training step: a pure function of state, frozen networks and batch; all else is given when it
is made."""

import functools
from collections.abc import Callable, Mapping

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


def make_step(
    method: Method,
    optimizers: Mapping[str, optax.GradientTransformation],
    decay: Callable[[jax.Array], jax.Array],
    *,
    max_skipped: int = 10,
    spike_sigmas: float = 0.0,
    mesh: Mesh | None = None,
    rules: sharding.Rules = (),
) -> Callable[..., TrainState]:
    """step(state, frozen, batch, key, roles) -> state: one update of each of `roles`, in order, and
    of the averages of their parameters.

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
    def gradient(params, others, context, batch, key, *, role):
        return method.losses[role](others | {role: params}, context, batch, key)

    def step(state, frozen, batch, key, roles):
        for role in roles:
            # fold_in(key, 0) belongs to the initialisation.
            own = jax.random.fold_in(jax.random.fold_in(key, 1 + order.index(role)), state.step)
            context = Context(whole(frozen), whole(state.averages), state.aux, state.step)
            others = {name: whole(tree) for name, tree in state.params.items() if name != role}
            with use_abstract_mesh(mesh.abstract_mesh if mesh else get_abstract_mesh()):
                (value, (metrics, aux)), grads = gradient(
                    whole(state.params[role]), others, context, batch, own, role=role
                )
            state = apply(role, state, split(grads), value, metrics, aux)
        return state._replace(step=state.step + 1)

    def apply(role, state, grads, value, metrics, aux):
        """The state after the update of one role, or after it was skipped."""
        params, opt_state = state.params[role], state.opt_state[role]
        updates, new_opt_state = optimizers[role].update(grads, opt_state, params)
        grad_norm = optax.tree.norm(grads)
        in_a_row = state.skipped_in_a_row[role]
        # Behind the barrier, else XLA takes what `finite` is made of into the program of each array.
        judged_by = jnp.stack([value, grad_norm, optax.tree.norm(updates)])
        finite = jnp.isfinite(jax.lax.optimization_barrier(judged_by)).all()
        allowed = applied = finite & (in_a_row < max_skipped)
        spikes = state.spikes
        if spike_sigmas:
            seen, spike = judged(spikes.get(role), jnp.log(grad_norm), allowed)
            applied, spikes = allowed & ~spike, spikes | {role: seen}

        def choose(new, old):
            return jax.tree.map(lambda a, b: jnp.where(applied, a, b), new, old)

        params = choose(optax.apply_updates(params, updates), params)
        averages = dict(state.averages)
        for name, kept in method.averages.items():
            if kept.of == role:
                d = (kept.decay or decay)(state.step)
                averages[name] = choose(_moved(averages[name], params, d), averages[name])
        metrics = {**metrics, 'grad_norm': grad_norm}
        before = state.metrics.get(role) or {
            name: average(jnp.zeros_like(value), 0) for name, value in metrics.items()
        }
        measured = {name: before[name].merge(average(metrics[name])) for name in metrics}
        counts = applied | (~allowed & (in_a_row + 1 >= max_skipped))
        measured = jax.tree.map(lambda a, b: jnp.where(counts, a, b), measured, before)
        in_a_row = jnp.where(allowed, 0, in_a_row + 1)
        return state._replace(
            params=state.params | {role: params},
            opt_state=state.opt_state | {role: choose(new_opt_state, opt_state)},
            averages=averages,
            aux=choose(aux, state.aux),
            skipped=state.skipped | {role: state.skipped[role] + ~allowed},
            skipped_in_a_row=state.skipped_in_a_row | {role: in_a_row},
            metrics=state.metrics | {role: measured},
            spikes=spikes,
        )

    def judged(before, log_norm, allowed):
        """(The statistics with one more norm, if it is a finite one; whether it is a spike.)"""
        none, zero = jnp.zeros((), jnp.int32), jnp.zeros_like(log_norm)
        before = before or Norms(none, zero, zero, none)
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

    return step


def _moved(averages, params, d):
    """d average + (1 - d) parameters. In this order: `optax.incremental_update` takes 1 - (1 - d)
    for d, which is another number in its last bits."""
    return jax.tree.map(lambda average, p: d * average + (1 - d) * p, averages, params)
