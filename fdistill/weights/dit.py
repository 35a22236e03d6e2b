"""Diffusion transformers out of facebook's and diffusers' files: DiT and SiT.

Facebook's are state dicts, and of their training dicts of several with its settings. The two have
the same arrays, so that a state dict does not say whether it predicts noise or a velocity. What it
does not say either is the number of heads: it is that of the published size of its width. Their
own sampling guides three of the four channels of a latent, ours all.

Reference: github.com/facebookresearch/DiT at ed81ce2, github.com/willisma/SiT at 947f95b (names,
  licences, train.py); DiTTransformer2DModel of diffusers 0.42.1.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from fdistill.networks.dit import SIZES, Shape, sincos, sized
from fdistill.weights.found import Found, Refused, ShapesOf, matched, settled

LICENCES = {
    'dit': 'CC BY-NC 4.0 (Meta), if these are the published weights',
    'sit': 'MIT (Meta), if these are the published weights',
}
DENOISERS = {
    'dit': {'name': 'prediction', 'prediction': 'eps', 'schedule': {'name': 'discrete'}},
    # Its time is 0 at noise and 1 at data.
    'sit': {
        'name': 'prediction',
        'prediction': 'reverse_flow',
        'schedule': {'name': 'flow'},
        'time_scale': -1.0,
        'time_offset': 1.0,
    },
}
# Of train.py's settings, those that say what a SiT predicts, and what is supported.
_PATH = {'path_type': 'Linear', 'prediction': 'velocity'}
_HEADS = {width: heads for width, _, heads in SIZES.values()}
_PATCHES, _PLACES, _CLASSES = (
    'x_embedder.proj.weight',
    'pos_embed',
    'y_embedder.embedding_table.weight',
)


def _state(tree):
    """(prefix, {name: array}) of the average where there is one, else of the network; or None."""
    if isinstance(tree, dict):
        for prefix in ('ema.', 'model.', ''):
            state = tree.get(prefix[:-1]) if prefix else tree
            if isinstance(state, dict) and {_PATCHES, _PLACES} <= state.keys():
                return prefix, state
    return None


def _training(tree):
    """Settings of the training that a file is of, or None."""
    args = tree.get('args')
    return args if isinstance(args, dict) else None


def fits(tree: Any) -> bool:
    """Whether a file may hold a DiT."""
    return _state(tree) is not None and 'path_type' not in (_training(tree) or {})


def fits_sit(tree: Any) -> bool:
    """Whether a file may hold a SiT."""
    return _state(tree) is not None and 'path_type' in (_training(tree) or _PATH)


def find(tree: Mapping[str, Any], shapes_of: ShapesOf, *, heads: int | None = None) -> Found:
    """A DiT out of a `.pt` file.

    Args:
      tree: the file.
      shapes_of: see `found.ShapesOf`.
      heads: of the attention, where the width is none of `networks.dit.SIZES`.

    Raises:
      Refused: it is another network, or has other arrays.
    """
    return _found('dit', tree, shapes_of, heads)


def find_sit(tree: Mapping[str, Any], shapes_of: ShapesOf, *, heads: int | None = None) -> Found:
    """A SiT of the linear path that predicts the velocity, as the published one, out of a `.pt`
    file.

    Args and raises: as of `find`.
    """
    settings = _training(tree) or {}
    for key, known in _PATH.items():
        if settings.get(key, known) != known:
            raise Refused(
                f'was trained with {key}={settings[key]!r:.40}, which is not supported; use one '
                f'trained with {known!r}'
            )
    return _found('sit', tree, shapes_of, heads)


def _found(kind, tree, shapes_of, heads):
    prefix, arrays = _state(tree)
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray):
            raise Refused(f'{name!r:.80} is no array; take the file as it was published')
    width, channels, patch, _ = _shape(arrays, _PATCHES, 4)
    _, patches, _ = _shape(arrays, _PLACES, 3)
    rows, _ = _shape(arrays, _CLASSES, 2)
    outputs, _ = _shape(arrays, 'final_layer.linear.weight', 2)
    side = math.isqrt(patches)
    if side**2 != patches:
        raise Refused(f'{_PLACES!r} has {patches} patches, which are no square')
    heads = _HEADS.get(width) if heads is None else heads
    if heads is None:
        raise Refused(
            f'a width of {width} is none of {", ".join(map(str, _HEADS))}, and its arrays do not '
            'say the number of heads; give --heads=NUMBER'
        )
    blocks = {match[1] for name in arrays if (match := re.match(r'blocks\.(\d+)\.', name))}
    network = {
        'name': 'dit',
        'width': width,
        'depth': len(blocks),
        'heads': heads,
        'patch': patch,
        'learned_variance': outputs == 2 * channels * patch**2,
    }
    unused = {}
    if _is_fixed(arrays[_PLACES], width, side):
        unused[_PLACES] = 'positions that are computed'
    else:
        network['positions'] = 'learned'
    # The last row of the table is that of no class.
    image = {'shape': [side * patch, side * patch, channels], 'num_classes': rows - 1}
    model = {'network': network, 'denoiser': DENOISERS[kind], 'image': image}
    names = {name: name for name in shapes_of(model)}
    matched(arrays, names, unused)
    sources = {name: (f'{prefix}{name}',) for name in names}
    return Found(model, {name: arrays[name] for name in names}, sources, LICENCES[kind], unused)


def _shape(arrays, name, axes):
    """The shape of an array that must be there and have so many axes."""
    if name not in arrays:
        raise Refused(f'{name!r} is missing; take the file as it was published, whole')
    shape = arrays[name].shape
    if len(shape) != axes or 0 in shape:
        raise Refused(f'{name!r} has the shape {shape}; take the file as it was published')
    return shape


def _is_fixed(table, width, side):
    """Whether positions are those that are computed, to the rounding of their type."""
    if table.shape[-1] != width or width % 4:
        return False
    error = np.abs(table.astype(np.float32) - sincos(width, side, side, side)).max()
    return error <= (1e-5 if table.dtype == np.float32 else 1e-2)


# Ours -> diffusers', of a block and of all else; joined are the parts of q, k and v.
_BLOCK = {
    't_embedder.mlp.0': ('norm1.emb.timestep_embedder.linear_1',),
    't_embedder.mlp.2': ('norm1.emb.timestep_embedder.linear_2',),
    'y_embedder.embedding_table': ('norm1.emb.class_embedder.embedding_table',),
    'adaLN_modulation.1': ('norm1.linear',),
    'attn.qkv': ('attn1.to_q', 'attn1.to_k', 'attn1.to_v'),
    'attn.proj': ('attn1.to_out.0',),
    'mlp.fc1': ('ff.net.0.proj',),
    'mlp.fc2': ('ff.net.2',),
}
_ONCE = {
    'x_embedder.proj': ('pos_embed.proj',),
    'final_layer.adaLN_modulation.1': ('proj_out_1',),
    'final_layer.linear': ('proj_out_2',),
}
CLASS = 'DiTTransformer2DModel'
_INTERNAL = ('_class_name', '_diffusers_version', '_name_or_path')
_KEYS = {
    'num_attention_heads': 16,
    'attention_head_dim': 72,
    'in_channels': 4,
    'out_channels': None,
    'num_layers': 28,
    'sample_size': 32,
    'patch_size': 2,
    'num_embeds_ada_norm': 1000,
}
# What is supported, which is its default.
_ONLY = {
    'attention_bias': True,
    'activation_fn': 'gelu-approximate',
    'norm_type': 'ada_norm_zero',
    'norm_elementwise_affine': False,
    'norm_eps': 1e-5,
}
# These change nothing in what is computed.
_FREE = {'dropout': 0.0, 'norm_num_groups': 32, 'upcast_attention': False}
# Before DiT had a class of its own in diffusers, it was a case of this one, which had more settings
# and other defaults.
OLD_CLASS = 'Transformer2DModel'
_OLD = dict.fromkeys(_KEYS) | dict(
    num_attention_heads=16,
    attention_head_dim=88,
    num_layers=1,
    attention_bias=False,
    activation_fn='geglu',
    norm_type='layer_norm',
    norm_elementwise_affine=True,
    norm_eps=1e-5,
)
_OLD_ONLY = {
    'cross_attention_dim': None,
    'num_vector_embeds': None,
    'use_linear_projection': False,
    'only_cross_attention': False,
    'double_self_attention': False,
    'attention_type': 'default',
    'caption_channels': None,
    'interpolation_scale': None,
    'use_additional_conditions': None,
}


def _theirs(name):
    """diffusers' names of the parts of an array of ours."""
    stem, _, leaf = name.rpartition('.')
    if block := re.fullmatch(r'blocks\.(\d+)\.(.*)', stem):
        return [f'transformer_blocks.{block[1]}.{part}.{leaf}' for part in _BLOCK[block[2]]]
    return [f'{part}.{leaf}' for part in _ONCE[stem]]


