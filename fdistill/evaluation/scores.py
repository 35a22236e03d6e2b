"""Scores under a published protocol: samples by index, its rounding, resize and network, and every
number under its name."""

import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean, stdev
from typing import Any, NamedTuple

import jax
import numpy as np

from fdistill.data.sources import Source, fingerprint, to_float, to_levels
from fdistill.errors import UserError, pick
from fdistill.evaluation import (
    extract,
    frechet,
    kernels,
    metrics,
    neighbours,
    statistics,
    statistics_files,
)
from fdistill.evaluation import protocol as protocols
from fdistill.evaluation.evaluate import noise
from fdistill.evaluation.protocol import Measure
from fdistill.evaluation.sliced import scales, sliced_wasserstein
from fdistill.evaluation.statistics import MAX_KEPT, Statistics
from fdistill.evaluation.subject import Subject
from fdistill.training import sharding
from fdistill.weights.detectors import DETECTORS


class Metric(NamedTuple):
    """What is measured under one name of `--metrics`.

    compute: (Collected, Statistics of the real images, progress) -> {number: float}.
    numbers: {number: Measure} of all that it computes under any detector.
    needs: outputs of the detector that are to be kept of the samples.
    fewest: samples it takes.
    present: whether the Statistics of the real images have what this metric needs.
    distance: a paper reports what its protocol's headline says; of others, the mean over the seeds.
    compared: with the real images, so that their name is part of the number's.
    """

    compute: Callable[[extract.Collected, Statistics, bool], dict[str, float]]
    numbers: Mapping[str, Measure]
    needs: tuple[str, ...] = ()
    fewest: int = 2
    present: Callable[[Statistics], bool] = lambda real: True
    distance: bool = False
    compared: bool = True


def _fid(collected, real, progress):
    ours = collected.moments['pool']
    return {
        _frechet_name(real): frechet.frechet_distance(
            ours.mean, ours.covariance, real.mean, real.covariance
        )
    }


def _frechet_name(real):
    return DETECTORS[real.detector].distance


def _sfid(collected, real, progress):
    ours = collected.moments['spatial']
    return {
        'sfid': frechet.frechet_distance(
            ours.mean, ours.covariance, real.spatial_mean, real.spatial_covariance
        )
    }


def _inception_score(collected, real, progress):
    mean, _ = metrics.inception_score(collected.features['logits'])
    return {'is': mean}


def _kid(collected, real, progress):
    mean, _ = kernels.kid(collected.features['pool'], real.features, progress=progress)
    return {'kid': mean}


def _prdc(collected, real, progress):
    return neighbours.prdc(collected.features['pool'], real.features, progress=progress)


def _mmd(collected, real, progress):
    return {'mmd': kernels.mmd_rbf(collected.features['pool'], real.features, progress=progress)}


def _sliced(collected, real, progress):
    scale = scales(real.covariance)
    return {'swd': sliced_wasserstein(collected.features['pool'] / scale, real.features / scale)}


def _infinity(collected, real, progress):
    limit = frechet.frechet_infinity(
        collected.features['pool'], real.mean, real.covariance, progress=progress
    )
    return {f'{_frechet_name(real)}_infinity': limit.value}


def _kept(fewest, real):
    return real.features is not None and len(real.features) >= fewest


