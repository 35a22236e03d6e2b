"""The trainer: what a step, a checkpoint and a stop do when all goes well, and above all when it
does not.

What holds for every method (any mesh, any stop, one step pinned) is in test_methods.py; here are
the parts they share.
"""

import errno
import functools
import itertools
import json
import logging
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import stops
from jax.sharding import AxisType, PartitionSpec
from ml_collections import ConfigDict

from fdistill import build, cli, config
from fdistill.build import measure as measuring
from fdistill.build.train import ready as ready_of
from fdistill.errors import NotFinite, Stopped, UserError
from fdistill.files import disk, lock
from fdistill.methods import Method
from fdistill.methods.generator import Generator
from fdistill.methods.method import estimate, make_cycle
from fdistill.training import checkpoint, cost, loop, memory, optim, sharding
from fdistill.training.state import average, init_state, with_metrics
from fdistill.training.step import ema_decay, make_step
from fdistill.training.stop import SIGNALS

BATCH = 8
KEY = jax.random.key(0)


def mesh_of(data, fsdp):
    devices = jax.devices()[: data * fsdp]
    return jax.make_mesh(
        (data, fsdp), ('data', 'fsdp'), axis_types=(AxisType.Auto,) * 2, devices=devices
    )


def assert_equal(one, other):
    """Two pytrees are equal bit for bit."""
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(one), jax.tree.leaves(other), strict=True
    ):
        np.testing.assert_array_equal(
            np.asarray(a), np.asarray(b), err_msg=jax.tree_util.keystr(path)
        )


# --- a method of two roles that fails on demand

FINE, LOSS, GRADIENT, UPDATE, CRITIC, SPIKE = range(6)


def toy(cycle='alternate', every=1):
    """Both roles follow the mean of the images. The label of the first image says what is to go
    wrong, and for whom."""

    def fit(w, batch, code, aux, key):
        loss = jnp.mean((w - jnp.mean(batch['x'])) ** 2)
        gone = w - jax.lax.stop_gradient(w)
        loss *= jnp.where(code == LOSS, jnp.nan, 1.0)
        # The root of 0: its value is fine, its slope is infinite.
        loss += jnp.sqrt(jnp.sum(gone**2) + jnp.where(code == GRADIENT, 0.0, 1.0))
        # Finite, with a gradient of which the norm overflows.
        loss += jnp.sum(gone) * jnp.where(code == UPDATE, 3e38, 0.0)
        # A thousand times the usual gradient.
        loss *= jnp.where(code == SPIKE, 1e3, 1.0)
        metrics = {'fit': loss, 'noise': jax.random.normal(key)}
        return loss, (metrics, {'updates': aux['updates'] + 1})

    def student(params, context, batch, key):
        code = batch['condition']['code'][0]
        return fit(
            params['student']['w'], batch, jnp.where(code == CRITIC, FINE, code), context.aux, key
        )

    def critic(params, context, batch, key):
        return fit(
            params['critic']['w'],
            batch,
            jnp.where(batch['condition']['code'][0] == CRITIC, LOSS, FINE),
            context.aux,
            key,
        )

    def init(key, batch, frozen):
        return {role: {'w': jnp.ones(4)} for role in ('student', 'critic')}, {
            'updates': jnp.zeros(())
        }

    def sample(params, noise, condition):
        return noise * params['w'][0]

    return Method(
        init,
        {'student': student, 'critic': critic},
        make_cycle(cycle, every),
        Generator(None, sample, 1),
    )


OPTIMIZERS = {role: optim.adam(steps=100, learning_rate=0.1) for role in ('student', 'critic')}


def toy_batch(code=FINE, step=0, mean=0.0):
    image = mean + np.random.default_rng(step).standard_normal((BATCH, 2)).astype(np.float32)
    return {'x': image, 'condition': {'code': np.full(BATCH, code, np.int32)}}


def toy_batches(codes=(), mean=0.0, until=0):
    """Batches of which those of some steps are bad: codes is {step counted from 1: code}. After
    more than `until` roll-backs none is."""

    def batches(start, rollbacks):
        bad = dict(codes) if rollbacks <= until else {}
        for step in itertools.count(start):
            yield toy_batch(bad.get(step + 1, FINE), step + 1000 * rollbacks, mean)

    return batches


def train_toy(workdir, batches=None, cycle=('alternate', 1), **options):
    given = dict(
        steps=12,
        batch_size=BATCH,
        ema_half_life=30.0,
        log_every=5,
        checkpoint_every=4,
        sample_every=0,
    )
    settings = {name: options.pop(name) for name in list(options) if name in loop.Training._fields}
    training = loop.Training(**given | settings)
    given = dict(workdir=workdir, mesh=mesh_of(1, 1), config={'seed': 0}, seed=0, quiet=True)
    given |= options
    return loop.train(toy(*cycle), OPTIMIZERS, {}, batches or toy_batches(), training, **given)


@pytest.fixture(scope='module')
def toy_step():
    method = toy()
    step = make_step(method, OPTIMIZERS, ema_decay(30.0, BATCH), max_skipped=3)
    state = init_state(method, OPTIMIZERS, KEY, toy_batch(), {})
    state = with_metrics(state, step, {}, toy_batch(), KEY)
    return state, functools.partial(jax.jit(step, static_argnames='roles'), key=KEY)


def test_a_step_that_does_not_fit_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    """By its size, or by a compiler that knows what the chip has."""
    monkeypatch.setattr(memory, 'free', lambda: 100)
    with pytest.raises(ValueError, match=r'a step takes [\d.]+ \(parameters 0.0.*fdistill plan'):
        train_toy(tmp_path / 'run')
    monkeypatch.undo()

    def exhausted(lowered, compiler_options):
        raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Used 20.50G of 15.75G hbm.')

    monkeypatch.setattr(jax.stages.Lowered, 'compile', exhausted)
    with pytest.raises(ValueError, match='a step does not fit a device; lower batch_size'):
        train_toy(tmp_path / 'run')
    assert not (tmp_path / 'run').exists()


def test_nothing_is_compiled_after_the_second_cycle(tmp_path):
    """Neither by a step nor by logs, checkpoints and what else is done now and then."""
    compiled, after = [], {}

    def listen(event, seconds, **_):
        if event == '/jax/core/compile/backend_compile_duration':
            compiled.append(seconds)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        note = loop.Every(1, lambda state, done: after.update({done: len(compiled)}))
        settings = dict(steps=20, log_every=2, checkpoint_every=4)
        train_toy(tmp_path / 'run', hooks=lambda *_: (note,), **settings)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert after[1] > 0 and after[20] == after[6]


def test_one_program_serves_all_seeds():
    step = jax.jit(make_step(toy(), OPTIMIZERS, ema_decay(30.0, BATCH)), static_argnames='roles')
    for seed in range(3):
        key = jax.random.key(seed)
        state = init_state(toy(), OPTIMIZERS, key, toy_batch(), {})
        step(state, {}, toy_batch(), key, roles=('student',))
    assert step._cache_size() == 1


def test_an_estimate_is_logged_with_its_noise(toy_step):
    """The mean of three batches, and its standard error over all of their values."""
    values = np.random.default_rng(0).normal(2, 3, (3, 500)).astype(np.float32)
    means = [average(estimate(jnp.asarray(batch))) for batch in values]
    merged = functools.reduce(lambda one, other: one.merge(other), means)
    logged = loop.read_metrics(toy_step[0]._replace(metrics={'student': {'kl': merged}}))
    assert logged['student/kl'] == pytest.approx(values.mean(), rel=1e-6)
    exact = values.std(ddof=1) / np.sqrt(values.size)
    assert logged['student/kl_noise'] == pytest.approx(exact, rel=0.02)
    assert not loop.read_histograms(toy_step[0]._replace(metrics={'student': {'kl': merged}}))


