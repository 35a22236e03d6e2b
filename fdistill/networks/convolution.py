"""Convolutions of the networks that are trained, with a quick gradient of the kernel on CPU.

XLA computes that gradient as one convolution whose window is the whole image, over all images at
once, which on CPU runs at half the speed of the convolution itself, a 1 x 1 kernel's at a quarter,
and within a loop, as microbatches are one, at a fiftieth, for there its operands stay as they lie.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jax.sharding import get_abstract_mesh

LAYOUTS = ('NHWC', 'HWIO', 'NHWC')
# Of settings that `nn.Conv` gives besides, those without effect.
UNSET = {
    'lhs_dilation': (1, 1),
    'rhs_dilation': (1, 1),
    'feature_group_count': 1,
    'precision': None,
}
LARGE = 256  # pixels from which on fewer images at once are quicker
AT_ONCE = 2  # images
LANES = 16  # channels that XLA computes together; of other numbers it takes up to twice the time


def convolve(
    x: jax.Array,
    kernel: jax.Array,
    strides: tuple[int, int] = (1, 1),
    padding: Any = 'SAME',
    **settings: Any,
) -> jax.Array:
    """`jax.lax.conv_general_dilated` of [B,H,W,C] by a kernel [n,m,C,features], as `nn.Conv` calls
    it; derivatives in any mode and order."""
    sides = kernel.shape[:2]
    unset = all(settings.get(name, value) == value for name, value in UNSET.items())
    usual = unset and strides == (1, 1) and padding == 'SAME'
    if usual and sides[0] == sides[1] and sides[0] % 2:
        if sides == (1, 1) and _on_one_cpu():
            return _product(x, kernel)
        return _same(x, kernel)
    settings = {'dimension_numbers': LAYOUTS} | settings
    return jax.lax.conv_general_dilated(x, kernel, strides, padding, **settings)


def _product(x, kernel):
    """Of 1 x 1, as a product of matrices: as one of tensors, or as a convolution, XLA copies what
    its derivatives are computed from."""
    out = x.reshape(-1, x.shape[-1]) @ kernel[0, 0]
    return out.reshape(*x.shape[:-1], -1)


@jax.custom_jvp
def _same(x, kernel):
    features = kernel.shape[-1]
    filled = _filled(kernel) if _on_one_cpu() else kernel
    out = jax.lax.conv_general_dilated(x, filled, (1, 1), 'SAME', dimension_numbers=LAYOUTS)
    return out[..., :features]


def _derivative(primals, tangents):
    (x, kernel), (dx, d_kernel) = primals, tangents
    y, parts, on_one_cpu = _same(x, kernel), [], _on_one_cpu()

    def of_transpose(function, tangent):
        # What is linear is given by its transpose, as that is what is computed when a loss is
        # differentiated: the transpose of a transpose is the same program.
        return jax.linear_transpose(function, y)(tangent)[0]

    if not isinstance(dx, SymbolicZero):
        if on_one_cpu and _missing(x.shape[-1]):
            flipped = jnp.swapaxes(kernel[::-1, ::-1], 2, 3)
            parts.append(of_transpose(lambda g: _same(g, flipped), dx))
        else:
            parts.append(_same(dx, kernel))
    if not isinstance(d_kernel, SymbolicZero):
        if on_one_cpu:
            parts.append(of_transpose(lambda g: _of_kernel(x, g, kernel.shape[0]), d_kernel))
        else:
            parts.append(_same(x, d_kernel))
    return y, sum(parts) if parts else jnp.zeros_like(y)


_same.defjvp(_derivative, symbolic_zeros=True)


def _missing(channels):
    """Channels that fill the last lanes; where there are fewer than those lanes, nothing does."""
    return -channels % LANES if channels > LANES else 0


def _filled(x):
    return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, _missing(x.shape[-1]))])


def _on_one_cpu():
    """Whether what is traced will run on one device, a CPU. Over several, parts of a batch would be
    moved from one to another."""
    mesh = get_abstract_mesh()
    if mesh.empty:
        return jax.default_backend() == 'cpu'
    return mesh.size == 1 and mesh.abstract_device.platform == 'cpu'


def _of_kernel(x: jax.Array, g: jax.Array, size: int) -> jax.Array:
    """Gradient of <g, convolution of x> in the kernel, [size,size,C,features].

    It is a convolution of x, channels being its images and images its channels, by g, written as
    XLA has it outside of loops; few images at once, so that what it gathers of them stays in the
    cache.
    """
    count, height, width, channels = x.shape
    at_once = AT_ONCE if count % AT_ONCE == 0 else 1
    if height * width < LARGE or count == at_once:
        made = _of_part(size, x, g)
    else:
        zero = _filled(jnp.zeros((channels, size, size, g.shape[-1]), x.dtype))
        parts = [a.reshape(-1, at_once, *a.shape[1:]) for a in (x, g)]
        made, _ = jax.lax.scan(lambda sum, part: (sum + _of_part(size, *part), None), zero, parts)
    return jnp.transpose(made, (1, 2, 0, 3))[..., : g.shape[-1]]


@functools.partial(jax.checkpoint, prevent_cse=False, static_argnums=0)
def _of_part(size, x, g):
    """[C,size,size,features]. Computed from x in the backward pass, else the transpose of x would
    be kept, too."""
    x, g = jnp.transpose(x, (3, 1, 2, 0)), _filled(jnp.transpose(g, (1, 2, 0, 3)))
    padding = (size // 2, size // 2)
    return jax.lax.conv_general_dilated(x, g, (1, 1), (padding, padding), dimension_numbers=LAYOUTS)
