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
from fdistill.networks.classifier import Classifier, classifier, convolutional

# Programs are compiled for blocks of this many images; the last block is padded.
BLOCK = 500


class Recipe(NamedTuple):
    """How a classifier is trained.

    name: what its features are called behind the name of the data set. Whatever changes their
      numbers changes it, so that old ones and new ones are never compared, and raises `version`, so
      that no cached one is mistaken for another.
    version: part of the key in the cache.
    steps, batch_size, learning_rate: of AdamW with a cosine decay.
    weight_decay: of AdamW; it keeps the features from growing apart between training and held-out
      data.
    noise: std of the noise added to the input, in units of [-1, 1].
    shift: images are shifted by up to this share of their sides, at random.
    mirror: colour images are mirrored with probability 1/2; grey ones, often of characters, never.
    """

    name: str
    version: int
    steps: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    noise: float
    shift: float
    mirror: bool


# For the two networks of `classifier`.
SMALL = Recipe('clf', 4, 1500, 128, 3e-3, 1.0, 0.2, 0.0, False)
LARGE = Recipe('clf2', 5, 6000, 64, 2e-3, 0.1, 0.02, 0.075, True)


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


class Trained(NamedTuple):
    """A classifier of a data set, trained: what `classifier_features` are made of.

    name: of the features.
    model: `classifier.Classifier`; params: its parameters.
    scale: std of its features over the training split, [d].
    """

    name: str
    model: Classifier
    params: Any
    scale: np.ndarray


def classifier_features(
    source: Source,
    seed: int = 0,
    steps: int | None = None,
    batch_size: int | None = None,
    progress: bool = True,
) -> Features:
    """Last hidden layer, before its activation and scaled to unit std over the training split, of a
    small classifier.

    The classifier is trained once, by the `Recipe` for its size of images, and kept below
    $FDISTILL_CACHE under a key of the data and of all settings.

    Args:
      source: Source of the training split, uint8 images.
      seed: integer >= 0; the same seed gives the same features on one kind of machine.
      steps, batch_size: of the training; default: the recipe's.
      progress: show a bar if it takes longer than two seconds.

    Returns:
      Features named '<data set>-clf', or '<data set>-clf2' from 16 x 16 pixels on (with '-s<seed>'
      behind it if the seed is not 0), d = 32.

    Raises:
      ValueError: points in place of images.
    """
    name, model, params, scale = trained_classifier(source, seed, steps, batch_size, progress)
    network = jax.jit(lambda x: model.apply(params, x))
    return Features(
        name=name,
        apply=lambda images: _in_blocks(lambda x: network(x)[1], images) / scale,
        classify=lambda images: _in_blocks(lambda x: network(x)[0], images),
    )


def trained_classifier(
    source: Source,
    seed: int = 0,
    steps: int | None = None,
    batch_size: int | None = None,
    progress: bool = True,
) -> Trained:
    """The classifier of a data set, out of the cache or trained; see `classifier_features`.

    Args:
      source, seed, steps, batch_size, progress: see there.

    Raises:
      ValueError: points in place of images.
    """
    if source.images.ndim != 4:
        raise ValueError(
            f'{source.name!r} has no images to train a classifier on: use the features pixels'
        )
    shape = source.images.shape[1:]
    model = classifier(num_classes=source.num_classes, image_shape=shape)
    recipe = LARGE if convolutional(shape) else SMALL
    given = {'steps': steps, 'batch_size': batch_size}
    recipe = recipe._replace(**{name: n for name, n in given.items() if n is not None})
    settings = (
        recipe.version,
        fingerprint(source),
        seed,
        recipe.steps,
        recipe.batch_size,
        recipe.noise,
        recipe.learning_rate,
    )
    key = hashlib.sha256(repr(settings).encode()).hexdigest()[:32]
    path = cache.folder('classifiers') / f'{source.name}-{key}.npz'
    like = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1,) + shape))
    leaves, treedef = jax.tree.flatten(like)
    if not path.exists():
        params = _train(model, source, seed, recipe, progress)
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
    name = f'{source.name}-{recipe.name}' + (f'-s{seed}' if seed else '')
    return Trained(name, model, params, scale)


def _train(model, source, seed, recipe, progress):
    """Trains a classifier on a source -> params."""
    schedule = optax.cosine_decay_schedule(recipe.learning_rate, recipe.steps)
    optimizer = optax.adamw(schedule, weight_decay=recipe.weight_decay)

    @jax.jit
    def update(params, state, batch, step):
        key = jax.random.fold_in(jax.random.key(seed), step)
        key_images, key_dropout = jax.random.split(key)
        images = _varied(key_images, batch['x'], recipe)
        labels = batch['condition'].get('label', jnp.zeros(len(images), jnp.int32))

        def loss(params):
            logits, _ = model.apply(params, images, key_dropout)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    shape = source.images.shape[1:]
    params = model.init(jax.random.key(seed), jnp.zeros((1,) + shape))
    state = optimizer.init(params)
    mirror = recipe.mirror and shape[2] > 1
    stream = itertools.islice(batches(source, recipe.batch_size, seed, flip=mirror), recipe.steps)
    for step, batch in tqdm.tqdm(
        enumerate(stream),
        f'training the {source.name} classifier',
        recipe.steps,
        unit='step',
        disable=None if progress else True,
        delay=2,
        leave=False,
    ):
        params, state = update(params, state, batch, np.int32(step))
    return params


def _varied(key, images, recipe):
    """Images [B,H,W,C] with noise and, their edges repeated, shifted."""
    noisy = images + recipe.noise * jax.random.normal(key, images.shape)
    reach = (np.array(images.shape[1:3]) * recipe.shift).astype(int)
    if not reach.any():
        return noisy
    padded = jnp.pad(noisy, ((0, 0), *((pixels, pixels) for pixels in reach), (0, 0)), 'edge')
    corners = jax.random.randint(jax.random.fold_in(key, 1), (len(images), 2), 0, 2 * reach + 1)
    return jax.vmap(lambda image, at: jax.lax.dynamic_slice(image, (*at, 0), images.shape[1:]))(
        padded, corners
    )


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
