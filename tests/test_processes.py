"""Runs of two processes, through the command line: what one of them meets, both end with; and what
is saved on some devices goes on on others."""

import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import stops

from fdistill import build
from fdistill import config as configs
from fdistill.training import checkpoint

ROOT = pathlib.Path(__file__).parents[1]
pytestmark = [pytest.mark.slow, pytest.mark.faults]

SLOWLY = """
import os, time
from fdistill.data import pipeline

def slowly(*given, **named):
    '''Of one process, after a few steps, what the environment says.'''
    for step, batch in enumerate(batches(*given, **named), given[3]):
        if str(named['process_index']) == os.environ.get('WHO') and step == 60:
            exec(os.environ['WHAT'])
        yield batch

batches, pipeline.batches = pipeline.batches, slowly
"""


@pytest.fixture
def launch(tmp_path):
    """launch(*words, count=2, devices=1, each=(), **environment) -> processes of `fdistill train`
    with so many devices each, whose output is in `0.log` and `1.log`."""
    often = dict(steps=100, log_every=10, checkpoint_every=50, hang_seconds=15.0, rollbacks=1)
    (tmp_path / 'config.py').write_text(SLOWLY + stops.ring(**often))
    started = []

    def start(*words, count=2, devices=1, each=((), ()), **environment):
        with socket.socket() as free:
            free.bind(('localhost', 0))
            port = free.getsockname()[1]
        found = []
        for k in range(count):
            own = {'JAX_PROCESS_ID': str(k), 'JAX_NUM_PROCESSES': str(count)}
            own |= {'JAX_COORDINATOR_ADDRESS': f'localhost:{port}'} if count > 1 else {}
            own |= {'PYTHONPATH': str(ROOT), 'JAX_PLATFORMS': 'cpu'}
            environment |= {'JAX_NUM_CPU_DEVICES': str(devices)}
            command = ['-m', 'fdistill', 'train', f'--config={tmp_path}/config.py']
            with open(tmp_path / f'{k}.log', 'a') as log:
                process = subprocess.Popen(
                    [sys.executable, *command, f'--workdir={tmp_path}/run', *words, *each[k]],
                    env=os.environ | (own if count > 1 else {}) | environment,
                    stdout=log,
                    stderr=log,
                )
            found.append(process)
        started.extend(found)
        return found

    yield start
    for process in started:  # JAX catches a plain SIGTERM.
        process.kill()
        process.wait()


def codes(processes, within=90):
    """Exit codes, of which the last comes at most so many seconds after the first."""
    deadline = time.monotonic() + 240
    while all(process.poll() is None for process in processes):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    began = time.monotonic()
    found = [process.wait(within) for process in processes]
    return found, time.monotonic() - began


def steps_of(folder):
    path = folder / 'run' / 'metrics.jsonl'
    if not path.exists():
        return []
    return [json.loads(line)['step'] for line in path.read_text().splitlines()]


def said(folder, k):
    return (folder / f'{k}.log').read_text()


def test_sigterm_of_one_stops_both_at_one_step_and_the_run_goes_on(launch, tmp_path, survived):
    long = '--config.training.steps=1000000'
    processes = launch(long)
    stops.wait_for(lambda: len(steps_of(tmp_path)) > 3)
    processes[1].send_signal(signal.SIGTERM)
    assert codes(processes)[0] == [143, 143], said(tmp_path, 1)
    ends = [said(tmp_path, k).split('stopped at step ')[1].split()[0] for k in range(2)]
    assert ends[0] == ends[1] == str(checkpoint.newest(tmp_path / 'run'))
    processes = launch(long)
    stops.wait_for(lambda: steps_of(tmp_path)[-1] > int(ends[0]) + 20)
    processes[0].send_signal(signal.SIGTERM)
    assert codes(processes)[0] == [143, 143]
    assert f'going on from the checkpoint at step {ends[0]}' in said(tmp_path, 0)
    assert steps_of(tmp_path) == list(range(10, steps_of(tmp_path)[-1] + 1, 10))
    survived('SIGTERM in two processes')


@pytest.mark.parametrize('who', [0, 1])
def test_an_exception_in_one_ends_both(launch, tmp_path, who, survived):
    processes = launch(WHO=str(who), WHAT='raise RuntimeError("of one")')
    found, seconds = codes(processes, 60)
    assert found[who] == 1 and found[1 - who] != 0 and seconds < 30
    assert 'RuntimeError: of one' in said(tmp_path, who)
    assert codes(launch())[0] == [0, 0] and steps_of(tmp_path)[-1] == 100
    survived('an exception in one of two processes')


