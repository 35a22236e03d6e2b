"""Draws samples from a run into a file."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from fdistill.build.loading import folder_of, opened
from fdistill.build.run import Run
from fdistill.build.superposed import superposed
from fdistill.errors import UserError
from fdistill.files import disk, pictures

LARGEST = 10_000  # samples in a picture
BATCH = 1000  # samples at once


def sample(
    workdir: str | pathlib.Path | None = None,
    *,
    weights: str | pathlib.Path | None = None,
    n: int | None = None,
    seed: int = 0,
    label: int | None = None,
    out: str | pathlib.Path | None = None,
    solver: Mapping[str, Any] | None = None,
    trajectory: bool = False,
    batch_size: int = BATCH,
    beside: Sequence[str] = (),
    operator: str = 'or',
    temperature: float = 1.0,
) -> pathlib.Path:
    """Draws samples from a run into a PNG grid (or a scatter plot of points), or an .npy of floats.

    Args:
      workdir, weights: run folder, or file of weights; one of them.
      n, seed: number of samples, by default 64, or 8 with their trajectory; seed of noise and
        conditions. n > 0, seed >= 0.
      label: class, or None for random ones.
      out: file, .png or .npy; default samples/sample-seed.png in the workdir, or in the folder that
        is called as the weights are.
      solver: sampler, steps and guidance other than the model's own, see `from_workdir`.
      trajectory: draw, or keep [n, N + 1, ...], what the network took x0 for at each of N levels,
        and the samples last (DT-visualisation, arXiv 2503.10637). A row a sample; points are
        scattered, a picture a level.
      batch_size: samples at once; memory does not grow with n. Batch b > 0 has the key
        fold_in(key(seed), b), so that other sizes give other samples after the first batch.
      beside, operator, temperature: run folders of other teachers, all sampled as one: see
        `superposed`.

    Returns:
      The path written.

    Raises:
      UserError: on values out of range.
    """
    home = folder_of(workdir, weights)
    out = home / 'samples' / f'sample-{seed}.png' if out is None else out
    path = disk.file_for(out, '--out', ('.png', '.npy'))
    if (n is not None and n < 1) or seed < 0 or batch_size < 1:
        raise UserError(
            f'--n={n}, --seed={seed}, --batch-size={batch_size}: n and batch size must be >= 1 and '
            'seed >= 0'
        )
    if path.suffix == '.png' and n is not None and n > LARGEST:
        raise UserError(
            f'--n={n}: a picture takes at most {LARGEST} samples; '
            'write an array with --out=FILE.npy'
        )
    if not beside and (operator, temperature) != ('or', 1.0):
        raise UserError('--operator, --temperature: are for several teachers; add --with=DIR')
    if beside and weights is not None:
        raise UserError(f'--weights={weights}: --with is for run folders; leave one of them out')
    solver = dict(solver or {})
    for name in solver.keys() - {'steps'} if beside else ():
        name = name.replace('_', '-')
        raise UserError(f'--{name}: several teachers have a solver of their own; leave it out')
    if beside:
        paths = (workdir, *beside)
        run = superposed(paths, operator=operator, temperature=temperature, **solver)
    else:
        run = opened(workdir, weights, **solver)
    n = n if n is not None else 8 if trajectory and len(run.shape) == 3 else 64
    told = f'give 0 to {run.num_classes - 1}, or -1 for none' if run.num_classes else 'no classes'
    if label is not None and not -1 <= label < max(run.num_classes, 1):
        raise UserError(f'--label={label}: {told}')
    if trajectory and not run.trajectory:
        what = (
            'several teachers at once have'
            if beside
            else 'the best of several has'
            if solver.get('best_of')
            else f'{weights or workdir} holds a one-step generator, which has'
        )
        raise UserError(f'--trajectory: {what} none')
    if path.suffix == '.npy':
        _write_array(path, run, n, seed, label, trajectory, batch_size)
    else:
        samples = np.concatenate(list(_batches(run, n, seed, label, trajectory, batch_size)))
        pictures.write_png(path, _drawn(samples, trajectory))
    print(path)
    return path


def batch_key(seed: Any, batch: Any) -> jax.Array:
    """Key of the noise and conditions of a batch of samples, numbers that may be traced."""
    key = jax.random.key(seed)
    return jnp.where(batch > 0, jax.random.fold_in(key, batch), key)


def _batches(run: Run, n, seed, label, trajectory, batch_size):
    """Samples, a batch after another, float32 [b, ...]; with their trajectory [b, N + 1, ...]."""
    batch_size = min(n, batch_size)
    starts = range(0, n, batch_size)
    for start in tqdm.tqdm(starts, 'sampling', unit='batch', delay=2, leave=False, disable=None):
        own = batch_key(seed, start // batch_size)
        # The last batch is as large as the others, so that one program serves all.
        noise, condition = run.start(own, batch_size, label)
        if trajectory:
            x0, estimates = run.trajectory(noise, condition)
            made = jnp.concatenate([estimates, x0[None]]).swapaxes(0, 1)
        else:
            made = run.sample(noise, condition)
        yield np.asarray(made, np.float32)[: n - start]


def _write_array(path, run, n, seed, label, trajectory, batch_size):
    """An .npy file, written as it grows."""

    def save(temporary):
        array, filled = None, 0
        for made in _batches(run, n, seed, label, trajectory, batch_size):
            if array is None:
                shape = (n, *made.shape[1:])
                array = disk.array(temporary, np.float32, shape)
            array[filled : filled + len(made)] = made
            filled += len(made)
        array.flush()

    disk.write(path, save)


def _drawn(samples, trajectory):
    if len(samples.shape) - trajectory == 4:
        columns = samples.shape[1] if trajectory else None
        return pictures.image_grid(samples.reshape(-1, *samples.shape[-3:]), columns)
    if not trajectory:
        return pictures.scatter(samples)
    limit = 1.1 * float(np.abs(samples).max())
    levels = [pictures.scatter(level, limit=limit) for level in samples.swapaxes(0, 1)]
    return np.concatenate(levels, 1)
