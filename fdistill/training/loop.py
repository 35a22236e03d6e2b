"""The training loop: set-up, restore, steps, logs, checkpoints; it reads straight down."""

import math
import pathlib
import signal
import threading

import jax
import jax.numpy as jnp
import numpy as np
from clu import parameter_overview

from fdistill import divergences
from fdistill.errors import NotFinite
from fdistill.files import CONFIG, disk, pictures
from fdistill.files.progress import Progress
from fdistill.training import checkpoint, sharding, writer
from fdistill.training.state import empty_metrics, init_state
from fdistill.training.step import ema_decay, make_step

PREVIEW = 64  # samples in a preview picture


class Stop:
    """Whether to stop after the present step: set by SIGTERM, which a scheduler sends before it
    takes the machine.

    Used as a context. Only in the main thread of a lone process: with several, all have to stop at
    the same step, which orbax's own preemption check would have to arrange, and JAX catches the
    signal.
    """

    def __init__(self):
        self.requested = False
        self._previous = None
        self._possible = (
            jax.process_count() == 1 and threading.current_thread() is threading.main_thread()
        )

    def __enter__(self):
        if self._possible:
            self._previous = signal.signal(
                signal.SIGTERM, lambda *_: setattr(self, 'requested', True)
            )
        return self

    def __exit__(self, *_):
        if self._possible:
            signal.signal(signal.SIGTERM, self._previous)


def train(
    method,
    optimizers,
    frozen,
    batches,
    *,
    mesh,
    workdir,
    config,
    seed,
    num_classes,
    steps: int,
    batch_size: int,
    ema_half_life: float,
    ema_ramp_up: float = 0.05,
    log_every: int = 100,
    checkpoint_every: int = 1000,
    sample_every: int = 1000,
    evaluate_every: int = 0,
    keep: int = 2,
    max_skipped: int = 10,
    quiet: bool = False,
    wandb: str | None = None,
    stop_at: int | None = None,
    evaluate=None,
):
    """Trains a method to `steps` steps; run again with the same workdir, it goes on from the newest
    checkpoint.

    Args:
      method: `Method`.
      optimizers: {role: optax.GradientTransformation}.
      frozen: {'teacher': params} or {}.
      batches: start_step -> iterator of this process's {'image', 'label'} numpy batches.
      mesh: from `sharding.make_mesh`.
      workdir: run folder.
      config: what to save as the run's config, plain values.
      seed: int.
      num_classes: for the labels of the preview; 0 or 1 for none.
      steps, batch_size: steps of training, global batch size.
      ema_half_life, ema_ramp_up: in images, see `step.ema_decay`.
      log_every, checkpoint_every, sample_every: in steps; 0 for only at the end (samples: never).
      evaluate_every: in steps, how often `evaluate` measures the EMA weights; 0 for never.
      keep: checkpoints kept.
      max_skipped: non-finite updates of a role in a row that stop the run.
      quiet: no progress on stderr.
      wandb: project of Weights & Biases to log to as well, see `writer.Writer`.
      stop_at: stop after this step with a checkpoint, as a SIGTERM would.
      evaluate: (EMA weights, step) -> {name: number}, for TensorBoard; writes what it wants to keep
        itself.

    Returns:
      The final `TrainState`.

    Raises:
      NotFinite: after max_skipped non-finite updates in a row; names the role and the loss. Nothing
        of them was kept.
      ValueError: on settings out of range or a checkpoint that cannot be restored.
    """
    if (
        min(steps, log_every, keep, max_skipped) < 1
        or min(checkpoint_every, sample_every, evaluate_every) < 0
    ):
        raise ValueError(
            f'steps={steps}, log_every={log_every}, keep={keep}, max_skipped={max_skipped} must be >= 1, '
            f'checkpoint_every={checkpoint_every}, sample_every={sample_every}, evaluate_every={evaluate_every} >= 0'
        )
    sharding.check_batch_size(batch_size, mesh)
    decay = ema_decay(ema_half_life, batch_size, ema_ramp_up)
    by_batch = sharding.batch_sharding(mesh)

    # The state is created sharded: no device ever holds all of it.
    first = next(batches(0))
    batch_shapes = {
        name: jax.ShapeDtypeStruct((batch_size, *value.shape[1:]), value.dtype)
        for name, value in first.items()
    }
    frozen = jax.device_put(frozen, sharding.state_sharding(frozen, mesh))

    def init(frozen):
        batch = {name: jnp.zeros(value.shape, value.dtype) for name, value in batch_shapes.items()}
        return init_state(method, optimizers, seed, batch, frozen)

    shapes = jax.eval_shape(init, frozen)
    shardings = sharding.state_sharding(shapes, mesh)
    step_function = jax.jit(
        make_step(method, optimizers, decay, seed=seed, max_skipped=max_skipped),
        static_argnames='roles',
        donate_argnames='state',
        out_shardings=shardings,
    )

    workdir = pathlib.Path(workdir)
    with (
        writer.Writer(workdir, wandb) as out,
        checkpoint.Checkpoints(workdir, keep) as checkpoints,
        Stop() as stop,
    ):
        target = checkpoint.abstract(shapes, shardings)
        restored = checkpoints.restore({'state': target._replace(ema=()), 'ema': target.ema})
        if jax.process_index() == 0:
            disk.write_json(workdir / CONFIG, config)
        if restored is None:
            state = jax.jit(init, out_shardings=shardings)(frozen)
            start = 0
            out.truncate(0)
            out.config(config)
        else:
            arrays, position = restored
            state, start = arrays['state']._replace(ema=arrays['ema']), position['next_step']
            out.truncate(start)
        if not quiet and jax.process_index() == 0:
            _describe(state, start, steps)

        progress = Progress(steps, start, batch_size, quiet=quiet)
        preview = _preview(method, batch_shapes['image'], num_classes, mesh)
        stream = batches(start)
        for done in range(start + 1, steps + 1):
            batch = sharding.put_batch(next(stream), by_batch)
            state = step_function(state, frozen, batch, roles=method.cycle(done - 1))
            last = done == steps or stop.requested or done == stop_at
            logged = None
            if done % log_every == 0 or last:
                logged = read_metrics(state)
                check_finite(state, max_skipped, done, logged)
                # A stop between two logs writes nothing: the averages are in the state, and the
                # resumed run will log them.
                if done % log_every == 0 or done == steps:
                    out.metrics(done, logged)
                    out.histograms(done, read_histograms(state), divergences.EDGES)
                    state = state._replace(metrics=empty_metrics(state.metrics))
            timing = progress.update(done, _headline(logged))
            if timing:
                out.timing(done, timing)
            if sample_every and (done % sample_every == 0 or done == steps):
                picture = preview(state.ema)
                if jax.process_index() == 0:
                    pictures.write_png(workdir / 'samples' / f'{done:09d}.png', picture)
                    out.image(done, 'samples', picture)
            if evaluate_every and (done % evaluate_every == 0 or done == steps):
                out.evaluation(done, evaluate(state.ema, done))
            if last or (checkpoint_every and done % checkpoint_every == 0):
                if logged is None:
                    check_finite(state, max_skipped, done, read_metrics(state))
                checkpoints.save(done, state, config)
                out.flush()
            if last:
                break
        progress.close()
    return state


