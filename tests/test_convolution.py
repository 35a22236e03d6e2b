"""The convolution of trained networks and its derivatives, against `lax`'s own."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fdistill.networks.compute import REMAT
from fdistill.networks.convolution import LAYOUTS, convolve
from fdistill.training import sharding


def plain(x, kernel):
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), 'SAME', dimension_numbers=LAYOUTS)


def loss(f):
    return lambda x, kernel: jnp.sum(jnp.sin(f(x, kernel)) ** 2)


# Of a function, from arguments and a direction for each: derivatives that methods and tests take.
MODES = {
    'reverse': lambda f, at, to: jax.grad(loss(f), (0, 1))(*at),
    'forward': lambda f, at, to: jax.jvp(f, at, to),
    'forward in x': lambda f, at, to: jax.jvp(lambda x: f(x, at[1]), at[:1], to[:1]),
    'reverse over forward': lambda f, at, to: jax.grad(
        lambda x, k: jnp.sum(jax.jvp(lambda x: jnp.sin(f(x, k)), (x,), to[:1])[1] ** 2), (0, 1)
    )(*at),
    'reverse over reverse': lambda f, at, to: jax.grad(
        lambda x, k: jnp.sum(jax.grad(loss(f))(x, k) ** 2), (0, 1)
    )(*at),
    'forward over reverse': lambda f, at, to: jax.jvp(jax.grad(loss(f), (0, 1)), at, to),
    'of many': lambda f, at, to: jax.vmap(jax.grad(loss(f), (0, 1)))(
        *(jnp.stack(pair) for pair in zip(at, to))
    ),
    'computed again': lambda f, at, to: jax.grad(REMAT['elementwise'].function(loss(f)), (0, 1))(
        *at
    ),
}


@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize('size, batch, pixels', [(1, 4, 16), (3, 4, 16), (3, 3, 16), (5, 4, 4)])
@pytest.mark.parametrize('channels', [(3, 4), (17, 18)])  # Of less than 16, and of more.
def test_derivatives(x64, mode, size, batch, pixels, channels):
    shapes = (batch, pixels, pixels, channels[0]), (size, size, *channels)
    rng = np.random.default_rng(0)
    at, to = (tuple(rng.standard_normal(shape) for shape in shapes) for _ in range(2))
    own, theirs = (jax.jit(MODES[mode], static_argnums=0)(f, at, to) for f in (convolve, plain))
    for a, b in zip(jax.tree.leaves(own), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12 * np.abs(b).max())


def convolutions(function):
    x, kernel = jnp.ones((4, 8, 8, 3)), jnp.ones((3, 3, 3, 4))
    return len(re.findall(r'conv_general_dilated\[', str(jax.make_jaxpr(function)(x, kernel))))


def test_what_is_kept_is_not_computed_again():
    """Two convolutions and the two derivatives of each."""

    def twice(x, kernel):
        h = jnp.sin(convolve(x, kernel))
        return jnp.sum(jnp.sin(convolve(h, jnp.swapaxes(kernel, 2, 3))))

    counts = {
        kind: convolutions(jax.grad(REMAT[kind].function(twice), (0, 1)))
        for kind in ('nothing', 'elementwise', 'blocks')
    }
    assert counts == {'nothing': 6, 'elementwise': 6, 'blocks': 8}


def test_parts_of_a_batch_stay_on_their_devices():
    """Over several devices the gradient is of the whole batch, and on what is no CPU."""

    def traced(mesh):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            x, kernel = jnp.ones((4, 16, 16, 3)), jnp.ones((3, 3, 3, 3))
            return str(jax.make_jaxpr(jax.grad(loss(convolve), 1))(x, kernel))

    one, eight = (sharding.mesh_over(jax.devices()[:n]) for n in (1, 8))
    assert 'scan' in traced(one) and 'scan' not in traced(eight)


@pytest.mark.parametrize(
    'changes', [dict(strides=(2, 2)), dict(padding='VALID'), dict(rhs_dilation=(2, 2))]
)
def test_others_are_those_of_lax(changes):
    x, kernel = jnp.ones((2, 9, 9, 3)), jnp.ones((3, 3, 3, 4))
    settings = dict(padding='SAME') | changes
    given = {'window_strides': settings.get('strides', (1, 1))}
    given |= {name: value for name, value in settings.items() if name != 'strides'}
    expected = jax.lax.conv_general_dilated(x, kernel, **given, dimension_numbers=LAYOUTS)
    np.testing.assert_array_equal(convolve(x, kernel, **settings), expected)


@pytest.mark.optimised
def test_no_loop_holds_a_convolution_that_xla_leaves_as_it_is():
    """In a loop XLA runs the gradient of a kernel at a fiftieth of its speed, if it is written as
    the derivative of `lax`'s convolution."""

    def gradient(f):
        def step(kernel, x):
            return kernel - jax.grad(loss(f), 1)(x, kernel), None

        return lambda xs, kernel: jax.lax.scan(step, kernel, xs)[0]

    def windows(f):
        shapes = (2, 4, 16, 16, 3), (3, 3, 3, 3)
        program = jax.jit(gradient(f)).lower(*map(jnp.ones, shapes)).compile().as_text()
        return set(re.findall(r'window=\{size=16x16.*dim_labels=(\S+?),? ', program))

    assert windows(plain) == {'f01b_i01o->01bf'}
    assert windows(convolve) == {'b01f_01io->b01f'}
