"""The training loop: set-up, restore, steps, logs and hooks, in the order in which they happen."""

import concurrent.futures
import contextlib
import functools
import logging
import math
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from clu import parameter_overview
from jax.sharding import Mesh

from fdistill import divergences
from fdistill.errors import NotFinite, Stopped, UserError
from fdistill.files import CONFIG, disk, lock
from fdistill.files.progress import Progress
from fdistill.methods.method import Method
from fdistill.training import checkpoint, memory, sharding, writer
from fdistill.training.state import TrainState, bare, empty_metrics, init_state, measured
from fdistill.training.step import Found, ema_decay, ends, make_halves
from fdistill.training.stop import Stop, watchdog
from fdistill.types import Continuous, Free


class Training(NamedTuple):
    """How long and how a run is trained: the section `training` of a config.

    steps, batch_size: steps of training, global batch size.
    ema_half_life, ema_ramp_up: in images, see `step.ema_decay`.
    microbatches: parts in which each network sees a batch, one after another; the numbers are those
      of the whole batch, the memory that of a part. See `denoiser.accumulated`.
    log_every, checkpoint_every, sample_every: in steps; 0 for only at the end (samples: never).
    evaluate_every: in steps, how often the averaged weights are measured; 0 for never.
    keep: checkpoints kept, the newest.
    keep_best: name of a number of the evaluations on the way, as 'fd_train': the checkpoint that is
      best by it is kept too.
    diversity_below, saturation_above: a run ends, with a checkpoint, where samples of the averaged
      weights have less of the data's diversity, or by such a share more values at the ends of its
      range (`metrics.health`), measured every `evaluate_every` steps; 0 and 1 for never.
    max_skipped: non-finite updates of a role in a row that stop the run.
    spike_sigmas: an update whose gradient norm lies so many standard deviations of its logarithm
      above the mean of those before it is not applied, see `step.make_step`; >= 3, as 6, or 0 for
      none.
    rollbacks: how often a run that such updates would end goes back to its last checkpoint instead,
      and on from there with other data and noise. Where there is no checkpoint it begins anew.
    hang_seconds: without a finished step that end the process, with the stacks of its threads;
      what is done now and then, as an evaluation, counts to the step before it. 0: never.
    wandb: project of Weights & Biases to log to as well, see `writer.Writer`.
    partition_rules: how arrays of some names lie on the mesh, see `sharding.state_sharding`.
    """

    steps: int
    batch_size: int
    ema_half_life: Annotated[float, Continuous()]
    ema_ramp_up: Annotated[float, Continuous()] = 0.05
    microbatches: int = 1
    log_every: Annotated[int, Free] = 100
    checkpoint_every: Annotated[int, Free] = 1000
    sample_every: Annotated[int, Free] = 1000
    evaluate_every: Annotated[int, Free] = 0
    keep: Annotated[int, Free] = 2
    keep_best: Annotated[str | None, Free] = None
    diversity_below: Annotated[float, Free] = 0.0
    saturation_above: Annotated[float, Free] = 1.0
    max_skipped: Annotated[int, Free] = 10
    spike_sigmas: Annotated[float, Free] = 0.0
    rollbacks: Annotated[int, Free] = 0
    hang_seconds: Annotated[float, Free] = 3600.0
    wandb: Annotated[str | None, Free] = None
    partition_rules: Annotated[sharding.Rules, Free] = ()


REMEDY = (
    'lower batch_size or raise microbatches, or set network.remat or mesh.fsdp: '
    '`fdistill plan --search` tries them'
)


