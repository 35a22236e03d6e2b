"""Names of the FID Inception's arrays in the files that hold it, and in ours, which are
pytorch-fid's.

| file | pytorch-fid, pt_inception-2015-12-05-*.pth | NVIDIA, inception-2015-12-05.pt and .pkl |
|---|---|---|
| blocks | Mixed_5b.branch1x1, fc | layers.mixed.conv, output |
| a convolution | conv.weight, bn.{weight,bias,running_mean,running_var} | weight, beta, mean, var |

Both are ports of TensorFlow's inception-2015-12-05.tgz. Its norms have no scale: NVIDIA leaves it
out, pytorch-fid holds ones. Convolutions are [out, in, height, width] and the last layer [classes,
features] in both.

NVIDIA's names are those of public rebuildings whose authors compared the outputs:
openai/consistency_models' (3d86141) evaluations/inception_v3.py, class by class, and miemie2013's
map from the .pt to PaddlePaddle. Neither NVIDIA file was at hand here. Whoever converts one checks
that every name is filled once and with its shape, so another layout is refused, not guessed.
"""

from collections.abc import Mapping

import numpy as np

LICENCE = (
    "if these are the published ones: Google's weights inception-2015-12-05.tgz, as ported by "
    'pytorch-fid (Apache-2.0) or by '
    'NVIDIA (under the terms of the StyleGAN or EDM repository that the file came with)'
)

_STEM = {
    'conv': 'Conv2d_1a_3x3',
    'conv_1': 'Conv2d_2a_3x3',
    'conv_2': 'Conv2d_2b_3x3',
    'conv_3': 'Conv2d_3b_1x1',
    'conv_4': 'Conv2d_4a_3x3',
}
# Convolutions of a block, NVIDIA's name: ours. The numbers of a tower's convolutions follow its
# order.
_A = {
    'conv': 'branch1x1',
    'tower.conv': 'branch5x5_1',
    'tower.conv_1': 'branch5x5_2',
    'tower_1.conv': 'branch3x3dbl_1',
    'tower_1.conv_1': 'branch3x3dbl_2',
    'tower_1.conv_2': 'branch3x3dbl_3',
    'tower_2.conv': 'branch_pool',
}
_B = {
    'conv': 'branch3x3',
    'tower.conv': 'branch3x3dbl_1',
    'tower.conv_1': 'branch3x3dbl_2',
    'tower.conv_2': 'branch3x3dbl_3',
}
_C = {
    'conv': 'branch1x1',
    'tower.conv': 'branch7x7_1',
    'tower.conv_1': 'branch7x7_2',
    'tower.conv_2': 'branch7x7_3',
    'tower_1.conv': 'branch7x7dbl_1',
    'tower_1.conv_1': 'branch7x7dbl_2',
    'tower_1.conv_2': 'branch7x7dbl_3',
    'tower_1.conv_3': 'branch7x7dbl_4',
    'tower_1.conv_4': 'branch7x7dbl_5',
    'tower_2.conv': 'branch_pool',
}
_D = {
    'tower.conv': 'branch3x3_1',
    'tower.conv_1': 'branch3x3_2',
    'tower_1.conv': 'branch7x7x3_1',
    'tower_1.conv_1': 'branch7x7x3_2',
    'tower_1.conv_2': 'branch7x7x3_3',
    'tower_1.conv_3': 'branch7x7x3_4',
}
_E = {
    'conv': 'branch1x1',
    'tower_conv': 'branch3x3_1',
    'tower_mixed_conv': 'branch3x3_2a',
    'tower_mixed_conv_1': 'branch3x3_2b',
    'tower_1_conv': 'branch3x3dbl_1',
    'tower_1_conv_1': 'branch3x3dbl_2',
    'tower_1_mixed_conv': 'branch3x3dbl_3a',
    'tower_1_mixed_conv_1': 'branch3x3dbl_3b',
    'tower_2_conv': 'branch_pool',
}
_BLOCKS = {
    'mixed': ('Mixed_5b', _A),
    'mixed_1': ('Mixed_5c', _A),
    'mixed_2': ('Mixed_5d', _A),
    'mixed_3': ('Mixed_6a', _B),
    'mixed_4': ('Mixed_6b', _C),
    'mixed_5': ('Mixed_6c', _C),
    'mixed_6': ('Mixed_6d', _C),
    'mixed_7': ('Mixed_6e', _C),
    'mixed_8': ('Mixed_7a', _D),
    'mixed_9': ('Mixed_7b', _E),
    'mixed_10': ('Mixed_7c', _E),
}
_ARRAYS = {
    'weight': 'conv.weight',
    'beta': 'bn.bias',
    'mean': 'bn.running_mean',
    'var': 'bn.running_var',
}

_CONVOLUTIONS = {f'layers.{theirs}': ours for theirs, ours in _STEM.items()} | {
    f'layers.{block}.{theirs}': f'{name}.{ours}'
    for block, (name, branches) in _BLOCKS.items()
    for theirs, ours in branches.items()
}
# All of NVIDIA's names: ours.
NVIDIA = {
    **{
        f'{theirs}.{a}': f'{ours}.{b}'
        for theirs, ours in _CONVOLUTIONS.items()
        for a, b in _ARRAYS.items()
    },
    'output.weight': 'fc.weight',
    'output.bias': 'fc.bias',
}


def rename(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the arrays under our names. Names that neither layout has stay, and are refused by
    whoever checks the arrays.

    Left out are pytorch-fid's counters of batches and its auxiliary classifier, which FID does not
    use.

    Args:
      arrays: {name: array} of `reader.flatten`.
    """
    if 'layers.conv.weight' in arrays:
        renamed = {NVIDIA.get(name, name): array for name, array in arrays.items()}
        scales = {
            name.removesuffix('bias') + 'weight': np.ones_like(array)
            for name, array in renamed.items()
            if name.endswith('.bn.bias')
        }
        return {**renamed, **scales}
    return {
        name: array
        for name, array in arrays.items()
        if not name.endswith('.num_batches_tracked') and not name.startswith('AuxLogits.')
    }
