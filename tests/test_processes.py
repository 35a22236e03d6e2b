"""Runs of two processes, through the command line: what one of them meets, both end with."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import stops

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
    """launch(*words, count=2, each=(), **environment) -> processes of `fdistill train`, whose
    output is in `0.log` and `1.log`."""
    often = dict(steps=100, log_every=10, checkpoint_every=50, hang_seconds=15.0)
    (tmp_path / 'config.py').write_text(SLOWLY + stops.ring(**often))
    started = []

    def start(*words, count=2, each=((), ()), **environment):
        with socket.socket() as free:
            free.bind(('localhost', 0))
            port = free.getsockname()[1]
        found = []
        for k in range(count):
            own = {'JAX_PROCESS_ID': str(k), 'JAX_NUM_PROCESSES': str(count)}
            own |= {'JAX_COORDINATOR_ADDRESS': f'localhost:{port}'} if count > 1 else {}
            own |= {'PYTHONPATH': str(ROOT), 'JAX_PLATFORMS': 'cpu'}
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


def test_a_hang_ends_both_with_stacks(launch, tmp_path, survived):
    processes = launch(WHO='1', WHAT='time.sleep(1000)')
    found, seconds = codes(processes, 60)
    assert 0 not in found and seconds < 30
    assert 'Timeout' in said(tmp_path, 1) and 'in slowly' in said(tmp_path, 1)
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
