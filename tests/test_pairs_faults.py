"""Pairs whose making is killed, or shared by several processes."""

import os
import pathlib
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import stops
import test_pairs
from test_pairs import contents

from fdistill import build
from fdistill.data import pairs

ROOT = pathlib.Path(__file__).parents[1]
KILLS = 10
pytestmark = [pytest.mark.slow, pytest.mark.faults]


@pytest.fixture(scope='module')
def teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp('teacher') / 'digits'
    build.train(test_pairs.config_of({'name': 'digits'}), folder, quiet=True)
    return folder


@pytest.fixture
def start(teacher, tmp_path):
    """start(folder, count, devices, **environment) -> a process of `fdistill pairs`."""
    began = []

    def start(name, count, devices=1, words=(), **environment):
        command = [sys.executable, '-m', 'fdistill', 'pairs', f'--workdir={teacher}', '--quiet']
        command += [f'--out={tmp_path / name}', f'--count={count}', '--batch-size=64', *words]
        flags = f'{os.environ.get("XLA_FLAGS", "")} '
        flags += f'--xla_force_host_platform_device_count={devices}'
        own = {'PYTHONPATH': str(ROOT), 'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': flags}
        with open(tmp_path / f'{name}.log', 'a') as log:
            process = subprocess.Popen(
                command, env=os.environ | own | environment, stdout=log, stderr=log
            )
        began.append(process)
        return process

    yield start
    for process in began:
        process.kill()
        process.wait()


def wait_for(folder, wanted, process):
    stops.wait_for(lambda: shards(folder) >= wanted or process.poll() is not None)


def shards(folder):
    return len(list(folder.glob(f'[!.]*{pairs.SUFFIX}')))


@pytest.mark.parametrize('devices', [1, 8])
def test_kills_at_random_leave_one_data_set(devices, start, tmp_path, survived):
    """Of 60 files, killed before, while and after some of them are made, and as soon as all are:
    its end is, bit for bit, that of one device which nobody killed."""
    words, count = ['--steps=60'], 60 * pairs.SHARD - 5
    random, out = np.random.default_rng(devices), tmp_path / 'killed'
    made = []
    for kill in range(KILLS):
        process = start('killed', count, devices, words)
        if kill % 3 == 0:  # Also before anything is made.
            time.sleep(random.uniform(0, 3))
        else:
            wanted = 60 if kill == KILLS - 2 else shards(out) + random.integers(1, 5)
            wait_for(out, wanted, process)
            time.sleep(random.uniform(0, 0.3) if wanted < 60 else random.uniform(0, 0.02))
        process.kill()
        process.wait()
        made.append(shards(out))
        survived('kill -9 of pairs')
    assert made == sorted(made) and 0 < made[4] < 60, made
    assert start('killed', count, devices, words).wait(300) == 0
    assert start('unbroken', count, 1, words).wait(300) == 0
    assert contents(out) == contents(tmp_path / 'unbroken')
    print(f'files after each kill: {made}')


def test_two_processes_make_what_one_makes(start, tmp_path, survived):
    """One of them is killed; the other ends, and both go on."""
    with socket.socket() as free:
        free.bind(('localhost', 0))
        port = free.getsockname()[1]

    def both(count=60 * pairs.SHARD):
        shared = {'JAX_NUM_PROCESSES': '2', 'JAX_COORDINATOR_ADDRESS': f'localhost:{port}'}
        words = ['--steps=60', '--distributed']
        return [start('two', count, 2, words, **shared, JAX_PROCESS_ID=str(k)) for k in range(2)]

    processes = both()
    stops.wait_for(lambda: shards(tmp_path / 'two') > 4)
    processes[1].kill()
    assert processes[1].wait() == -9 and processes[0].wait(60) != 0
    assert shards(tmp_path / 'two') < 60
    assert [process.wait(300) for process in both()] == [0, 0]
    survived('kill -9 of one of two processes that make pairs')
    assert start('one', 60 * pairs.SHARD, 1, ['--steps=60']).wait(300) == 0
    assert contents(tmp_path / 'two') == contents(tmp_path / 'one')
