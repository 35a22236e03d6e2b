"""Faults on purpose, many of a kind: what was saved stays, and a run goes on as if none had been.

`make test-faults` runs these and those of `test_processes.py`, and says how many it tried.
"""

import functools
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import stops
import test_training
from PIL import Image

from fdistill import build
from fdistill import config as configs
from fdistill.build.train import ready
from fdistill.training import checkpoint
from fdistill.training.state import init_state, with_metrics
from fdistill.training.step import ema_decay, make_step

pytestmark = [pytest.mark.slow, pytest.mark.faults]

CONFIGS = pathlib.Path(__file__).parents[1] / 'configs'
KILLS = 20


def last_log(folder):
    path = folder / 'metrics.jsonl'
    lines = path.read_text().splitlines() if path.exists() else []
    # The last may be torn.
    return len(lines) - 1


def test_kills_at_random_lose_the_save_in_flight_at_most(tmp_path, survived):
    """Each time it goes on from the newest checkpoint that was whole before the kill, or a later
    one; its end is, bit for bit, that of a run which nobody killed."""
    (tmp_path / 'config.py').write_text(stops.ring(steps=20000, checkpoint_every=100))
    words = ['train', f'--config={tmp_path}/config.py']
    random, run = np.random.default_rng(0), tmp_path / 'run'
    command = [sys.executable, '-m', 'fdistill', *words]
    for _ in range(KILLS):
        before = last_log(run)
        with open(tmp_path / 'log', 'w') as log:
            process = subprocess.Popen(
                [*command, f'--workdir={run}'], stdout=log, stderr=subprocess.STDOUT
            )
            while last_log(run) <= before + 2 and process.poll() is None:
                time.sleep(0.01)
            time.sleep(random.uniform(0, 0.4))
            whole = checkpoint.newest(run)
            process.kill()
            assert process.wait() == -9, (tmp_path / 'log').read_text()
        assert checkpoint.newest(run) >= whole
        survived('kill -9')
    for name in ('run', 'unbroken'):
        subprocess.run([*command, f'--workdir={tmp_path / name}'], check=True, capture_output=True)
    found = [tmp_path / name / 'metrics.jsonl' for name in ('run', 'unbroken')]
    assert found[0].read_bytes() == found[1].read_bytes()
    states = [position_of(path.parent) for path in found]
    assert states[0]['checksums'] == states[1]['checksums']


COUNTED = """
import collections, sys, time
began, count = time.monotonic(), collections.Counter()
from fdistill import cli
from fdistill.files import process
process.prepare()
import jax
from fdistill.training import loop

jax.monitoring.register_event_listener(lambda event, **_: count.update([event.split('/')[-1]]))

def timed(advance, *rest):
    def first(state, step, seen=[]):
        state = jax.block_until_ready(advance(state, step))
        seen or print('first step', time.monotonic() - began, file=sys.stderr)
        seen.append(step)
        return state
    return run(first, *rest)

run, loop.run = loop.run, timed
code = cli.main(sys.argv[1:])
print('compiled', count['cache_misses'], 'found', count['cache_hits'], file=sys.stderr)
sys.exit(code)
"""


def digits_teacher(folder):
    """(A config, settings of a short run, when it is killed.)"""
    words = ['training.steps=200', 'training.checkpoint_every=20', 'training.sample_every=20']
    return f'{CONFIGS}/digits_teacher.py', words, 20


def cifar10_teacher(folder):
    """Likewise, of 55.7 million parameters; the images are noise."""
    noise = np.random.default_rng(0)
    for index in range(16):
        file = folder / 'images' / str(index % 10) / f'{index}.png'
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise.integers(0, 256, (32, 32, 3), np.uint8)).save(file)
    text = (CONFIGS / 'cifar10_teacher.py').read_text()
    text += f"""
plain = get_config()

def get_config():
    plain.data = dict(name='image_folder', path={str(folder / 'images')!r})
    return plain
"""
    (folder / 'config.py').write_text(text)
    words = ['training.steps=4', 'training.checkpoint_every=2', 'training.sample_every=0']
    return folder / 'config.py', [*words, 'training.batch_size=8'], 2


@pytest.mark.parametrize('prepared', [digits_teacher, cifar10_teacher])
def test_a_restart_after_a_kill_compiles_nothing(tmp_path, survived, prepared):
    """With what the command line sets by itself, on teachers of configs/."""
    run, log = tmp_path / 'run', tmp_path / 'log'
    config, settings, saved = prepared(tmp_path)
    words = [f'--config={config}', f'--workdir={run}', *(f'--config.{one}' for one in settings)]
    known = {name: of for name, of in os.environ.items() if name[:4] not in ('JAX_', 'XLA_')}
    known |= {'FDISTILL_CACHE': str(tmp_path / 'cache'), 'JAX_PLATFORMS': 'cpu'}
    command = [sys.executable, '-c', COUNTED, 'train', *words]
    with open(log, 'w') as out:
        process = subprocess.Popen(command, env=known, stdout=out, stderr=out)
        stops.wait_for(
            lambda: checkpoint.newest(run) >= saved or process.poll() is not None, seconds=400
        )
        process.kill()
        assert process.wait() == -9, log.read_text()
    survived('kill -9')
    said = subprocess.run(command, env=known, check=True, capture_output=True, text=True)
    assert 'going on from the checkpoint at step' in said.stdout
    assert re.search(r'compiled 0 found [1-9]', said.stderr), said.stderr
    assert float(re.search(r'first step (\S+)', said.stderr)[1]) < 20