@pytest.mark.parametrize('who', [0, 1])
def test_a_dead_peer_ends_the_other_within_thirty_seconds(launch, tmp_path, who, survived):
    processes = launch(WHO=str(who), WHAT='os.kill(os.getpid(), 9)')
    found, seconds = codes(processes, 60)
    assert found[who] == -9 and found[1 - who] != 0 and seconds < 30
    assert codes(launch())[0] == [0, 0] and steps_of(tmp_path)[-1] == 100
    survived('a dead peer')


def test_data_of_one_that_are_not_finite_take_both_back(launch, tmp_path, survived):
    once = "batch['x'][:] = float('nan'); os.environ['WHO'] = ''"
    processes = launch('--config.training.max_skipped=1', WHO='1', WHAT=once)
    assert codes(processes)[0] == [0, 0], said(tmp_path, 1)
    for k in range(2):
        assert said(tmp_path, k).count('Roll-back 1 of 1') == 1
    assert checkpoint.newest(tmp_path / 'run') == 100
    lines = (tmp_path / 'run' / 'metrics.jsonl').read_text().splitlines()
    logged = {row['step']: row.get('rollbacks', 0) for row in map(json.loads, lines)}
    assert logged == {step: int(step > 50) for step in range(10, 101, 10)}
    survived('data of one of two processes not finite')


def test_a_hang_ends_both_with_stacks(launch, tmp_path, survived):
    processes = launch(WHO='1', WHAT='time.sleep(1000)')
    found, seconds = codes(processes, 60)
    assert 0 not in found and seconds < 30
    for who in (0, 1):
        assert 'Timeout: no step was finished in 15 s' in said(tmp_path, who)
    assert 'in slowly' in said(tmp_path, 1)
    survived('a hang')


def test_other_settings_in_one_are_refused_by_both(launch, tmp_path, survived):
    rate = '--config.optimizer.student.learning_rate='
    processes = launch(each=((rate + '1e-3',), (rate + '2e-3',)))
    assert codes(processes)[0] == [2, 2]
    for k in range(2):
        assert 'process 1: has another config' in said(tmp_path, k)
    assert not (tmp_path / 'run').exists()
    survived('other settings in one of two processes')


@pytest.mark.parametrize('count', [1, 2])
def test_one_and_two_processes_give_the_same_curve(launch, tmp_path, count):
    """Of twenty steps; what one or two saved, the other number reads to go on."""
    words = ['--config.training.steps=20', '--config.training.log_every=1']
    assert codes(launch(*words, count=count))[0] == [0] * count
    alone = [*words, f'--workdir={tmp_path}/other']
    assert codes(launch(*alone, count=3 - count))[0] == [0] * (3 - count)
    curves = [
        [json.loads(line) for line in (tmp_path / name / 'metrics.jsonl').read_text().splitlines()]
        for name in ('run', 'other')
    ]
    losses = [[row['student/denoising'] for row in curve] for curve in curves]
    assert len(losses[0]) == 20
    np.testing.assert_allclose(*losses, rtol=1e-5)
    assert codes(launch(*words, count=3 - count))[0] == [0] * (3 - count)
    assert 'going on from the checkpoint at step 20 of 20' in said(tmp_path, 0)


KEPT = """
import os
import jax, numpy as np
from jax.experimental import multihost_utils
from fdistill.training import loop

def kept(advance, state, start, steps, hooks, stop, verdict):
    '''Some steps of a run, and in files of their own the state before and after.'''
    def keep(name, state):
        split = sum(not leaf.is_fully_replicated for leaf in jax.tree.leaves(state.params))
        leaves = jax.tree_util.tree_leaves_with_path(state)
        whole = multihost_utils.process_allgather([leaf for _, leaf in leaves], tiled=True)
        if jax.process_index() == 0:
            arrays = {jax.tree_util.keystr(path): x for (path, _), x in zip(leaves, whole)}
            np.savez(os.environ[name], split=split, start=start, **arrays)
    keep('BEFORE', state)
    # Simulated devices may wait for one another for ever where several steps are under way.
    blocking = lambda *given: jax.block_until_ready(advance(*given))
    end = start + int(os.environ['STEPS'])
    state = run(blocking, state, start, steps, hooks, lambda done: done == end)
    keep('AFTER', state)
    return state

run, loop.run = loop.run, kept
"""