@pytest.mark.parametrize(
    ('every', 'expected'),
    [
        (loop.Every(3, None), [3, 6, 7]),
        (loop.Every(3, None, at_the_end=False), [3, 6]),
        (loop.Every(0, None), []),
        (loop.Every(0, None, at_a_stop=True), [7]),
        (loop.Every(5, None, at_a_stop=True), [5, 7]),
    ],
)
def test_every(every, expected):
    """A run of seven steps, at the end or stopped there."""
    assert [n for n in range(1, 8) if every.due(n, n == 7, n == 7)] == expected
    stopped = [n for n in range(1, 8) if every.due(n, False, n == 7)]
    assert stopped == [n for n in expected if n < 7 or every.at_a_stop]


# --- updates that are not finite


@pytest.mark.parametrize('code', [LOSS, GRADIENT, UPDATE])
def test_an_update_that_is_not_finite_changes_nothing_and_is_counted(toy_step, code):
    state, step = toy_step
    roles = ('critic', 'student')
    state = step(state, {}, toy_batch(), roles=roles)
    after = step(state, {}, toy_batch(code), roles=roles)
    student = [(s.params['student'], s.opt_state['student'], s.averages) for s in (state, after)]
    assert_equal(*student)
    # The critic was trained in that step, and it alone had its say in aux.
    assert not np.array_equal(state.params['critic']['w'], after.params['critic']['w'])
    assert after.aux['updates'] == state.aux['updates'] + 1
    assert after.step == state.step + 1
    assert (
        after.skipped['student'],
        after.skipped_in_a_row['student'],
        after.skipped['critic'],
    ) == (1, 1, 0)
    again = step(after, {}, toy_batch(), roles=roles)
    assert (again.skipped['student'], again.skipped_in_a_row['student']) == (1, 0)
    assert not np.array_equal(again.params['student']['w'], after.params['student']['w'])


def test_a_critic_that_is_not_finite_leaves_the_student_to_train(toy_step):
    state, step = toy_step
    after = step(state, {}, toy_batch(CRITIC), roles=('critic', 'student'))
    assert_equal(state.params['critic'], after.params['critic'])
    assert_equal(state.opt_state['critic'], after.opt_state['critic'])
    assert not np.array_equal(state.params['student']['w'], after.params['student']['w'])
    assert not np.array_equal(state.averages['ema']['w'], after.averages['ema']['w'])


def test_too_many_in_a_row_freeze_the_role(toy_step):
    """Nothing after the last allowed failure counts, whenever the loop looks."""
    state, step = toy_step
    for _ in range(3):
        state = step(state, {}, toy_batch(LOSS), roles=('student',))
    after = step(state, {}, toy_batch(), roles=('student',))
    assert_equal(*((s.params, s.opt_state, s.averages, s.aux) for s in (state, after)))
    assert after.skipped_in_a_row['student'] == 4


@pytest.mark.parametrize(
    'code, culprit',
    [
        (LOSS, "student/fit, student/grad_norm of role 'student'"),
        (GRADIENT, "student/grad_norm of role 'student'"),
        (CRITIC, "critic/fit, critic/grad_norm of role 'critic'"),
    ],
)
@pytest.mark.parametrize('log_every, step', [(100, 8), (6, 12)])
def test_training_stops_and_the_checkpoint_is_clean(tmp_path, code, culprit, log_every, step):
    """Seen at the next log or checkpoint; started again on what was saved, the run goes on."""
    bad = toy_batches({i: code for i in range(6 if step == 8 else 9, 100)})
    options = dict(log_every=log_every, checkpoint_every=4 if step == 8 else 100, max_skipped=3)
    if step == 12:
        options['steps'] = 13
    with pytest.raises(
        NotFinite, match=f'step {step}: {culprit} not finite [34] times in a row'
    ) as error:
        train_toy(tmp_path, bad, **options)
    assert '\n' not in str(error.value) and 'config.optimizer' in str(error.value)
    steps = [int(path.name) for path in (tmp_path / checkpoint.FOLDER).iterdir()]
    assert steps == ([4] if step == 8 else [])
    state = train_toy(tmp_path, **options)
    for tree in (state.params, state.opt_state, state.averages, state.aux):
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(tree))
    assert state.skipped['student'] == state.skipped['critic'] == 0


def test_a_few_bad_updates_are_survived_and_logged(tmp_path):
    """A log holds the averages over the updates that were applied, also after a stop between a bad
    update and its log."""
    bad = toy_batches({3: LOSS, 4: GRADIENT, 7: CRITIC})

    def train(name, **options):
        return jax.device_get(train_toy(tmp_path / name, bad, max_skipped=3, **options))

    def lines(name):
        return [
            json.loads(line)
            for line in (tmp_path / name / 'metrics.jsonl').read_text().splitlines()
        ]

    state, logged = train('whole'), lines('whole')
    assert (state.skipped['student'], state.skipped['critic']) == (2, 1)
    assert [(line['student/skipped'], line['critic/skipped']) for line in logged] == [
        (2, 0),
        (2, 1),
        (2, 1),
    ]
    train('single', log_every=1)
    single = lines('single')
    assert [line['step'] for line in single if 'student/fit' not in line] == [3, 4]
    assert [line['step'] for line in single if 'critic/grad_norm' not in line] == [7]
    for start, stop, line in zip((0, 5, 10), (5, 10, 12), logged, strict=True):
        for name in ('student/fit', 'student/grad_norm', 'critic/fit', 'critic/grad_norm'):
            values = [one[name] for one in single[start:stop] if name in one]
            assert line[name] == pytest.approx(np.mean(values), rel=1e-5)
    for stop in (3, 8):
        train('broken', stop_at=stop)
    assert_equal(state, train('broken'))
    assert (tmp_path / 'whole' / 'metrics.jsonl').read_bytes() == (
        tmp_path / 'broken' / 'metrics.jsonl'
    ).read_bytes()


# --- updates that are finite and far too large


FAR = 100.0  # a mean of the images so far off that the gradient hardly varies


@functools.lru_cache
def spiky_step(sigmas):
    """(State after 25 steps of the student, step)."""
    step = make_step(toy(), OPTIMIZERS, ema_decay(30.0, BATCH), max_skipped=3, spike_sigmas=sigmas)
    state = init_state(toy(), OPTIMIZERS, KEY, toy_batch(), {})
    state = with_metrics(state, step, {}, toy_batch(), KEY)
    jitted = jax.jit(step, static_argnames='roles')

    def advance(state, code=FINE):
        batch = toy_batch(code, int(state.step), FAR)
        return jitted(state, {}, batch, KEY, roles=('student',))

    for _ in range(25):
        state = advance(state)
    return state, advance


def kept(state):
    """What an update changes, of a role that is not applied."""
    return state.params, state.opt_state, state.averages, state.aux, state.metrics


def test_a_spike_changes_nothing_and_is_counted_apart():
    state, step = spiky_step(6.0)
    after = step(state, SPIKE)
    assert_equal(kept(state), kept(after))
    assert (after.skipped['student'], after.skipped_in_a_row['student']) == (0, 0)
    assert [one.spikes['student'].skipped for one in (state, after)] == [0, 1]
    again = step(after)
    assert not np.array_equal(again.params['student']['w'], after.params['student']['w'])
    assert again.spikes['student'].skipped == 1 and again.spikes['critic'].count == 0


def test_the_first_updates_are_not_judged():
    _, step = spiky_step(6.0)
    state = jax.tree.map(jnp.zeros_like, spiky_step(6.0)[0])
    for _ in range(19):
        state = step(state)
    assert step(state, SPIKE).spikes['student'].skipped == 0
    assert step(step(state), SPIKE).spikes['student'].skipped == 1


@pytest.mark.parametrize('code', [LOSS, GRADIENT, UPDATE])
def test_what_is_not_finite_enters_no_statistics(code):
    state, step = spiky_step(6.0)
    after = step(step(state, code), code)
    assert_equal(state.spikes, after.spikes)
    assert after.skipped['student'] == 2
    assert step(after).skipped_in_a_row['student'] == 0
    # A role that is not trained any more learns no statistics either.
    assert_equal(state.spikes, step(step(after, code)).spikes)


