"""Generators of random weights, ready to be exported."""

import jax
import jax.numpy as jnp
import numpy as np

from fdistill import build
from fdistill.build import models
from fdistill.build import run as runs
from fdistill.build.latents import decoder
from fdistill.diffusion.samplers import SAMPLERS
from fdistill.export.model import Exportable
from fdistill.methods.generator import Steps, solver, student

DIGITS = {'shape': [8, 8, 1], 'num_classes': 10}
UNET2D = {
    'block_out_channels': (8, 16),
    'layers_per_block': 1,
    'norm_num_groups': 4,
    'down_block_types': ('DownBlock2D', 'AttnDownBlock2D'),
    'up_block_types': ('AttnUpBlock2D', 'UpBlock2D'),
}
UNET = {'model_channels': 8, 'channel_mult': (1, 2), 'num_blocks': 1, 'attn_resolutions': (4,)}
NETWORKS = {
    'mlp': ({'name': 'mlp', 'width': 16, 'blocks': 1}, DIGITS),
    'points': ({'name': 'mlp', 'width': 16, 'blocks': 1}, {'shape': [2], 'num_classes': 0}),
    'ddpmpp': ({'name': 'ddpmpp'} | UNET, DIGITS),
    'edm2': ({'name': 'edm2', 'channels_per_head': 8} | UNET, DIGITS),
    'unet2d': ({'name': 'unet2d'} | UNET2D, DIGITS),
    'dit': ({'name': 'dit', 'width': 16, 'depth': 1, 'heads': 2, 'patch': 2}, DIGITS),
}


def model(name, levels=(), sampler=None, network=(), **about):
    """An `Exportable` of random weights: a student, or a denoiser under a sampler.

    network: other settings of it than the usual ones.
    """
    usual, image = NETWORKS[name]
    network = usual | dict(network)
    method = {'name': 'f_distill', 'divergence': 'js', 'sigma_init': 2.5, 'levels': levels}
    sections = {'network': network, 'denoiser': {'name': 'edm'}, 'image': image}
    denoiser = models.make_denoiser(network, sections['denoiser'], image, 'config.')
    shapes = jax.eval_shape(
        denoiser.init,
        jax.random.key(0),
        jnp.zeros((1, *image['shape'])),
        models.conditions(image, 1),
    )
    random = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: jnp.asarray(0.1 * random.standard_normal(leaf.shape), leaf.dtype), shapes
    )
    steps = None if sampler else Steps(2.5, levels)
    if sampler:
        generator = solver(denoiser, SAMPLERS[sampler], np.array([2.5, 0.5, 0.1, 0.0]))
    else:
        generator = student(denoiser, steps)
    run = runs.assembled(
        sections,
        denoiser,
        generator,
        params,
        None,
        path='here',
        step=3,
        digest='0123456789abcdef',
        decode=decoder(image, None, None, ''),
    )
    about = {
        'decoder': None,
        'licence': None,
        'derived_from': (),
        'evaluations': [],
        'name': 'digits',
    } | about
    return Exportable(run, sections, method, steps=steps, weights=build.with_names(params), **about)
