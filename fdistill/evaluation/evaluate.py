"""One row of numbers for a generator, each under its protocol."""

import functools
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from fdistill.data.sources import MIXTURES, Source, mixture_parameters, quantise, to_float
from fdistill.evaluation import features, independent, metrics, neighbours, sliced
from fdistill.evaluation.frechet import Moments, frechet_distance
from fdistill.evaluation.protocol import Measure, Protocol, short

# Neighbours are looked for of at most so many images: beyond that the search takes long, and the
# mean distance hardly changes.
SEARCHED = 2000


# What the numbers of own features are: the distances, which a report ranks by first, and others.
DISTANCES = {
    'fd_held_out': Measure('Fréchet distance to held-out data', 'squared classifier features', -1),
    'fd_train': Measure('Fréchet distance to training data', 'squared classifier features', -1),
    **independent.MEASURES,
}
OTHERS = {
    'pixel_fd': Measure(
        'Fréchet distance of the samples themselves', 'squared units of the data', -1
    ),
    'kl': Measure('KL divergence of the shares of the modes', 'nats', -1),
    'modes': Measure('modes covered', 'count', 1),
    'high_quality': Measure('samples within 3 std of a mode', 'share', 1),
    'within': Measure('width of a mode', 'of the true width', 0, '.974 is exact in the plane'),
    'spread': Measure(
        'standard deviation of the samples', "of the data's", 0, '1 is that of the data'
    ),
    'accuracy': Measure('samples seen in their class', 'share', 1),
    'diversity': Measure(
        'standard deviation within a class', 'grey range [-1, 1]', 0, 'that of the data is best'
    ),
    'nn_ratio': Measure(
        'distance to the nearest training image',
        'of that of held-out images',
        0,
        '1: new, 0: copies',
    ),
    **neighbours.MEASURES,
    'reward': Measure('reward that the run has', "the reward's own", 1),
    'reward_unseen': Measure(
        'the same reward, by another classifier than the run has', "the reward's own", 1
    ),
}
# Which of the others there are, by the data.
IMAGES = ('pixel_fd', *neighbours.MEASURES, 'accuracy', 'diversity', 'nn_ratio')
POINTS, MODES = ('spread', 'pixel_fd'), ('modes', 'kl', 'high_quality', 'within')


class Judge(NamedTuple):
    """What gives samples a reward.

    name: of the reward with its settings, for the number's protocol.
    features: what it sees, for the same.
    apply(images float [N, ...], condition) -> r [N], numpy.
    """

    name: str
    features: str
    apply: Callable[..., np.ndarray]


class Reference(NamedTuple):
    """What samples are compared with: made once by `reference`, used by every evaluation on the
    same data.

    train, held_out: the two Sources.
    features: tuple of Features; the pixels, and for images the classifier before them.
    moments: {(features' name, 'train' or 'held-out'): Moments}.
    held_out_distance: mean distance of a held-out image to its nearest training image, over
      SEARCHED held-out images; None for points.
    searched: float32 [M, d], the classifier's features of M = min(SEARCHED, all) training images,
      the same in every evaluation; None for points.
    encoders: those of `independent.ENCODERS`, of at most SEARCHED images of either split; none for
      points.
    """

    train: Source
    held_out: Source
    features: tuple[features.Features, ...]
    moments: Mapping[tuple[str, str], Moments]
    held_out_distance: float | None
    searched: np.ndarray | None
    encoders: tuple[independent.Encoder, ...] = ()


def reference(train: Source, held_out: Source, seed: int = 0, progress: bool = True) -> Reference:
    """Prepares the comparison with real data; trains the classifier and the encoders that learn
    unless they are in the cache.

    Args:
      train, held_out: Sources of the same data set.
      seed: of the classifier.
      progress: show a bar if it takes long.

    Returns:
      Reference.

    Raises:
      ValueError: the two splits differ in shape, grey levels or classes.
    """
    one, other = ((s.images.shape[1:], s.levels, s.num_classes) for s in (train, held_out))
    if one != other:
        raise ValueError(
            f'train has (shape, levels, classes) {one}, held_out {other}: give two splits of one '
            'data set'
        )
    pixels = features.get('pixels', train)
    if train.images.ndim == 2:
        return Reference(
            train,
            held_out,
            (pixels,),
            {(pixels.name, 'train'): _moments(pixels, train.images, 0)},
            None,
            None,
        )
    classifier = features.get('classifier', train, seed=seed, progress=progress)
    moments = {
        (classifier.name, 'held-out'): _moments(classifier, held_out.images, held_out.levels),
        (classifier.name, 'train'): _moments(classifier, train.images, train.levels),
        (pixels.name, 'train'): _moments(pixels, train.images, train.levels),
    }
    unseen, seen = (to_float(_some(s.images), s.levels) for s in (held_out, train))
    distance = metrics.nearest_neighbour(unseen, train.images, train.levels).mean()
    chosen = _some(np.arange(len(held_out.images)))
    encoders = []
    for name, own in independent.ENCODERS:
        extractor = features.get(name, train, progress, seed=own)
        encoders.append(
            independent.encoder(
                extractor,
                _moments(extractor, train.images, train.levels),
                extractor.apply(seen),
                extractor.apply(unseen),
                held_out.labels[chosen],
            )
        )
    return Reference(
        train,
        held_out,
        (classifier, pixels),
        moments,
        distance,
        classifier.apply(seen),
        tuple(encoders),
    )