def check(training: Training, mesh: Mesh | None = None) -> None:
    """Raises ValueError on settings out of range, or a batch that the mesh cannot share evenly."""
    least = {'steps': 1, 'log_every': 1, 'keep': 1, 'max_skipped': 1, 'microbatches': 1}
    least |= {'checkpoint_every': 0, 'sample_every': 0, 'evaluate_every': 0, 'hang_seconds': 0}
    least |= {'rollbacks': 0}
    for name, low in least.items():
        if (value := getattr(training, name)) < low:
            raise ValueError(f'{name}={value}: must be >= {low}')
    measured, saved = training.evaluate_every, training.checkpoint_every
    if training.keep_best is not None and (not measured or not saved or measured % saved):
        raise ValueError(
            f'keep_best={training.keep_best!r}: what is measured must be saved too; make '
            f'evaluate_every={measured} a multiple of checkpoint_every={saved}, both >= 1'
        )
    least, most = training.diversity_below, training.saturation_above
    if not 0 <= least < 1 or not 0 < most <= 1 or (watched(training) and not measured):
        raise ValueError(
            f'diversity_below={least}, saturation_above={most}, evaluate_every={measured}: need '
            '0 <= the first < 1 (0: never), 0 < the second <= 1 (1: never) and evaluate_every >= 1'
        )
    if training.spike_sigmas and not 3 <= training.spike_sigmas < math.inf:
        raise ValueError(f'spike_sigmas={training.spike_sigmas}: must be 0 (off) or >= 3, e.g. 6')
    decay(training)
    for pattern, _ in training.partition_rules:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f'partition_rules: {pattern!r} is no pattern: {error}') from error
    size, devices = training.batch_size, 1
    if mesh is not None:
        devices = mesh.shape['data'] * mesh.shape['fsdp']
    if size < 1 or size % devices:
        nearest = max(devices, round(size / devices) * devices)
        raise ValueError(
            f'batch_size={size} is not divisible by the {devices} devices; use e.g. {nearest}'
        )
    if size % (training.microbatches * devices):
        raise ValueError(
            f'microbatches={training.microbatches}: does not divide batch_size={size} on '
            f'{devices} devices evenly'
        )


def kept(training: Training) -> tuple[int, ...]:
    """Steps of the checkpoints that a run leaves which goes to its end, rising: the newest, without
    the one that `keep_best` keeps besides."""
    every = training.checkpoint_every or training.steps
    saved = [*range(every, training.steps, every), training.steps]
    return tuple(saved[-training.keep :])


def decay(training: Training) -> Callable[[jax.Array], jax.Array]:
    """step -> decay of the averages, see `step.ema_decay`."""
    return ema_decay(training.ema_half_life, training.batch_size, training.ema_ramp_up)


def watched(training: Training) -> bool:
    """Whether anything of the samples would end a run."""
    return training.diversity_below > 0 or training.saturation_above < 1


def unhealthy(health: Mapping[str, float], least: float = 0.0, most: float = 1.0) -> str:
    """What is wrong with samples by the rules of `Training`, in words; '' if nothing is.

    Args:
      health: of `metrics.health`; {} where nothing was measured.
      least, most: `diversity_below`, `saturation_above`.
    """
    if (diversity := health.get('diversity', 1.0)) < least:
        return f"diversity {diversity:.3g} < {least:g} of the data's"
    if (saturation := health.get('saturation', 0.0)) > most:
        return f"saturation {saturation:.3g} > {most:g} above the data's"
    return ''


# Of steps whose checkpoint is yet to be saved.
Ratings = dict[int, checkpoint.Rating]
# By step, of `metrics.health`; that of the checkpoint that a run goes on from is there.
Health = dict[int, Mapping[str, float]]


class Every(NamedTuple):
    """An action that is done now and then: action(state, done) after each n-th step, where `done`
    counts the steps.

    n: 0 for never.
    at_the_end: also after the last step of the run.
    at_a_stop: also after the last step before a stop, whatever n.
    """

    n: int
    action: Callable[[TrainState, int], Any]
    at_the_end: bool = True
    at_a_stop: bool = False

    def due(self, done: int, end: bool, last: bool) -> bool:
        """Whether it is time after step `done`, the end of the run or the last before a stop."""
        regular = self.n > 0 and (done % self.n == 0 or (end and self.at_the_end))
        return regular or (last and self.at_a_stop)


