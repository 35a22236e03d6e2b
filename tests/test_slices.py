"""Weights of a smaller network as a part of a larger one's."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from registered import every

from fdistill import networks
from fdistill.networks.dit import Shape
from fdistill.networks.edm2 import Style
from fdistill.networks.slices import sliced
from fdistill.networks.unet2d import Norms

IMAGES = dict(resolution=8, channels=1, num_classes=3)
UNET = IMAGES | dict(channel_mult=(1, 2), attn_resolutions=(4,))
NORMS = Norms(norm_num_groups=4)
# name -> (settings, those of three networks, each smaller than the one before).
SIZES = {
    'mlp': (
        dict(num_classes=3),
        [dict(width=32 // n, embedding=16 // n, blocks=b) for n, b in ((1, 5), (2, 3), (4, 2))],
    ),
    'dit': (
        IMAGES,
        [
            dict(shape=Shape(width=64 // n, depth=d, heads=2, patch=4))
            for n, d in ((1, 9), (2, 5), (4, 3))
        ],
    ),
    **{
        name: (UNET, [dict(model_channels=64 // n, num_blocks=b) for n, b in sizes])
        for name, sizes in {
            'ddpmpp': ((1, 4), (2, 2), (4, 1)),
            'ncsnpp': ((1, 1), (2, 1), (4, 1)),
            'adm': ((1, 2), (2, 2), (4, 1)),
            'edm2': ((1, 2), (2, 2), (4, 1)),
        }.items()
    },
    'unet2d': (
        dict(resolution=8, channels=3, norms=NORMS),
        [dict(block_out_channels=(64 // n, 64 // n, 128 // n, 128 // n)) for n in (1, 2, 4)],
    ),
}
OWN = {
    'adm': dict(channels_per_head=8),
    'edm2': dict(style=Style(channels_per_head=8)),
    'unet2d': dict(attention_head_dim=8),
}


def names(tree):
    return {
        jax.tree_util.keystr(path, simple=True, separator='.'): leaf
        for path, leaf in jax.tree.leaves_with_path(tree)
    }


@functools.cache
def shapes(name, size):
    """Parameters of the network of a size, 0 the largest, as shapes."""
    fixed, sizes = SIZES[name]
    built = networks.NETWORKS[name](**fixed, **OWN.get(name, {}), **sizes[size])
    x = jnp.zeros((1, 8, 8, 3 if name == 'unet2d' else 1))
    return jax.eval_shape(built.init, jax.random.key(0), x, jnp.zeros(1), {})


@functools.cache
def weights(name):
    """Of the largest, each number another one."""
    leaves, structure = jax.tree.flatten(shapes(name, 0))
    ends = np.cumsum([0, *(leaf.size for leaf in leaves)])
    return structure.unflatten(
        np.arange(start, end).reshape(leaf.shape)
        for leaf, start, end in zip(leaves, ends, ends[1:])
    )


LARGE = ('unet2d', 'ddpmpp', 'edm2')  # Their shapes take seconds.


@pytest.mark.parametrize('name', every(SIZES, SIZES.keys() - LARGE))
def test_a_slice_has_all_arrays_of_a_network_and_is_one_of_a_slice(name):
    """Of the same size it is a copy; in one cut or two, by whole factors, the same."""
    whole = weights(name)
    jax.tree.map(np.testing.assert_array_equal, sliced(whole, shapes(name, 0)), whole)
    half, quarter = (sliced(whole, shapes(name, size)) for size in (1, 2))
    for cut, size in ((half, 1), (quarter, 2)):
        like = shapes(name, size)
        assert jax.tree.structure(cut) == jax.tree.structure(like)
        assert jax.tree.map(jnp.shape, cut) == jax.tree.map(jnp.shape, like)
    jax.tree.map(np.testing.assert_array_equal, sliced(half, shapes(name, 2)), quarter)
    kept = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(quarter)])
    assert len(np.unique(kept)) == len(kept)  # No number twice.


def test_every_second_channel_of_blocks_that_are_spread_evenly():
    whole, half = (
        names(tree) for tree in (weights('mlp'), sliced(weights('mlp'), shapes('mlp', 1)))
    )
    for own, theirs in enumerate((0, 2, 4)):
        for leaf in ('film.kernel', 'film.bias', 'dense0.kernel', 'dense1.bias'):
            cut = whole[f'block{theirs}.{leaf}'][(slice(None, None, 2),) * (1 + ('k' in leaf[-6:]))]
            np.testing.assert_array_equal(half[f'block{own}.{leaf}'], cut)
    # The pixels are all there.
    np.testing.assert_array_equal(half['input.kernel'], whole['input.kernel'][:, ::2])
    deep, flat = (
        names(tree) for tree in (weights('dit'), sliced(weights('dit'), shapes('dit', 2)))
    )
    for own, theirs in enumerate((0, 4, 8)):
        name = 'blocks.{}.mlp.fc1.weight'.format
        np.testing.assert_array_equal(flat[name(own)], deep[name(theirs)][::4, ::4])
    # Ten blocks and more are counted, not spelt.
    many = {f'block{i}': np.full(2, i) for i in range(12)}
    few = sliced(many, {f'block{i}': np.zeros(2) for i in range(4)})
    assert [few[f'block{i}'][0] for i in range(4)] == [0, 4, 7, 11]


@pytest.mark.parametrize(
    'name, array, axis, layout',
    [
        ('mlp', r'block0.film.kernel$', 1, (2, -1)),  # Scale and shift.
        ('dit', r'blocks.0.attn.qkv.weight$', 0, (3, -1)),
        ('dit', r'blocks.0.adaLN_modulation.1.bias$', 0, (6, -1)),
        ('ddpmpp', r'4x4_block0\.qkv\.kernel$', 3, (-1, 3)),
        ('ddpmpp', r'4x4_block0\.qkv\.bias$', 0, (-1, 3)),
        ('edm2', r'attn_qkv.weight$', 0, (-1, 3)),
        ('adm', r'dec_4x4_block0.conv0.kernel$', 2, (2, -1)),  # What comes from below and a skip.
    ],
)
def test_what_lies_side_by_side_in_an_axis_is_cut_alike(name, array, axis, layout):
    """Each part of it is that part of the larger, every second channel of it."""
    whole = weights(name)
    cut = sliced(whole, shapes(name, 1))
    found = [place for place in names(cut) if re.search(array, place)]
    assert found
    for place in found:
        theirs, ours = np.moveaxis(names(whole)[place], axis, 0), names(cut)[place]
        others = tuple(
            slice(None, None, N // n) for N, n in zip(theirs.shape[1:], _rest(ours, axis))
        )
        parts = theirs.reshape(*layout, *theirs.shape[1:])
        parts = parts[:, ::2] if layout[1] == -1 else parts[::2]
        wanted = parts.reshape(-1, *theirs.shape[1:])[(slice(None), *others)]
        np.testing.assert_array_equal(np.moveaxis(ours, axis, 0), wanted)


def _rest(array, axis):
    return np.moveaxis(array, axis, 0).shape[1:]


def test_of_channels_that_are_there_twice_one_is_kept():
    """A network whose every channel is repeated is the same function, and the network is a slice of
    it, but for what each channel read twice: so a channel is the same one in all arrays."""
    small, large = (networks.mlp(width=16 * n, embedding=8 * n, blocks=2) for n in (1, 2))
    given = jax.random.normal(jax.random.key(1), (3, 5)), jnp.array([-1.0, 0.0, 2.0]), {}
    like = small.init(jax.random.key(0), *given)
    drawn = jax.tree.map(lambda x: jax.random.normal(jax.random.key(x.size), x.shape), like)
    wide = jax.eval_shape(large.init, jax.random.key(0), *given)

    def read(kernel, grown):
        """How often each channel is read that a layer sees; of the rest, 1."""
        return grown.shape[0] // kernel.shape[0] if kernel.ndim == 2 else 1

    def repeated(leaf, grown):
        times = read(leaf, grown)
        for axis, (n, N) in enumerate(zip(leaf.shape, grown.shape)):
            leaf = jnp.repeat(leaf, N // n, axis)
        return leaf / times

    twice = jax.tree.map(repeated, drawn, wide)
    np.testing.assert_allclose(
        large.apply(twice, *given)[0], small.apply(drawn, *given)[0], rtol=1e-4, atol=1e-4
    )
    cut = sliced(twice, like)
    jax.tree.map(
        lambda a, b, times: np.testing.assert_allclose(a * times, b, rtol=1e-6),
        cut,
        drawn,
        jax.tree.map(read, drawn, wide),
    )
    # Every channel once is not the first half of what lies side by side.
    film = names(twice)['block0.film.bias']
    assert not np.allclose(film[: len(film) // 2], names(drawn)['block0.film.bias'])


def test_arrays_that_only_the_smaller_has_are_left_to_it():
    base = weights('mlp')
    like = shapes('mlp', 1) | {'number_until': {'kernel': jax.ShapeDtypeStruct((4, 8), 'float32')}}
    assert sliced(base, like).keys() == base.keys() - {'block3', 'block4'}


@pytest.mark.parametrize(
    'like, message',
    [
        (
            {'input': {'kernel': np.zeros((64, 40))}},
            r'input.kernel has shape \(64, 40\), and input',
        ),
        ({'input': {'kernel': np.zeros(64)}}, r'of which it would be a slice, \(64, 32\)'),
        ({'other': {'kernel': np.zeros(64)}}, 'none of its arrays has the name of one that'),
    ],
)
def test_what_is_no_slice_is_refused(like, message):
    with pytest.raises(ValueError, match=message):
        sliced(weights('mlp'), like)