def from_diffusers(
    config: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray],
    denoiser: Mapping[str, Any],
    shapes_of: ShapesOf,
    licence: str | None = None,
) -> Found:
    """A DiT out of what a folder of diffusers holds.

    Args:
      config: of the model, of class `CLASS` or `OLD_CLASS`.
      arrays: {diffusers' name: array}.
      denoiser: the section that its scheduler's config makes.
      shapes_of: see `found.ShapesOf`.
      licence: of the weights, None where the folder does not say.

    Raises:
      Refused: the config has settings that are not supported or known, or the arrays are not those
        that it says.
    """
    kind = config.get('_class_name', CLASS)
    is_old = kind == OLD_CLASS
    defaults = _KEYS | _ONLY | _FREE | ((_OLD | _OLD_ONLY) if is_old else {})
    given = {key: value for key, value in config.items() if key not in _INTERNAL}
    said = settled(given, defaults, kind)
    for key, known in (_ONLY | (_OLD_ONLY if is_old else {})).items():
        if said[key] != known:
            raise Refused(f'{key}={said[key]!r:.40} is not supported, only {known!r}; take a DiT')
    for key in _KEYS:
        if not (type(said[key]) is int and said[key] >= 1 or key == 'out_channels'):
            raise Refused(f'{key}={said[key]!r:.40}: is no size; take the folder as published')
    channels, side = said['in_channels'], said['sample_size']
    outputs = said['out_channels'] or channels
    if outputs not in (channels, 2 * channels):
        raise Refused(
            f'out_channels={outputs!r:.40}: is neither in_channels={channels} nor, with a learned '
            'variance, twice as many; take a DiT'
        )
    network = {
        'name': 'dit',
        'variant': 'diffusers',
        'width': said['num_attention_heads'] * said['attention_head_dim'],
        'depth': said['num_layers'],
        'heads': said['num_attention_heads'],
        'patch': said['patch_size'],
        'learned_variance': outputs != channels,
    }
    image = {'shape': [side, side, channels], 'num_classes': said['num_embeds_ada_norm']}
    model = {'network': network, 'denoiser': denoiser, 'image': image}
    parts = {name: tuple(_theirs(name)) for name in shapes_of(model)}
    matched(arrays, {part: part for own in parts.values() for part in own}, {})
    found = {}
    for name, own in parts.items():
        if len(shapes := {arrays[part].shape for part in own}) > 1:
            raise Refused(f'{own[0]!r} and its like have the shapes {sorted(shapes)}, not one')
        found[name] = np.concatenate([arrays[part] for part in own])
    return Found(model, found, parts, licence)