def run(
    advance: Callable[[TrainState, int], TrainState],
    state: TrainState,
    start: int,
    steps: int,
    hooks: Sequence[Every],
    stop: Callable[[int], bool] = lambda done: False,
    verdict: Callable[[int], str] = lambda done: '',
) -> TrainState:
    """The loop itself, of one run or of many lanes: advance(state, step), then the hooks, in order.

    A hook may return another state, as the one does that empties the averages it has logged. Where
    there is a verdict on a step after one of them, it is the last, and those that follow see it so.
    """
    for done in range(start + 1, steps + 1):
        state = advance(state, done - 1)
        end = done == steps
        last = end or stop(done)
        for hook in hooks:
            if hook.due(done, end, last):
                state = hook.action(state, done) or state
                last = last or bool(verdict(done))
        if last:
            break
    return state


class Programs(NamedTuple):
    """What a run computes on a mesh, to be lowered for arrays or for their shapes alone.

    state: `TrainState` of shapes, dtypes and shardings, in which what is measured has no names yet.
    init: jitted, (frozen, key) -> state. It is created sharded: no device ever holds all of it.
    gradient(role) -> the traced half of a step that finds a gradient, see `step.Halves`, of
      a `bare` state; what it gives is its `out_info`. Each role is traced once.
    update: jitted other half, (state, found, role, last) -> state.
    unmeasured: of `step.Halves`.
    read: what of `frozen` a step is given: all but what `init` alone reads.
    """

    state: TrainState
    init: Callable[..., Any]
    gradient: Callable[[str], jax.stages.Traced]
    update: Callable[..., Any]
    unmeasured: Callable[[Found], tuple[Any, Any]]
    read: Mapping[str, Any]


def programs(
    method: Method,
    optimizers: Mapping[str, optax.GradientTransformation],
    training: Training,
    frozen: Mapping[str, Any],
    batch: Any,
    key: jax.Array,
    mesh: Mesh,
) -> Programs:
    """The `Programs` of a run; no loss is traced yet.

    Args:
      method, optimizers, training, mesh: as of `train`.
      frozen, key: as of `train`, or their shapes, dtypes and shardings.
      batch: shapes, dtypes and shardings.
    """

    @functools.partial(jax.jit, inline=True)  # Traced once, for the shapes and for the program.
    def fresh(frozen, key):
        empty = jax.tree.map(lambda value: jnp.zeros(value.shape, value.dtype), batch)
        return init_state(method, optimizers, key, empty, frozen)

    halves = make_halves(
        method,
        optimizers,
        decay(training),
        max_skipped=training.max_skipped,
        spike_sigmas=training.spike_sigmas,
        mesh=mesh,
        rules=training.partition_rules,
    )
    shapes = jax.eval_shape(fresh, frozen, key)
    shardings = sharding.state_sharding(shapes, mesh, training.partition_rules)
    everywhere, state = shardings.step, checkpoint.abstract(shapes, shardings)
    read = {name: params for name, params in frozen.items() if name not in method.begins}

    @functools.cache
    def gradient(role):
        placed = Found(everywhere, shardings.params[role], everywhere, shardings.aux)
        jitted = jax.jit(
            halves.gradient,
            static_argnames='role',
            out_shardings=placed,
            keep_unused=True,  # The compiler has to know what else is in the memory.
        )
        return jitted.trace(state, read, batch, key, role=role)

    # All that is measured is placed as the counter is: on every device.
    after = shardings._replace(metrics=everywhere, spikes=everywhere)
    update = jax.jit(
        halves.update,
        static_argnames=('role', 'last'),
        donate_argnames='state',
        out_shardings=after,
    )
    init = jax.jit(fresh, out_shardings=shardings)
    return Programs(state, init, gradient, update, halves.unmeasured, read)


def named(made: Programs, mesh: Mesh) -> TrainState:
    """The state of `Programs` with the names of what is measured, placed on the mesh."""
    metrics, spikes = {}, {}
    for role in made.state.skipped:
        metrics[role], norms = jax.eval_shape(made.unmeasured, made.gradient(role).out_info)
        spikes |= {role: norms} if norms else {}
    names = {'metrics': metrics, 'spikes': spikes}
    return made.state._replace(**checkpoint.abstract(names, sharding.state_sharding(names, mesh)))