# In the order in which the first that was measured is what a report ranks by.
METRICS = {
    'fid': Metric(
        _fid,
        {
            'fid': Measure('Fréchet inception distance', 'squared features', -1),
            'fd': Measure('Fréchet distance of published features', 'squared features', -1),
        },
        distance=True,
    ),
    'fid_infinity': Metric(
        _infinity,
        {
            'fid_infinity': Measure(
                'Fréchet inception distance for infinitely many samples', 'squared features', -1
            ),
            'fd_infinity': Measure(
                'Fréchet distance for infinitely many samples', 'squared features', -1
            ),
        },
        needs=('pool',),
        fewest=5001,
        distance=True,
    ),
    'sfid': Metric(
        _sfid,
        {'sfid': Measure('Fréchet distance of spatial inception features', 'squared features', -1)},
        present=lambda real: real.spatial_mean is not None,
        distance=True,
    ),
    'kid': Metric(
        _kid,
        {'kid': Measure('kernel inception distance', 'squared MMD', -1)},
        needs=('pool',),
        fewest=1000,
        present=functools.partial(_kept, 1000),
        distance=True,
    ),
    'mmd': Metric(
        _mmd,
        {'mmd': Measure('Gaussian MMD between directions of features', '1000 squared MMD', -1)},
        needs=('pool',),
        present=functools.partial(_kept, 2),
        distance=True,
    ),
    'swd': Metric(
        _sliced,
        {
            'swd': Measure(
                'sliced Wasserstein distance', 'standard deviations of a real feature', -1
            )
        },
        needs=('pool',),
        present=functools.partial(_kept, 2),
        distance=True,
    ),
    'is': Metric(
        _inception_score,
        {'is': Measure('inception score', 'effective classes', 1)},
        needs=('logits',),
        fewest=10,
        present=lambda real: 'logits' in DETECTORS[real.detector].outputs,
        compared=False,
    ),
    'prdc': Metric(
        _prdc,
        neighbours.MEASURES,
        needs=('pool',),
        fewest=6,
        present=functools.partial(_kept, 6),
    ),
}
MEASURES = {name: kind for metric in METRICS.values() for name, kind in metric.numbers.items()}
# Measured unless others are asked for, in this order, where the statistics have what they need.
USUAL = ('fid', 'sfid', 'is', 'kid', 'prdc')


def check(
    protocol: str,
    detector: str = '',
    statistics: str = '',
    metrics: tuple[str, ...] | None = None,
    samples: int | None = None,
    ranges: int | None = None,
    batch_size: int = 100,
) -> protocols.Rules:
    """Checks settings of `evaluate` before anything is loaded.

    Returns:
      `protocol.Rules`.

    Raises:
      UserError: unknown protocol or metric, a number out of range, or a file that is not there.
    """
    rules = protocols.get(protocol)
    if rules.detector not in DETECTORS:
        published = (name for name, of in protocols.PROTOCOLS.items() if of.detector in DETECTORS)
        raise UserError(
            f'the protocol {protocol!r} is no published one; give one of {", ".join(published)}'
        )
    for name in metrics or ():
        pick(METRICS, name, 'metric')
    if samples is not None and samples < 2:
        raise UserError(f'samples={samples}: a distance needs at least two')
    if ranges is not None and not 1 <= ranges <= len(rules.seeds):
        raise UserError(
            f'ranges={ranges}: the protocol {protocol!r} has {len(rules.seeds)} ranges of seeds; '
            f'give 1 to {len(rules.seeds)}'
        )
    if samples is not None and samples > rules.samples and ranges != 1 and len(rules.seeds) > 1:
        raise UserError(
            f'samples={samples}: ranges of more than {rules.samples} overlap; give ranges=1 too'
        )
    if batch_size < 1:
        raise UserError(f'batch_size={batch_size}: must be >= 1')
    makers = {
        'detector': (detector, f'fdistill convert {rules.detector} SRC FILE'),
        'statistics': (statistics, f'fdistill stats make --protocol={protocol} --out=FILE'),
    }
    for what, (path, maker) in makers.items():
        if not path or not pathlib.Path(path).is_file():
            raise UserError(
                f'{what} {path!r}: no such file; the protocol {protocol!r} needs one, made by '
                f'`{maker}`'
            )
    return rules


class Reference(NamedTuple):
    """What samples are compared with, loaded once: `protocol.Rules`, `extract.Extractor`,
    `statistics.Statistics`."""

    rules: protocols.Rules
    detector: extract.Extractor
    real: Statistics


def reference(
    mesh: jax.sharding.Mesh,
    shape: tuple[int, ...],
    *,
    protocol: str,
    detector: str = '',
    statistics: str = '',
    metrics: tuple | None = None,
    samples: int | None = None,
    ranges: int | None = None,
    batch_size: int = 100,
) -> Reference:
    """`Reference` of the settings of `evaluate`; whatever is wrong with them is told here, before
    there are samples."""
    rules = check(protocol, detector, statistics, metrics, samples, ranges, batch_size)
    real = statistics_files.read(statistics, rules.detector)
    network = extract.detector(rules, detector, mesh)
    _fitting(rules, network, real, shape, metrics, samples)
    return Reference(rules, network, real)