# A teacher and students of it: f-distill with ratio bins and discriminator, and SIM. Of arrays of
# 256 x 256 those that a run changes are split over the axis fsdp.
WIDE = """
from ml_collections import ConfigDict
def get_config(method):
    law, rate = dict(name='lognormal', mean=-1.0, std=1.0), dict(learning_rate=1e-3)
    plain = dict(
        seed=3,
        data=dict(name='digits'),
        training=dict(
            steps=20, batch_size=16, ema_half_life=100.0, checkpoint_every=0, sample_every=0
        ),
        mesh=dict(data=-1, fsdp=1),
    )
    if method == 'pretrain':
        own = dict(law=law, grid=dict(name='karras', steps=3))
        plain |= dict(network=dict(name='mlp', width=256, blocks=1, embedding=8))
        plain |= dict(denoiser=dict(sigma_data=0.75), optimizer=dict(student=rate))
    else:
        own = dict(sigma_init=1.0, student_law=law, critic_law=law)
        plain |= dict(teacher=dict(workdir=''), optimizer=dict(student=rate, critic=rate))
    if method == 'f_distill':
        own |= dict(divergence='js', gan_weight=0.1, r1_weight=0.1, student_every=3)
        plain |= dict(discriminator=dict(name='mlp', width=16, layers=1))
    return ConfigDict(plain | dict(method=dict(name=method, **own)))
"""


@pytest.fixture(scope='module')
def wide(tmp_path_factory):
    """wide(folder, method, topology) -> words and options for `launch`, once `folder` has the
    config; the teacher is trained."""
    made = tmp_path_factory.mktemp('wide')
    (made / 'config.py').write_text(WIDE)
    teacher = configs.load(f'{made}/config.py:pretrain')
    build.train(teacher, made / 'teacher', quiet=True)

    def of(folder, method, topology):
        count, devices, fsdp = TOPOLOGIES[topology]
        words = [f'--config={folder}/config.py:{method}', f'--config.mesh.fsdp={fsdp}']
        if method != 'pretrain':
            words += [f'--config.teacher.workdir={made}/teacher']
        return words, dict(count=count, devices=devices)

    return of


# Processes, devices of each, size of the axis fsdp; with 8 of it, no process holds a whole array.
TOPOLOGIES = {
    '8 devices': (1, 8, 4),
    'transposed': (1, 8, 2),
    '4 devices': (1, 4, 4),
    '2 devices': (1, 2, 2),
    '1 device': (1, 1, 1),
    '2 processes': (2, 4, 8),
}


@pytest.mark.parametrize(
    ('saved', 'others'),
    [
        ('8 devices', ('transposed', '4 devices', '2 devices', '1 device', '2 processes')),
        ('2 processes', ('8 devices', '4 devices', '1 device')),
    ],
)
def test_a_state_is_restored_on_any_devices(launch, wide, tmp_path, saved, others, survived):
    """Bit for bit, and a step further it is where the devices that saved it would be."""
    (tmp_path / 'config.py').write_text(KEPT + WIDE)

    def train(folder, topology, steps):
        """The states before and after some steps, {path: array}."""
        files = {name: str(tmp_path / f'{name}.npz') for name in ('BEFORE', 'AFTER')}
        words, options = wide(tmp_path, 'f_distill', topology)
        started = launch(f'--workdir={folder}', *words, STEPS=str(steps), **options, **files)
        assert set(codes(started)[0]) == {0}, said(tmp_path, 0)
        states = [dict(np.load(file)) for file in files.values()]
        assert {bool(state.pop('split')) for state in states} == {topology != '1 device'}
        return states

    _, left = train(tmp_path / 'run', saved, 4)
    assert left['.step'] == 4 and any(x.any() for path, x in left.items() if '.metrics' in path)
    wanted = None
    for topology in (saved, *others):
        before, after = train(shutil.copytree(tmp_path / 'run', tmp_path / topology), topology, 1)
        assert before.pop('start') == after.pop('start') == 4
        for path, array in before.items():
            np.testing.assert_array_equal(array, left[path], err_msg=f'{topology}: {path}')
        wanted = wanted or after
        for path, array in after.items():
            scale = np.max(np.abs(wanted[path]), initial=1)
            difference = np.max(np.abs(array / scale - wanted[path] / scale), initial=0)
            assert difference <= 1e-6, f'{topology}: {path}'
        survived('a restore on other devices')


@pytest.mark.parametrize('method', ['pretrain', 'f_distill', 'sim'])
def test_losses_are_the_same_on_any_devices(launch, wide, tmp_path, method):
    """Of twenty steps, each of them logged."""
    (tmp_path / 'config.py').write_text(WIDE)
    curves = {}
    for topology in ('1 device', '8 devices', '2 processes'):
        words, options = wide(tmp_path, method, topology)
        words += [f'--workdir={tmp_path}/{topology}', '--config.training.log_every=1']
        assert set(codes(launch(*words, **options))[0]) == {0}, said(tmp_path, 0)
        lines = (tmp_path / topology / 'metrics.jsonl').read_text().splitlines()
        curves[topology] = [json.loads(line) for line in lines]
    alone = curves.pop('1 device')
    assert [line['step'] for line in alone] == list(range(1, 21))
    for curve in curves.values():
        assert len(curve) == 20
        for one, other in zip(alone, curve):
            assert other == pytest.approx(one, rel=1e-5, abs=0)