def train(
    method: Method,
    optimizers: Mapping[str, optax.GradientTransformation],
    frozen: Mapping[str, Any],
    batches: Callable[[int, int], Iterator[Any]],
    training: Training,
    *,
    mesh: Mesh,
    workdir: str | pathlib.Path,
    config: Mapping[str, Any],
    seed: int,
    hooks: Callable[[writer.Writer, Ratings, Health], Sequence[Every]] = lambda *_: (),
    quiet: bool = False,
    stop_at: int | None = None,
) -> TrainState:
    """Trains a method to `training.steps` steps; run again with the same workdir, it goes on from
    the newest checkpoint.

    Args:
      method: `Method`.
      optimizers: {role: optax.GradientTransformation}.
      frozen: {name: parameters} of what is not trained, as the teacher's.
      batches: (start_step, rollbacks) -> iterator of this process's batches, trees of numpy arrays
        [B, ...]; other ones after each roll-back.
      training: `Training`.
      mesh: from `sharding.make_mesh`.
      workdir: run folder.
      config: what to save as the run's config, plain values.
      seed: of the run; one program serves all.
      hooks: (out, ratings, health) -> what else is done now and then, as previews; who measures how
        good a step is puts it into `ratings`, and how its samples are into `health`.
      quiet: no progress on stderr.
      stop_at: stop after this step with a checkpoint, as a SIGTERM would, and return.

    Returns:
      The final `TrainState`.

    Raises:
      NotFinite: after max_skipped non-finite updates in a row, and no roll-back is left; names the
        role and the loss. Nothing of them was kept.
      Stopped: on a signal before the last step; there is a checkpoint of the step it came in.
      UserError: another process trains there, no checkpoint there can be restored, or the samples
        went wrong by `diversity_below` or `saturation_above`, also before the checkpoint to go on
        from.
      ValueError: on settings out of range, or a step for which there is no memory.
    """
    check(training, mesh)
    by_batch = sharding.batch_sharding(mesh)
    key = jax.random.key(seed)

    placed = sharding.state_sharding(frozen, mesh, training.partition_rules)
    frozen = jax.device_put(frozen, placed)
    example = next(batches(0, 0))
    batch_shapes = jax.tree.map(
        lambda value: jax.ShapeDtypeStruct(
            (training.batch_size, *value.shape[1:]), value.dtype, sharding=by_batch
        ),
        example,
    )

    made = programs(method, optimizers, training, frozen, batch_shapes, key, mesh)
    workdir = disk.place(workdir)
    begun, left = checkpoint.newest(workdir), memory.free()
    cycles = dict.fromkeys(map(method.cycle, range(begun, stop_at or training.steps)))
    turns = dict.fromkeys(turn for roles in cycles for turn in ends(roles))
    pool = concurrent.futures.ThreadPoolExecutor()

    @functools.cache
    def program(role, last=None):
        """Of a role what finds its gradient, or what updates it, as the last of a step or not."""
        if last is None:
            return pool.submit(compiled, made.gradient(role).lower())
        found = made.gradient(role).out_info
        return pool.submit(compiled, made.update.lower(target, found, role=role, last=last))

    def compiled(lowered):
        try:
            return lowered.compile(compiler_options=sharding.compiler_options(mesh))
        except jax.errors.JaxRuntimeError as error:
            if 'RESOURCE_EXHAUSTED' not in str(error):
                raise
            raise ValueError(f'a step does not fit a device; {REMEDY}') from error

    @functools.cache
    def ready():
        """Bytes that a step takes, by part, once its programs are there and if they fit."""
        made_of = {turn: (program(turn[0]), program(*turn)) for turn in turns}
        rest = made.read, batch_shapes
        needed = [memory.of_role(*(one.result() for one in of), rest) for of in made_of.values()]
        sizes = memory.by_part(target, *rest, max(needed, default=0))
        # What is frozen is there already.
        if sizes['needed'] - sizes['frozen'] > left:
            raise ValueError(
                f'a step takes {_mib(sizes)} MiB of each device, of which {left / 2**20:,.1f} are '
                f'free; {REMEDY}'
            )
        return sizes

    # The next is traced while one is compiled, or read from the cache, which takes XLA as long.
    for role, _ in turns:
        program(role)
    target = named(made, mesh)
    if not begun:  # Nothing is written yet: what is wrong with a program leaves no folder behind.
        ready()
    with (
        lock.held(workdir) if jax.process_index() == 0 else contextlib.nullcontext(),
        writer.Writer(workdir, training.wandb) as out,
        checkpoint.Checkpoints(workdir, training.keep) as checkpoints,
        Stop() as stop,
        contextlib.ExitStack() as watched_over,
    ):
        # While the programs that are left are lowered and loaded.
        found = pool.submit(checkpoints.restore, checkpoint.items(target))
        sizes = ready()
        alive = watched_over.enter_context(watchdog(training.hang_seconds))
        restored = found.result()
        ratings: Ratings = {}
        health: Health = {}

        def verdict(done):
            if done >= training.steps:  # There is nothing left to end.
                return ''
            rules = training.diversity_below, training.saturation_above
            return unhealthy(health.get(done, {}), *rules)

        def judge(done):
            if said := verdict(done):
                raise UserError(
                    f'{workdir}: stopped at step {done} of {training.steps}: {said}. Its '
                    'checkpoints are kept; lower the learning rates in another folder, or go on '
                    'with other training.diversity_below and saturation_above'
                )

        def attempt(restored, rollbacks):
            """The state at the end or at a stop, from what a checkpoint holds or from the start."""
            own = jax.random.fold_in(key, len(method.losses) + rollbacks) if rollbacks else key
            # What was measured of steps that are undone is not of those that take their place.
            ratings.clear()
            health.clear()
            if restored is None:
                state, start = made.init(frozen, own), 0
                state = state._replace(**empty_metrics(measured(target)))
            else:
                arrays, position = restored
                state, start = checkpoint.joined(arrays), position['next_step']
                health[start] = position.get('health', {})
                judge(start)
            out.truncate(start)
            if restored is None:
                out.config(config)
            if not quiet and jax.process_index() == 0:
                _describe(state, start, training.steps, sizes)
            stream = batches(start, rollbacks)

            def advance(state, done):
                batch = sharding.put_batch(next(stream), by_batch)
                # Where a damaged checkpoint was passed over, a step before the newest may need
                # programs that are yet to be made.
                for role, last in ends(method.cycle(done)):
                    gradient, update = program(role).result(), program(role, last).result()
                    # Without a name, which would keep it over the next gradient.
                    state = update(state, gradient(bare(state), made.read, batch, own))
                return state

            def save(state, done):
                check_finite(state, training.max_skipped, done)
                # Before the checkpoint, for what is logged before it is not logged again.
                out.flush()
                found = ratings.get(done), rollbacks, health.get(done)
                checkpoints.save(done, state, config, *found)

            with Progress(training.steps, start, training.batch_size, quiet=quiet) as progress:
                actions = (
                    Every(training.log_every, log(out, training, progress, rollbacks)),
                    Every(1, pace([out], progress)),
                    *hooks(out, ratings, health),
                    Every(training.checkpoint_every, save, at_a_stop=True),
                )
                return run(advance, state, start, training.steps, actions, stopped, verdict)

        def stopped(done):
            alive()
            return stop.requested(done) or done == stop_at

        state, rollbacks = None, 0
        while state is None:
            if jax.process_index() == 0:
                disk.write_json(workdir / CONFIG, config)
            if restored is not None:
                rollbacks = max(rollbacks, restored[1].get('rollbacks', 0))
            try:
                state = attempt(restored, rollbacks)
            except NotFinite as error:
                if rollbacks >= training.rollbacks:
                    raise
                rollbacks += 1
                logging.warning('%s. Roll-back %s of %s', error, rollbacks, training.rollbacks)
                restored = checkpoints.restore(checkpoint.items(target))
    done = int(state.step)
    judge(done)
    if stop.signum and done < training.steps:
        raise Stopped(f'{workdir}: stopped at step {done} of {training.steps}', stop.signum)
    return state


