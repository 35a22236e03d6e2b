"""Augmentation of training images that tells the network what was done to them, so that samples of
all-zero labels are like the data itself (EDM, arXiv 2206.00364, appendix F.2 and table 8)."""

import math

import jax
import jax.numpy as jnp
import numpy as np

# What each label is; the a's are the table's.
LABELS = (
    'x-flip: a0',
    'y-flip: a1',
    'scaling: a2',
    'rotation: cos(a3) - 1',
    'rotation: sin(a3)',
    'anisotropy: a5 cos(a4)',
    'anisotropy: a5 sin(a4)',
    'translation: a6',
    'translation: a7',
)


def augment(
    key: jax.Array,
    x: jax.Array,
    *,
    probability: float = 0.12,
    x_flip: float = 0.5,
    scale: float = 2**0.2,
    anisotropy: float = 2**0.2,
    translation: float = 0.125,
) -> tuple[jax.Array, jax.Array]:
    """Images moved at random, and labels that say how: `warp(x, labels)` of `draw(key, B)`.

    Args:
      key: jax.random.key.
      x: [B, H, W, C] of a float dtype.
      probability, x_flip: see `draw`.
      scale, anisotropy, translation: see `warp`.

    Returns:
      (x[B, H, W, C], labels float32 [B, 9]): the condition `augment` of a network of augment_dim=9.

    Raises:
      ValueError: on values out of range, or an x that is no batch of images.

    Reference: Karras et al., Elucidating the design space of diffusion-based generative models,
      NeurIPS 2022, appendix F.2, table 8.
    """
    labels = draw(key, len(x), probability=probability, x_flip=x_flip)
    moved = warp(x, labels, scale=scale, anisotropy=anisotropy, translation=translation)
    return moved, labels


def draw(key: jax.Array, n: int, *, probability: float = 0.12, x_flip: float = 0.5) -> jax.Array:
    """Labels of n images, as `LABELS` names them; all 0 for an image that is left as it is.

    a1 ~ U{0, 1}, a2, a6, a7 ~ N(0, 1), a3, a4 ~ U(-pi, pi), a5 ~ |N(0, 1)|; each of y-flip,
    scaling, rotation, anisotropy and translation is left out, its labels being 0, unless an event
    of this probability happens.

    Args:
      key: jax.random.key.
      n: number of images.
      probability: in [0, 1]; .12 for CIFAR-10, .15 for FFHQ and AFHQv2.
      x_flip: share of images mirrored, a0 = 1, whatever the probability, in [0, 1]; half in EDM.

    Returns:
      float32 [n, 9].

    Raises:
      ValueError: on values out of range.
    """
    for name, value in (('probability', probability), ('x_flip', x_flip)):
        if not 0 <= value <= 1:
            raise ValueError(f'{name}={value}: must lie in [0, 1]')
    key_uniform, key_normal = jax.random.split(key)
    uniform = jax.random.uniform(key_uniform, (9, n), jnp.float32)
    a2, a5, a6, a7 = jax.random.normal(key_normal, (4, n), jnp.float32)
    flipped, scaled, rotated, stretched, shifted = uniform[:5] < probability
    a0, a1 = uniform[5] < x_flip, uniform[6] < 0.5
    a3, a4 = jnp.pi * (2 * uniform[7:] - 1)
    # The table has N(0, 1). There (a5, a4) and (-a5, a4 + pi) have the same label, although the one
    # stretches where the other shrinks. Stretches and labels are each distributed as there.
    a5 = jnp.abs(a5)
    return jnp.stack(
        [
            a0.astype(jnp.float32),
            (flipped & a1).astype(jnp.float32),
            scaled * a2,
            rotated * (jnp.cos(a3) - 1),
            rotated * jnp.sin(a3),
            stretched * a5 * jnp.cos(a4),
            stretched * a5 * jnp.sin(a4),
            shifted * a6,
            shifted * a7,
        ],
        axis=1,
    )


