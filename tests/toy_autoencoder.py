"""An autoencoder that needs no training: what it decodes is, but for rounding, what it encoded."""

import numpy as np

from fdistill.networks.autoencoder import autoencoder_kl
from fdistill.weights import autoencoders

SCALE, SHIFT = 2.0, 0.25
TOY = dict(
    channels=1,
    latent_channels=1,
    block_out_channels=(4,),
    norm_num_groups=1,
    scaling_factor=SCALE,
    shift_factor=SHIFT,
    use_quant_conv=False,
    use_post_quant_conv=False,
    mid_block_add_attention=False,
)
LARGE, BIAS = 100.0, 20.0
LOGVAR = -12.0  # of the toy: std e^-6


def arrays(invert=1.0):
    """An autoencoder whose latents are `invert` times the images, of the same size, to about 1e-4.

    The norms hardly see channels 0 and 1, the image and its negative, beside channels of +-LARGE,
    and SiLU of what lies around BIAS is the identity; all residual branches are zero.
    """
    network = autoencoder_kl(**TOY)
    made = {
        name: np.full(shape, 'norm' in name and name.endswith('weight'), np.float32)
        for name, shape in network.shapes().items()
    }
    for part, gain in (('encoder', invert), ('decoder', 1 / invert)):
        made[f'{part}.conv_in.weight'][:2, 0, 1, 1] = 1, -1
        made[f'{part}.conv_in.bias'][2:] = LARGE, -LARGE
        made[f'{part}.conv_norm_out.weight'][0] = LARGE / 2**0.5
        made[f'{part}.conv_norm_out.bias'][0] = BIAS
        made[f'{part}.conv_out.weight'][0, 0, 1, 1] = gain
        made[f'{part}.conv_out.bias'][0] = -BIAS * gain
    made['encoder.conv_out.bias'][1] = LOGVAR
    return made


def write(path, invert=1.0):
    model = {'name': 'autoencoder_kl', **TOY}
    autoencoders.save(path, arrays(invert), model, licence='none')
    return path