def to_diffusers(
    network: Mapping[str, Any], image: Mapping[str, Any], arrays: Mapping[str, np.ndarray]
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """(config, {diffusers' name: array}) of a DiT; the way back of `from_diffusers`.

    Args:
      network, image: the sections.
      arrays: {our name: array}.

    Raises:
      Refused: diffusers' class does not compute what this network does.
    """
    if network.get('variant') != 'diffusers' or network.get('positions', 'sincos') != 'sincos':
        raise Refused(
            "diffusers' DiT embeds time in each block and has fixed positions: only a network of "
            "variant='diffusers' and positions='sincos' is one"
        )
    said = {key: network[key] for key in Shape._fields if key in network}
    width, depth, heads, patch = sized(Shape(**said))
    side, _, channels = image['shape']
    config = {
        '_class_name': CLASS,
        'num_attention_heads': heads,
        'attention_head_dim': width // heads,
        'in_channels': channels,
        'out_channels': channels * (2 if network.get('learned_variance') else 1),
        'num_layers': depth,
        'sample_size': side,
        'patch_size': patch,
        'num_embeds_ada_norm': image['num_classes'],
        **_ONLY,
    }
    parted = {}
    for name, array in arrays.items():
        own = _theirs(name)
        parted |= zip(own, np.split(array, len(own)), strict=True)
    return config, parted
