"""Conditions other than labels, an embedded text and a picture, through everything a run does."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import stops
from ml_collections import ConfigDict

from fdistill import build, cli, networks
from fdistill.data import sources
from fdistill.data.pipeline import batches
from fdistill.data.sources import Source
from fdistill.diffusion import denoiser
from fdistill.errors import UserError
from fdistill.evaluation import features
from fdistill.networks import Network

MEANS = np.array([[1.0, 0.0], [-0.5, 0.8], [-0.5, -0.8], [0.0, 0.0]], np.float32)
WORDS = np.random.default_rng(0).standard_normal((4, 3, 5)).astype(np.float32)
LENGTHS = np.array([3, 2, 3, 1])


def _kinds(split, n):
    rng = np.random.default_rng({'train': 0, 'held_out': 1}[split])
    return rng, rng.integers(0, 4, n)


def worded(split, n=400):
    """Points around one of four means, each described by a text of up to three words."""
    rng, kind = _kinds(split, n)
    points = (MEANS[kind] + 0.1 * rng.standard_normal((n, 2))).astype(np.float32)
    mask = (np.arange(3) < LENGTHS[kind][:, None]).astype(np.float32)
    given = {'text': WORDS[kind], 'mask': mask}
    return Source(points, np.zeros(n, np.int32), 1, 0, 'worded', given)


def shrunken(split, n=64):
    """Pictures of 8 x 8 pixels with classes, to be drawn from the same of 4 x 4."""
    rng, kind = _kinds(split, n)
    low = rng.integers(0, 256, (n, 4, 4, 1))
    images = low.repeat(2, 1).repeat(2, 2).astype(np.uint8)
    return Source(
        images, kind.astype(np.int32), 4, 255, 'shrunken', {'low': np.float32(low / 127.5 - 1)}
    )


def toy(*, num_classes=0, given=None, width=32):
    """A network of two layers that takes whatever is given: text where the mask says so."""
    given, takes = given or {}, tuple(given or ())

    def seen(x, c_noise, condition):
        parts = [x.reshape(len(x), -1), c_noise[:, None]]
        if 'text' in condition:
            parts.append((condition['text'] * condition['mask'][:, :, None]).reshape(len(x), -1))
        if 'low' in condition:
            parts.append(condition['low'].reshape(len(x), -1))
        if num_classes:
            parts.append(jax.nn.one_hot(networks.label_of(condition, x), num_classes))
        return jnp.concatenate(parts, 1).astype(x.dtype)

    def init(key, x, c_noise, condition):
        first, second = jax.random.split(key)
        inputs = seen(x, c_noise, condition).shape[1]
        return {
            'in': jax.random.normal(first, (inputs, width)) / math.sqrt(inputs),
            'out': jax.random.normal(second, (width, x[0].size)) / math.sqrt(width),
        }

    def apply(params, x, c_noise, condition, key=None):
        h = jnp.tanh(seen(x, c_noise, condition) @ params['in'])
        return (h @ params['out']).reshape(x.shape), (h,)

    return Network(init, apply, (*takes, *(('label',) if num_classes else ())))


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    for name, source in (('worded', worded), ('shrunken', shrunken)):
        monkeypatch.setitem(sources.SOURCES, name, source)
    monkeypatch.setitem(networks.NETWORKS, 'toy', toy)


LAW = dict(name='lognormal', mean=-1.0, std=1.0)
GRID = dict(name='karras', steps=8, sigma_min=0.02, sigma_max=5.0)


def config(data, method, steps, **sections):
    rate = dict(learning_rate=3e-3)
    plain = dict(
        seed=0,
        data=dict(name=data),
        method=method,
        optimizer=dict(student=rate),
        training=dict(
            steps=steps,
            batch_size=64,
            ema_half_life=1000.0,
            ema_ramp_up=0.2,
            log_every=4,
            checkpoint_every=0,
            sample_every=5,
        ),
        # Parameters of 4 shards each, over 2 parts of a batch.
        mesh=dict(data=2, fsdp=4),
        evaluation=dict(samples=64, batch_size=64),
    )
    return ConfigDict(plain | sections).lock()


def teacher_config(data, steps):
    method = dict(name='pretrain', law=LAW, grid=GRID, label_dropout=0.1)
    network = dict(name='toy', width=64)
    return config(data, method, steps, network=network, denoiser=dict(sigma_data=0.7))


def student_config(data, teacher, name='f_distill', **method):
    if name == 'f_distill':
        method |= dict(divergence='js', student_every=2)
    method = dict(name=name, sigma_init=2.5, student_law=LAW, critic_law=LAW, **method)
    optimizer = {role: dict(learning_rate=1e-3) for role in ('student', 'critic')}
    sections = dict(teacher=dict(workdir=teacher, guidance=1.5), optimizer=optimizer)
    if name == 'f_distill':
        sections |= dict(discriminator=dict(name='mlp', width=16, layers=1))
    return config(data, method, 10, **sections)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('conditions')


def trained(folder, data, steps):
    workdir = folder / data
    if not workdir.exists():
        build.train(teacher_config(data, steps), workdir, quiet=True)
    return str(workdir)


def test_a_text_says_what_is_drawn(folder):
    """The teacher's samples lie where their text says; without a text they lie in all places."""
    run = build.from_workdir(trained(folder, 'worded', 800))
    kind = np.repeat(np.arange(4), 50)
    mask = (np.arange(3) < LENGTHS[kind][:, None]).astype(np.float32)
    samples = run.generate(jax.random.key(0), 200, {'text': WORDS[kind], 'mask': mask})
    means = np.asarray(samples).reshape(4, 50, 2).mean(1)
    np.testing.assert_allclose(means, MEANS, atol=0.15)
    empty = run.generate(jax.random.key(0), 200, {'text': 0 * WORDS[kind], 'mask': 0 * mask})
    assert np.asarray(empty).std(0).min() > 0.3