def log(
    out: writer.Writer, training: Training, progress: Progress, rollbacks: int = 0
) -> Callable[[TrainState, int], TrainState]:
    """An action for `Every`: writes metrics and histograms, and begins new averages.

    Where a run stops between two logs, nothing is written: the averages are in the state, and the
    resumed run will log them. Of `rollbacks`, that the run has had so far, it tells if there were
    any.
    """

    def action(state, done):
        logged = read_metrics(state) | ({'rollbacks': rollbacks} if rollbacks else {})
        check_finite(state, training.max_skipped, done)
        out.metrics(done, logged)
        out.histograms(done, read_histograms(state), divergences.EDGES)
        progress.note(_headline(logged))
        return state._replace(metrics=empty_metrics(state.metrics))

    return action


def pace(outs: Sequence[writer.Writer], progress: Progress) -> Callable[[TrainState, int], None]:
    """An action for `Every`: says how far the run is, and writes its speed now and then."""

    def action(state, done):
        # Up to 32 steps are under way at once, half a minute of a slow one.
        timing = progress.update(done, lambda: jax.block_until_ready(state.step))
        for out in outs if timing else ():
            out.timing(done, timing)

    return action


def read_metrics(state: TrainState) -> dict[str, float]:
    """{'role/name': mean since the last log} of the roles with an update applied since, for an
    estimate its standard error too, 'role/name_noise'; and the skips so far, spikes apart where
    they are skipped."""
    values = {}
    for name, (total, count) in _averages(state):
        if total.ndim < 2:
            values[name] = float(total.flat[0] / count)
        if total.ndim == 1:
            values[f'{name}_noise'] = math.sqrt(total[1]) / int(count)
    spikes = {role: norms.skipped for role, norms in state.spikes.items()}
    for name, counts in (('skipped', state.skipped), ('spikes', spikes)):
        found = jax.device_get(counts)
        values |= {f'{role}/{name}': int(count) for role, count in found.items()}
    return values