def position_of(folder):
    newest = max((folder / checkpoint.FOLDER).iterdir())
    return json.loads((newest / 'position' / 'metadata').read_text())


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """A run folder with checkpoints at steps 4 and 8."""
    folder = tmp_path_factory.mktemp('trained')
    (folder / 'config.py').write_text(stops.ring(steps=8, checkpoint_every=4))
    build.train(configs.load(str(folder / 'config.py')), folder / 'run', quiet=True)
    return folder / 'run'


def damages(content, random):
    flipped = bytearray(content)
    flipped[random.integers(len(content))] ^= 1 << int(random.integers(8))
    yield 'a flipped bit', bytes(flipped)
    yield 'a cut file', content[: len(content) // 2]
    yield 'an empty file', b''
    yield 'a missing file', None


def test_damage_of_each_file_in_turn_is_noticed_or_harmless(trained, tmp_path, survived):
    """What is read is one of the two states that were saved."""
    weights = {}
    for step in (4, 8):
        folder = shutil.copytree(trained, tmp_path / str(step))
        for other in (folder / checkpoint.FOLDER).iterdir():
            if int(other.name) != step:
                shutil.rmtree(other)
        run = build.from_workdir(folder)
        assert run.step == step
        weights[step] = checkpoint.checksums(run.params)
    folder = shutil.copytree(trained, tmp_path / 'run')
    newest, random = max((folder / checkpoint.FOLDER).iterdir()), np.random.default_rng(0)
    files = sorted(path for path in newest.rglob('*') if path.is_file())
    assert len(files) > 10
    for path in files:
        content = path.read_bytes()
        for what, damaged in damages(content, random) if content else ():
            path.unlink() if damaged is None else path.write_bytes(damaged)
            run = build.from_workdir(folder)
            assert checkpoint.checksums(run.params) == weights[run.step], f'{path}: {what}'
            path.write_bytes(content)
            survived(what)


@pytest.fixture(scope='module')
def distilled(tmp_path_factory):
    """f-distill of a trained teacher with ratio and discriminator: (state, batch, frozen) and
    step(state, batch, frozen)."""
    folder = tmp_path_factory.mktemp('distilled')
    (folder / 'config.py').write_text(test_training.TEACHER)
    build.train(configs.load(str(folder / 'config.py')), folder / 'teacher', quiet=True)
    made = ready(test_training.student_config(str(folder / 'teacher')), folder / 'student')
    step = make_step(made.built.method, made.optimizers, ema_decay(100.0, 16))
    batch, key = next(made.batches(0)), jax.random.key(0)
    state = init_state(made.built.method, made.optimizers, key, batch, made.frozen)
    state = with_metrics(state, step, made.frozen, batch, key)
    jitted = jax.jit(functools.partial(step, roles=tuple(made.built.method.losses)))
    return (state, batch, made.frozen), lambda s, b, f: jitted(s, f, b, key)


def bad(tree):
    """A tree of which each floating array has a NaN."""
    return jax.tree.map(
        lambda leaf: (
            leaf.at[(0,) * leaf.ndim].set(jnp.nan)
            if jnp.issubdtype(leaf.dtype, jnp.floating)
            else leaf
        ),
        jax.tree.map(jnp.asarray, tree),
    )


@pytest.mark.parametrize(
    ('place', 'roles'),
    [
        ('batch', {'critic'}),
        ('teacher', {'critic', 'student'}),
        ('fake_score', {'critic', 'student'}),
        ('discriminator', {'critic', 'student'}),
    ],
)
def test_what_is_not_finite_enters_no_weights(distilled, place, roles, survived):
    """Neither weights nor their average nor the state of an optimizer, of any role that it
    reaches. The discriminator's logits are the ratio; the student sees no images of the batch."""
    (state, batch, frozen), step = distilled
    if place == 'batch':
        batch = {**batch, 'x': np.full_like(batch['x'], np.nan)}
    elif place == 'teacher':
        frozen = bad(frozen)
    else:
        critic = state.params['critic']
        critic = {**critic, place: bad(critic[place])}
        state = state._replace(params={**state.params, 'critic': critic})
    after = step(state, batch, frozen)
    assert {role for role, count in after.skipped.items() if count} == roles
    for role in roles:
        for name in ('params', 'opt_state'):
            trees = [getattr(one, name)[role] for one in (state, after)]
            jax.tree.map(np.testing.assert_array_equal, *trees)
    if 'student' in roles:
        jax.tree.map(np.testing.assert_array_equal, state.averages, after.averages)
    healthy = [after.params['student'], after.opt_state, after.averages, after.aux]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(healthy))
    survived('a NaN')
