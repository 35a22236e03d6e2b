"""The name of a number: what was measured, with which features, on how many samples, against what."""

from typing import NamedTuple


class Protocol(NamedTuple):
    """All that a number depends on besides the samples' quality. Numbers of two protocols are not comparable.

    features: name of the features, e.g. 'digits-clf' or 'pixels'.
    samples: number of generated samples.
    reference: what they are compared with: 'train', 'held-out', or the name of a mixture.
    levels: largest grey level the samples are rounded to; 0: not rounded.
    labels: 'balanced' (sample i has label i mod classes), 'as-train' (that of training sample i) or 'own' (real data).
    seed: of the noise.
    """

    features: str
    samples: int
    reference: str
    levels: int
    labels: str
    seed: int

    def name(self, metric):
        """Full name of a metric, e.g. 'fd[digits-clf,2k,held-out,q16,balanced,seed0]'."""
        count = f'{self.samples // 1000}k' if self.samples % 1000 == 0 else str(self.samples)
        rounding = f'q{self.levels}' if self.levels else 'float'
        return f'{metric}[{self.features},{count},{self.reference},{rounding},{self.labels},seed{self.seed}]'
