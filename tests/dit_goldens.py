"""Small diffusion transformers with weights drawn by name, and how outputs of three PyTorch
implementations were recorded.

`python tests/dit_goldens.py DIT SIT` writes data/dit_goldens.npz; DIT and SIT are clones of
facebookresearch/DiT and willisma/SiT. Recorded at their commits ed81ce2 and 947f95b, with timm
1.0.31, diffusers 0.42.1 and torch 2.13.0 on a CPU in float32.
"""

import importlib.util
import json
import pathlib
import re
import sys
import zlib
from typing import Any, NamedTuple

import numpy as np

GOLDENS = pathlib.Path(__file__).parent / 'data' / 'dit_goldens.npz'
CLASSES = 10


class Case(NamedTuple):
    """An implementation, settings of our network, side of the images, and times."""

    implementation: str
    settings: dict[str, Any]
    side: int
    times: tuple[float, ...]


_SMALL = dict(resolution=8, num_classes=CLASSES, width=16, depth=3, heads=2, patch=2)
_DIFFUSERS = dict(_SMALL, variant='diffusers')
_DDPM = (0.0, 7.0, 249.5, 931.0)
CASES = {
    'dit': Case('DiT', dict(_SMALL, learned_variance=True), 8, _DDPM),
    'sit': Case('SiT', dict(_SMALL, learned_variance=True, patch=4), 8, (0.0, 0.1, 0.7, 1.0)),
    'diffusers': Case('diffusers', dict(_DIFFUSERS, learned_variance=True), 8, _DDPM),
    'diffusers, larger': Case('diffusers', dict(_DIFFUSERS, heads=4), 12, _DDPM),
}
SIZES = ('S/2', 'B/4', 'L/2', 'XL/8')
# The table of positions at 4 x 6 patches, of which 4 x 4 are usual.
PLACES = dict(width=16, rows=4, columns=6, side=4)
# Ours: theirs; joined are parted.
_RENAMED = {
    'x_embedder.proj': ['pos_embed.proj'],
    'blocks': ['transformer_blocks'],
    'attn.qkv': ['attn1.to_q', 'attn1.to_k', 'attn1.to_v'],
    'attn.proj': ['attn1.to_out.0'],
    'mlp.fc1': ['ff.net.0.proj'],
    'mlp.fc2': ['ff.net.2'],
    'final_layer.adaLN_modulation.1': ['proj_out_1'],
    'final_layer.linear': ['proj_out_2'],
    'adaLN_modulation.1': ['norm1.linear'],
    't_embedder.mlp.0': ['norm1.emb.timestep_embedder.linear_1'],
    't_embedder.mlp.2': ['norm1.emb.timestep_embedder.linear_2'],
    'y_embedder': ['norm1.emb.class_embedder'],
}


def weight(name, shape):
    """A parameter of ours: unit gain, and nothing is zero.

    What the first patch brings into the first block is small, so that norms show their eps: the
    bias takes its position away, which is 0, .., 0, 1, .., 1 twice.
    """
    draw = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    if name == 'x_embedder.proj.bias':
        draw = 0.01 * draw - (np.arange(len(draw)) % 8 > 3)
    elif name == 'x_embedder.proj.weight':
        draw = 0.01 * draw
    elif name == 'blocks.0.attn.proj.weight':
        draw = 0.01 * draw
    elif len(shape) > 1:
        draw = draw / np.sqrt(shape[1])
    else:
        draw = (0.001 if name == 'blocks.0.attn.proj.bias' else 0.2) * draw
    return draw.astype(np.float32)


def inputs(case):
    """(x [4,side,side,4], times [4], labels [4], of which -1 is none)"""
    x = np.random.RandomState(0).standard_normal((4, case.side, case.side, 4))
    return x.astype(np.float32), np.float32(case.times), np.array([3, -1, 0, CLASSES - 1], np.int32)


def to_diffusers(arrays):
    """Our parameters of the variant 'diffusers' under diffusers' names."""
    for old, new in _RENAMED.items():
        arrays = {
            name.replace(old, part): piece
            for name, array in arrays.items()
            for part, piece in zip(
                new, np.split(array, len(new)) if old in name else [array], strict=False
            )
        }
    return arrays


