"""Weights of a network cut out of those of a larger one of its kind."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# A number that ends a part of a name, as of blocks: 'block2', 'blocks.2.', but no '8x8'.
_NUMBER = re.compile(r'(\d+)(?=\.|$)')
# Channels of queries, keys and values that take turns, and their axis: of EDM's U-Nets.
_TURNS = re.compile(r'(?<!attn\.)qkv\.(kernel|bias|weight)$')
_AXIS = {'kernel': -1, 'bias': -1, 'weight': 0}


def _named(tree):
    """{(text, number, text, ...): (path, leaf)} of a tree of arrays, and {what stands before a
    number: all the numbers there}."""
    leaves, numbers = {}, {}
    for path, leaf in jax.tree.leaves_with_path(tree):
        name = tuple(_NUMBER.split(jax.tree_util.keystr(path, simple=True, separator='.')))
        leaves[name] = path, leaf
        for place in range(1, len(name), 2):
            numbers.setdefault(name[:place], set()).add(int(name[place]))
    return leaves, numbers


def _in_larger(name, ours, theirs):
    """The name in the larger network of what has this name in the smaller."""
    found = name[:1]
    for place in range(1, len(name), 2):
        number = int(name[place])
        few, many = sorted(ours[name[:place]]), sorted(theirs.get(found, ()))
        if len(many) > len(few):
            share = few.index(number) / max(len(few) - 1, 1)
            number = many[round(share * (len(many) - 1))]
        found += str(number), name[place + 1]
    return found


def _evenly(larger, smaller, together):
    """Which of the larger number of channels the smaller number are, `together` at a time."""
    steps = np.arange(smaller // together) * (larger // together) // (smaller // together)
    return (together * steps[:, None] + np.arange(together)).ravel()


def sliced(weights: Any, like: Any) -> Any:
    """Weights of a network as a part of those of a larger one ("weight selection", arXiv
    2311.18823): along each axis every (N/n)-th of N,

        w'[i, j, ...] = w[i N/n, j M/m, ...]    (rounded down)

    so that a channel is the same one wherever it is read, also where several arrays lie side by
    side in one axis (a scale and a shift; queries, keys and values; a skip connection), and bands
    of frequencies stay what they are. Of N numbered blocks the n are spread evenly, the first and
    the last among them.

    Args:
      weights: of the larger network, nested dicts of arrays.
      like: those of the smaller, of which only shapes are read.

    Returns:
      Those of the arrays of `like` that the larger network has too.

    Raises:
      ValueError: no array has a name that the larger network knows, or one is larger there.
    """
    (ours, of_ours), (theirs, of_theirs) = _named(like), _named(weights)
    found = {}
    for name, (path, leaf) in ours.items():
        at = _in_larger(name, of_ours, of_theirs)
        if at not in theirs:
            continue
        cut, shape = theirs[at][1], jnp.shape(leaf)
        if cut.ndim != len(shape) or any(n > N for n, N in zip(shape, cut.shape)):
            raise ValueError(
                f'{"".join(name)} has shape {shape}, and {"".join(at)}, of which it would be a '
                f'slice, {cut.shape}; make it smaller along each axis'
            )
        turns = _TURNS.search(''.join(name))
        for axis, (n, N) in enumerate(zip(shape, cut.shape)):
            if n < N:
                three = turns and axis == _AXIS[turns[1]] % len(shape)
                cut = jnp.take(cut, _evenly(N, n, 3 if three else 1), axis)
        *within, last = (key.key for key in path)
        place = found
        for key in within:
            place = place.setdefault(key, {})
        place[last] = cut
    if not found:
        raise ValueError('none of its arrays has the name of one that it would be a slice of')
    return found
