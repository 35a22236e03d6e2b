"""One training step: a pure function of state, teacher and batch; everything else is passed in when
it is made."""

import jax
import jax.numpy as jnp
import optax

from fdistill.training.state import average


def ema_decay(half_life, batch_size, ramp_up=0.05):
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


def make_step(method, optimizers, decay, *, seed, max_skipped=10):
    """step(state, frozen, batch, roles) -> state: one update of each of `roles`, in order, then the
    EMA of the student.

    Randomness comes from (seed, step, role). An update whose loss, gradient or step is not finite
    is not applied: parameters, optimizer, EMA and aux of that role stay, and the skip is counted.
    After max_skipped of a role in a row none is applied any more, so that a loop that looks now and
    then finds the state as it was when it should have stopped. The metrics average over the updates
    applied; only the skips that end a run go into them, so that its error names them.

    Args:
      method: `Method`.
      optimizers: {role: optax.GradientTransformation}.
      decay: step -> EMA decay, see `ema_decay`.
      seed: int.
      max_skipped: > 0.
    """
    order = sorted(method.losses)

    def update(role, state, frozen, batch):
        # fold_in(key, 0) belongs to the initialisation.
        key = jax.random.fold_in(jax.random.key(seed), 1 + order.index(role))
        key = jax.random.fold_in(key, state.step)

        def loss(params):
            return method.losses[role](state.params | {role: params}, frozen, batch, key, state.aux)

        params, opt_state = state.params[role], state.opt_state[role]
        (value, (metrics, aux)), grads = jax.value_and_grad(loss, has_aux=True)(params)
        updates, new_opt_state = optimizers[role].update(grads, opt_state, params)
        grad_norm = optax.tree.norm(grads)
        in_a_row = state.skipped_in_a_row[role]
        finite = (
            jnp.isfinite(value) & jnp.isfinite(grad_norm) & jnp.isfinite(optax.tree.norm(updates))
        )
        apply = finite & (in_a_row < max_skipped)

        def choose(new, old):
            return jax.tree.map(lambda a, b: jnp.where(apply, a, b), new, old)

        params = choose(optax.apply_updates(params, updates), params)
        ema = state.ema
        if role == 'student':
            d = decay(state.step)
            ema = choose(
                jax.tree.map(lambda average, p: d * average + (1 - d) * p, ema, params), ema
            )
        averages = {
            name: state.metrics[role][name].merge(average(value))
            for name, value in {**metrics, 'grad_norm': grad_norm}.items()
        }
        counts = apply | (in_a_row + 1 >= max_skipped)
        averages = jax.tree.map(lambda a, b: jnp.where(counts, a, b), averages, state.metrics[role])
        return state._replace(
            params=state.params | {role: params},
            opt_state=state.opt_state | {role: choose(new_opt_state, opt_state)},
            ema=ema,
            aux=choose(aux, state.aux),
            skipped=state.skipped | {role: state.skipped[role] + ~apply},
            skipped_in_a_row=state.skipped_in_a_row | {role: jnp.where(apply, 0, in_a_row + 1)},
            metrics=state.metrics | {role: averages},
        )

    def step(state, frozen, batch, roles):
        for role in roles:
            state = update(role, state, frozen, batch)
        return state._replace(step=state.step + 1)

    return step