@pytest.mark.parametrize(('data', 'method'), [('worded', 'f_distill'), ('shrunken', 'sim')])
def test_a_student_through_everything(data, method, folder, tmp_path, capsys, monkeypatch):
    """Trained on a mesh of 2 x 4, stopped and resumed bit for bit, evaluated and sampled."""
    # That there is a classifier is enough here, and no other test is to find this one.
    monkeypatch.setenv('FDISTILL_CACHE', str(tmp_path / 'cache'))
    train = features._train
    monkeypatch.setattr(
        features,
        '_train',
        lambda m, s, seed, recipe, *rest: train(m, s, seed, recipe._replace(steps=20), *rest),
    )
    teacher = trained(folder, data, 800 if data == 'worded' else 20)
    settings = student_config(data, teacher, method)
    build.train(settings, tmp_path / 'run', quiet=True)
    stops.check(settings, tmp_path / 'run', tmp_path / 'broken')
    assert (tmp_path / 'run' / 'samples' / '000000010.png').exists()
    workdir = tmp_path / 'run'
    assert cli.main(['evaluate', f'--workdir={workdir}', '--quiet']) == 0
    row = json.loads(capsys.readouterr().out)
    assert row['nfe'] == 1 and np.isfinite(row['pixel_fd'])
    assert 'as-train' in row['protocol']['pixel_fd']
    # A label alone, where there is more to a condition, leaves the rest to chance.
    words = ['--label=1'] if data == 'shrunken' else []
    out = workdir / 'few.npy'
    assert cli.main(['sample', f'--workdir={workdir}', '--n=5', f'--out={out}', *words]) == 0
    assert np.load(out).shape == ((5, 2) if data == 'worded' else (5, 8, 8, 1))


def test_a_condition_that_the_network_does_not_take_is_one_line(tmp_path, capsys):
    settings = teacher_config('worded', 5)
    with settings.unlocked():
        settings.network = dict(name='mlp', width=8, blocks=1, embedding=8)
    with pytest.raises(UserError, match="the data gives the condition 'text', and this network"):
        build.train(settings, tmp_path / 'run', quiet=True)
    assert not (tmp_path / 'run').exists()


def test_a_mirrored_picture_has_a_mirrored_condition():
    batch = next(batches(shrunken('train'), 32, seed=0, flip=True))
    low = batch['condition']['low'].repeat(2, 1).repeat(2, 2)
    np.testing.assert_allclose(low, batch['x'], atol=1e-6)


def test_nothing_said():
    """Labels become -1, texts empty; what belongs to the task stays."""
    condition = {
        'label': jnp.array([3]),
        'text': jnp.ones((1, 2, 2)),
        'mask': jnp.ones((1, 2)),
        'low': jnp.ones((1, 4, 4, 1)),
    }
    found = denoiser.null({}, condition)
    assert {name: float(value.max()) for name, value in found.items()} == {
        'label': -1,
        'text': 0,
        'mask': 0,
        'low': 1,
    }
