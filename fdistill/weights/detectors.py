"""Published feature networks, a row each. All that the package knows of a network is in its row."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from fdistill.networks import inception as inception_network
from fdistill.networks import vit
from fdistill.weights import inception


class Network(NamedTuple):
    """A feature network as functions.

    shapes() -> {name of an array: its shape}.
    from_arrays({name: array}) -> params.
    apply(params, x [B, H, W, 3]) -> {output: features [B, d]}.
    """

    shapes: Callable[[], Mapping[str, tuple[int, ...]]]
    from_arrays: Callable[[Mapping[str, np.ndarray]], Any]
    apply: Callable[[Any, jax.Array], Mapping[str, jax.Array]]


class Detector(NamedTuple):
    """A feature network that numbers are named by. It takes images of three channels; grey ones are
    repeated.

    network: (images at a time, or None for all) -> Network.
    outputs: names of what it gives: 'pool' for distances, 'spatial' for sFID, 'logits' for the
      inception score.
    features: in 'pool', the same everywhere.
    distance: what a Fréchet distance of them is called; the I in FID is Inception's.
    lowest: no feature is below it, nor is a mean.
    traces: sums of the features' variances that are plausible. A sum over the images in place of
      their mean, or grey levels in place of features, falls far outside.
    edm2: its name in the statistics files of EDM2.
    rename: {foreign name: array} -> {our name: array}; a name that it does not know stays as it is.
    licence: what to know before using the weights.
    """

    network: Callable[[int | None], Network]
    outputs: tuple[str, ...]
    features: int
    distance: str
    lowest: float
    traces: tuple[float, float]
    edm2: str
    rename: Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]
    licence: str


def _inception(chunk):
    return Network(
        inception_network.shapes,
        inception_network.from_arrays,
        lambda params, x: inception_network.apply(params, x, chunk)._asdict(),
    )


def _dinov2(chunk):
    network = vit.vit()
    return Network(
        network.shapes, network.from_arrays, lambda params, x: {'pool': network.apply(params, x)}
    )


DETECTORS = {
    'inception': Detector(
        network=_inception,
        outputs=('pool', 'spatial', 'logits'),
        features=2048,
        distance='fid',
        lowest=0.0,  # Means behind a ReLU.
        # That of ImageNet is 164 to 181 (openai/guided-diffusion, issue 166).
        traces=(1e-6, 1e4),
        edm2='fid',
        rename=inception.rename,
        licence=inception.LICENCE,
    ),
    'dinov2': Detector(
        network=_dinov2,
        outputs=('pool',),
        features=1024,
        distance='fd',
        lowest=-np.inf,
        traces=(1e-6, 1e6),
        edm2='fd_dinov2',
        rename=dict,  # Our names are facebook's.
        licence=(
            'DINOv2 ViT-L/14 of Meta AI, dinov2_vitl14_pretrain.pth, Apache-2.0 (code and weights)'
        ),
    ),
}