def warp(
    x: jax.Array,
    labels: jax.Array,
    *,
    scale: float = 2**0.2,
    anisotropy: float = 2**0.2,
    translation: float = 0.125,
) -> jax.Array:
    """Images moved as their labels say, all transformations of an image as one affine map.

    About the centre, in this order: mirrored left to right if a0, top to bottom if a1; larger by
    scale^a2; turned anticlockwise by a3; stretched by anisotropy^a5 in the direction a4 (clockwise
    from the x-axis) and shrunk by as much across it; moved right by a6 translation W and down by a7
    translation H. Beyond its edge an image goes on as its reflection, the edge not being repeated.

    Values between pixels are interpolated by cubic convolution over 6 x 6 pixels, with an error of
    the fourth order in the pixel's size: 1e-4 of the amplitude of a wave of 16 pixels, 2e-3 of one
    of 8. Where pixels fall on pixels - flips, right angles of a square, whole pixels - their
    values are kept bit for bit. What is made smaller is not filtered before.

    Args:
      x: [B, H, W, C] of a float dtype.
      labels: [B, 9], see `LABELS`.
      scale, anisotropy: factors of one standard deviation, > 0.
      translation: one standard deviation as a share of the image's sides, >= 0.

    Returns:
      [B, H, W, C] of x's dtype; computed in float32 at least.

    Raises:
      ValueError: on values out of range, or shapes that do not fit.

    Reference: Keys, Cubic convolution interpolation for digital image processing, IEEE ASSP 1981,
      the kernel of the fourth order.
    """
    if x.ndim != 4 or not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f'x of shape {x.shape} and dtype {x.dtype}: need floats [B, H, W, C]')
    if labels.shape != (len(x), len(LABELS)):
        raise ValueError(f'labels of shape {labels.shape}: must be {(len(x), len(LABELS))}')
    if not (scale > 0 and anisotropy > 0 and translation >= 0):
        raise ValueError(
            f'scale={scale}, anisotropy={anisotropy}, translation={translation}: '
            'need > 0, > 0, >= 0'
        )
    dtype = jnp.promote_types(x.dtype, jnp.float32)

    def one(image, label):
        height, width, _ = image.shape
        (xx, xy), (yx, yy) = _inverse(label, scale, anisotropy)
        # From a pixel of the result, relative to the centre, to where it comes from.
        to_x = np.arange(width) - (width - 1) / 2 - translation * width * label[7]
        to_y = np.arange(height)[:, None] - (height - 1) / 2 - translation * height * label[8]
        columns = _taps(xx * to_x + xy * to_y + (width - 1) / 2, width)
        rows = _taps(yx * to_x + yy * to_y + (height - 1) / 2, height)
        # A sum of 36 terms rather than of an axis, which would be kept in memory.
        return sum(
            (down * across)[..., None] * image[row, column]
            for row, down in rows
            for column, across in columns
        )

    return jax.vmap(one)(x.astype(dtype), labels.astype(dtype)).astype(x.dtype)


def _inverse(label, scale, anisotropy):
    """Flips^-1 Scaling^-1 Rotation^-1 Anisotropy^-1 as ((xx, xy), (yx, yy)), y pointing down.

    Written out, since an accelerator would round matrix products to a few digits, and so that what
    was not done is exactly the identity.
    """
    x_flip, y_flip, size, cos_less_one, sin, along_x, along_y = label[:7]
    cos = 1 + cos_less_one
    # R(a4) diag(1/s, s) R(-a4) = cosh(log s) I - sinh(log s) ((cos 2 a4, sin 2 a4), (sin 2 a4,
    # -cos 2 a4)), s = anisotropy^a5.
    square = along_x**2 + along_y**2
    log_s = math.log(anisotropy) * jnp.sqrt(square)
    sinh = jnp.sinh(log_s) / jnp.maximum(square, jnp.finfo(square.dtype).tiny)
    one, other = sinh * (along_x - along_y) * (along_x + along_y), 2 * sinh * along_x * along_y
    cosh = jnp.cosh(log_s)
    x_factor, y_factor = (scale**-size * (1 - 2 * flip) for flip in (x_flip, y_flip))
    return (
        (
            x_factor * (cos * (cosh - one) + sin * other),
            x_factor * (-cos * other - sin * (cosh + one)),
        ),
        (
            y_factor * (sin * (cosh - one) - cos * other),
            y_factor * (-sin * other + cos * (cosh + one)),
        ),
    )


def _taps(position, length):
    """Six (index, weight), of the pixels that give the values at positions; of the reflected
    image."""
    period = max(2 * (length - 1), 1)

    def reflected(at):
        return length - 1 - jnp.abs(at % period - (length - 1))

    position = reflected(position)
    first = jnp.floor(position)
    return [
        (reflected(first.astype(int) + n), _kernel(jnp.abs(position - first - n)))
        for n in range(-2, 4)
    ]


def _kernel(s):
    """Keys' cubics of the fourth order on [0, 1], [1, 2] and [2, 3]; exactly 1, 0, 0, 0 at 0, 1, 2,
    3."""
    inner = ((4 * s - 7) * s**2 + 3) / 3
    middle = (((-7 * s + 36) * s - 59) * s + 30) / 12
    outer = (((s - 8) * s + 21) * s - 18) / 12
    return jnp.where(s < 1, inner, jnp.where(s < 2, middle, outer))