def module(case):
    """diffusers' network of a case, with its weights.

    Its own names, read back into ours, say which weights there are.
    """
    import torch
    from diffusers import DiTTransformer2DModel

    settings = case.settings
    options = dict(num_attention_heads=settings['heads'], num_layers=settings['depth'])
    options |= dict(attention_head_dim=settings['width'] // settings['heads'])
    options |= dict(sample_size=settings['resolution'], patch_size=settings['patch'])
    options |= dict(num_embeds_ada_norm=settings['num_classes'])
    options |= dict(out_channels=8 if settings.get('learned_variance') else 4)
    made = DiTTransformer2DModel(**options).eval()
    shapes = {name: tuple(entry.shape) for name, entry in made.state_dict().items()}
    ours = {}
    for name, shape in shapes.items():
        for old, new in reversed(_RENAMED.items()):
            if new[0] in name:
                name = name.replace(new[0], old)
                shape = (len(new) * shape[0], *shape[1:])
        if not re.search(r'to_[kv]', name):
            ours[name] = weight(name, shape)
    theirs = to_diffusers(ours)
    made.load_state_dict({name: torch.from_numpy(array) for name, array in theirs.items()})
    return made


def answer(case, network):
    """Output [4,side,side,channels] of a PyTorch network."""
    import torch

    x, times, labels = inputs(case)
    labels = np.where(labels < 0, CLASSES, labels)
    given = torch.from_numpy(x.transpose(0, 3, 1, 2)), torch.from_numpy(times)
    with torch.no_grad():
        if case.implementation == 'diffusers':
            out = network(*given, class_labels=torch.from_numpy(labels)).sample
        else:
            out = network(*given, torch.from_numpy(labels))
    return out.numpy().transpose(0, 2, 3, 1)


def _facebook(checkout, case):
    import torch

    spec = importlib.util.spec_from_file_location('models', pathlib.Path(checkout) / 'models.py')
    models = sys.modules['models'] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(models)
    settings, kind = case.settings, getattr(models, case.implementation)
    network = kind(
        settings['resolution'],
        settings['patch'],
        hidden_size=settings['width'],
        depth=settings['depth'],
        num_heads=settings['heads'],
        num_classes=CLASSES,
        learn_sigma=settings['learned_variance'],
    ).eval()
    drawn = {
        name: torch.from_numpy(weight(name, tuple(entry.shape)))
        for name, entry in network.state_dict().items()
        if name != 'pos_embed'  # Fixed, and made when the network is.
    }
    network.load_state_dict(drawn, strict=False)
    return network, kind


def _entries(network):
    shapes = {name: list(entry.shape) for name, entry in network.state_dict().items()}
    return np.array(json.dumps(shapes))


def record(**checkouts):
    """Runs the implementations and writes GOLDENS: '<case>' outputs, 'places', the names and shapes
    of XL/2 in 'facebook/entries' and 'diffusers/entries', and '<size>/parameters', counted."""
    import torch
    from diffusers import DiTTransformer2DModel
    from diffusers.models.embeddings import get_2d_sincos_pos_embed

    arrays = {}
    for name, case in CASES.items():
        if case.implementation == 'diffusers':
            network = module(case)
        else:
            network, kind = _facebook(checkouts[case.implementation], case)
        arrays[name] = answer(case, network)
    grid = PLACES['rows'], PLACES['columns']
    arrays['places'] = get_2d_sincos_pos_embed(
        PLACES['width'], grid, base_size=PLACES['side'], output_type='pt'
    ).numpy()
    options = dict(hidden_size=1152, depth=28, num_heads=16)
    # Its constructor reads an array's values, which meta arrays lack.
    arrays['facebook/entries'] = _entries(kind(**options))
    models = sys.modules[kind.__module__]
    for size in SIZES:
        made = getattr(models, f'{kind.__name__}_models')[f'{kind.__name__}-{size}']()
        arrays[f'{size}/parameters'] = sum(entry.numel() for entry in made.parameters())
    with torch.device('meta'):
        made = DiTTransformer2DModel(num_embeds_ada_norm=1000, out_channels=8)
    arrays['diffusers/entries'] = _entries(made)
    np.savez_compressed(GOLDENS, **arrays)


if __name__ == '__main__':
    record(DiT=sys.argv[1], SiT=sys.argv[2])
