"""How often networks are evaluated in a step, counted in what JAX traces of it: nothing runs."""

import collections
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core
from jax.interpreters import ad, batching


class Evaluations(NamedTuple):
    """Of a network, each of one sample.

    forward: evaluations of it.
    derivative: through how many of them a gradient goes back, to its parameters or its input, or a
      derivative goes forward with them.
    """

    forward: int = 0
    derivative: int = 0

    def plus(self, other: 'Evaluations', times: int = 1) -> 'Evaluations':
        """These and others, so many times."""
        forward, derivative = (a + times * b for a, b in zip(self, other))
        return Evaluations(forward, derivative)


# An identity that stands in a program for an evaluation, which derivatives and batches go through.
_mark = core.Primitive('evaluated')
_mark.multiple_results = True
_mark.def_impl(lambda *leaves, **of: leaves)
_mark.def_abstract_eval(lambda *leaves, **of: leaves)


def _forward(primals, tangents, *, derivative, **of):
    made = _mark.bind(*primals, derivative=derivative, **of)
    moved = map(ad.instantiate_zeros, tangents)
    return made, _mark.bind(*moved, derivative=True, **of)


def _back(cotangents, *given, **of):
    linear = [k for k, one in enumerate(given) if ad.is_undefined_primal(one)]
    made = _mark.bind(*(ad.instantiate_zeros(cotangents[k]) for k in linear), **of)
    back = dict(zip(linear, made))
    return [back.get(k) for k in range(len(given))]


def _batched(leaves, axes, **of):
    size = next(leaf.shape[at] for leaf, at in zip(leaves, axes) if at is not None)
    moved = [batching.bdim_at_front(leaf, at, size) for leaf, at in zip(leaves, axes)]
    return _mark.bind(*moved, **of), [0] * len(leaves)


ad.primitive_jvps[_mark] = _forward
ad.primitive_transposes[_mark] = _back
batching.primitive_batchers[_mark] = _batched


def marked(name: str, apply: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, of a batch of samples, whose evaluations `evaluations` counts.

    Args:
      name: what it is counted as.
      apply: gives a tree of arrays, of which the first is [B, ...].
    """

    def counted(*given, **options):
        leaves, tree = jax.tree.flatten(apply(*given, **options))
        which = [k for k, leaf in enumerate(leaves) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
        sample = math.prod(leaves[which[0]].shape[1:])
        made = _mark.bind(*(leaves[k] for k in which), name=name, sample=sample, derivative=False)
        for k, leaf in zip(which, made):
            leaves[k] = leaf
        return jax.tree.unflatten(tree, leaves)

    return counted


def evaluations(function: Callable[..., Any], *given: Any) -> dict[str, Evaluations]:
    """{name: `Evaluations`} of one run of a function of `marked` ones.

    What is in a loop counts as often as it turns, once where only its data say how often; of
    branches that counts which has most of them. What is computed again to save memory does not.

    Args:
      function: any that JAX can trace.
      given: its arguments, of arrays or of their shapes.
    """
    found = _counted(jax.make_jaxpr(function)(*given).jaxpr)
    return {
        name: Evaluations(found[name, False], found[name, True])
        for name in dict.fromkeys(name for name, _ in found)
    }


def _counted(jaxpr):
    """Counter of (name, whether of a derivative)."""
    total = collections.Counter()
    for equation in jaxpr.eqns:
        of = equation.params
        if equation.primitive is _mark:
            samples = math.prod(equation.outvars[0].aval.shape) // of['sample']
            total[of['name'], of['derivative']] += samples
            continue
        turns = of['length'] if equation.primitive.name == 'scan' else 1
        inside = [_counted(one) for one in _jaxprs(of)]
        if equation.primitive.name == 'cond':
            inside = [max(inside, key=collections.Counter.total)]
        again = of.get('differentiated', False)  # Of `jax.checkpoint`, on the way back.
        for counts in inside:
            for (name, derivative), count in counts.items():
                total[name, derivative] += turns * count * (derivative or not again)
    return total


def _jaxprs(params: Mapping[str, Any]):
    """The programs within an equation."""
    for value in params.values():
        for one in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(one, (core.ClosedJaxpr, core.Jaxpr)):
                yield getattr(one, 'jaxpr', one)
