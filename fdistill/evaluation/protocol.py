"""The name of a number: what was measured, with which features, on how many samples, against what;
published rules."""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fdistill.data.sources import to_levels
from fdistill.errors import UserError, pick
from fdistill.evaluation.resize import RESIZERS
from fdistill.weights.detectors import DETECTORS


class Protocol(NamedTuple):
    """All that a number depends on besides the samples' quality. Numbers of two protocols are not
    comparable.

    features: name of the features, e.g. 'digits-clf' or 'pixels'.
    samples: number of generated samples.
    reference: what they are compared with: 'train', 'held-out', or the name of a mixture.
    levels: largest grey level the samples are rounded to; 0: not rounded.
    labels: 'balanced' (sample i has label i mod classes), 'as-train' (that of training sample i) or
      'own' (real data).
    seed: of the noise.
    """

    features: str
    samples: int
    reference: str
    levels: int
    labels: str
    seed: int

    def name(self, metric: str) -> str:
        """Full name of a metric, e.g. 'fd[digits-clf,2k,held-out,q16,balanced,seed0]'."""
        count, rounding = short(self.samples), f'q{self.levels}' if self.levels else 'float'
        parts = (self.features, count, self.reference, rounding, self.labels, f'seed{self.seed}')
        return f'{metric}[{",".join(parts)}]'


# What stands beside a number wherever its features, or some of them, were part of the training: it
# says how well that was done, and not how good the samples are.
MARK = 'trained on it'


class Measure(NamedTuple):
    """What a number is, for people.

    title, unit: in words.
    sign: 1 if more is better, -1 if less is, 0 if neither is.
    ideal: said where neither is.
    """

    title: str
    unit: str
    sign: int
    ideal: str = ''


class Rules(NamedTuple):
    """A published way to a number. What changes the number is here; what only rounds (sums, roots)
    is not.

    name: its key in PROTOCOLS.
    detector: a key of DETECTORS, or 'own': features of the data itself, see `features`.
    resize: a key of RESIZERS.
    size: pixels of either side that the detector sees; None: those of the images.
    quantisation: a key of QUANTISATIONS.
    scaling: a key of SCALINGS.
    samples: how many a number of this name is of; None: any, since another name tells it.
    labels: a key of LABELS.
    seeds: ((first, last), ...), a number each: sample i of the protocol has noise and label of the
      index i.
    headline: a key of HEADLINES: which number of these is reported.
    """

    name: str
    detector: str
    resize: str
    size: int | None
    quantisation: str
    scaling: str
    samples: int | None
    labels: str
    seeds: tuple[tuple[int, int], ...]
    headline: str


def _truncated(images):
    # In float32 and in this order as in the reference: a dequantised image lies on the edges, where
    # rounding decides.
    scaled = (np.asarray(images, np.float32) + np.float32(1)) * np.float32(127.5)
    return np.clip(scaled, 0, 255).astype(np.uint8)


QUANTISATIONS = {
    # clip(floor(127.5 x + 128)): EDM, EDM2, SiD, ECT. Exact, as EDM's is, whose samples are
    # float64. EDM2 computes it in float32, where what lies an ulp below an edge may go up: seven
    # pixels in a million.
    'half_up': lambda images: to_levels(images, 255),
    # floor(127.5 (x + 1)), half a level darker: ADM, DMD2, consistency models.
    'truncate': _truncated,
    # Not rounded: shortcut-models.
    'none': lambda images: np.clip(
        (np.asarray(images, np.float32) + np.float32(1)) * np.float32(127.5), 0, 255
    ),
}

# Grey levels 0..255, float32 [B, H, W, 3], to what the detector's first layer takes.
SCALINGS = {
    # As the Inception graph of TensorFlow 1 does inside, so that 255 becomes 0.992.
    'tf1': lambda grey: (grey - 128) / 128,
    # As pytorch-fid does, so that 255 becomes 1.
    'signed': lambda grey: grey / 127.5 - 1,
    'imagenet': lambda grey: (
        (grey / 255 - jnp.array([0.485, 0.456, 0.406])) / jnp.array([0.229, 0.224, 0.225])
    ),
    'none': lambda grey: grey,
}


