"""Small vision transformers with weights drawn by name, and how outputs of two PyTorch
implementations were recorded.

`python tests/vit_goldens.py CHECKOUT` writes data/vit_goldens.npz; CHECKOUT is a clone of
facebookresearch/dinov2. Recorded at its commit b8931f7 and with transformers 5.23.0 and torch
2.13.0+cpu in float32.
"""

import json
import os
import pathlib
import sys
import zlib

import numpy as np

GOLDENS = pathlib.Path(__file__).parent / 'data' / 'vit_goldens.npz'
# Each a network and the images (height, width in pixels) that it sees. 224 from 37 positions is
# FD-DINOv2's own case.
_SMALL = dict(dim=32, depth=2, heads=4)
CASES = {
    'fd': (dict(_SMALL, grid=37), (224, 224)),
    'wide': (dict(_SMALL, grid=5), (42, 98)),
    'one side': (dict(_SMALL, grid=5), (70, 56)),
    'native': (dict(_SMALL, grid=5), (70, 70)),
    'swiglu': (dict(_SMALL, grid=5, feed_forward='swiglu'), (98, 28)),
}
# The offset by which each implementation interpolates position embeddings.
OFFSETS = {'facebook': 0.1, 'transformers': 0.0}
SIZES = ('vits14', 'vitb14', 'vitl14', 'vitg14')
_RENAMED = {
    'blocks': ['encoder.layer'],
    'attn.qkv': ['attention.q_proj', 'attention.k_proj', 'attention.v_proj'],
    'attn.proj': ['attention.o_proj'],
    'ls1.gamma': ['layer_scale1.lambda1'],
    'ls2.gamma': ['layer_scale2.lambda1'],
    'w12': ['gate_proj', 'up_proj'],
    'w3': ['down_proj'],
    'cls_token': ['embeddings.cls_token'],
    'mask_token': ['embeddings.mask_token'],
    'pos_embed': ['embeddings.position_embeddings'],
    'patch_embed.proj': ['embeddings.patch_embeddings.projection'],
    'norm.': ['layernorm.'],
}


def weight(name, shape):
    """The array of facebook's state dict entry `name`: unit gain, norms and LayerScale near one.

    What enters the first block is small, so that its norm shows its eps.
    """
    draw = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    if 'norm' in name or name.endswith('gamma'):
        draw = 0.2 * draw + (not name.endswith('bias'))
    elif 'token' in name or 'embed' in name:
        draw = 0.02 * draw / np.sqrt(np.prod(shape[1:]) if name == 'patch_embed.proj.weight' else 1)
    elif len(shape) > 1:
        draw = draw / np.sqrt(shape[1])
    return draw.astype(np.float32)


def inputs(height, width):
    """Two images [2,height,width,3], normalised."""
    return np.random.RandomState(0).standard_normal((2, height, width, 3)).astype(np.float32)


def _to_transformers(arrays):
    """Facebook's state dict with transformers' names; the joined q, k, v and gate, value are
    parted."""
    for old, new in _RENAMED.items():
        arrays = {
            name.replace(old, part): piece
            for name, array in arrays.items()
            for part, piece in zip(
                new, np.split(array, len(new)) if old in name else [array], strict=False
            )
        }
    return arrays


def record(checkout):
    """Runs both implementations and writes GOLDENS: class tokens, and the names and shapes of
    facebook's sizes."""
    os.environ['XFORMERS_DISABLED'] = '1'
    sys.path.insert(0, checkout)
    import torch
    from dinov2.hub import backbones
    from dinov2.models.vision_transformer import DinoVisionTransformer
    from transformers import Dinov2Config, Dinov2Model

    arrays = {}
    for case, (settings, (height, width)) in CASES.items():
        dim, depth, heads = settings['dim'], settings['depth'], settings['heads']
        swiglu, size = settings.get('feed_forward') == 'swiglu', 14 * settings['grid']
        # The options by which backbones._make_dinov2_model makes dinov2_vitl14.
        options = dict(
            init_values=1.0, block_chunks=0, ffn_layer='swiglufused' if swiglu else 'mlp'
        )
        options.update(interpolate_antialias=False, interpolate_offset=OFFSETS['facebook'])
        facebook = DinoVisionTransformer(
            size, 14, embed_dim=dim, depth=depth, num_heads=heads, **options
        ).eval()
        drawn = {
            name: weight(name, tuple(entry.shape)) for name, entry in facebook.state_dict().items()
        }
        facebook.load_state_dict({name: torch.from_numpy(array) for name, array in drawn.items()})
        options = dict(image_size=size, patch_size=14, use_swiglu_ffn=swiglu, layer_norm_eps=1e-6)
        options.update(hidden_size=dim, num_hidden_layers=depth, num_attention_heads=heads)
        transformers = Dinov2Model(Dinov2Config(**options)).eval()
        renamed = {name: torch.from_numpy(array) for name, array in _to_transformers(drawn).items()}
        transformers.load_state_dict(renamed)
        x = torch.from_numpy(inputs(height, width).transpose(0, 3, 1, 2))
        with torch.no_grad():
            arrays[f'{case}/facebook'] = facebook(x).numpy()
            arrays[f'{case}/transformers'] = transformers(x).pooler_output.numpy()
    for size in SIZES:
        with torch.device('meta'):
            entries = getattr(backbones, f'dinov2_{size}')(pretrained=False).state_dict()
        arrays[f'{size}/entries'] = np.array(
            json.dumps({name: list(entry.shape) for name, entry in entries.items()})
        )
    GOLDENS.parent.mkdir(exist_ok=True)
    np.savez_compressed(GOLDENS, **arrays)


if __name__ == '__main__':
    record(sys.argv[1])