def sample(
    generate: Callable[..., Any],
    shape: tuple[int, ...],
    condition: Mapping[str, Any],
    samples: int,
    *,
    seed: int = 0,
    batch_size: int = 500,
    progress: bool = True,
    noise_shape: tuple[int, ...] | None = None,
) -> tuple[np.ndarray, float]:
    """Draws samples that depend on their index alone, not on batch size or devices (beyond the
    rounding of `generate`).

    The noise of sample i is normal(fold_in(key(seed), i)). Each batch has `batch_size` samples, the
    last one padded and cut, so a jitted `generate` is compiled once.

    Args:
      generate: (noise float32 [batch_size, *noise_shape], {name: [batch_size, ...]}) -> samples
        [batch_size, *shape]. It is called as it is: jit it, with the parameters as an argument of
        the jitted function, or each evaluation compiles.
      shape: of one sample.
      condition: {name: [N, ...]}, of each sample.
      samples: N.
      seed: integer >= 0.
      batch_size: samples generated at once.
      progress: show a bar if it takes longer than two seconds.
      noise_shape: of the noise of one sample; default: `shape`.

    Returns:
      (float32 [N, *shape], seconds); seconds is the number of batches times the median time of one,
      so that with three batches or more the compilation does not count.

    Raises:
      ValueError: the samples have another shape, or are not finite.
    """
    total, made, seconds = samples, [], []
    for start in tqdm.tqdm(
        range(0, total, batch_size),
        'sampling',
        unit='batch',
        disable=None if progress else True,
        delay=2,
        leave=False,
    ):
        index = np.arange(start, start + batch_size)
        given = {name: value[index.clip(max=total - 1)] for name, value in condition.items()}
        # Through the host, so that devices and sharding are those `generate` was made for.
        drawn = np.asarray(noise(seed, index, shape if noise_shape is None else noise_shape))
        began = time.perf_counter()
        batch = np.asarray(generate(drawn, given), np.float32)
        seconds.append(time.perf_counter() - began)
        if batch.shape != (batch_size, *shape):
            raise ValueError(
                f'generate gave shape {batch.shape} for noise of shape {drawn.shape}: it must be '
                f'{(batch_size, *shape)}'
            )
        if not np.isfinite(batch).all():
            raise ValueError(
                f'samples {start}..{start + batch_size - 1} are not finite: the generator diverged'
            )
        made.append(batch[: total - start])
    return np.concatenate(made), len(seconds) * float(np.median(seconds))


def check(samples: int = 2000, seed: int = 0, batch_size: int = 500) -> None:
    """Checks what a config sets of `evaluate`, before there is anything to evaluate.

    Raises:
      ValueError: a value out of range.
    """
    if samples <= neighbours.K:
        raise ValueError(
            f'samples={samples}: the neighbours of a sample need at least {neighbours.K + 1}'
        )
    if seed < 0 or batch_size < 1:
        raise ValueError(
            f'seed={seed}, batch_size={batch_size}: seed must be >= 0 and batch_size >= 1'
        )


