"""Feature functions for Frechet distances: a classifier trained once on the data itself, or the
pixels."""

import hashlib
import itertools
import zipfile
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tqdm

from fdistill.data import cache
from fdistill.data.pipeline import batches
from fdistill.data.sources import Source, fingerprint, to_float
from fdistill.errors import pick
from fdistill.files import disk
from fdistill.networks.classifier import classifier

# Whatever changes the numbers of a trained classifier raises this, so that no cached one is
# mistaken for another.
VERSION = 4
# Programs are compiled for blocks of this many images; the last block is padded.
BLOCK = 500


class Features(NamedTuple):
    """Features of images, and the classes that a classifier sees in them.

    name: what the features are called in a protocol.
    apply: images float [B, ...] in [-1, 1] -> float32 [B, d], numpy.
    classify: images -> logits float32 [B, classes], numpy; None where there is no classifier.
    """

    name: str
    apply: Callable[[np.ndarray], np.ndarray]
    classify: Callable[[np.ndarray], np.ndarray] | None


def get(name: str, source: Source, **options: Any) -> Features:
    """Builds the features FEATURES[name] for a data set.

    Args:
      name: 'classifier' or 'pixels'.
      source: Source of the training split.
      **options: keyword arguments of the function.

    Raises:
      ValueError: unknown name.
    """
    return pick(FEATURES, name, 'features')(source, **options)


def pixel_features(source: Source) -> Features:
    """The pixels (or coordinates) themselves, flattened; no classifier."""
    return Features(
        'pixels', lambda images: np.asarray(images, np.float32).reshape(len(images), -1), None
    )


def classifier_features(
    source: Source,
    seed: int = 0,
    steps: int = 1500,
    batch_size: int = 128,
    noise: float = 0.2,
    learning_rate: float = 3e-3,
    progress: bool = True,
) -> Features:
    """Last hidden layer, before its activation and scaled to unit std over the training split, of a
    small classifier.

    The classifier is trained once, with AdamW, a cosine decay, dropout and Gaussian noise on its
    input, and kept below $FDISTILL_CACHE under a key of the data and of all settings.

    Args:
      source: Source of the training split, uint8 images.
      seed: integer >= 0; the same seed gives the same features on one kind of machine.
      steps, batch_size, learning_rate: of the training.
      noise: std of the noise added to the input, in units of [-1, 1].
      progress: show a bar if it takes longer than two seconds.

    Returns:
      Features named '<data set>-clf' (with '-s<seed>' behind it if the seed is not 0), d = 32.

    Raises:
      ValueError: points in place of images.
    """
    if source.images.ndim != 4:
        raise ValueError(
            f'{source.name!r} has no images to train a classifier on: use the features pixels'
        )
    shape = source.images.shape[1:]
    model = classifier(num_classes=source.num_classes, image_shape=shape)
    settings = (VERSION, fingerprint(source), seed, steps, batch_size, noise, learning_rate)
    key = hashlib.sha256(repr(settings).encode()).hexdigest()[:32]
    path = cache.folder('classifiers') / f'{source.name}-{key}.npz'
    like = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1,) + shape))
    leaves, treedef = jax.tree.flatten(like)
    if not path.exists():
        params = _train(model, source, seed, steps, batch_size, noise, learning_rate, progress)
        scale = _in_blocks(
            jax.jit(lambda x: model.apply(params, x)[1]), source.images, source.levels
        ).std(axis=0)
        arrays = {f'leaf{i}': np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(params))}
        disk.write(path, lambda temporary: np.savez(temporary, scale=scale, **arrays))
    try:
        with np.load(path) as file:
            params = jax.tree.unflatten(treedef, [file[f'leaf{i}'] for i in range(len(leaves))])
            scale = file['scale']
    except (KeyError, ValueError, OSError, zipfile.BadZipFile) as error:
        raise ValueError(
            f'the cached classifier {str(path)!r} cannot be read ({error}): delete the file'
        ) from error
    network = jax.jit(lambda x: model.apply(params, x))
    return Features(
        name=f'{source.name}-clf' + (f'-s{seed}' if seed else ''),
        apply=lambda images: _in_blocks(lambda x: network(x)[1], images) / scale,
        classify=lambda images: _in_blocks(lambda x: network(x)[0], images),
    )


def _train(model, source, seed, steps, batch_size, noise, learning_rate, progress):
    """Trains a classifier on a source -> params."""
    # The decay keeps the features from growing apart between training and held-out data.
    optimizer = optax.adamw(optax.cosine_decay_schedule(learning_rate, steps), weight_decay=1.0)

    @jax.jit
    def update(params, state, batch, step):
        key = jax.random.fold_in(jax.random.key(seed), step)
        key_noise, key_dropout = jax.random.split(key)
        images = batch['x'] + noise * jax.random.normal(key_noise, batch['x'].shape)
        labels = batch['condition'].get('label', jnp.zeros(len(images), jnp.int32))

        def loss(params):
            logits, _ = model.apply(params, images, key_dropout)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    params = model.init(jax.random.key(seed), jnp.zeros((1,) + source.images.shape[1:]))
    state = optimizer.init(params)
    stream = itertools.islice(batches(source, batch_size, seed), steps)
    for step, batch in tqdm.tqdm(
        enumerate(stream),
        f'training the {source.name} classifier',
        steps,
        unit='step',
        disable=None if progress else True,
        delay=2,
        leave=False,
    ):
        params, state = update(params, state, batch, np.int32(step))
    return params


def _in_blocks(function, images, levels=0):
    """Applies a jitted function to [N, ...] in padded blocks of one size -> numpy [N, ...]."""
    outputs = []
    for start in range(0, len(images), BLOCK):
        block = to_float(np.asarray(images[start : start + BLOCK]), levels).astype(
            np.float32, copy=False
        )
        padded = np.pad(block, [(0, BLOCK - len(block))] + [(0, 0)] * (block.ndim - 1))
        outputs.append(np.asarray(function(padded))[: len(block)])
    return np.concatenate(outputs)


FEATURES = {'classifier': classifier_features, 'pixels': pixel_features}
