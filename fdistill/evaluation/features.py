"""Feature functions for Frechet distances: a classifier trained once on the data itself, a network
trained to see how an image is turned, one that is trained for nothing, or the pixels."""

import hashlib
import inspect
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
from fdistill.networks.classifier import classifier, convolutional

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


class Trained(NamedTuple):
    """A classifier of a data set, trained once and cached.

    name: what it is called in a protocol.
    apply(params, x[B,H,W,C]) -> (logits[B, classes], features[B, d]), pure.
    params: its parameters.
    scale: std of each feature over the training split, [d].
    """

    name: str
    apply: Callable[..., Any]
    params: Any
    scale: np.ndarray


class Features(NamedTuple):
    """Features of images, and the classes that a classifier sees in them.

    name: what the features are called in a protocol.
    apply: images float [B, ...] in [-1, 1] -> float32 [B, d], numpy.
    classify: images -> logits float32 [B, classes], numpy; None where there is no classifier.
    """

    name: str
    apply: Callable[[np.ndarray], np.ndarray]
    classify: Callable[[np.ndarray], np.ndarray] | None


def classifier_name(source: Source, seed: int = 0) -> str:
    """What a classifier's features are called in a protocol, see `classifier_features`."""
    recipe = LARGE if convolutional(source.images.shape[1:]) else SMALL
    return f'{source.name}-{recipe.name}' + (f'-s{seed}' if seed else '')


def get(name: str, source: Source, progress: bool = True, **options: Any) -> Features:
    """Builds the features FEATURES[name] for a data set.

    Args:
      name: a key of FEATURES.
      source: Source of the training split.
      progress: show a bar where features are trained and it takes longer than two seconds.
      **options: other keyword arguments of the function.

    Raises:
      ValueError: unknown name.
    """
    made = pick(FEATURES, name, 'features')
    if 'progress' in inspect.signature(made).parameters:
        options['progress'] = progress
    return made(source, **options)


def pixel_features(source: Source) -> Features:
    """The pixels (or coordinates) themselves, flattened; no classifier."""
    return Features(
        'pixels', lambda images: np.asarray(images, np.float32).reshape(len(images), -1), None
    )


def classifier_features(
    source: Source,
    seed: int = 0,
    steps: int | None = None,
    batch_size: int | None = None,
    progress: bool = True,
) -> Features:
    """Last hidden layer of the data's own classifier, before its activation and scaled to unit std
    over the training split; d = 32.

    Args:
      source, seed, steps, batch_size, progress: as of `trained_classifier`.

    Raises:
      ValueError: points in place of images.
    """
    trained = trained_classifier(source, seed, steps, batch_size, progress)
    network = jax.jit(lambda x: trained.apply(trained.params, x))
    return Features(
        name=trained.name,
        apply=lambda images: _in_blocks(lambda x: network(x)[1], images) / trained.scale,
        classify=lambda images: _in_blocks(lambda x: network(x)[0], images),
    )