def read_histograms(state: TrainState) -> dict[str, Any]:
    """{'role/name': counts [levels, cells] since the last log} of the roles with an update applied
    since."""
    return {name: total.astype(int) for name, (total, _) in _averages(state) if total.ndim == 2}


def _averages(state):
    """('role/name', (total, count)) of what was measured since the last log."""
    for role, averages in jax.device_get(state.metrics).items():
        for name, average in averages.items():
            if average.count:
                yield f'{role}/{name}', (np.asarray(average.total), average.count)


def _headline(logged):
    """What the progress line shows: all metrics, but the counts of skipped updates only where there
    are any."""
    counts = ('/skipped', '/spikes')
    return {name: value for name, value in logged.items() if not name.endswith(counts) or value}


def check_finite(state: TrainState, max_skipped: int, step: int) -> None:
    """Raises NotFinite once a role's updates have not been finite max_skipped times in a row."""
    for role, count in jax.device_get(state.skipped_in_a_row).items():
        if count >= max_skipped:
            bad = [
                name
                for name, value in read_metrics(state).items()
                if name.startswith(f'{role}/') and not math.isfinite(value)
            ]
            raise NotFinite(
                f'step {step}: {", ".join(bad) or "the update"} of role {role!r} not finite '
                f'{count} times in a row; the weights and the last checkpoint are clean. Lower '
                f'config.optimizer.{role}.learning_rate or set its clip, and go on with --change'
            )


def _mib(sizes):
    """'2,048.0 (parameters 512.0, activations 1,536.0)' of `memory.by_part`."""
    parts = (f'{name} {size / 2**20:,.1f}' for name, size in sizes.items() if name != 'needed')
    return f'{sizes["needed"] / 2**20:,.1f} ({", ".join(parts)})'


def _describe(state, start, steps, sizes):
    for role, params in state.params.items():
        count = int(parameter_overview.count_parameters(params))  # A float where there is a scalar.
        print(f'{role}: {count:,} parameters', flush=True)
    if start:
        print(f'going on from the checkpoint at step {start} of {steps}', flush=True)
    if sizes['needed']:
        print(f'memory of each device, MiB: {_mib(sizes)}', flush=True)