def evaluate(
    generate: Callable[..., Any],
    train: Source,
    held_out: Source,
    *,
    nfe: int,
    samples: int = 2000,
    seed: int = 0,
    batch_size: int = 500,
    progress: bool = True,
    against: Reference | None = None,
    noise_shape: tuple[int, ...] | None = None,
    rewards: Mapping[str, Judge] = {},
    trained_on: Collection[str] = (),
) -> dict[str, Any]:
    """Samples a generator and measures it.

    Args:
      generate: (noise float32 [B, ...], condition) -> samples [B, ...], see `sample`.
      train, held_out: Sources of the data it was trained on.
      nfe: network evaluations of one `generate`, for the row.
      samples: number of samples. Sample i has label i mod num_classes; for points, or where there
        is more to a condition, it has that of training sample i mod N, since the classes of a
        mixture need not be equally frequent.
      seed: integer >= 0, of the noise.
      batch_size: samples generated at once.
      progress: show a bar if it takes longer than two seconds.
      against: Reference(train, held_out), to save making it again in every evaluation.
      noise_shape: of the noise of one sample; default: as of the data.
      rewards: {number: `Judge`} of further numbers, means over the samples.
      trained_on: names of features that the generator was trained on.

    Returns:
      For images, of which the samples are first rounded to the grey levels of the data, the row
      {nfe, fd_held_out, fd_train, fd_ratio, sliced_wasserstein, pixel_fd, precision, recall,
      density, coverage, accuracy, diversity, nn_ratio, seconds, protocol, details}, with Frechet
      distances in the classifier's features against either split and in pixels against the training
      split, means of `independent.relative` over the encoders, each of which stands in
      details['encoders'], and `neighbours.prdc` in the classifier's features, of at most SEARCHED
      samples against as many training images; see `metrics` for the others. For points {nfe, modes,
      kl, high_quality, within, spread, pixel_fd, seconds, protocol}, without the four of
      `mode_coverage` if the data is no named mixture. `protocol` maps each measured key to its full
      name; `trained_on`, where there are such, lists the keys whose features the generator was
      trained on.

    Raises:
      ValueError: a setting out of range, see `check`, or samples of a wrong shape or not finite.
    """
    check(samples, seed, batch_size)
    against = against or reference(train, held_out, progress=progress)
    condition, labels, labelling = conditions(train, samples)
    generated, seconds = sample(
        generate,
        train.images.shape[1:],
        condition,
        samples,
        seed=seed,
        batch_size=batch_size,
        progress=progress,
        noise_shape=noise_shape,
    )
    images = quantise(generated, train.levels)
    row = _row(images, labels, against, nfe, seconds, labelling, seed, trained_on)
    for key, judge in rewards.items():
        row[key] = float(np.mean(judge.apply(images, condition)))
        protocol = Protocol(judge.features, samples, 'alone', train.levels, labelling, seed)
        row['protocol'][key] = protocol.name(judge.name)
        if {judge.features, judge.name.partition('(')[0]} & set(trained_on):
            row['trained_on'] = [*row.get('trained_on', ()), key]
    return row


def measures(train: Source) -> dict[str, Measure]:
    """{number: `Measure`} of what `evaluate` measures of a model of this data."""
    if train.images.ndim > 2:
        return DISTANCES | {name: OTHERS[name] for name in IMAGES}
    return {name: OTHERS[name] for name in (*(MODES if train.name in MIXTURES else ()), *POINTS)}


def numbers(row: Mapping[str, Any]) -> dict[str, Any]:
    """{name: number} of what was measured in a row; its other entries tell when, how fast and
    how."""
    return {
        key: value
        for key, value in row.items()
        if key not in ('step', 'nfe', 'seconds', 'protocol', 'trained_on', 'details')
    }


def reference_rows(
    train: Source,
    held_out: Source,
    *,
    samples: int = 2000,
    seed: int = 0,
    against: Reference | None = None,
    progress: bool = True,
) -> dict[str, dict[str, Any]]:
    """The numbers that real data gets, for context.

    Args:
      train, held_out: Sources of one data set.
      samples: number of training samples drawn with replacement.
      seed: of that drawing.
      against, progress: as in `evaluate`.

    Returns:
      {'held-out': the held-out split as if it were generated, 'train': training samples of the
      labels `evaluate` asks for, drawn with replacement within the class}; rows as of `evaluate`,
      with nfe and seconds 0.
    """
    against = against or reference(train, held_out, progress=progress)
    rng = np.random.default_rng(seed)
    _, labels, labelling = conditions(train, samples)
    members = [np.flatnonzero(train.labels == label) for label in range(train.num_classes)]
    drawn = [rng.choice(members[label]) for label in labels]
    return {
        'held-out': _row(
            to_float(held_out.images, train.levels), held_out.labels, against, 0, 0.0, 'own', seed
        ),
        'train': _row(
            to_float(train.images[drawn], train.levels), labels, against, 0, 0.0, labelling, seed
        ),
    }


