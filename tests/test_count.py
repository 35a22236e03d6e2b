"""Evaluations of networks, counted without running anything."""

import collections
import functools

import jax
import jax.numpy as jnp
import optax
import pytest

from fdistill import build
from fdistill.training.count import Evaluations, evaluations, marked
from fdistill.training.state import init_state, with_metrics
from fdistill.training.step import make_step

student = marked('student', lambda w, x: (jnp.tanh(x @ w), (2 * x @ w, jnp.arange(2))))
teacher = marked('teacher', lambda w, x: jnp.tanh(x @ w))
W, X = jnp.eye(4), jnp.ones((2, 4))


def looped(w, x):
    return jax.lax.scan(lambda y, _: (student(w, y)[0], None), x, None, length=3)[0]


def repeated(w, x):
    return jax.lax.while_loop(lambda y: y[0, 0] > 9, lambda y: student(w, y)[0], x)


def branched(w, x):
    y, two = student(w, x)[0], (lambda y: teacher(W, teacher(W, y)))
    return jax.lax.cond(y[0, 0] > 0, two, lambda y: y, y)


def pushed(w, x):
    return jax.jvp(lambda y: student(w, y)[0], (x,), (x,))[1]


def by_rows(w, x):
    return jax.vmap(lambda row: student(w, row[None])[0])(x)


def again(w, x):
    return jax.checkpoint(lambda y: jnp.sin(student(w, y)[0]))(x)


# name -> function of (w, x), evaluations of the student and the teacher a sample, and those with
# the gradient of a scalar of it in w.
CASES = {
    'alone': (lambda w, x: student(w, x)[0], (1, 0), (0, 0), (1, 1), (0, 0)),
    'its features alone': (lambda w, x: student(w, x)[1][0], (1, 0), (0, 0), (1, 1), (0, 0)),
    'stopped': (
        lambda w, x: x * w[0] + jax.lax.stop_gradient(student(w, x)[0]),
        *((1, 0), (0, 0), (1, 0), (0, 0)),
    ),
    'through a frozen one': (
        lambda w, x: teacher(W, student(w, x)[0]) + teacher(W, x),
        *((1, 0), (2, 0), (1, 1), (2, 1)),
    ),
    'in a loop': (looped, (3, 0), (0, 0), (3, 3), (0, 0)),
    'in a branch': (branched, (1, 0), (2, 0), (1, 1), (2, 2)),
    'forward': (pushed, (1, 1), (0, 0), (1, 2), (0, 0)),
    'a sample at a time': (by_rows, (1, 0), (0, 0), (1, 1), (0, 0)),
    'computed again': (again, (1, 0), (0, 0), (1, 1), (0, 0)),
    'jitted': (jax.jit(lambda w, x: student(w, x)[0]), (1, 0), (0, 0), (1, 1), (0, 0)),
}


@pytest.mark.parametrize('name', CASES)
def test_evaluations_are_counted(name):
    function, *counts = CASES[name]

    def slope(w, x):
        return jax.grad(lambda w: jnp.sum(function(w, x)))(w)

    for of, known in ((function, counts[:2]), (slope, counts[2:])):
        found = evaluations(of, W, jax.ShapeDtypeStruct(X.shape, X.dtype))
        for part, (forward, derivative) in zip(('student', 'teacher'), known):
            wanted = Evaluations(2 * forward, 2 * derivative)
            assert found.get(part, Evaluations()) == wanted, (name, part)


def test_of_a_loop_without_a_known_end_one_turn_counts():
    assert evaluations(repeated, W, X) == {'student': Evaluations(2)}
    assert Evaluations(1, 2).plus(Evaluations(3, 4), 5) == (16, 22)


LAW = dict(name='lognormal')
METHODS = {
    'f_distill': dict(
        student_law=LAW, critic_law=LAW, sigma_init=1.0, divergence='js', cycle='dmd2'
    ),
    'sid': dict(student_law=LAW, critic_law=LAW, sigma_init=1.0),
    'tscd': dict(grid=dict(name='karras', steps=4), segments=2, solver='heun'),
    'degrade': dict(law=LAW, grid=dict(name='karras', steps=3)),
}


# The first has all that the others have.
@pytest.mark.parametrize(
    'name', ['f_distill', *(pytest.param(n, marks=pytest.mark.slow) for n in [*METHODS][1:])]
)
def test_counts_are_those_of_a_step_that_runs(name):
    """Forward evaluations, told by the networks themselves while a step of all roles runs."""
    sections = dict(
        data=dict(name='mixture', mixture='ring', labelled=False, n=100),
        network=dict(name='mlp', width=8, blocks=1, embedding=8),
        teacher=dict(oracle='ring'),
        method=dict(name=name, from_teacher=False, **METHODS[name]),
        training=dict(steps=1, batch_size=4, ema_half_life=10.0),
    )
    sections |= {'discriminator': dict(name='mlp', width=8)} if name == 'f_distill' else {}
    plain = build.resolve(sections, build.load_data(sections, 'train'))
    ran = collections.Counter()

    def telling(part, made):
        if not hasattr(made, 'apply'):
            return made

        def apply(*given, **options):
            first, *_ = jax.tree.leaves(out := made.apply(*given, **options))
            jax.debug.callback(lambda _: ran.update({part: len(first)}), first)
            return out

        return made._replace(apply=apply)

    def traced(seen):
        method = build.experiment(plain, seen=seen).method
        optimizers = {role: optax.sgd(1e-3) for role in method.losses}
        step = make_step(method, optimizers, lambda step: 0.9)
        key, batch = jax.random.key(0), {'x': jnp.ones((4, 2)), 'condition': {}}
        state = init_state(method, optimizers, key, batch, {})
        state = with_metrics(state, step, {}, batch, key)
        return functools.partial(step, roles=tuple(method.losses)), (state, {}, batch, key)

    step, given = traced(telling)
    ran.clear()
    jax.block_until_ready(jax.jit(step)(*given))
    jax.effects_barrier()
    step, given = traced(marking)
    found = evaluations(step, *given)
    assert ran and {part: of.forward for part, of in found.items()} == ran
    assert found['student'].derivative > 0 and 'student' in ran


def marking(part, made):
    return made._replace(apply=marked(part, made.apply)) if hasattr(made, 'apply') else made
