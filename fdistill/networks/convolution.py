"""Convolutions of the networks that are trained, with a gradient of the kernel that is quick on CPU.

XLA computes that gradient as one convolution whose window is the whole image, over all images at
once, which on CPU runs at half the speed of the convolution itself, a 1 x 1 kernel's at a quarter,
and within a loop, as microbatches are one, at a fiftieth, for there its operands stay as they lie.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jax.sharding import get_abstract_mesh

LAYOUTS = ('NHWC', 'HWIO', 'NHWC')
LARGE = 256  # pixels from which on fewer images at once are quicker
AT_ONCE = 2  # images


def convolve(
    x: jax.Array,
    kernel: jax.Array,
    strides: tuple[int, int] = (1, 1),
    padding: Any = 'SAME',
    **settings: Any,
) -> jax.Array:
    """`jax.lax.conv_general_dilated` of [B,H,W,C] by a kernel [n,m,C,features], as `nn.Conv` calls
    it; derivatives in any mode and order."""
    square = kernel.shape[0] == kernel.shape[1] and kernel.shape[0] % 2
    if square and strides == (1, 1) and padding == 'SAME':
        return _same(x, kernel)
    settings = {'dimension_numbers': LAYOUTS} | settings
    return jax.lax.conv_general_dilated(x, kernel, strides, padding, **settings)


@jax.custom_jvp
def _same(x, kernel):
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), 'SAME', dimension_numbers=LAYOUTS)


def _derivative(primals, tangents):
    (x, kernel), (dx, d_kernel) = primals, tangents
    y = _same(x, kernel)
    parts = [] if isinstance(dx, SymbolicZero) else [_same(dx, kernel)]
    if not isinstance(d_kernel, SymbolicZero):
        if _on_one_cpu():
            # What is linear in the kernel is given by its transpose, as that is what is computed
            # when a loss is differentiated: the transpose of a transpose is the same program.
            of_output = jax.linear_transpose(lambda g: _of_kernel(x, g, kernel.shape[0]), y)
            parts += of_output(d_kernel)
        else:
            parts.append(_same(x, d_kernel))
    return y, sum(parts) if parts else jnp.zeros_like(y)


_same.defjvp(_derivative, symbolic_zeros=True)


def _on_one_cpu():
    """Whether what is traced will run on one device, a CPU. Over several, parts of a batch would be
    moved from one to another."""
    mesh = get_abstract_mesh()
    if mesh.empty:
        return jax.default_backend() == 'cpu'
    return mesh.size == 1 and mesh.abstract_device.platform == 'cpu'


def _of_kernel(x: jax.Array, g: jax.Array, size: int) -> Any:
    """Gradient of <g, convolution of x> in the kernel, [size,size,C,features].

    It is a convolution of x, channels being its images and images its channels, by g, written as
    XLA has it outside of loops; few images at once, so that what it gathers of them stays in the
    cache.
    """
    count, height, width, channels = x.shape
    at_once = AT_ONCE if count % AT_ONCE == 0 else 1
    if size == 1:
        return jnp.einsum('bhwc,bhwf->cf', x, g)[None, None]
    zero = jnp.zeros((channels, size, size, g.shape[-1]), x.dtype)
    if height * width < LARGE or count == at_once:
        made = _added(size, zero, (x, g))
    else:
        parts = [a.reshape(-1, at_once, *a.shape[1:]) for a in (x, g)]
        made, _ = jax.lax.scan(lambda sum, part: (_added(size, sum, part), None), zero, parts)
    return jnp.transpose(made, (1, 2, 0, 3))


def _added(size, total, part):
    x, g = (jnp.transpose(a, axes) for a, axes in zip(part, ((3, 1, 2, 0), (1, 2, 0, 3))))
    padding = (size // 2, size // 2)
    return total + jax.lax.conv_general_dilated(
        x, g, (1, 1), (padding, padding), dimension_numbers=LAYOUTS
    )