def read_metrics(state):
    """{'role/name': mean since the last log} of the roles with an update applied since, and the
    skips so far."""
    values = {
        name: float(average.total / average.count)
        for name, average in _averages(state)
        if not average.total.ndim
    }
    return values | {
        f'{role}/skipped': int(count) for role, count in jax.device_get(state.skipped).items()
    }


def read_histograms(state):
    """{'role/name': counts [levels, cells] since the last log} of the roles with an update applied
    since."""
    return {
        name: average.total.astype(int) for name, average in _averages(state) if average.total.ndim
    }


def _averages(state):
    for role, averages in jax.device_get(state.metrics).items():
        yield from (
            (f'{role}/{name}', average) for name, average in averages.items() if average.count
        )


def _headline(logged):
    """What of the metrics goes into the progress line: the losses; a loss value says little, a skip
    says much."""
    if logged is None:
        return None
    return {name: value for name, value in logged.items() if not name.endswith('/skipped') or value}


def check_finite(state, max_skipped, step, metrics):
    """Raises NotFinite once a role's updates have not been finite max_skipped times in a row."""
    for role, count in jax.device_get(state.skipped_in_a_row).items():
        if count >= max_skipped:
            bad = [
                name
                for name, value in metrics.items()
                if name.startswith(f'{role}/') and not math.isfinite(value)
            ]
            raise NotFinite(
                f'step {step}: {", ".join(bad) or "the update"} of role {role!r} not finite {count} times in a row; '
                f'the weights and the last checkpoint are clean. Lower config.optimizer.{role}.learning_rate '
                'or set its clip, then run again'
            )


def _describe(state, start, steps):
    for role, params in state.params.items():
        count = int(parameter_overview.count_parameters(params))  # A float where there is a scalar.
        print(f'{role}: {count:,} parameters', flush=True)
    if start:
        print(f'going on from the checkpoint at step {start} of {steps}', flush=True)


def _preview(method, image, num_classes, mesh):
    """preview(params) -> picture of samples from noise that is the same at every step of every
    run."""
    noise = jax.random.normal(jax.random.key(0), (PREVIEW, *image.shape[1:]), image.dtype)
    label = np.arange(PREVIEW, dtype=np.int32) % max(num_classes, 1)
    generate = jax.jit(method.generate, out_shardings=sharding.replicated(mesh))

    def preview(params):
        samples = np.asarray(generate(params, noise, label), np.float32)
        return pictures.image_grid(samples) if samples.ndim == 4 else pictures.scatter(samples)

    return preview