def trained_classifier(
    source: Source,
    seed: int = 0,
    steps: int | None = None,
    batch_size: int | None = None,
    progress: bool = True,
) -> Trained:
    """A small classifier of a data set.

    It is trained once, by the `Recipe` for its size of images, and kept below $FDISTILL_CACHE under
    a key of the data and of all settings.

    Args:
      source: Source of the training split, uint8 images.
      seed: integer >= 0; the same seed gives the same classifier on one kind of machine.
      steps, batch_size: of the training; default: the recipe's.
      progress: show a bar if it takes longer than two seconds.

    Returns:
      Trained, named '<data set>-clf', or '<data set>-clf2' from 16 x 16 pixels on (with '-s<seed>'
      behind it if the seed is not 0).

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
    return Trained(classifier_name(source, seed), model.apply, params, scale)


def turned_features(source: Source, progress: bool = True, **options: Any) -> Features:
    """Those of a classifier that tells how an image was turned, and knows nothing of its class.

    Half a turn or none; of square images also a quarter, either way, so that mirroring changes no
    answer. Each image is seen in one way.

    Args:
      source, progress: as of `classifier_features`.
      **options: its other arguments.

    Returns:
      Features named as those of a data set '<data set>-turns', d = 32.

    Raises:
      ValueError: points in place of images.

    Reference: Gidaris et al., Unsupervised representation learning by predicting image rotations,
      ICLR 2018.
    """
    turned = _turned(source) if source.images.ndim == 4 else source
    return get('classifier', turned, progress, **options)._replace(classify=None)


def turned_name(source: Source, seed: int = 0) -> str:
    """What `turned_features` are called."""
    return classifier_name(source._replace(name=f'{source.name}-turns'), seed)


def _turned(source):
    images = np.array(source.images)
    square = images.shape[1] == images.shape[2]
    kinds = 3 if square else 2
    labels = np.random.RandomState(0).permutation(len(images)) % kinds
    for kind in range(1, kinds):
        quarters = kind if square else 2
        images[labels == kind] = np.rot90(images[labels == kind], quarters, (1, 2))
    return Source(images, labels.astype(np.int32), kinds, source.levels, f'{source.name}-turns')


def random_features(source: Source, seed: int = 0) -> Features:
    """Two layers of random convolutions 3 x 3 with ReLU, of 32 and 16 channels, the second at half
    the side (from 16 x 16 pixels on the first, too); means of its channels over the quarters of the
    image, scaled to unit std over 2000 training images. Nothing is trained: they see texture and
    edges.

    Args:
      source: Source of the training split, images.
      seed: integer >= 0.

    Returns:
      Features named '<data set>-random' (with '-s<seed>' behind it if the seed is not 0), d = 64.

    Raises:
      ValueError: points in place of images.

    Reference: Naeem et al., Reliable fidelity and diversity metrics for generative models, ICML
      2020, section 3.3, on networks that are not trained.
    """
    if source.images.ndim != 4:
        raise ValueError(f'{source.name!r} has no images to convolve: use the features pixels')
    # A frozen stream of random numbers, as the number must not change with jax.
    random, channels = np.random.RandomState(seed), source.images.shape[3]
    stride = 2 if convolutional(source.images.shape[1:]) else 1
    first, second, bias = (
        np.float32(std * random.normal(size=shape))
        for std, shape in (
            ((2 / (9 * channels)) ** 0.5, (3, 3, channels, 32)),
            ((2 / (9 * 32)) ** 0.5, (3, 3, 32, 16)),
            (0.5, (32,)),
        )
    )

    def convolve(x, kernel, stride):
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            (stride, stride),
            'SAME',
            dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
            precision='highest',
        )

    @jax.jit
    def network(x):
        x = jax.nn.relu(convolve(x, first, stride) + bias)
        x = jax.nn.relu(convolve(x, second, 2))
        shape = (len(x), 2, 2, x.shape[3])
        return jax.image.resize(x, shape, 'linear', precision='highest').reshape(len(x), -1)

    some = source.images[:: max(1, len(source.images) // 2000)]
    scale = _in_blocks(network, some, source.levels).std(axis=0)
    scale = np.where(scale > 0, scale, np.float32(1))
    return Features(
        random_name(source, seed), lambda images: _in_blocks(network, images) / scale, None
    )


def random_name(source: Source, seed: int = 0) -> str:
    """What `random_features` are called."""
    return f'{source.name}-random' + (f'-s{seed}' if seed else '')


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


FEATURES = {
    'classifier': classifier_features,
    'pixels': pixel_features,
    'turns': turned_features,
    'random': random_features,
}
# (source, seed) -> what they are called, without making them.
NAMES = {
    'classifier': classifier_name,
    'pixels': lambda source, seed=0: 'pixels',
    'turns': turned_name,
    'random': random_name,
}