def evaluate(
    subject: Subject,
    mesh: jax.sharding.Mesh,
    *,
    protocol: str,
    detector: str = '',
    statistics: str = '',
    metrics: tuple | None = None,
    samples: int | None = None,
    ranges: int | None = None,
    batch_size: int = 100,
    progress: bool = True,
    against: Reference | None = None,
) -> dict[str, Any]:
    """`measure` with the files of a protocol.

    Args:
      subject, mesh, progress, samples, ranges, batch_size: as of `measure`.
      protocol: a key of `protocol.PROTOCOLS` with a published detector.
      detector: safetensors file of its weights, made by `fdistill convert`.
      statistics: `.npz` file of the real images under the same protocol, made by `fdistill stats`.
      metrics: names as of `measure`.
      against: `reference` of the same settings, to save loading and compiling it again in every
        evaluation.

    Raises:
      UserError: as of `check`, `measure`, `extract.detector` and `statistics_files.read`.
    """
    settings = {'metrics': metrics, 'samples': samples, 'ranges': ranges, 'batch_size': batch_size}
    against = against or reference(
        mesh,
        subject.sample_shape,
        protocol=protocol,
        detector=detector,
        statistics=statistics,
        **settings,
    )
    return measure(
        subject,
        **against._asdict(),
        mesh=mesh,
        names=metrics,
        samples=samples,
        ranges=ranges,
        batch_size=batch_size,
        progress=progress,
    )


def make_statistics(
    source: Source,
    mesh: jax.sharding.Mesh,
    *,
    protocol: str,
    detector: str = '',
    keep: int = 10000,
    batch_size: int = 100,
    progress: bool = True,
) -> Statistics:
    """`real_statistics` with the weights of a protocol from a file; arguments as there and of
    `evaluate`."""
    rules = protocols.get(protocol)
    if rules.detector not in DETECTORS:
        raise UserError(
            f'the protocol {protocol!r} needs no statistics file: it compares with the data itself'
        )
    network = extract.detector(rules, detector, mesh)
    return real_statistics(
        source, rules, network, mesh, keep=keep, batch_size=batch_size, progress=progress
    )


def measure(
    subject: Subject,
    *,
    rules: protocols.Rules,
    detector: extract.Extractor,
    real: Statistics,
    mesh: jax.sharding.Mesh,
    names: Sequence[str] | None = None,
    samples: int | None = None,
    ranges: int | None = None,
    batch_size: int = 100,
    progress: bool = True,
) -> dict[str, Any]:
    """Samples a generator and measures it under a published protocol.

    Sample i of the protocol has the noise normal(fold_in(key(0), i)) and the label that
    `protocol.labels` gives i: neither depends on the batch, the devices or the processes.

    Args:
      subject: `Subject` of samples [H, W, 1 or 3], which takes and gives global arrays split by
        `sharding.batch_sharding`.
      rules: `protocol.Rules`.
      detector: `extract.Extractor` of these rules.
      real: `statistics.Statistics` of the real images.
      mesh: of `sharding.make_mesh`.
      names: keys of METRICS; default: those of USUAL that `real` and the number of samples allow.
      samples: in a range; default: the protocol's. Any other number is a proxy and so named.
      ranges: how many of the protocol's ranges of seeds; default: all.
      batch_size: samples at once on all devices.
      progress: show a bar on process 0.

    Returns:
      {nfe, <metric>: what the protocol reports, protocol: {<metric>: full name}, trained_on: its
      keys, where the generator was trained on the detector, details: {over_ranges: {<metric>: {min,
      mean, std}}, ranges: [{seeds, <metric>}], rules, samples, detector, statistics}}. A metric of
      another number of samples than the protocol's has that in its key, as fid5k.

    Raises:
      UserError: no images, or statistics of another protocol, detector or weights, or without what
        a metric needs.
      ValueError: samples that are not finite.
    """
    _fitting(rules, detector, real, subject.sample_shape, names, samples)
    count, chosen = samples or rules.samples, _chosen(rules, real, names, samples)
    keep = sorted({part for name in chosen for part in METRICS[name].needs})
    measured = {}
    for first, _ in rules.seeds[:ranges]:
        drawn = _drawn(subject, rules, mesh, first)
        title = f'samples {first}..{first + count - 1}'
        collected = extract.collect(
            drawn,
            count,
            detector.apply,
            batch_size=batch_size,
            devices=mesh.size,
            keep=keep,
            title=title,
            progress=progress,
        )
        values = {}
        for name in chosen:
            values |= METRICS[name].compute(collected, real, progress and not jax.process_index())
        measured[first, first + count - 1] = values
    row, full, spread = {'nfe': subject.nfe}, {}, {}
    for metric in next(iter(measured.values())):
        values = {seeds: of[metric] for seeds, of in measured.items()}
        key = _key(rules, metric, count)
        full[key], row[key] = _reported(rules, metric, values, count, real.reference)
        if len(values) > 1:
            of = list(values.values())
            spread[key] = {'min': min(of), 'mean': fmean(of), 'std': stdev(of)}
    details = {
        'over_ranges': spread,
        'ranges': [{'seeds': list(seeds), **values} for seeds, values in measured.items()],
        'rules': rules._asdict(),
        'samples': count,
        'detector': {'name': detector.name, 'sha256': detector.sha256},
        'statistics': {
            'reference': real.reference,
            'count': real.count,
            'source_sha256': real.source_sha256,
            'weights_sha256': real.weights_sha256,
            'sha256': statistics.digest(real),
        },
    }
    marked = {'trained_on': list(full)} if rules.detector in subject.trained_on else {}
    return {**row, 'protocol': full, **marked, 'details': details}


