"""The ways in which images are brought to the size that a feature network asks for; each is a
metric of its own.

Each is separable and linear up to a clip: out = R image C', where a row of R is a few weights that
sum to one. Of all steps, the resize makes two FIDs of small images differ most.

Reference: Parmar, Zhang, Zhu, On Aliased Resizing and Surprising Subtleties in GAN Evaluation, 2022
  (clean-fid).
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

# Of Keys' cubic kernel: Pillow, and torch where it smooths; torch without antialias has -3/4.
CUBIC = -0.5


def legacy_positions(n: int, size: int) -> np.ndarray:
    """x_j = j n / size, of TensorFlow 1: no half pixel, so that images move by up to half a pixel;
    float32 [size]."""
    # In float32 as there, for the weights are fractions of it.
    return np.arange(size, dtype=np.float32) * np.float32(n / size)


def half_pixel_positions(n: int, size: int) -> np.ndarray:
    """x_j = max((j + 1/2) n / size - 1/2, 0), of torch with align_corners=False; float32 [size]."""
    # As torch's fused multiply-add: the ratio and the result are rounded to float32, the product is
    # not.
    ratio = float(np.float32(n / size))
    return np.maximum((np.arange(size) + 0.5) * ratio - 0.5, 0).astype(np.float32)


def bilinear(positions: Callable[[int, int], np.ndarray], n: int, size: int) -> np.ndarray:
    """Weights of the pixels to the left and right of each position, the last pixel standing for all
    beyond it.

    Args:
      positions: positions(n, size) -> float32 [size], >= 0, in pixels.
      n: pixels before.
      size: pixels after.

    Returns:
      float32 [size, n], rows summing to one. No smoothing: images that shrink are aliased.
    """
    x = positions(n, size)
    left = np.minimum(x.astype(np.int64), n - 1)
    fraction = x - left.astype(np.float32)
    weights = np.zeros((size, n), np.float32)
    np.add.at(weights, (np.arange(size), left), 1 - fraction)
    np.add.at(weights, (np.arange(size), np.minimum(left + 1, n - 1)), fraction)
    return weights


def bicubic(n: int, size: int) -> np.ndarray:
    """Weights of Keys' cubic kernel with half pixels, stretched by s = max(n / size, 1) where the
    image shrinks.

    w_ji ~ k((i + 1/2 - (j + 1/2) n / size) / s), normalised over the pixels that exist.

    Args:
      n: pixels before.
      size: pixels after.

    Returns:
      float32 [size, n], rows summing to one; some weights are negative.

    Reference: Keys, Cubic convolution interpolation for digital image processing, 1981, eq. 4 with
      a = CUBIC; Pillow's resize and torch's interpolate(mode='bicubic', antialias=True) both
      compute this.
    """
    distance = np.arange(n) + 0.5 - (np.arange(size)[:, None] + 0.5) * (n / size)
    t = np.abs(distance / max(n / size, 1))
    near = ((CUBIC + 2) * t - (CUBIC + 3)) * t * t + 1
    far = CUBIC * (((t - 5) * t + 8) * t - 4)
    weights = np.where(t < 1, near, np.where(t < 2, far, 0))
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


@functools.partial(jax.jit, static_argnames=('weights', 'size', 'clip'))
def separable(
    images: jax.Array, size: int, *, weights: Callable[[int, int], np.ndarray], clip: bool = False
) -> jax.Array:
    """Resizes along both axes by weights(n, size) -> [size, n].

    Args:
      images: uint8 or float [B, H, W, C], grey levels 0..255.
      size: pixels of either side after, >= 1.
      weights: function of the weights of one axis.
      clip: cut off what overshoots 0..255.

    Returns:
      float32 [B, size, size, C].

    Raises:
      ValueError: no images, or no size.
    """
    if images.ndim != 4 or size < 1:
        raise ValueError(
            f'images of shape {images.shape} to size {size}: expected [B, H, W, C] and a size >= 1'
        )
    rows, columns = (weights(n, size) for n in images.shape[1:3])
    # An accelerator's default precision (bfloat16, TF32) would round the weights to three digits.
    product = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
    resized = product('jw,bhwc->bhjc', columns, images.astype(jnp.float32))
    resized = product('ih,bhjc->bijc', rows, resized)
    return resized.clip(0, 255) if clip else resized


def unchanged(images: jax.Array, size: int | None) -> jax.Array:
    """Images that have the size already, float32; any size, if `size` is None. ValueError for
    another size."""
    sides = images.shape[1:3]
    if images.ndim != 4 or sides != (sides if size is None else (size, size)):
        raise ValueError(
            f"images of shape {images.shape}: the resize 'none' takes [B, {size}, {size}, C] only"
        )
    return jnp.asarray(images, jnp.float32)


_legacy = functools.partial(bilinear, legacy_positions)
_half_pixel = functools.partial(bilinear, half_pixel_positions)

# name: function(images uint8 or float [B, H, W, C] in 0..255, size) -> float32 [B, size, size, C]
# in grey levels.
RESIZERS = {
    # TensorFlow 1's resize_bilinear, inside the Inception graph: EDM, EDM2, ADM, torch-fidelity,
    # meanflow, clean-fid's legacy_tensorflow.
    'tf1': functools.partial(separable, weights=_legacy),
    # F.interpolate(mode='bilinear', align_corners=False): pytorch-fid, clean-fid's legacy_pytorch.
    'torch': functools.partial(separable, weights=_half_pixel),
    # clean-fid's clean: Image.resize of each channel in mode F, then a clip.
    'pil_bicubic': functools.partial(separable, weights=bicubic, clip=True),
    # F.interpolate(mode='bicubic', antialias=True), which does not clip: EDM2's FD-DINOv2.
    'torch_bicubic_antialias': functools.partial(separable, weights=bicubic),
    'none': unchanged,
}
