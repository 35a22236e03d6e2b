"""Several runs that differ in their seeds and in numbers of their settings, trained as one program:
a lane each, vmapped."""

import math
import pathlib
from typing import Any, Callable, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fdistill import divergences
from fdistill.errors import NotFinite
from fdistill.files import CONFIG, disk
from fdistill.files.progress import Progress
from fdistill.training import checkpoint, loop, writer
from fdistill.training.state import empty_metrics, init_state
from fdistill.training.step import make_step


class Lane(NamedTuple):
    """A run: its seed, batches(start_step), folder, config to keep, and settings, {name: number},
    that the lanes differ in."""

    seed: int
    batches: Callable
    workdir: Any
    config: Any
    settings: dict


@jax.tree_util.register_pytree_node_class
class Number(np.lib.mixins.NDArrayOperatorsMixin):
    """A number of its own for each lane, that stands where a program of one run has a Python float.

    With Python's numbers it stays one float64 a lane, so that 1 - b2 has the digits it has in a run
    alone; with an array it is the float32 of the lane being traced. A comparison has to have one
    answer for all lanes, for the program has one structure; what else would need the number itself,
    as float(), int() or a hash, is refused by Python.

    Args:
      values: [lanes], numbers.
      lane: int32, traced, the index of the lane.
    """

    dtype = np.dtype(np.float32)

    def __init__(self, values, lane):
        self._values, self._lane = np.asarray(values, np.float64), lane

    def __jax_array__(self):
        return jnp.asarray(self._values, self.dtype)[self._lane]

    # A jitted function, as most of jax.numpy are, is handed the array.
    def tree_flatten(self):
        return (self.__jax_array__(),), None

    @classmethod
    def tree_unflatten(cls, _, arrays):
        return arrays[0]

    def __array_ufunc__(self, function, method, *given, **options):
        if any(isinstance(value, jax.Array) for value in given):
            return getattr(jnp, function.__name__)(
                *(jnp.asarray(value) if value is self else value for value in given)
            )
        # The axis of an array would be taken for that of the lanes.
        if method != '__call__' or any(
            np.ndim(value) for value in given if not isinstance(value, Number)
        ):
            return NotImplemented
        return Number(
            function(*(value._values if isinstance(value, Number) else value for value in given)),
            self._lane,
        )

    def __bool__(self):
        if len(answers := set((self._values != 0).tolist())) > 1:
            raise ValueError(
                'a setting decides for some lanes otherwise than for others; they are no lanes of one program'
            )
        return answers.pop()


def _lane(tree, index):
    return jax.tree.map(lambda value: value[index], tree)


def free_memory():
    """Bytes that the first device has left, or its host where it has no memory of its own; infinite
    where neither tells."""
    stats = jax.local_devices()[0].memory_stats()
    if stats:
        return stats['bytes_limit'] - stats['bytes_in_use']
    file = pathlib.Path('/proc/meminfo')
    lines = (
        dict(line.split(':') for line in file.read_text().splitlines()) if file.is_file() else {}
    )
    return int(lines['MemAvailable'].split()[0]) * 1024 if 'MemAvailable' in lines else math.inf


def _memory(program):
    """Bytes that a compiled program takes with its arguments and results."""
    sizes = program.memory_analysis()
    return (
        sizes.argument_size_in_bytes
        + sizes.output_size_in_bytes
        - sizes.alias_size_in_bytes
        + sizes.temp_size_in_bytes
    )


def train(
    make,
    frozen,
    lanes,
    *,
    steps: int,
    batch_size: int,
    log_every: int = 100,
    checkpoint_every: int = 1000,
    sample_every: int = 1000,
    evaluate_every: int = 0,
    keep: int = 2,
    max_skipped: int = 10,
    quiet: bool = False,
    wandb: str | None = None,
):
    """Trains all lanes to `steps` steps on one device; each run folder ends as `loop.train` would
    have left it.

    The numbers are those of one run after another, but for rounding: a vmapped product sums in
    another order, and a constant of a program may be folded into another where the number of a lane
    cannot. A lane that stops being finite fails alone. There are no previews or evaluations, and
    checkpoints only at the end: a killed group begins anew.

    Args:
      make: settings -> (method, optimizers, decay) as of `make_step`, for the settings of a lane,
        {name: number}, and traced for those of all, {name: `Number`}.
      frozen: as of `loop.train`.
      lanes: `Lane`s of folders without a checkpoint, whose settings have the same names.
      others: as of `loop.train`.

    Returns:
      [None, or the NotFinite that ended the lane].

    Raises:
      ValueError: on settings out of range.
      MemoryError: when the device has no room for so many lanes; nothing has been written.
    """
    if min(steps, log_every, keep, max_skipped) < 1:
        raise ValueError(
            f'steps={steps}, log_every={log_every}, keep={keep}, max_skipped={max_skipped}: must be >= 1'
        )
    seeds, indices = jnp.asarray([lane.seed for lane in lanes], jnp.int32), jnp.arange(len(lanes))
    settings = {name: [lane.settings[name] for lane in lanes] for name in lanes[0].settings}
    cycle = make(lanes[0].settings)[0].cycle

    def parts(index):
        return make({name: Number(values, index) for name, values in settings.items()})

    def stacked(streams):
        values = [next(stream) for stream in streams]
        return {name: np.stack([value[name] for value in values]) for name in values[0]}

    @jax.jit
    def init(frozen, batch, seeds, indices):
        empty = jax.tree.map(lambda value: jnp.zeros(value.shape[1:], value.dtype), batch)

        def one(seed, index):
            method, optimizers, _ = parts(index)
            return init_state(method, optimizers, seed, empty, frozen)

        return jax.vmap(one)(seeds, indices)

    def program(roles):
        def one(state, frozen, batch, seed, index):
            return make_step(*parts(index), seed=seed, max_skipped=max_skipped)(
                state, frozen, batch, roles
            )

        step = jax.jit(jax.vmap(one, in_axes=(0, None, 0, 0, 0)), donate_argnums=0)
        return step.lower(shapes, frozen, batch, seeds, indices).compile()

    streams = [lane.batches(0) for lane in lanes]
    batch = stacked([lane.batches(0) for lane in lanes])
    shapes = jax.eval_shape(init, frozen, batch, seeds, indices)
    programs = {roles: program(roles) for roles in dict.fromkeys(map(cycle, range(steps)))}
    # The teacher is there already.
    needed = max(map(_memory, programs.values())) - sum(
        value.nbytes for value in jax.tree.leaves(frozen)
    )
    if needed > (free := free_memory()):
        raise MemoryError(
            f'{len(lanes)} lanes need {needed / 2**30:.2f} GiB, {free / 2**30:.2f} GiB are free'
        )
    state = init(frozen, batch, seeds, indices)
    outs = [writer.Writer(lane.workdir, wandb) for lane in lanes]
    failed = [None] * len(lanes)
    for lane, out in zip(lanes, outs):
        disk.write_json(pathlib.Path(lane.workdir) / CONFIG, lane.config)
        out.truncate(0)
        out.config(lane.config)
    progress = Progress(steps, 0, batch_size * len(lanes), quiet=quiet)
    for done in range(1, steps + 1):
        state = programs[cycle(done - 1)](state, frozen, stacked(streams), seeds, indices)
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
                    out.histograms(done, loop.read_histograms(own), divergences.EDGES)
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