def measures(
    against: Reference, names: Sequence[str] | None = None, samples: int | None = None
) -> dict[str, Measure]:
    """{key: `Measure`} of the numbers that `measure` gives; arguments as there."""
    rules, _, real = against
    others = {of.distance for of in DETECTORS.values()} - {_frechet_name(real)}
    return {
        _key(rules, number, samples or rules.samples): kind
        for name in _chosen(rules, real, names, samples)
        for number, kind in METRICS[name].numbers.items()
        if number.partition('_')[0] not in others
    }


def _chosen(rules, real, names, samples):
    count = samples or rules.samples
    return names or [
        name for name in USUAL if METRICS[name].present(real) and METRICS[name].fewest <= count
    ]


def _key(rules, number, count):
    """A number of samples other than the protocol's makes another number."""
    return number if count == rules.samples else number + protocols.short(count)


def _reported(rules, metric, values, count, reference):
    """(full name, number) of a metric from its values by range of seeds."""
    of = next(of for of in METRICS.values() if metric in of.numbers)
    reference = reference if of.compared else None
    if of.distance and set(values) == set(rules.seeds):
        return protocols.headline(rules, metric, values, reference)
    seeds, short = sorted(values), protocols.short(count)
    name = protocols.number(rules, metric, seeds[0][0], count, reference)
    if len(seeds) > 1:
        name = name.replace(f',{short},', f',{len(seeds)}x{short},').rpartition(',')[0] + ',mean]'
    return name, fmean(values.values())