@pytest.mark.parametrize(('sigmas', 'most'), [(3.0, 80), (6.0, 25), (20.0, 10)])
def test_a_shift_of_the_level_becomes_the_base_line(sigmas, most):
    state, step = spiky_step(sigmas)
    for _ in range(most):
        state = step(state, SPIKE)
    skipped = state.spikes['student'].skipped
    assert 0 < skipped < most
    for _ in range(50):
        state = step(state, SPIKE)
    assert state.spikes['student'].skipped == skipped


def test_statistics_are_those_of_the_logarithm():
    state, step = spiky_step(6.0)
    norms, one = [], jax.tree.map(jnp.zeros_like, state)
    for _ in range(25):
        before, one = one.metrics['student']['grad_norm'].total, step(one)
        norms.append(np.log(one.metrics['student']['grad_norm'].total - before))
    found = one.spikes['student']
    assert found.count == 25
    assert found.mean == pytest.approx(np.mean(norms), rel=1e-3, abs=1e-3)
    assert found.variance == pytest.approx(np.var(norms), rel=1e-3)


def test_a_run_that_skips_spikes_resumes_bit_for_bit(tmp_path):
    batches, options = toy_batches({25: SPIKE, 31: LOSS}, FAR), dict(steps=36, spike_sigmas=6)
    whole = train_toy(tmp_path / 'whole', batches, **options)
    for stop in (24, 25, 33):
        train_toy(tmp_path / 'broken', batches, stop_at=stop, **options)
    assert_equal(whole, train_toy(tmp_path / 'broken', batches, **options))
    logs = [(tmp_path / name / 'metrics.jsonl').read_bytes() for name in ('whole', 'broken')]
    assert logs[0] == logs[1]
    last = json.loads(logs[0].splitlines()[-1])
    counts = ('student/spikes', 'critic/spikes', 'student/skipped', 'critic/skipped')
    assert [last[name] for name in counts] == [1, 0, 1, 0]


def test_skipping_spikes_may_be_turned_on_and_off(tmp_path):
    """A checkpoint of either goes on as the other; off, there is nothing of it."""
    off = train_toy(tmp_path / 'off')
    assert off.spikes == {}
    assert 'spikes' not in (tmp_path / 'off' / 'metrics.jsonl').read_text()
    for first, then, counted in ((0.0, 6.0, 6), (6.0, 0.0, None)):
        folder = tmp_path / str(first)
        train_toy(folder, stop_at=6, spike_sigmas=first)
        state = train_toy(folder, spike_sigmas=then)
        # Of another program, which rounds otherwise.
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6),
            state._replace(spikes={}),
            off,
        )
        assert {norms.count.item() for norms in state.spikes.values()} == ({counted} - {None})


# --- roll-backs

# From the sixth step on, nothing is finite; it is seen in the eighth.
ENDLESS = {step: LOSS for step in range(6, 100)}
GOES_BACK = dict(log_every=1, checkpoint_every=4, max_skipped=3, rollbacks=2)


def logged(folder):
    return [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]


@pytest.mark.parametrize('until', [0, 1])
@pytest.mark.parametrize('checkpoint_every', [4, 100])
def test_a_run_goes_back_and_on_with_other_data_and_noise(tmp_path, until, checkpoint_every):
    """From its last checkpoint, or from the start where there is none."""
    options = GOES_BACK | dict(checkpoint_every=checkpoint_every)
    train_toy(tmp_path / 'fine', **options)
    state = train_toy(tmp_path / 'bad', toy_batches(ENDLESS, until=until), **options)
    assert state.step == 12 and state.skipped['student'] == 0
    assert position_of(tmp_path / 'bad')['rollbacks'] == until + 1
    fine, bad = (logged(tmp_path / name) for name in ('fine', 'bad'))
    assert [line['step'] for line in bad] == list(range(1, 13))
    kept = 4 if checkpoint_every == 4 else 0
    assert bad[:kept] == fine[:kept]
    for one, other in zip(bad[kept:], fine[kept:]):
        assert one['rollbacks'] == until + 1 and 'rollbacks' not in other
        assert not {one[name] for name in NOISY} & {other[name] for name in NOISY}


NOISY = ('student/noise', 'critic/noise', 'student/fit')


def position_of(folder):
    return json.loads((newest(folder) / 'position' / 'metadata').read_text())


@pytest.mark.parametrize('rollbacks', [0, 2])
def test_after_its_roll_backs_a_run_ends(tmp_path, rollbacks, caplog):
    starts, bad = [], toy_batches(ENDLESS, until=9)

    def batches(start, rollbacks):
        starts.append((start, rollbacks))
        return bad(start, rollbacks)

    with caplog.at_level(logging.WARNING), pytest.raises(NotFinite, match='step 8: student/fit'):
        train_toy(tmp_path, batches, **GOES_BACK | dict(rollbacks=rollbacks))
    # The first is only looked at for its shapes.
    assert starts == [(0, 0), (0, 0), *((4, n) for n in range(1, rollbacks + 1))]
    said = [one.getMessage() for one in caplog.records if 'Roll-back' in one.getMessage()]
    assert len(said) == rollbacks
    assert [one['step'] for one in logged(tmp_path)] == list(range(1, 8))
    assert [int(path.name) for path in (tmp_path / checkpoint.FOLDER).iterdir()] == [4]


def test_a_run_that_went_back_resumes_bit_for_bit(tmp_path):
    """Killed after it went back and before the next checkpoint, and stopped after that one."""
    bad = toy_batches(ENDLESS)

    def killed(start, rollbacks):
        steps = 2 if rollbacks else None
        yield from itertools.islice(bad(start, rollbacks), steps)
        raise InterruptedError

    whole = train_toy(tmp_path / 'whole', bad, **GOES_BACK)
    with pytest.raises(InterruptedError):
        train_toy(tmp_path / 'broken', killed, **GOES_BACK)
    assert logged(tmp_path / 'broken')[-1]['rollbacks'] == 1
    train_toy(tmp_path / 'broken', bad, stop_at=10, **GOES_BACK)
    assert position_of(tmp_path / 'broken')['rollbacks'] == 1
    assert_equal(whole, train_toy(tmp_path / 'broken', bad, **GOES_BACK))
    logs = [(tmp_path / name / 'metrics.jsonl').read_bytes() for name in ('whole', 'broken')]
    assert logs[0] == logs[1]
    positions = [position_of(tmp_path / name) for name in ('whole', 'broken')]
    assert positions[0] == positions[1]


def test_data_after_a_roll_back_is_a_function_of_seed_and_number(tmp_path):
    (tmp_path / 'config.py').write_text(stops.ring())
    chosen = config.load(str(tmp_path / 'config.py'))
    ready = [ready_of(chosen, tmp_path / name) for name in 'ab']
    found = [[next(one.batches(3, n))['x'] for n in range(3)] for one in ready]
    np.testing.assert_array_equal(*found)
    np.testing.assert_array_equal(found[0][0], next(ready[0].batches(3))['x'])
    assert all((a != b).any() for a, b in itertools.combinations(found[0], 2))


# --- checkpoints


def newest(workdir):
    return max((pathlib.Path(workdir) / checkpoint.FOLDER).iterdir())


def large_state(seed):
    key = jax.random.key(seed)
    state = init_state(toy(), OPTIMIZERS, key, toy_batch(), {})
    return state._replace(
        aux={'large': jax.random.normal(key, (64, 64))},
        averages={'ema': {'w': jax.random.normal(key, (40, 40))}},
    )


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
    """A run folder with checkpoints at steps 4 and 8."""
    workdir = tmp_path_factory.mktemp('saved')
    with checkpoint.Checkpoints(workdir, keep=2) as checkpoints:
        for step in (4, 8):
            checkpoints.save(step, large_state(step), {'seed': 0})
    return workdir


@pytest.fixture
def workdir(saved, tmp_path):
    return pathlib.Path(shutil.copytree(saved, tmp_path / 'run'))


def restore(workdir):
    """(step, state) of what is restored."""
    target = checkpoint.abstract(large_state(0))
    with checkpoint.Checkpoints(workdir) as checkpoints:
        arrays, position = checkpoints.restore(checkpoint.items(target))
    return position['next_step'], checkpoint.joined(arrays)