def _some(images):
    """At most SEARCHED images, chosen without regard to their order, which may be that of the
    classes."""
    return images[np.sort(np.random.RandomState(0).permutation(len(images))[:SEARCHED])]


def conditions(train: Source, samples: int) -> tuple[dict[str, np.ndarray], np.ndarray, str]:
    """Conditions fixed by the index of the sample, {name: [samples, ...]}, its labels, int32
    [samples], and what to call that."""
    index = np.arange(samples, dtype=np.int32)
    if train.images.ndim == 2 or train.given:
        chosen = index % len(train.labels)
        return train.condition(chosen), train.labels[chosen], 'as-train'
    labels = index % train.num_classes
    return ({'label': labels} if train.num_classes > 1 else {}), labels, 'balanced'


@functools.partial(jax.jit, static_argnames='shape')
def noise(seed: int, index: np.ndarray, shape: tuple[int, ...]) -> jax.Array:
    """Standard normal noise [B, *shape] of the samples with the indices [B]."""
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(seed), i))(index)
    return jax.vmap(lambda key: jax.random.normal(key, shape, jnp.float32))(keys)


def _moments(extractor, images, levels, block=10000):
    """Moments of the features of images with grey levels, or of floats if levels is 0."""
    moments = None
    for start in range(0, len(images), block):
        values = extractor.apply(to_float(images[start : start + block], levels))
        moments = (moments or Moments.empty(values.shape[1])).update(values)
    return moments


def _row(images, labels, against, nfe, seconds, labelling, seed, trained_on=()):
    """All metrics of finished samples; see `evaluate`."""
    train = against.train
    points = train.images.ndim == 2
    pixels = against.features[-1]
    measured, protocol, marked, details = {}, {}, [], {}

    def put(key, metric, value, *extractors, reference='train', count=len(images)):
        names = extractors or (pixels.name,)
        measured[key] = value
        protocol[key] = Protocol(
            '+'.join(names), count, reference, train.levels, labelling, seed
        ).name(metric)
        # The density of a named mixture is known without any features.
        if reference not in MIXTURES and any(name in trained_on for name in names):
            marked.append(key)

    def distance(ours, extractor, reference):
        real = against.moments[extractor.name, reference]
        return frechet_distance(ours.mean, ours.covariance, real.mean, real.covariance)

    in_pixels = distance(_moments(pixels, images, 0), pixels, 'train')

    if points:
        if train.name in MIXTURES:
            for key, value in metrics.mode_coverage(
                images, *mixture_parameters(train.name)
            ).items():
                put(key, key, value, reference=train.name)
        put('spread', 'spread', metrics.spread(images, train.images))
        put('pixel_fd', 'fd', in_pixels)
    else:
        classifier = against.features[0]
        ours = _moments(classifier, images, 0)
        for key, split in (('fd_held_out', 'held-out'), ('fd_train', 'train')):
            put(key, 'fd', distance(ours, classifier, split), classifier.name, reference=split)
        details['encoders'] = {
            of.features.name: independent.relative(of, of.features.apply(images), labels)
            for of in against.encoders
        }
        for key, metric in (
            ('fd_ratio', 'fd_ratio'),
            ('sliced_wasserstein', f'sliced_wasserstein{sliced.P}-{sliced.DIRECTIONS}'),
        ):
            values = [found[key] for found in details['encoders'].values()]
            put(key, metric, float(np.mean(values)), *details['encoders'])
        put('pixel_fd', 'fd', in_pixels)
        searched = _some(images)
        whole = len(against.searched) == len(train.images)
        part = 'train' if whole else f'train{short(len(against.searched))}'
        for key, value in neighbours.prdc(
            classifier.apply(searched), against.searched, progress=False
        ).items():
            k = neighbours.K if key in ('precision', 'recall') else neighbours.K_DENSITY
            put(
                key,
                f'{key}-k{k}',
                value,
                classifier.name,
                reference=part,
                count=len(searched),
            )
        put(
            'accuracy',
            'accuracy',
            metrics.accuracy(classifier.classify(images), labels),
            classifier.name,
        )
        put('diversity', 'diversity', metrics.diversity(images, labels))
        ratio = metrics.nn_ratio(searched, train.images, against.held_out_distance, train.levels)
        put('nn_ratio', 'nn_ratio', ratio)
    row = {'nfe': nfe, **measured, 'seconds': seconds, 'protocol': protocol}
    told = {'trained_on': marked, 'details': details}
    return row | {name: said for name, said in told.items() if said}