def merged(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """A row with the metrics that an earlier one of the same weights, statistics, samples and
    checkpoint has besides."""
    row = old | new | {'protocol': old['protocol'] | new['protocol']}
    if 'trained_on' in new:
        row['trained_on'] = list(row['protocol'])
    details = old['details'] | new['details']
    details['over_ranges'] = old['details']['over_ranges'] | new['details']['over_ranges']
    details['ranges'] = [
        a | b for a, b in zip(old['details']['ranges'], new['details']['ranges'], strict=True)
    ]
    return row | {'details': details}


def real_statistics(
    source: Source,
    rules: protocols.Rules,
    detector: extract.Extractor,
    mesh: jax.sharding.Mesh,
    *,
    keep: int = 10000,
    batch_size: int = 100,
    progress: bool = True,
) -> Statistics:
    """Statistics of real images under a protocol, for `measure` to compare with.

    Args:
      source: `data.sources.Source` of images.
      rules: `protocol.Rules`.
      detector: `extract.Extractor` of these rules.
      mesh: of `sharding.make_mesh`.
      keep: features of so many images, drawn without replacement, are kept for KID, precision and
        recall; 0 for none, else at least 2. ADM compares with 10,000.
      batch_size: images at once on all devices.
      progress: show a bar on process 0.

    Returns:
      `statistics.Statistics`.

    Raises:
      UserError: points in place of images, or a number out of range.
    """
    if source.images.ndim != 4:
        raise UserError(
            f'data {source.name!r}: has no images, which the protocol {rules.name!r} is for'
        )
    if batch_size < 1:
        raise UserError(f'batch_size={batch_size}: must be >= 1')
    if keep not in (0, *range(2, MAX_KEPT + 1)):
        raise UserError(f'keep={keep}: must be 0 or from 2 to {MAX_KEPT}')

    def grey(index):
        images = source.images[index]
        # Images of 8 bits are what they are; others are brought to that range, rounded as samples
        # usually are.
        return images if source.levels == 255 else to_levels(to_float(images, source.levels), 255)

    def collect(images, total, **options):
        return extract.collect(
            images,
            total,
            detector.apply,
            batch_size=batch_size,
            devices=mesh.size,
            progress=progress,
            **options,
        )

    total = len(source.images)
    moments = collect(grey, total, title=f'features of {source.name}').moments
    kept = None
    if keep:
        # Computed again: those of all images may be more than a host or a device holds, 10 GB of
        # ImageNet.
        chosen = np.sort(np.random.default_rng(0).permutation(total)[:keep])
        again = collect(
            lambda index: grey(chosen[index]), len(chosen), keep=('pool',), title='features to keep'
        )
        kept = again.features['pool']
    return statistics.make(
        moments['pool'],
        rules.name,
        source.name,
        spatial=moments.get('spatial'),
        source_sha256=fingerprint(source),
        weights_sha256=detector.sha256,
        kept=kept,
    )


def _fitting(rules, detector, real, shape, names, samples):
    """UserError unless the parts of a measurement go together."""
    if len(shape) != 3 or shape[-1] not in (1, 3):
        raise UserError(
            f'samples of shape {tuple(shape)}: the protocol {rules.name!r} is for images of one or '
            'three channels'
        )
    _same(rules, detector, real)
    missing = [name for name in names or () if not METRICS[name].present(real)]
    if missing:
        kept = 0 if real.features is None else len(real.features)
        raise UserError(
            f'{missing[0]}: the detector {real.detector!r} or the statistics of '
            f'{real.reference!r}, with features of {kept} images, lack what this metric needs; '
            'leave it out, or make statistics of at least 1000 images with `fdistill stats make`'
        )
    count = samples or rules.samples
    few = [name for name in names or () if METRICS[name].fewest > count]
    if few:
        raise UserError(f'samples={count}: {few[0]} needs at least {METRICS[few[0]].fewest}')


def _same(rules, detector, real):
    if (real.protocol, real.detector) != (rules.name, detector.name):
        raise UserError(
            f'statistics of {real.reference!r} are of protocol {real.protocol!r} and detector '
            f'{real.detector!r}, not of '
            f'{rules.name!r} and {detector.name!r}: convert or make them under the same protocol'
        )
    if real.weights_sha256 not in (None, detector.sha256):
        raise UserError(
            f'statistics of {real.reference!r} were made with other weights of {detector.name!r}, '
            f'{real.weights_sha256[:12]} and not {detector.sha256[:12]}: make them again with these'
        )


def _drawn(subject, rules, mesh, first):
    by_batch = sharding.batch_sharding(mesh)

    def images(index):
        classes = subject.num_classes
        z = np.asarray(noise(0, index + first, tuple(subject.shape)))
        label = protocols.labels(rules, index + first, max(classes, 1))
        condition = {**({'label': label} if classes > 1 else {}), **subject.given(index + first)}
        placed = sharding.put_batch((z, condition), by_batch)
        samples = extract.local_rows(subject.sample(*placed))
        if not np.isfinite(samples).all():
            raise ValueError(
                f'samples {first + index[0]}..{first + index[-1]} are not finite: the generator '
                'diverged'
            )
        return protocols.quantise_to_uint8(samples, rules.quantisation)

    return images
