"""Names of LPIPS's arrays in the two files that hold them, which are ours: the trunk in
torchvision's state dict, what was learned about its channels in LPIPS's own.

| file | arrays |
|---|---|
| vgg16-397923af.pth, alexnet-owt-7be5be79.pth | features.0.weight, ...; classifier.* is not used |
| PerceptualSimilarity's lpips/weights/v0.1/{vgg,alex}.pth | lin0.model.1.weight [1, C, 1, 1], ... |

The second were at hand here; of the first, only files that torchvision's own networks write.
"""

from collections.abc import Mapping

import numpy as np

from fdistill.networks import lpips
from fdistill.weights import store

# What the weights, and features in them, are called: network.
KINDS = {f'lpips-{net}': net for net in lpips.TRUNKS}
BESIDE = "PerceptualSimilarity's weights/v0.1/*.pth"
LICENCE = (
    "if these are the published ones: torchvision's weights (BSD-3-Clause; made on ImageNet, whose "
    "own terms may bind) and PerceptualSimilarity's (BSD-2-Clause)"
)
# Content of weights/v0.0/vgg.pth and alex.pth, of the same names and shapes.
_OLD = (
    '65c972b75948b33177921b9afdcd415d175b8efb8426f5d2d366313f23a1dc7f',
    'cecbb61606ce92fa15fa8f7710a053b76c219ba0e94548baf66ddb65a166cccb',
)


def rename(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the arrays of both files without those of torchvision's last layers.

    Args:
      arrays: {name: array} of `reader.flatten`.

    Raises:
      ValueError: those of LPIPS are of version 0.0, whose input was not scaled.
    """
    if store.digest({name: x for name, x in arrays.items() if name.startswith('lin')}) in _OLD:
        raise ValueError('lin0.model.1.weight and others are of weights/v0.0, not of v0.1')
    return {name: array for name, array in arrays.items() if not name.startswith('classifier.')}