def _random(indices, num_classes):
    # Output i of SplitMix64 with seed 0 (Steele, Lea, Flood, Fast splittable pseudorandom number
    # generators, 2014): a function of the index alone that no version of a library changes.
    z = (np.asarray(indices).astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return (z >> np.uint64(32)) * np.uint64(num_classes) >> np.uint64(32)


LABELS = {
    # Each class equally likely for each index. EDM draws them so, but with torch's generator after
    # the noise.
    'random': _random,
    'balanced': lambda indices, num_classes: np.asarray(indices) % num_classes,
}

HEADLINES = {'min': min, 'mean': lambda values: sum(values) / len(values)}

_EDM_SEEDS = ((0, 49999), (50000, 99999), (100000, 149999))
_RULES = (
    # NVlabs/edm: generate.py (rounding, labels by seed), fid.py (50 000 or an error), README
    # ("three times and reported the minimum", with these seeds).
    Rules('edm', 'inception', 'tf1', 299, 'half_up', 'tf1', 50000, 'random', _EDM_SEEDS, 'min'),
    # NVlabs/edm2: training/encoders.py, calculate_metrics.py, README. Its FID is EDM's; FD-DINOv2
    # is the second metric.
    Rules('edm2', 'inception', 'tf1', 299, 'half_up', 'tf1', 50000, 'random', _EDM_SEEDS, 'min'),
    Rules(
        'edm2-dinov2',
        'dinov2',
        'torch_bicubic_antialias',
        224,
        'half_up',
        'imagenet',
        50000,
        'random',
        _EDM_SEEDS,
        'min',
    ),
    # openai/guided-diffusion: scripts/image_sample.py (rounding, random classes, no seeds),
    # evaluations/evaluator.py; the paper's numbers are of 50 000 samples, once.
    Rules(
        'adm', 'inception', 'tf1', 299, 'truncate', 'tf1', 50000, 'random', ((0, 49999),), 'mean'
    ),
    # GaParmar/clean-fid: resize.py, inception_torchscript.py, num_gen of fid.py. How samples are
    # made it leaves open, as pytorch-fid does: rounding, labels and seeds are fdistill's.
    Rules(
        'clean-fid',
        'inception',
        'pil_bicubic',
        299,
        'half_up',
        'tf1',
        50000,
        'balanced',
        ((0, 49999),),
        'mean',
    ),
    Rules(
        'clean-fid-legacy-tf',
        'inception',
        'tf1',
        299,
        'half_up',
        'tf1',
        50000,
        'balanced',
        ((0, 49999),),
        'mean',
    ),
    # mseitzer/pytorch-fid: inception.py (resize and 2 x - 1). It takes any number of images; 50 000
    # is the paper's (Heusel et al., GANs trained by a two time-scale update rule, 2017).
    Rules(
        'pytorch-fid',
        'inception',
        'torch',
        299,
        'half_up',
        'signed',
        50000,
        'balanced',
        ((0, 49999),),
        'mean',
    ),
    # fdistill: `evaluate`, which rounds to the grey levels of the data and names its numbers by
    # Protocol.
    Rules('own-features', 'own', 'none', None, 'half_up', 'none', None, 'balanced', (), 'mean'),
)
PROTOCOLS = {rules.name: rules for rules in _RULES}
OWN = 'own-features'


def get(name: str) -> Rules:
    """Rules of the protocol `name`; UserError if there is none."""
    return pick(PROTOCOLS, name, 'protocol')


def quantise_to_uint8(images: np.ndarray, quantisation: str) -> np.ndarray:
    """Samples to the grey levels that a program would have stored.

    Args:
      images: float [...] in [-1, 1], clipped; uint8 is taken as stored already.
      quantisation: a key of QUANTISATIONS.

    Returns:
      uint8 [...]; float32 [...] in 0..255 where the quantisation is 'none' and the images are not
      uint8.

    Raises:
      UserError: unknown quantisation.
    """
    quantise = pick(QUANTISATIONS, quantisation, 'quantisation')
    images = np.asarray(images)
    return images if images.dtype == np.uint8 else quantise(images)


def prepare(rules: Rules, grey: jax.Array) -> jax.Array:
    """Grey levels to what the detector takes: resized, scaled, and in three channels.

    Args:
      rules: Rules.
      grey: uint8 or float [B, H, W, 1 or 3] in 0..255, see `quantise_to_uint8`.

    Returns:
      float32 [B, size, size, 3]; for a detector 'own', the images as they are.
    """
    resized = RESIZERS[rules.resize](grey, rules.size)
    if rules.detector in DETECTORS:
        # As EDM and Pillow's convert('RGB') do.
        resized = jnp.broadcast_to(resized, (*resized.shape[:3], 3))
    return SCALINGS[rules.scaling](resized)


def labels(rules: Rules, indices: np.ndarray, num_classes: int) -> np.ndarray:
    """Labels of the samples with these indices; they depend on nothing else, so not on batches or
    devices.

    Args:
      rules: Rules.
      indices: int [N], >= 0.
      num_classes: >= 1.

    Returns:
      int32 [N] in 0..num_classes - 1.
    """
    return LABELS[rules.labels](indices, num_classes).astype(np.int32)


def number(rules: Rules, metric: str, first: int, count: int, reference: str | None = None) -> str:
    """Full name of a number, e.g. 'fid[edm,50k,cifar10,seed0-49999]'.

    The count in it is that of the samples; unless it is the protocol's, it stands in the metric
    too, so that a proxy is never mistaken for the number: 'fid5k[edm,5k,cifar10,seed0-4999]'.

    Args:
      rules: Rules.
      metric: what was measured, e.g. 'fid'.
      first: index of the first sample.
      count: samples there really were.
      reference: what they were compared with; None where a metric has none, as the Inception score.

    Raises:
      ValueError: no samples, or a negative index.
    """
    if first < 0 or count < 1:
        raise ValueError(
            f'{count} samples from {first}: there must be at least one, of an index >= 0'
        )
    metric = metric if rules.samples in (None, count) else metric + short(count)
    parts = (
        rules.name,
        short(count),
        *([reference] if reference else []),
        f'seed{first}-{first + count - 1}',
    )
    return f'{metric}[{",".join(parts)}]'


def headline(
    rules: Rules, metric: str, values: Mapping[tuple[int, int], float], reference: str | None = None
) -> tuple[str, float]:
    """What a paper reports under a protocol, from the numbers of all its seeds.

    Args:
      rules: Rules.
      metric: a distance, e.g. 'fid'.
      values: {(first, last): float}, the number of the samples with these indices.
      reference: what they were compared with.

    Returns:
      (name, float), e.g. ('fid[edm,3x50k,cifar10,min]', 1.79); the name of `number` where there is
      one number only.

    Raises:
      UserError: seeds are missing, or are not the protocol's.
    """
    if not rules.seeds:
        raise UserError(
            f'the protocol {rules.name!r} has no headline: report its numbers one by one'
        )
    if set(values) != set(rules.seeds):
        wanted, given = (
            ', '.join(f'{a}-{b}' for a, b in sorted(seeds)) for seeds in (rules.seeds, values)
        )
        raise UserError(
            f'numbers of the seeds {given or "(none)"}: the protocol {rules.name!r} reports the '
            f'{rules.headline} over {wanted}'
        )
    value = HEADLINES[rules.headline](list(values.values()))
    if len(values) == 1:
        return number(rules, metric, rules.seeds[0][0], rules.samples, reference), value
    parts = (
        rules.name,
        f'{len(values)}x{short(rules.samples)}',
        *([reference] if reference else []),
        rules.headline,
    )
    return f'{metric}[{",".join(parts)}]', value


def short(count: int) -> str:
    """2000 as '2k', 355 as '355'."""
    return f'{count // 1000}k' if count % 1000 == 0 else str(count)
