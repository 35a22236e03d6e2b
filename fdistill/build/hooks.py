"""What a training does now and then besides logs and checkpoints: previews and evaluations."""

import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from fdistill.build.experiment import experiment
from fdistill.build.latents import decoder_of
from fdistill.build.measure import while_training
from fdistill.build.sections import load_data, real
from fdistill.data.sources import Source, to_float
from fdistill.evaluation import evaluate, metrics
from fdistill.files import disk, pictures
from fdistill.methods.method import DEPLOYED
from fdistill.training import sharding, writer
from fdistill.training.loop import Every, Health, Ratings, Training, watched

PREVIEW = 64  # samples in a preview picture
# Samples by which a run is judged, and of how many classes at most: of each there are to be some.
WATCHED, CLASSES = 512, 32


def hooks(
    plain: Mapping[str, Any],
    source: Source,
    training: Training,
    workdir: str | pathlib.Path,
    mesh: Mesh,
) -> Callable[[writer.Writer, Ratings, Health], Sequence[Every]]:
    """(out, ratings, health) -> previews and evaluations of a run, as `loop.train` takes them.

    Args:
      plain, source, training: the resolved config, its training split and its section `training`.
      workdir, mesh: of the run.
    """
    workdir, built, measure, watch = disk.place(workdir), None, None, None
    if training.sample_every or training.evaluate_every:
        built = experiment(plain)  # Made anew, for to sample, a batch is not taken in parts.
    if training.evaluate_every:
        known = load_data(real(plain), 'train') if source.pairs else source
        measure = while_training(plain, built, known, workdir, mesh)
        watch = _watch(built, known, mesh) if watched(training) else None
    preview = (
        _preview(built, source, mesh, decoder_of(plain, mesh)) if training.sample_every else None
    )

    def of(out, ratings, health):
        def sample(state, done):
            picture = preview(state.averages[DEPLOYED])
            if jax.process_index() == 0:
                pictures.write_png(workdir / 'samples' / f'{done:09d}.png', picture)
                out.image(done, 'samples', picture)

        def evaluate(state, done):
            numbers, rating = measure(state.averages[DEPLOYED], done)
            out.evaluation(done, numbers)
            ratings.update({done: rating} if rating else {})
            if watch:
                health[done] = watch(state.averages[DEPLOYED])
                out.metrics(done, {f'{DEPLOYED}/{name}': of for name, of in health[done].items()})

        return Every(training.sample_every, sample), Every(training.evaluate_every, evaluate)

    return of


def _watch(built, source, mesh):
    """watch(params) -> `metrics.health` of samples beside as many training samples, on whose
    conditions they are: always the same."""
    labels = source.labels
    if source.num_classes < 2 or source.given:
        labels = np.zeros_like(labels)
    order = np.random.RandomState(0).permutation(len(labels))
    some = np.isin(labels[order], list(dict.fromkeys(labels[order].tolist()))[:CLASSES])
    index = order[some][:WATCHED]
    real = to_float(source.images[index], source.levels)
    generate = jax.jit(built.method.generator.sample, out_shardings=sharding.replicated(mesh))

    def watch(params):
        samples, _ = evaluate.sample(
            functools.partial(generate, params),
            built.shape,
            source.condition(index),
            len(index),
            batch_size=PREVIEW,
            progress=False,
        )
        return metrics.health(samples, real, labels[index])

    return watch


def _preview(built, source, mesh, decode):
    """preview(params) -> picture of samples, from noise that is the same at every step of every
    run."""
    noise = jax.random.normal(jax.random.key(0), (PREVIEW, *built.shape))
    index = np.arange(PREVIEW)
    condition = source.condition(index % len(source.labels))
    # Where there is more to a condition, its label belongs to the rest.
    if 'label' in condition and not source.given:
        condition['label'] = (index % built.num_classes).astype(np.int32)
    generate = jax.jit(built.method.generator.sample, out_shardings=sharding.replicated(mesh))

    def preview(params):
        samples = np.asarray(decode.images(generate(params, noise, condition)), np.float32)
        return pictures.image_grid(samples) if samples.ndim == 4 else pictures.scatter(samples)

    return preview
