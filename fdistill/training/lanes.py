"""Several runs that differ in their seed alone, trained as one program: a lane each, vmapped."""

import functools
import pathlib
from typing import Any, Callable, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fdistill.errors import NotFinite
from fdistill.training import checkpoint, loop, writer
from fdistill.training.state import empty_metrics, init_state
from fdistill.training.step import ema_decay, make_step


class Lane(NamedTuple):
    """A run: its seed, batches(start_step), folder, and config to keep."""

    seed: int
    batches: Callable
    workdir: Any
    config: Any


def _lane(tree, index):
    return jax.tree.map(lambda value: value[index], tree)


def train(
    method,
    optimizers,
    frozen,
    lanes,
    *,
    steps: int,
    batch_size: int,
    ema_half_life: float,
    ema_ramp_up: float = 0.05,
    log_every: int = 100,
    checkpoint_every: int = 1000,
    sample_every: int = 1000,
    keep: int = 2,
    max_skipped: int = 10,
    quiet: bool = False,
):
    """Trains all lanes to `steps` steps on one device; each run folder ends as `loop.train` would have left it.

    The numbers are those of one run after another, but for the order in which a vmapped product sums. A lane that
    stops being finite fails alone. There are no previews, and checkpoints only at the end: a killed group begins anew.

    Args:
      method, optimizers, frozen: as of `loop.train`.
      lanes: `Lane`s of folders without a checkpoint.
      others: as of `loop.train`.

    Returns:
      [None, or the NotFinite that ended the lane].

    Raises:
      ValueError: on settings out of range.
    """
    if min(steps, log_every, keep, max_skipped) < 1:
        raise ValueError(f'steps={steps}, log_every={log_every}, keep={keep}, max_skipped={max_skipped}: must be >= 1')
    decay = ema_decay(ema_half_life, batch_size, ema_ramp_up)
    seeds = jnp.asarray([lane.seed for lane in lanes], jnp.int32)

    def stacked(streams):
        values = [next(stream) for stream in streams]
        return {name: np.stack([value[name] for value in values]) for name in values[0]}

    @jax.jit
    def init(frozen, batch, seeds):
        empty = jax.tree.map(lambda value: jnp.zeros(value.shape[1:], value.dtype), batch)
        return jax.vmap(lambda seed: init_state(method, optimizers, seed, empty, frozen))(seeds)

    @functools.partial(jax.jit, static_argnames='roles', donate_argnames='state')
    def step(state, frozen, batch, seeds, roles):
        def one(state, batch, seed):
            return make_step(method, optimizers, decay, seed=seed, max_skipped=max_skipped)(state, frozen, batch, roles)

        return jax.vmap(one)(state, batch, seeds)

    streams = [lane.batches(0) for lane in lanes]
    state = init(frozen, stacked([lane.batches(0) for lane in lanes]), seeds)
    outs = [writer.Writer(lane.workdir) for lane in lanes]
    failed = [None] * len(lanes)
    for lane, out in zip(lanes, outs):
        writer.write_json(pathlib.Path(lane.workdir) / loop.CONFIG, lane.config)
        out.truncate(0)
        out.config(lane.config)
    progress = writer.Progress(steps, 0, batch_size * len(lanes), quiet=quiet)
    for done in range(1, steps + 1):
        state = step(state, frozen, stacked(streams), seeds, roles=method.cycle(done - 1))
        logged = None
        if done % log_every == 0 or done == steps:
            small = jax.device_get((state.metrics, state.skipped, state.skipped_in_a_row))
            for index, out in enumerate(outs):
                if failed[index]:
                    continue
                metrics, skipped, in_a_row = _lane(small, index)
                own = state._replace(metrics=metrics, skipped=skipped, skipped_in_a_row=in_a_row)
                logged = loop.read_metrics(own)
                try:
                    loop.check_finite(own, max_skipped, done, logged)
                    out.metrics(done, logged)
                except NotFinite as error:
                    failed[index] = error
            state = state._replace(metrics=empty_metrics(state.metrics))
        timing = progress.update(done, logged)
        if timing:
            for out in outs:
                out.timing(done, timing)
    progress.close()
    for index, (lane, out) in enumerate(zip(lanes, outs)):
        if not failed[index]:
            with checkpoint.Checkpoints(lane.workdir, keep) as checkpoints:
                checkpoints.save(steps, _lane(state, index), lane.config)
        out.close()
    return failed