def arrays_of(folder):
    """The files that hold an item's arrays, largest first."""
    files = [path for item in checkpoint.ARRAYS for path in (folder / item).rglob('d/*')]
    return sorted(files, key=lambda path: -path.stat().st_size)


def flip(folder):
    path = arrays_of(folder)[0]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def flip_in_ema(folder):
    path = max((folder / 'ema').rglob('d/*'), key=lambda path: path.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 64
    path.write_bytes(content)


def truncate(folder):
    path = arrays_of(folder)[0]
    path.write_bytes(path.read_bytes()[:100])


def empty(folder):
    shutil.rmtree(folder)
    folder.mkdir()


def no_position(folder):
    shutil.rmtree(folder / 'position')


DAMAGES = [flip, flip_in_ema, truncate, empty, no_position]


def test_a_checkpoint_is_restored_bit_for_bit(workdir):
    step, state = restore(workdir)
    assert step == 8
    assert_equal(state, large_state(8))


@pytest.mark.parametrize('damage', DAMAGES)
def test_a_damaged_checkpoint_is_passed_over(workdir, damage, caplog):
    damage(newest(workdir))
    with caplog.at_level(logging.WARNING):
        step, state = restore(workdir)
    assert step == 4
    assert_equal(state, large_state(4))
    assert any('checkpoint 8 is passed over' in record.getMessage() for record in caplog.records)


def test_any_flipped_byte_is_noticed_or_harmless(workdir):
    """Wherever a bit turns in a file of arrays, what is restored is one of the two states that were
    saved."""
    intact = {step: large_state(step) for step in (4, 8)}
    random = np.random.default_rng(0)
    for path in arrays_of(newest(workdir))[:6]:
        content = path.read_bytes()
        changed = bytearray(content)
        changed[random.integers(len(content))] ^= 1 << int(random.integers(8))
        path.write_bytes(changed)
        step, state = restore(workdir)
        assert_equal(state, intact[step])
        path.write_bytes(content)


def test_no_usable_checkpoint_is_an_error_that_says_where_and_why(workdir):
    for folder in (workdir / checkpoint.FOLDER).iterdir():
        flip(folder)
    with pytest.raises(
        UserError,
        match='no checkpoint in .*checkpoints can be restored .*step 8: .*step 4: .*damaged',
    ):
        restore(workdir)


def test_no_checkpoint_at_all_is_none(tmp_path):
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore({}) is None


def test_a_damaged_checkpoint_is_written_again(workdir):
    """orbax saves nothing, and says nothing, at a step that exists."""
    flip(newest(workdir))
    assert restore(workdir)[0] == 4
    with checkpoint.Checkpoints(workdir, keep=2) as checkpoints:
        checkpoints.save(8, large_state(8), {'seed': 0})
    step, state = restore(workdir)
    assert step == 8
    assert_equal(state, large_state(8))


@pytest.mark.parametrize('cycle', [('alternate', 1), ('dmd2', 6)])
def test_a_run_goes_on_from_the_checkpoint_before_the_damaged_one(tmp_path, cycle):
    """Also where a step comes again that was none of those to come: the student's after the 6th."""
    unbroken = train_toy(tmp_path / 'unbroken', cycle=cycle)
    train_toy(tmp_path / 'broken', cycle=cycle, stop_at=8)
    damaged = newest(tmp_path / 'broken')
    assert int(damaged.name) == 8
    empty(damaged)  # These arrays are so small that some files of a checkpoint hold none of them.
    resumed = train_toy(tmp_path / 'broken', cycle=cycle)
    assert_equal(jax.device_get(unbroken), jax.device_get(resumed))
    logs = [(tmp_path / name / 'metrics.jsonl').read_bytes() for name in ('unbroken', 'broken')]
    assert logs[0] == logs[1]


def test_keep_keeps_the_newest(tmp_path):
    train_toy(tmp_path, checkpoint_every=3, keep=2)
    assert sorted(int(path.name) for path in (tmp_path / checkpoint.FOLDER).iterdir()) == [9, 12]


def rated(value, name='fd_train', sign=-1):
    return None if value is None else dict(name=name, value=value, sign=sign)


@pytest.mark.parametrize(
    ('keep', 'ratings', 'kept'),
    [
        (2, [rated(3.0), rated(1.0), *map(rated, range(5, 15))], [2, 11, 12]),
        (1, [rated(3.0, sign=1), rated(1.0, sign=1), rated(2.0, sign=1)], [1, 3]),
        (1, [rated(1.0), None, None], [1, 3]),
        (2, [None, None, None], [2, 3]),
        # Another number says nothing of this one.
        (1, [rated(1.0), rated(9.0, 'kl'), rated(8.0, 'kl'), None], [3, 4]),
    ],
)
def test_the_best_is_kept_besides_the_newest(tmp_path, keep, ratings, kept):
    """Also where each is saved after a restart; and it is read by that name."""
    for step, rating in enumerate(ratings, 1):
        with checkpoint.Checkpoints(tmp_path, keep) as checkpoints:
            checkpoints.save(step, large_state(step), {}, rating)
    assert sorted(int(path.name) for path in (tmp_path / checkpoint.FOLDER).iterdir()) == kept
    target = checkpoint.items(checkpoint.abstract(large_state(0)))
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore(target)[1]['next_step'] == len(ratings)
        if any(ratings):
            assert checkpoints.restore(target, 'best')[1]['next_step'] == kept[0]
            flip(tmp_path / checkpoint.FOLDER / f'{kept[0]:09}')
        with pytest.raises(UserError, match="^step='best': .*(none of them rated|damaged)"):
            checkpoints.restore(target, 'best')
        with pytest.raises(UserError, match=f'^step=99: .* of the steps {kept[0]}, .*; give'):
            checkpoints.restore(target, 99)


def test_a_damaged_checkpoint_is_not_one_of_those_kept(workdir):
    """Nor does one that is whole make room for it."""
    flip(newest(workdir))
    target = checkpoint.items(checkpoint.abstract(large_state(0)))
    with checkpoint.Checkpoints(workdir, keep=2) as checkpoints:
        assert checkpoints.restore(target)[1]['next_step'] == 4
        checkpoints.save(10, large_state(10), {})
    assert sorted(int(path.name) for path in (workdir / checkpoint.FOLDER).iterdir()) == [4, 8, 10]


def test_a_checkpoint_that_cannot_be_removed_ends_no_run(tmp_path, monkeypatch, caplog):
    """What is left is removed when it can be."""

    def fails(path, *_, **__):
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr(shutil, 'rmtree', fails)
        train_toy(tmp_path, keep=1, stop_at=8)
    assert 'an old checkpoint could not be removed' in caplog.text
    assert sorted(int(path.name) for path in (tmp_path / checkpoint.FOLDER).iterdir()) == [4, 8]
    train_toy(tmp_path, keep=1)
    assert [int(path.name) for path in (tmp_path / checkpoint.FOLDER).iterdir()] == [12]


def test_the_best_of_a_run(tmp_path, monkeypatch):
    """By a number of its evaluations; one that is not finite is not the best."""
    numbers = {2: 3.0, 4: 1.0, 6: float('nan'), 8: 2.0}
    monkeypatch.setattr(
        measuring, 'measure', lambda *given, **_: disk.plain({'kl': numbers[given[3].step]})
    )
    saving = dict(keep=1, keep_best='kl', checkpoint_every=2, evaluate_every=2, log_every=2)
    (tmp_path / 'config.py').write_text(stops.ring(steps=8, **saving))
    settings = config.load(str(tmp_path / 'config.py'))
    build.train(settings, tmp_path / 'run', quiet=True, stop_at=5)
    early = build.from_workdir(tmp_path / 'run', step='best')
    build.train(settings, tmp_path / 'run', quiet=True)
    last, best = (build.from_workdir(tmp_path / 'run', step=step) for step in (None, 'best'))
    assert (last.step, best.step) == (8, 4) and best.digest == early.digest != last.digest


@pytest.mark.parametrize(
    'change', [{'next_step': 0}, {'next_step': 7}, {'seal': ''}, {'seal': None}]
)
def test_a_position_that_was_changed_is_passed_over(workdir, change):
    """Of the first version, the step alone can be compared, with the folder's name."""
    path = newest(workdir) / 'position' / 'metadata'
    position = {**json.loads(path.read_text()), **change}
    if position['seal'] is None:
        del position['seal']
    path.write_text(json.dumps(position))
    assert restore(workdir)[0] == 4


def test_checkpoints_of_the_first_version_are_verified_too(workdir):
    for folder in (workdir / checkpoint.FOLDER).iterdir():
        path = folder / 'position' / 'metadata'
        position = json.loads(path.read_text())
        path.write_text(json.dumps({name: position[name] for name in ('next_step', 'digests')}))
    assert restore(workdir)[0] == 8
    flip(newest(workdir))
    assert restore(workdir)[0] == 4


@pytest.mark.parametrize(
    ('change', 'said'),
    [
        (
            lambda w: {},
            r"state\.params\['student'\]\['w'\] is float32\[4\] in the .* and missing in the run",
        ),
        (
            lambda w: {'w': w, 'x': w},
            r"\['student'\]\['x'\] is missing in the checkpoint and float32\[4\] in",
        ),
        (lambda w: {'w': jnp.zeros(5)}, r'is float32\[4\] in the checkpoint and float32\[5\] in'),
        (lambda w: {'w': w.astype(jnp.bfloat16)}, r'float32\[4\] in the .* and bfloat16\[4\] in'),
    ],
)
def test_another_structure_names_the_array(workdir, change, said):
    state = large_state(0)
    state.params['student'] = change(state.params['student']['w'])
    with checkpoint.Checkpoints(workdir) as checkpoints, pytest.raises(UserError, match=said):
        checkpoints.restore(checkpoint.items(checkpoint.abstract(state)))


def test_a_checkpoint_with_other_metrics_is_restored(workdir):
    """What it lacks begins empty, what the run does not measure is left out; damage is still
    seen."""
    state = large_state(16)._replace(metrics={'student': {name: average(2.0) for name in 'ab'}})
    with checkpoint.Checkpoints(workdir, keep=2) as checkpoints:
        checkpoints.save(16, state, {'seed': 0})
    wanted = {
        'student': {name: average(0.0, 0) for name in 'bc'},
        'critic': {'d': average(jnp.zeros(3), 0)},
    }
    target = checkpoint.items(checkpoint.abstract(state._replace(metrics=wanted)))
    with checkpoint.Checkpoints(workdir) as checkpoints:
        arrays, position = checkpoints.restore(target)
    assert position['next_step'] == 16
    wanted['student']['b'] = average(2.0)
    assert_equal(checkpoint.joined(arrays), state._replace(metrics=wanted))
    flip(newest(workdir))
    with checkpoint.Checkpoints(workdir) as checkpoints:
        assert checkpoints.restore(target)[1]['next_step'] == 8


def test_a_reader_leaves_a_training_alone(workdir):
    """A save in flight is a folder that a writer would remove as left over; a reader whose step is
    removed while it reads takes the next."""
    flight = workdir / checkpoint.FOLDER / '000000012.orbax-checkpoint-tmp'
    flight.mkdir()
    before = sorted(workdir.rglob('*'))
    assert restore(workdir)[0] == 8
    assert sorted(workdir.rglob('*')) == before
    with checkpoint.Checkpoints(workdir) as checkpoints:
        folder = workdir / checkpoint.FOLDER
        for step in (4, 8):
            shutil.move(folder / f'{step:09}', workdir / str(step))
        with checkpoint.Checkpoints(workdir, keep=2) as other:
            other.save(16, large_state(16), {'seed': 0})
        target = checkpoint.items(checkpoint.abstract(large_state(0)))
        assert checkpoints.restore(target)[1]['next_step'] == 16
    with checkpoint.Checkpoints(workdir / 'none') as checkpoints:
        assert checkpoints.restore({}) is None
    assert not (workdir / 'none').exists()


def test_lost_checkpoints_are_no_new_run(teacher, tmp_path):
    folder = pathlib.Path(shutil.copytree(teacher, tmp_path / 'run'))
    shutil.rmtree(folder / checkpoint.FOLDER)
    before = (folder / 'metrics.jsonl').read_bytes()
    settings = config.load(str(pathlib.Path(teacher).parent / 'config.py'))
    with pytest.raises(UserError, match='holds a run without its checkpoints/'):
        build.train(settings, folder, quiet=True)
    assert (folder / 'metrics.jsonl').read_bytes() == before


def test_a_full_disk_ends_the_run_and_leaves_what_was_saved(tmp_path, monkeypatch):
    def full(folder):
        there = [path for path in folder.iterdir() if path.name.isdigit()]
        return usage(folder)._replace(free=0) if there else usage(folder)

    usage = shutil.disk_usage
    with monkeypatch.context() as patch:
        patch.setattr(shutil, 'disk_usage', full)
        with pytest.raises(OSError, match='No space left on device') as found:
            train_toy(tmp_path)
    assert found.value.filename == str(tmp_path / checkpoint.FOLDER)
    assert int(newest(tmp_path).name) == 4
    unbroken = train_toy(tmp_path.with_name('unbroken'))
    assert_equal(jax.device_get(unbroken), jax.device_get(train_toy(tmp_path)))


# As much of a disk that is full as can be had anywhere: no file may grow beyond so many bytes.
LIMITED = """
import resource, sys
from fdistill import cli
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
sys.exit(cli.main(sys.argv[2:]))
"""


@pytest.mark.slow
@pytest.mark.faults
def test_a_file_that_may_not_be_written_ends_the_run(tmp_path, survived):
    (tmp_path / 'long.py').write_text(stops.ring())
    words = ['train', f'--config={tmp_path}/long.py', f'--workdir={tmp_path}/run']
    words += ['--config.training.steps=600', '--config.training.log_every=600']
    done = subprocess.run(
        [sys.executable, '-c', LIMITED, '4000', *words], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2 and 'File too large; allow larger files' in done.stderr
    # Not here, where eight devices would wait for one another on two cores.
    subprocess.run([sys.executable, '-m', 'fdistill', *words], check=True, capture_output=True)
    survived('a file that may not grow')


def test_two_trainings_of_one_folder_are_refused(tmp_path):
    with lock.held(tmp_path), pytest.raises(UserError, match='is writing there'):
        train_toy(tmp_path)
    train_toy(tmp_path)


def test_checksum_sees_what_the_digest_does_not():
    """Signs of two words: the digest's words differ by 2^31 times an odd number each."""
    x = jnp.arange(1.0, 65.0).reshape(8, 8)
    flipped = x.at[1, 2].multiply(-1).at[5, 0].multiply(-1)
    assert checkpoint.digests(x) == checkpoint.digests(flipped)
    assert checkpoint.checksums(x) != checkpoint.checksums(flipped)
    swapped = x[::-1]
    assert checkpoint.checksums(x) != checkpoint.checksums(swapped)
    assert checkpoint.checksums(x)[''].startswith('float32[8, 8] ')


def test_checksums_are_those_of_any_mesh():
    """Also where arrays that are split lie between whole ones."""
    tree = {'a': jnp.int32(7), 'b': jnp.arange(64.0).reshape(8, 8), 'c': jnp.arange(5)}
    for axes in ((1, 1), (1, 8), (2, 4)):
        mesh = mesh_of(*axes)
        placed = jax.device_put(tree, sharding.state_sharding(tree, mesh, min_size=64))
        assert placed['b'].is_fully_replicated == (axes == (1, 1))
        assert checkpoint.checksums(placed) == checkpoint.checksums(jax.device_get(tree))


@pytest.mark.parametrize('what', [checkpoint.digests, checkpoint.checksums])
def test_digest_sees_any_word(what, x64):
    dtypes = {'a': jnp.float32, 'b': jnp.bfloat16, 'c': bool, 'd': jnp.float64, 'e': jnp.int8}
    tree = {name: jnp.arange(3).astype(dtype) for name, dtype in dtypes.items()}
    digests = what(tree)
    assert list(digests) == [f"['{name}']" for name in dtypes]
    for name, leaf in tree.items():
        for i in range(leaf.size):
            changed = tree | {name: leaf.at[i].set(~leaf[i] if leaf.dtype == bool else leaf[i] + 1)}
            found = what(changed)
            assert [key for key in digests if found[key] != digests[key]] == [f"['{name}']"]


# --- stops


@pytest.mark.parametrize('signum', SIGNALS)
def test_a_signal_saves_and_the_next_run_goes_on(tmp_path, signum):
    unbroken = train_toy(tmp_path / 'unbroken')

    def batches(start, rollbacks):
        for done, batch in enumerate(toy_batches()(start, rollbacks), start + 1):
            if done == 7:
                signal.raise_signal(signum)
            yield batch

    handler = signal.getsignal(signum)
    with pytest.raises(Stopped, match='stopped at step 7 of 12') as stopped:
        train_toy(tmp_path / 'broken', batches)
    assert stopped.value.signum == signum and signal.getsignal(signum) is handler
    assert int(newest(tmp_path / 'broken').name) == 7
    resumed = train_toy(tmp_path / 'broken')
    assert_equal(jax.device_get(unbroken), jax.device_get(resumed))


def run_until(words, condition, how, log):
    """Starts the command line, ends it with a signal once a condition holds; its exit code."""
    with open(log, 'a') as file:
        process = subprocess.Popen(
            [sys.executable, '-m', 'fdistill', *words], stdout=file, stderr=file
        )
        deadline = time.monotonic() + 120
        while not condition() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(how)
        return process.wait(60)


@pytest.mark.slow
@pytest.mark.faults
def test_killed_processes_resume(tmp_path, survived):
    """SIGTERM: saved, exit code 143. SIGKILL while saving and training: goes on from the last whole
    checkpoint."""
    file, run, log = tmp_path / 'long.py', tmp_path / 'run', tmp_path / 'log'
    file.write_text(stops.ring())
    words = ['train', f'--config={file}', f'--workdir={run}']

    def logged():
        path = run / 'metrics.jsonl'
        return (
            [json.loads(line)['step'] for line in path.read_text().splitlines()]
            if path.exists()
            else []
        )

    assert run_until(words, lambda: len(logged()) > 3, signal.SIGTERM, log) == 143
    stopped = int(newest(run).name)
    assert stopped >= logged()[-1]
    for kill in (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM):
        goal = logged()[-1] + 700
        code = run_until(words, lambda goal=goal: logged()[-1] > goal, kill, log)
        assert code == (143 if kill == signal.SIGTERM else -kill)
    starts = [
        int(line.split()[7])
        for line in log.read_text().splitlines()
        if line.startswith('going on from')
    ]
    assert len(starts) == 3 and starts[0] == stopped and starts == sorted(starts)
    assert logged() == list(range(50, logged()[-1] + 1, 50)), 'each step is logged once'
    survived('SIGTERM or kill -9', 4)


@pytest.mark.parametrize(
    ('setting', 'value'), [('learning_rate', 2e-3), ('clip', 1e-12), ('weight_decay', 0.1)]
)
def test_settings_of_the_optimizers_change_only_when_asked_and_are_recorded(
    tmp_path, setting, value
):
    (tmp_path / 'config.py').write_text(TEACHER)
    settings, run = config.load(str(tmp_path / 'config.py')), tmp_path / 'run'
    build.train(settings, run, quiet=True, stop_at=2)
    shutil.copytree(run, tmp_path / 'unchanged')
    unchanged = build.train(settings, tmp_path / 'unchanged', quiet=True)
    with settings.unlocked():
        settings.optimizer.student[setting] = value
    with pytest.raises(
        UserError, match=rf'optimizer.student.{setting}=.*, now {value}; .*--change'
    ):
        build.train(settings, run, quiet=True)
    state = build.train(settings, run, quiet=True, change=True)
    assert int(state.step) == 3
    assert jax.tree.structure(state) == jax.tree.structure(unchanged)
    leaves = [jax.tree.leaves(jax.device_get(one.params)) for one in (state, unchanged)]
    assert any((one != other).any() for one, other in zip(*leaves, strict=True))
    kept = json.loads((run / 'config.json').read_text())
    change = {'step': 2, 'setting': f'optimizer.student.{setting}', 'after': value}
    assert [one | change for one in kept['changes']] == kept['changes']
    assert kept['optimizer']['student'][setting] == value
    with settings.unlocked():
        settings.optimizer.student[setting] = value / 2
        settings.seed = 1
    with pytest.raises(UserError, match='config.seed=0, now 1'):
        build.train(settings, run, quiet=True, change=True)
    assert json.loads((run / 'config.json').read_text()) == kept


# --- a student of a trained teacher, on any mesh


TEACHER = """
from ml_collections import ConfigDict
def get_config():
    return ConfigDict(dict(
        seed=0,
        data=dict(name='digits'),
        network=dict(name='mlp', width=16, blocks=1, embedding=8, dropout=0.1),
        denoiser=dict(sigma_data=0.75),
        method=dict(name='pretrain', law=dict(name='lognormal'), grid=dict(name='karras', steps=3)),
        optimizer=dict(student=dict(learning_rate=1e-3)),
        training=dict(steps=3, batch_size=16, ema_half_life=100.0, sample_every=0),
    ))
"""


@pytest.fixture(scope='module')
def teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp('teacher')
    (folder / 'config.py').write_text(TEACHER)
    build.train(config.load(str(folder / 'config.py')), folder / 'run', quiet=True)
    return str(folder / 'run')


def student_config(teacher):
    """f-distill with everything on: ratio bins, GAN, features of the teacher, dropout in the fake
    score."""
    law = dict(name='karras_uniform', sigma_max=10.0)
    method = dict(
        name='f_distill',
        divergence='js',
        sigma_init=2.5,
        student_law=law,
        critic_law=law,
        gan_weight=0.1,
    )
    return ConfigDict(
        dict(
            seed=1,
            data=dict(name='digits'),
            teacher=dict(workdir=teacher),
            method=method | dict(bins_decay=0.5, r1_weight=0.1, student_every=3),
            discriminator=dict(name='mlp', width=16, layers=2),
            # With the default eps Adam makes a step of rounding noise out of a gradient of nothing
            # but rounding noise.
            optimizer={role: dict(learning_rate=1e-3, eps=1e-4) for role in ('student', 'critic')},
            training=dict(
                steps=10,
                batch_size=16,
                ema_half_life=100.0,
                log_every=4,
                checkpoint_every=0,
                sample_every=0,
            ),
        )
    ).lock()


@pytest.mark.slow
def test_a_student_of_a_network_on_any_mesh(teacher, tmp_path, monkeypatch):
    """One device, and stopped on 2 x 4 to go on with one device: equal to 1e-4."""
    split = functools.partial(sharding.state_sharding, min_size=64)
    monkeypatch.setattr(sharding, 'state_sharding', split)

    def train(name, data, fsdp, **options):
        monkeypatch.setattr(sharding, 'mesh_over', lambda **_: mesh_of(data, fsdp))
        state = build.train(student_config(teacher), tmp_path / name, quiet=True, **options)
        sharded = [leaf for leaf in jax.tree.leaves(state) if not leaf.sharding.is_fully_replicated]
        assert bool(sharded) == (fsdp > 1)
        return jax.device_get(state)

    alone = train('alone', 1, 1)
    train('moved', 2, 4, stop_at=5)
    other = train('moved', 1, 1)
    for a, b in zip(
        *(jax.tree.leaves((s.params, s.averages, s.aux)) for s in (alone, other)), strict=True
    ):
        assert np.max(np.abs(a - b)) <= 1e-4 * max(np.max(np.abs(a)), 0.1)


# --- settings


def test_ema_half_life():
    """A weight that jumps from 0 to 1 is averaged to 1/2 after half_life images, once the ramp-up
    is over."""
    half_life, batch = 1000.0, 10
    decay = ema_decay(half_life, batch, ramp_up=0.05)
    steps = jnp.arange(10_000, 10_000 + 100)
    assert float(jnp.prod(jax.vmap(decay)(steps))) == pytest.approx(0.5, rel=1e-4)
    # Before that the half-life is ramp_up times the images seen.
    assert float(decay(jnp.int32(99))) == pytest.approx(0.5 ** (10 / (0.05 * 1000)), rel=1e-6)
    # EDM and SiD: 0.99965 at batch 256 and half a million images.
    assert float(ema_decay(0.5e6, 256)(jnp.int32(10**6))) == pytest.approx(0.99965, abs=5e-6)
    for bad in (
        {'half_life': 0.0},
        {'half_life': float('nan')},
        {'half_life': 1.0, 'ramp_up': 0.0},
    ):
        with pytest.raises(ValueError, match='must be > 0'):
            ema_decay(batch_size=1, **bad)


@pytest.mark.parametrize(
    'cycle, every', [('alternate', 1), ('alternate', 3), ('dmd2', 5), ('fastgen', 5)]
)
def test_role_updates_count_the_cycle(cycle, every):
    expected = {
        'alternate': {'critic': 1000, 'student': 1000 // every},
        'dmd2': {'critic': 1000, 'student': 1000 // every},
        'fastgen': {'critic': 1000 - 1000 // every, 'student': 1000 // every},
    }[cycle]
    assert optim.role_updates(make_cycle(cycle, every), 1000) == expected


def rates(updates=100, **options):
    """The learning rates of the first updates: with b1 = b2 = 0 Adam's step is the rate itself."""
    optimizer = optim.adam(b1=0.0, b2=0.0, eps=1e-30, **options)

    def step(state, _):
        change, state = optimizer.update(jnp.ones(()), state, jnp.zeros(()))
        return state, -change

    return np.asarray(jax.lax.scan(step, optimizer.init(jnp.zeros(())), None, updates)[1])


def test_schedules():
    np.testing.assert_allclose(rates(steps=100, learning_rate=0.5), 0.5, rtol=1e-6)
    found = rates(steps=100, learning_rate=0.5, warmup=20, schedule='cosine', final=0.1)
    np.testing.assert_allclose(found[:20], 0.5 * np.arange(20) / 20, rtol=1e-5)
    share = np.arange(80) / 80
    np.testing.assert_allclose(
        found[20:], 0.5 * (0.1 + 0.9 * (1 + np.cos(np.pi * share)) / 2), rtol=1e-4
    )
    # Beyond its end the cosine stays at its last value.
    assert rates(120, steps=100, learning_rate=0.5, schedule='cosine', final=0.1)[
        -1
    ] == pytest.approx(0.05)


def test_clip_and_decay():
    gradient = {'w': jnp.full(4, 10.0)}
    optimizer = optim.adam(steps=1, learning_rate=1.0, b1=0.0, b2=0.0, eps=1.0, clip=2.0)
    change, _ = optimizer.update(gradient, optimizer.init(gradient), gradient)
    np.testing.assert_allclose(
        change['w'], -1.0 / (1.0 + 1.0), rtol=1e-6
    )  # A norm of 20 becomes 2: four ones.
    params = {'map_noise': {'freqs': jnp.ones(2)}, 'w': jnp.ones(2)}
    optimizer = optim.adam(steps=1, learning_rate=0.1, weight_decay=0.5)
    change, _ = optimizer.update(
        jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params
    )
    np.testing.assert_allclose(change['w'], -0.05, rtol=1e-6)
    np.testing.assert_array_equal(change['map_noise']['freqs'], 0.0)


def test_state_sharding_splits_big_arrays_by_the_largest_divisible_axis():
    mesh = mesh_of(2, 4)
    tree = {
        'small': jax.ShapeDtypeStruct((8,), jnp.float32),
        'kernel': jax.ShapeDtypeStruct((3, 3, 256, 512), jnp.float32),
        'odd': jax.ShapeDtypeStruct((511, 512), jnp.float32),
        'prime': jax.ShapeDtypeStruct((509, 521), jnp.float32),
    }
    specs = {name: s.spec for name, s in sharding.state_sharding(tree, mesh).items()}
    assert specs == {
        'small': PartitionSpec(),
        'kernel': PartitionSpec(None, None, None, 'fsdp'),
        'odd': PartitionSpec(None, 'fsdp'),
        'prime': PartitionSpec(),
    }
    assert all(
        s.spec == PartitionSpec() for s in sharding.state_sharding(tree, mesh_of(8, 1)).values()
    )


def test_the_axis_model_takes_the_last_axis_and_rules_come_first():
    mesh = sharding.mesh_over(jax.devices(), data=2, fsdp=2, model=2)
    tree = {
        'a': {'kernel': jnp.zeros((512, 256)), 'bias': jnp.zeros(4)},
        'b': jnp.zeros((512, 256)),
    }
    rules = (('a/kernel$', ('model', None)), ('^a', ('model',)))
    placed = sharding.state_sharding(tree, mesh, rules)
    assert jax.tree.map(lambda s: s.spec, placed) == {
        'a': {'kernel': PartitionSpec('model', None), 'bias': PartitionSpec('model')},
        'b': PartitionSpec('fsdp', 'model'),
    }
    assert sharding.batch_sharding(mesh).shard_shape((8, 3)) == (2, 3)
    for axes in (('model', None, None), ('nowhere',), ('model', 'model'), (None, 'model')):
        with pytest.raises(ValueError, match=r'cannot split b, which has the shape \(4, 5\)'):
            sharding.state_sharding({'b': jnp.zeros((4, 5))}, mesh, (('b', axes),))
    with pytest.raises(ValueError, match="'\\(' is no pattern"):
        loop.check(loop.Training(1, 8, 1.0, partition_rules=(('(', ()),)))
    with pytest.raises(ValueError, match='fsdp=3 x model=2: does not divide the 8 devices'):
        sharding.mesh_over(jax.devices(), fsdp=3, model=2)


WIDE = dict(name='mlp', width=256, blocks=1, embedding=64)


@functools.lru_cache
def compiled_step(batch_size, *shape):
    """(Program of a student's gradient with a teacher and a fake score, of networks with arrays
    large enough to be split; the student's parameters), on a mesh of shape (data, fsdp, model)."""
    law, mesh = dict(name='lognormal'), sharding.mesh_over(jax.devices(), *shape)
    plain = dict(
        image=dict(shape=[2], num_classes=0),
        network=WIDE,
        teacher=dict(workdir='none', network=WIDE, denoiser={}),
        method=dict(name='diff_instruct', student_law=law, critic_law=law),
        optimizer={role: dict(learning_rate=1e-3) for role in ('student', 'critic')},
        training=dict(steps=10),
    )
    built = build.experiment(plain)
    optimizers = build.optimizers(plain, built.method)
    training = loop.Training(10, batch_size, 1e3)
    batch = {'x': jax.ShapeDtypeStruct((batch_size, 2), jnp.float32), 'condition': {}}
    frozen = {'teacher': jax.eval_shape(built.parts['teacher'].init, KEY, batch['x'], {})}
    frozen = checkpoint.abstract(frozen, sharding.state_sharding(frozen, mesh))
    batch = checkpoint.abstract(batch, jax.tree.map(lambda _: sharding.batch_sharding(mesh), batch))
    made = loop.programs(built.method, optimizers, training, frozen, batch, KEY, mesh)
    return made.gradient('student').lower().compile(), made.state.params['student']


def test_fsdp_moves_weights_and_no_activations():
    """Each array that is split is gathered once for each of three networks, each gradient summed
    once, and nothing else of note is sent: the communication of FSDP (arXiv 2304.11277)."""
    program, params = compiled_step(64, 1, 8)
    sent = cost.collectives(program.as_text())
    assert set(sent) <= {'all-gather', 'all-reduce', 'reduce-scatter'}
    leaves = jax.tree.leaves(params)
    every = sum(4 * leaf.size for leaf in leaves)
    split = sum(4 * leaf.size for leaf in leaves if any(leaf.sharding.spec))
    assert split > 0.7 * every
    assert sent['all-gather'].bytes == pytest.approx(3 * split * 7 / 8, rel=0.1)
    # XLA sums and then splits gradients on a CPU, which sends twice what a reduce-scatter does.
    gradients = 2 * sent.get('reduce-scatter', cost.Collective()).bytes + sent['all-reduce'].bytes
    assert gradients == pytest.approx(2 * every * 7 / 8, rel=0.1)


@pytest.mark.parametrize(
    'shape, within', [((1, 8), 0.01), pytest.param((1, 1, 8), 0.1, marks=pytest.mark.slow)]
)
def test_no_axis_computes_anything_twice(shape, within):
    """But what is small, and so split over `model` by nothing."""
    flops, alone = (compiled_step(2048, *of)[0].cost_analysis()['flops'] for of in (shape, (8, 1)))
    assert flops == pytest.approx(alone, rel=within)


def test_batch_has_to_divide():
    mesh = mesh_of(2, 4)
    training = loop.Training(steps=1, batch_size=16, ema_half_life=1.0)
    loop.check(training, mesh)
    for size, remedy in ((12, 'use e.g. 16'), (0, 'use e.g. 8'), (3, 'use e.g. 8')):
        with pytest.raises(
            ValueError, match=f'batch_size={size} is not divisible by the 8 devices; {remedy}'
        ):
            loop.check(training._replace(batch_size=size), mesh)
    for bad in ({'fsdp': 3}, {'fsdp': 0}, {'data': 3}, {'data': -2}):
        with pytest.raises(ValueError, match='mesh'):
            sharding.make_mesh(**bad)


# --- through the command line


@pytest.fixture
def command(tmp_path, capsys):
    """command(*overrides) -> (exit code, the lines on stderr, the workdir)."""
    short, workdir = tmp_path / 'config.py', tmp_path / 'run'
    short.write_text(stops.ring(steps=20))

    def run(*overrides, file=short):
        code = cli.main(['train', f'--config={file}', f'--workdir={workdir}', *overrides])
        return code, capsys.readouterr().err.splitlines(), workdir

    return run


def test_diverging_training_is_one_line(command):
    code, lines, _ = command('--config.optimizer.student.learning_rate=1e15')
    assert code == 1
    (line,) = [line for line in lines if line.startswith('fdistill: ')]
    assert line == lines[-1] and "student/grad_norm of role 'student' not finite" in line


@pytest.mark.parametrize(
    'override, message',
    [
        ('--config.training.batch_size=12', 'batch_size=12 is not divisible by the 8 devices'),
        ('--config.training.steps=0', 'steps=0'),
        ('--config.training.ema_half_life=0', 'ema_half_life=0'),
        ('--config.training.keep=0', 'keep=0'),
        ('--config.training.max_skipped=0', 'max_skipped=0'),
        ('--config.training.rollbacks=-1', 'rollbacks=-1: must be >= 0'),
        ('--config.training.spike_sigmas=1', 'spike_sigmas=1.0: must be 0 (off) or >= 3'),
        ('--config.optimizer.student.learning_rate=-1', 'learning_rate=-1'),
        ('--config.mesh.fsdp=3', 'fsdp=3'),
        ('--config.data.mixture=rnig', "mixture: unknown 'rnig'; did you mean ring?"),
        ('--config.data.name=digit', "unknown 'digit'; did you mean digits?"),
        ('--config.network.name=mpl', "unknown 'mpl'; did you mean mlp?"),
        ('--config.network.width=0', 'width=0'),
        ('--config.method.name=pretain', "unknown 'pretain'; did you mean pretrain?"),
        ('--config.method.law.name=lognormall', 'did you mean lognormal?'),
        ('--config.method.grid.steps=0', 'steps=0'),
        ('--config.seed=-1', 'seed=-1'),
        ('--config.evaluation.samples=1', 'config.evaluation: samples=1'),
    ],
)
def test_a_mistake_is_one_line_and_leaves_no_folder(command, override, message):
    code, lines, workdir = command(override)
    assert code == 2 and len(lines) == 1 and lines[0].startswith('fdistill: ')
    assert message in lines[0]
    assert not workdir.exists()


@pytest.mark.parametrize(
    'section, message',
    [
        ('sampels=100', 'config.evaluation.sampels: unknown; did you mean samples?'),
        ("samples='many'", "config.evaluation.samples: 'many' is of type str; expected int"),
        ('batch_size=0', 'batch_size=0: seed must be >= 0 and batch_size >= 1'),
        ('seed=-1', 'seed=-1'),
    ],
)
def test_a_mistake_about_the_evaluation_is_found_before_training(
    command, tmp_path, section, message
):
    file = tmp_path / 'mistaken.py'
    file.write_text(stops.ring().replace('samples=100', section))
    code, lines, workdir = command(file=file)
    assert code == 2 and len(lines) == 1 and message in lines[0]
    assert not workdir.exists()


STUDENT = pathlib.Path(__file__).parents[1] / 'configs' / 'digits_f_distill.py'


def test_a_mistake_about_the_teacher_or_divergence_is_one_line(command, tmp_path):
    code, lines, workdir = command(f'--config.teacher.workdir={tmp_path / "none"}', file=STUDENT)
    assert code == 2 and len(lines) == 1 and str(tmp_path / 'none') in lines[0]
    assert not workdir.exists()
    code, lines, workdir = command(file=STUDENT.with_name('ring.py:jss'))
    assert code == 2 and len(lines) == 1 and 'jss' in lines[0] and 'js' in lines[0]
    assert not workdir.exists()


def test_another_config_in_the_same_folder_is_refused(command):
    code, _, workdir = command()
    assert code == 0
    before = (workdir / 'config.json').read_bytes()
    code, lines, _ = command('--config.training.batch_size=32')
    assert code == 2 and len(lines) == 1 and 'config.training.batch_size=64, now 32' in lines[0]
    assert (workdir / 'config.json').read_bytes() == before
    # What changes nothing about the result may differ.
    code, _, _ = command('--config.training.log_every=7')
    assert code == 0


@pytest.mark.parametrize('clip', [0.0, 1.0])
def test_forced_weights_have_unit_rows_and_take_the_same_path(clip):
    """EDM2 writes the normalised weights back before each use; ours after each update."""
    rows = (
        jax.random.normal(jax.random.key(0), (4, 3, 2, 2)) * jnp.arange(1.0, 5)[:, None, None, None]
    )
    params = {'critic': {'a.weight': rows, 'gain': jnp.array(0.5), 'freqs': jnp.ones(3)}}
    free = optim.adam(steps=9, learning_rate=0.1, clip=clip)
    kept = optim.adam(steps=9, learning_rate=0.1, clip=clip, unit_weights=True)
    states = free.init(params), kept.init(params)
    for seed in range(3):
        key = jax.random.key(seed)
        gradient = jax.tree.map(lambda p, key=key: jax.random.normal(key, p.shape), params)
        update, free_state = free.update(gradient, states[0], params)
        plain = optax.apply_updates(params, update)['critic']
        update, kept_state = kept.update(gradient, states[1], params)
        params, states = optax.apply_updates(params, update), (free_state, kept_state)
        own = params['critic']
        norms = jnp.sqrt(jnp.mean(own['a.weight'] ** 2, axis=(1, 2, 3)))
        np.testing.assert_allclose(norms, 1.0, atol=2e-4)  # EDM2's eps is 1e-4.
        size = jnp.linalg.norm(plain['a.weight'].reshape(4, -1), axis=1)[:, None, None, None]
        expected = plain['a.weight'] / (1e-4 + size / np.sqrt(12))
        np.testing.assert_allclose(own['a.weight'], expected, rtol=1e-5)
        for name in ('gain', 'freqs'):
            np.testing.assert_array_equal(own[name], plain[name])


def test_the_speed_is_measured_when_the_steps_are_done(monkeypatch):
    waited = []
    monkeypatch.setattr(jax, 'block_until_ready', waited.append)
    progress = types.SimpleNamespace(update=lambda done, finish: finish())
    loop.pace([], progress)(types.SimpleNamespace(step='the step'), 3)
    assert waited == ['the step']
