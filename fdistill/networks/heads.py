"""Discriminators on the features of a network."""

import flax.linen as nn
import jax.numpy as jnp

from fdistill.networks import Head
from fdistill.networks.layers import KAIMING, conv, norm


class _ConvLogit(nn.Module):
    """[B,H,W,C] -> [B]: H and W are halved while they exceed 4, then come one convolution over all
    that is left and a linear logit."""

    @nn.compact
    def __call__(self, x):
        x = x.astype(jnp.float32)
        channels = x.shape[-1]
        while max(x.shape[1:3]) > 4:
            size = x.shape[1]
            x = conv(x, channels, 4, KAIMING, f'conv{size}', stride=2, padding=1)
            x = nn.silu(norm(x, 1e-5, f'norm{size}'))
        x = conv(x, channels, x.shape[1], KAIMING, 'conv_global', padding='VALID')
        x = nn.silu(norm(x, 1e-5, 'norm_global'))
        return conv(x, 1, 1, KAIMING, 'logit').reshape(x.shape[0])


class _PatchLogits(nn.Module):
    """[B,H,W,C] -> [B, (H/2 + 1)(W/2 + 1)], a logit a place."""

    @nn.compact
    def __call__(self, x):
        x = norm(x.astype(jnp.float32), 1e-5, 'norm')
        x = conv(x, max(x.shape[-1] // 4, 1), 4, KAIMING, 'conv', stride=2, padding=2)
        return conv(nn.silu(x), 1, 1, KAIMING, 'logit').reshape(x.shape[0], -1)


class _OnFeatures(nn.Module):
    """A layer for each of some features; their logits side by side."""

    layer: type[nn.Module]
    indices: tuple

    @nn.compact
    def __call__(self, features):
        for index in self.indices:
            if not -len(features) <= index < len(features):
                raise ValueError(
                    f'indices={self.indices}: the network has {len(features)} features, '
                    f'none at {index}'
                )
            shape = features[index].shape
            if len(shape) != 4 or shape[1] != shape[2]:
                raise ValueError(
                    f'feature {index} has shape {shape}, must be square [B,R,R,C]; '
                    "for others use HEADS['mlp']"
                )
        logits = [
            self.layer(name=f'head{i}')(features[index]) for i, index in enumerate(self.indices)
        ]
        return jnp.concatenate([of.reshape(len(of), -1) for of in logits], axis=-1)


def _on_features(layer, indices):
    """The `Head` of a layer."""
    indices = tuple(indices)
    if not indices or len(set(indices)) < len(indices):
        raise ValueError(f'indices={indices}: name at least one feature, and each once')
    module = _OnFeatures(layer, indices)

    def init(key, features, c_noise, condition):
        return module.init(key, features)['params']

    def apply(params, features, c_noise, condition):
        return module.apply({'params': params}, features)

    return Head(init, apply)


def conv_head(*, indices: tuple[int, ...] = (-1,)) -> Head:
    """One logit for each chosen feature; a positive one means real. Sees neither noise level nor
    label.

    While R > 4: [4x4 convolution of stride 2, GroupNorm, SiLU]; then R x R -> 1 x 1 convolution,
    GroupNorm, SiLU, 1x1 convolution. At R = 8, 16, 32 these are the layers of DMD2 (arXiv
    2405.14867) and f-distill (arXiv 2502.15681); smaller features simply have fewer. Computes in
    float32.

    Args:
        indices: which of the network's features, each of shape [B,R,R,C]; -1 is the bottleneck.
    Returns:
        `Head` with logits [B, len(indices)].
    Raises:
        ValueError: no index, or a repeated one; on use, an index that the network lacks, or a
          feature that is no square image.
    """
    return _on_features(_ConvLogit, indices)


def patch_head(*, indices: tuple[int, ...] = (-1,)) -> Head:
    """A logit for each place of each chosen feature: GroupNorm, 4x4 convolution of stride 2 to a
    quarter of the channels, SiLU, 1x1 convolution. Sees neither noise level nor label; computes in
    float32.

    These are the heads on a U-Net of AMD's implementation of LADD (AMD-Diffusion-Distillation,
    2024), on its bottleneck or on the ends of its levels; LADD's authors released no code.

    Args:
        indices: which of the network's features, as of `conv_head`.
    Returns:
        `Head` with logits [B, places of all features].
    Raises:
        ValueError: as of `conv_head`.
    """
    return _on_features(_PatchLogits, indices)


def channel_mean_head(*, index: int = -1) -> Head:
    """The mean over the channels of a feature is its logit, one at each place: a discriminator
    without parameters, which the network that has the feature learns to be (SiDA, arXiv
    2410.14919).

    Args:
        index: of the network's features; -1 is the bottleneck.
    Returns:
        `Head` with logits [B, places].
    """

    def init(key, features, c_noise, condition):
        return {}

    def apply(params, features, c_noise, condition):
        if not -len(features) <= index < len(features):
            raise ValueError(f'index={index}: the network has {len(features)} features')
        logits = jnp.mean(features[index].astype(jnp.float32), axis=-1)
        return logits.reshape(len(logits), -1)

    return Head(init, apply)
