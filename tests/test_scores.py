"""Published protocols from samples to named numbers, with a feature network small enough to check
by hand."""

import json
import os
import pathlib
import re
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import linalg

from fdistill import build, cli
from fdistill import config as configs
from fdistill.build import published
from fdistill.data.sources import Source
from fdistill.errors import UserError
from fdistill.evaluation import (
    extract,
    kernels,
    metrics,
    neighbours,
    protocol,
    scores,
    statistics,
    statistics_files,
)
from fdistill.evaluation.evaluate import noise
from fdistill.evaluation.sliced import sliced_wasserstein
from fdistill.evaluation.subject import Subject
from fdistill.networks import inception
from fdistill.training import checkpoint, sharding
from fdistill.weights import denoisers, store
from fdistill.weights.detectors import DETECTORS, Network

ROOT = pathlib.Path(__file__).parents[1]
D, SPATIAL, CLASSES = 6, 4, 5
INCEPTION = DETECTORS['inception'].network


def tiny(chunk=None):
    """A network of the form of Inception's: three kinds of features out of the mean over blocks of
    pixels."""
    shapes = {'pool': (3, D), 'spatial': (3, SPATIAL), 'logits': (D, CLASSES)}

    def apply(params, x):
        mean = jnp.mean(x[:, ::16, ::16], axis=(1, 2))
        pool = jax.nn.softplus(jnp.dot(mean, params['pool'], precision='highest'))
        spatial = jnp.dot(x[:, 5, 7], params['spatial'], precision='highest')
        return {
            'pool': pool,
            'spatial': spatial,
            'logits': jnp.dot(pool, params['logits'], precision='highest'),
        }

    return Network(lambda: shapes, lambda arrays: jax.tree.map(jnp.asarray, arrays), apply)


@pytest.fixture(scope='module', autouse=True)
def small_inception():
    with pytest.MonkeyPatch.context() as patch:
        small = DETECTORS['inception']._replace(network=tiny, features=D)
        patch.setitem(DETECTORS, 'inception', small)
        yield


def weights(path, seed=0):
    rng = np.random.default_rng(seed)
    arrays = {
        name: rng.normal(size=shape).astype(np.float32) for name, shape in tiny().shapes().items()
    }
    store.save(path, arrays, {'kind': 'inception'})
    return str(path)


def images(n=301, size=8, channels=3, seed=0):
    rng = np.random.default_rng(seed)
    smooth = rng.integers(0, 256, (n, 2, 2, channels))
    return smooth.repeat(size // 2, axis=1).repeat(size // 2, axis=2).astype(np.uint8)


def source(n=301, levels=255, **options):
    pictures = images(n, **options)
    return Source(
        pictures if levels == 255 else (pictures // 16).astype(np.uint8),
        np.zeros(n, np.int32),
        1,
        levels,
        'squares',
    )


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    """Folder with weights and statistics of real images under EDM's protocol."""
    folder = tmp_path_factory.mktemp('scores')
    weights(folder / 'w.safetensors')
    mesh = sharding.make_mesh()
    made = scores.make_statistics(
        source(),
        mesh,
        protocol='edm',
        detector=str(folder / 'w.safetensors'),
        keep=150,
        progress=False,
    )
    statistics_files.write(folder / 'real.npz', made)
    return folder


def generator(mesh, seen=None):
    """A 'model': the sample is a squashed function of noise and label, split over the mesh."""
    by_batch = sharding.batch_sharding(mesh)

    def generate(z, condition):
        label = condition.get('label', jnp.zeros(len(z)))
        return jnp.tanh(0.7 * z + 0.1 * label[:, None, None, None])

    return jax.jit(generate, out_shardings=by_batch)


def by_hand(files, first, count, classes, quantise=True):
    """The samples of a range as grey levels, and their features, with nothing of the library's
    pipeline in the way."""
    index = np.arange(first, first + count)
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(0), i))(index)
    z = jax.vmap(lambda key: jax.random.normal(key, (8, 8, 3)))(keys)
    label = protocol.labels(protocol.get('edm'), index, classes)
    x = np.asarray(jnp.tanh(0.7 * z + 0.1 * label[:, None, None, None]), np.float64)
    grey = np.clip(np.floor(x * 127.5 + 128), 0, 255).astype(np.uint8)
    arrays, _ = store.load(files / 'w.safetensors')
    prepared = protocol.prepare(protocol.get('edm'), grey)
    return grey, {name: np.asarray(value) for name, value in tiny().apply(arrays, prepared).items()}


def frechet(x, y):
    """The textbook formula with scipy's root."""
    root = linalg.sqrtm(np.cov(x.T) @ np.cov(y.T)).real
    return ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(np.cov(x.T) + np.cov(y.T) - 2 * root)


def test_numbers_of_a_detector_that_was_trained_on_are_marked(files):
    mesh = sharding.make_mesh()
    detector = extract.detector(protocol.get('edm'), str(files / 'w.safetensors'), mesh)
    real = statistics_files.read(files / 'real.npz')

    def row(names, metrics):
        subject = Subject(generator(mesh), (8, 8, 3), 10, trained_on=names)
        return scores.measure(
            subject,
            rules=protocol.get('edm'),
            detector=detector,
            real=real,
            mesh=mesh,
            names=metrics,
            samples=40,
            ranges=1,
            progress=False,
        )

    marked = row(('inception', 'pixels'), ('fid', 'mmd'))
    assert marked['trained_on'] == ['fid40', 'mmd40']
    assert 'trained_on' not in row(('dinov2', 'digits-clf'), ('fid',))
    both = scores.merged(marked, row(('inception',), ('is',)))
    assert both['trained_on'] == ['fid40', 'mmd40', 'is40'] == list(both['protocol'])


@pytest.mark.parametrize('batch_size', [7, 64])
def test_a_row_by_hand(files, batch_size):
    """Every number of a proxy of 101 samples in each of EDM's three ranges, whatever the batch."""
    mesh = sharding.make_mesh()
    row = scores.evaluate(
        Subject(generator(mesh), (8, 8, 3), 10),
        mesh,
        protocol='edm',
        detector=str(files / 'w.safetensors'),
        statistics=str(files / 'real.npz'),
        samples=101,
        batch_size=batch_size,
        metrics=('fid', 'sfid', 'is', 'prdc', 'mmd', 'swd'),
        progress=False,
    )
    real = statistics_files.read(files / 'real.npz')
    arrays, _ = store.load(files / 'w.safetensors')
    theirs = tiny().apply(arrays, protocol.prepare(protocol.get('edm'), images()))
    scale = np.float64(theirs['pool']).std(axis=0, ddof=1)
    wanted = []
    for first in (0, 50000, 100000):
        _, ours = by_hand(files, first, 101, 10)
        wanted.append(
            {
                'fid': frechet(np.float64(ours['pool']), np.asarray(theirs['pool'], np.float64)),
                'sfid': frechet(
                    np.float64(ours['spatial']), np.asarray(theirs['spatial'], np.float64)
                ),
                'is': metrics.inception_score(ours['logits'])[0],
                'mmd': kernels.mmd_rbf(ours['pool'], real.features, progress=False),
                'swd': sliced_wasserstein(ours['pool'] / scale, real.features / scale),
                **neighbours.prdc(ours['pool'], real.features, progress=False),
            }
        )
    for found, by in zip(row['details']['ranges'], wanted):
        assert {key: found[key] for key in by} == pytest.approx(by, rel=2e-4, abs=1e-5)
    for key in wanted[0]:
        values = [by[key] for by in wanted]
        assert row[f'{key}101'] == pytest.approx(np.mean(values), rel=2e-4, abs=1e-5)
        spread = row['details']['over_ranges'][f'{key}101']
        assert spread['min'] == pytest.approx(min(values), rel=2e-4, abs=1e-5)
        assert spread['std'] == pytest.approx(np.std(values, ddof=1), rel=1e-2, abs=1e-4)
    assert (
        row['protocol']['fid101'] == 'fid101[edm,3x101,squares,mean]'
        and row['protocol']['is101'] == 'is101[edm,3x101,mean]'
    )


def test_the_full_number_is_the_minimum_of_three(files, monkeypatch):
    """With the protocol's own count the name is the published one; a smaller count cannot get
    it."""
    rules = protocol.get('edm')._replace(samples=40, seeds=((0, 39), (40, 79), (80, 119)))
    monkeypatch.setitem(protocol.PROTOCOLS, 'edm', rules)
    mesh = sharding.make_mesh()
    options = {
        'protocol': 'edm',
        'detector': str(files / 'w.safetensors'),
        'statistics': str(files / 'real.npz'),
    }
    run = lambda **more: scores.evaluate(  # noqa: E731
        Subject(generator(mesh), (8, 8, 3), 10),
        mesh,
        metrics=('fid', 'is'),
        progress=False,
        **options,
        **more,
    )
    row = run()
    ranges = [found['fid'] for found in row['details']['ranges']]
    assert row['fid'] == min(ranges) and len(set(ranges)) == 3 and 'fid40' not in row
    assert row['protocol'] == {'fid': 'fid[edm,3x40,squares,min]', 'is': 'is[edm,3x40,mean]'}
    assert row['is'] == pytest.approx(np.mean([found['is'] for found in row['details']['ranges']]))
    one = run(ranges=1)
    assert one['fid'] == ranges[0] and one['protocol']['fid'] == 'fid[edm,40,squares,seed0-39]'
    proxy = run(samples=30)
    assert 'fid' not in proxy and proxy['protocol']['fid30'].startswith('fid30[edm,3x30,')


def test_grey_images_of_few_levels(files):
    """One channel is repeated, levels 0..15 become 0..255, rounded; 8 bits stay as they are, under
    truncation too."""
    mesh = sharding.make_mesh()
    seen = []
    detector = extract.Extractor(
        'inception', 'ab' * 32, lambda grey: seen.append(grey) or {'pool': grey[:, 0, :D, 0] / 256}
    )
    for levels in (255, 15):
        real = source(levels=levels, channels=1)
        scores.real_statistics(
            real, protocol.get('adm'), detector, mesh, keep=0, batch_size=400, progress=False
        )
        grey = seen.pop()[: len(real.images)]
        wanted = (
            real.images
            if levels == 255
            else np.floor(real.images / 15 * 255 + 0.5).astype(np.uint8)
        )
        np.testing.assert_array_equal(grey, wanted)
    prepared = protocol.prepare(protocol.get('adm'), images(3, channels=1))
    assert prepared.shape == (3, 299, 299, 3) and np.array_equal(prepared[..., 0], prepared[..., 2])


def test_kept_features(files, monkeypatch):
    """Those of the images drawn; features of all images are never held at once."""
    held = []
    collect = extract.collect
    monkeypatch.setattr(
        extract,
        'collect',
        lambda images, total, *of, keep=(), **options: (
            held.append(total if keep else 0) or collect(images, total, *of, keep=keep, **options)
        ),
    )
    mesh, rules = sharding.make_mesh(), protocol.get('edm')
    detector = extract.detector(rules, str(files / 'w.safetensors'), mesh)
    made = scores.real_statistics(source(), rules, detector, mesh, keep=20, progress=False)
    arrays, _ = store.load(files / 'w.safetensors')
    every = np.asarray(tiny().apply(arrays, protocol.prepare(rules, images()))['pool'])
    chosen = np.sort(np.random.default_rng(0).permutation(301)[:20])
    np.testing.assert_allclose(made.features, every[chosen], rtol=1e-4)
    assert made.count == 301 and max(held) == 20
    for keep in (-1, 1, statistics.MAX_KEPT + 1):
        with pytest.raises(UserError, match=f'keep={keep}: must be 0 or from 2'):
            scores.real_statistics(source(), rules, None, mesh, keep=keep)


@pytest.mark.parametrize('devices', [1, 2, 8])
@pytest.mark.parametrize('total', [2, 33, 101])
def test_moments_are_numpys(devices, total):
    """Odd numbers, padded last batches, several devices: mean and covariance of numpy in float64 to
    1e-10."""
    mesh = jax.make_mesh((devices, 1), ('data', 'fsdp'), devices=jax.devices()[:devices])
    by_batch = sharding.batch_sharding(mesh)
    values = np.random.default_rng(total).normal(3, 1, (total, 5)).astype(np.float32)
    run = jax.jit(lambda x: {'pool': 2 * x, 'other': x[:, :2]}, out_shardings=by_batch)

    def features(rows):
        placed = jax.make_array_from_process_local_data(by_batch, rows)
        return {name: extract.local_rows(value) for name, value in run(placed).items()}

    found = extract.collect(
        lambda index: values[index],
        total,
        features,
        batch_size=10,
        devices=devices,
        keep=('pool',),
        progress=False,
    )
    np.testing.assert_array_equal(found.features['pool'], 2 * values)
    for name, rows in (('pool', 2 * np.float64(values)), ('other', np.float64(values[:, :2]))):
        assert found.moments[name].count == total
        np.testing.assert_allclose(found.moments[name].mean, rows.mean(0), rtol=1e-10, atol=0)
        np.testing.assert_allclose(
            found.moments[name].covariance, np.cov(rows.T), rtol=1e-10, atol=1e-12
        )


def test_lost_images_are_noticed():
    features = lambda rows: {'pool': np.zeros((len(rows), 3))[:5]}  # noqa: E731
    with pytest.raises((RuntimeError, IndexError)):
        extract.collect(lambda index: index, 20, features, batch_size=10, progress=False)


PROCESS = """
import sys
import jax, numpy as np
process, port, folder = int(sys.argv[1]), sys.argv[2], sys.argv[3]
jax.distributed.initialize(f'localhost:{port}', 2, process)
from fdistill.evaluation import extract
from fdistill.training import sharding
mesh = sharding.make_mesh()
by_batch = sharding.batch_sharding(mesh)
values = np.random.default_rng(0).normal(3, 1, (37, 5)).astype(np.float32)
run = jax.jit(lambda x: {'pool': 2 * x}, out_shardings=by_batch)
def features(rows):
    placed = jax.make_array_from_process_local_data(by_batch, rows)
    return {'pool': extract.local_rows(run(placed)['pool'])}
found = extract.collect(
    lambda index: values[index], 37, features, batch_size=8, devices=mesh.size, keep=('pool',),
    progress=False
)
moments, rows = found.moments['pool'], found.features['pool']
arrays = {'mean': moments.mean, 'covariance': moments.covariance, 'rows': rows, 'n': moments.count}
np.savez(f'{folder}/{process}.npz', **arrays)
"""


def test_moments_of_two_processes(tmp_path):
    """Two processes of two devices, an odd number of images: both have numpy's float64 moments, and
    the rows in order."""
    with socket.socket() as free:
        free.bind(('localhost', 0))
        port = free.getsockname()[1]
    (tmp_path / 'process.py').write_text(PROCESS)
    command = ['timeout', '-k', '5', '120', sys.executable, str(tmp_path / 'process.py')]
    environment = {
        'PYTHONPATH': str(ROOT),
        'XLA_FLAGS': '--xla_force_host_platform_device_count=2',
        'JAX_PLATFORMS': 'cpu',
    }
    running = [
        subprocess.Popen(
            [*command, str(k), str(port), str(tmp_path)],
            env=os.environ | environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for k in range(2)
    ]
    for process in running:
        _, errors = process.communicate()
        assert process.returncode == 0, errors
    rows = 2 * np.random.default_rng(0).normal(3, 1, (37, 5)).astype(np.float32)
    for k in range(2):
        with np.load(tmp_path / f'{k}.npz') as found:
            assert found['n'] == 37
            np.testing.assert_array_equal(found['rows'], rows)
            np.testing.assert_allclose(found['mean'], np.float64(rows).mean(0), rtol=1e-10, atol=0)
            np.testing.assert_allclose(
                found['covariance'], np.cov(np.float64(rows).T), rtol=1e-10, atol=1e-12
            )


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'protocol': 'edn'}, "protocol: unknown 'edn'; did you mean edm?"),
        ({'protocol': 'own-features'}, 'is no published one'),
        ({'metrics': ('fd',)}, "metric: unknown 'fd'; did you mean fid?"),
        ({'samples': 1}, 'a distance needs at least two'),
        ({'ranges': 4}, 'has 3 ranges of seeds'),
        ({'batch_size': 0}, 'must be >= 1'),
        ({'samples': 50001}, 'ranges of more than 50000 overlap; give ranges=1 too'),
        (
            {'detector': 'nosuch'},
            "detector 'nosuch': no such file; the protocol 'edm' needs one, "
            'made by `fdistill convert inception',
        ),
        ({'statistics': 'nosuch'}, "statistics 'nosuch': no such file"),
        ({'protocol': 'adm'}, "are of protocol 'edm' and detector 'inception', not of 'adm'"),
        ({'detector': 'other.safetensors'}, 'were made with other weights'),
        (
            {'metrics': ('kid',), 'statistics': 'bare.npz'},
            'with features of 0 images, lack what this metric needs',
        ),
        ({'metrics': ('fid_infinity',)}, 'samples=20: fid_infinity needs at least 5001'),
    ],
)
def test_bad_settings_are_one_line(files, change, message):
    weights(files / 'other.safetensors', 1)
    statistics_files.write(
        files / 'bare.npz', statistics_files.read(files / 'real.npz')._replace(features=None)
    )
    options = {
        'protocol': 'edm',
        'detector': 'w.safetensors',
        'statistics': 'real.npz',
        'samples': 20,
    } | change
    for name in ('detector', 'statistics'):
        options[name] = str(files / options[name]) if options[name] != 'nosuch' else 'nosuch'
    mesh = sharding.make_mesh()
    with pytest.raises(UserError) as caught:
        subject = Subject(generator(mesh), (8, 8, 3), 10)
        scores.evaluate(subject, mesh, progress=False, **options)
    assert message in str(caught.value) and '\n' not in str(caught.value)


@pytest.mark.parametrize('shape', [(2,), (8, 8, 4)])
def test_no_images(files, shape):
    mesh = sharding.make_mesh()
    given = {
        'protocol': 'edm',
        'detector': str(files / 'w.safetensors'),
        'statistics': str(files / 'real.npz'),
        'samples': 20,
    }
    with pytest.raises(
        UserError, match=r'samples of shape .* is for images of one or three channels'
    ):
        scores.evaluate(Subject(None, shape, 10), mesh, progress=False, **given)


def test_a_generator_that_diverged(files):
    mesh = sharding.make_mesh()
    with pytest.raises(ValueError, match=r'samples 0\.\.\d+ are not finite'):
        split = sharding.batch_sharding(mesh)
        diverged = jax.jit(lambda z, condition: z / 0, out_shardings=split)
        scores.evaluate(
            Subject(diverged, (8, 8, 3), 10),
            mesh,
            protocol='edm',
            detector=str(files / 'w.safetensors'),
            statistics=str(files / 'real.npz'),
            samples=20,
            progress=False,
        )


def test_from_the_command_line(files, tmp_path, capsys):
    """Weights, statistics of the data of a config, evaluation of a run, its file and its place in a
    report."""
    config = configs.load(str(ROOT / 'configs' / 'digits_teacher.py')).unlock()
    config.training.steps, config.training.batch_size, config.training.checkpoint_every = 2, 16, 0
    build.train(config, tmp_path / 'run', quiet=True)
    made = ['--protocol=edm', f'--detector={files / "w.safetensors"}', '--quiet', '--batch-size=64']
    assert (
        cli.main(
            [
                'stats',
                'make',
                '--config',
                str(ROOT / 'configs' / 'digits_teacher.py'),
                *made,
                f'--out={tmp_path / "d.npz"}',
            ]
        )
        == 0
    )
    shown = capsys.readouterr().out
    assert 'edm (inception, resize tf1 to 299, scaling tf1)' in shown and '1442 images' in shown
    words = [
        'evaluate',
        f'--workdir={tmp_path / "run"}',
        *made,
        f'--statistics={tmp_path / "d.npz"}',
        '--samples=40',
        '--ranges=1',
    ]
    assert cli.main([*words, '--metrics=fid,prdc']) == 0
    row = json.loads(capsys.readouterr().out)
    assert (
        row['protocol']['fid40'] == 'fid40[edm,40,digits,seed0-39]'
        and {'recall40', 'coverage40'} <= row.keys()
    )
    (kept,) = (tmp_path / 'run' / 'eval').glob('step-000000002-edm-40-*.json')
    assert json.loads(kept.read_text()) == row
    # Another metric later is one more in the same file, and a number against other statistics has
    # its own.
    assert cli.main([*words, '--metrics=sfid']) == 0
    assert json.loads(capsys.readouterr().out).keys() == row.keys() | {'sfid40'}
    assert (
        json.loads(kept.read_text()).items()
        >= {key: row[key] for key in ('fid40', 'recall40')}.items()
    )
    assert (
        cli.main([*words[:-3], f'--statistics={files / "real.npz"}', *words[-2:], '--metrics=fid'])
        == 0
    )
    assert (
        len(list(kept.parent.glob('*-edm-40-*.json'))) == 2
        and json.loads(kept.read_text())['fid40'] == row['fid40']
    )
    capsys.readouterr()
    assert (
        row['details']['detector']['sha256']
        == store.load(files / 'w.safetensors')[1]['content_sha256']
    )
    assert (
        row['details']['checkpoint'] == build.from_workdir(tmp_path / 'run').digest
        and row['details']['versions']['jax'] == jax.__version__
    )
    assert cli.main(['report', str(tmp_path / 'run'), '--quiet']) == 0
    report = (tmp_path / 'run' / 'report' / 'report.md').read_text()
    assert (
        'fid40 edm' in report
        and 'of 40 samples, under edm' in (tmp_path / 'run' / 'report' / 'report.json').read_text()
    )
    assert cli.main(['stats', 'compare', str(tmp_path / 'd.npz'), str(tmp_path / 'd.npz')]) == 0
    distance, words = capsys.readouterr().out.splitlines()[-1].split(maxsplit=1)
    assert (
        float(distance) == pytest.approx(0, abs=1e-9)
        and words == 'Frechet distance under edm of digits and digits'
    )


DIGITS = str(ROOT / 'configs' / 'digits_teacher.py')


def test_a_bad_place_is_told_before_features_are_made(files, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(scores, 'make_statistics', None)
    for out, message in (
        ('/proc/no/d.npz', 'nothing can be written in /proc'),
        (tmp_path / 'd.txt', 'give the name of a .npz file'),
    ):
        words = [
            'stats',
            'make',
            f'--config={DIGITS}',
            '--protocol=edm',
            '--detector=w',
            f'--out={out}',
        ]
        assert cli.main(words) == 2 and message in capsys.readouterr().err


@pytest.mark.parametrize('command', ['stats', 'evaluate'])
def test_the_other_processes_are_silent(tmp_path, monkeypatch, capsys, command):
    """Only process 0 writes files; the others must not read what it may not have written yet."""
    monkeypatch.setattr(jax, 'process_index', lambda: 1)
    monkeypatch.setattr(build, 'make_statistics', lambda *given, **options: None)
    monkeypatch.setattr(build, 'evaluate', lambda *given, **options: {'fid': 1.0})
    words = {
        'stats': [
            'stats',
            'make',
            f'--config={DIGITS}',
            '--protocol=edm',
            '--detector=w',
            f'--out={tmp_path / "d.npz"}',
        ],
        'evaluate': ['evaluate', f'--workdir={tmp_path}'],
    }
    assert cli.main(words[command]) == 0 and capsys.readouterr().out == ''


def test_a_config_may_name_the_protocol(files, tmp_path):
    """Checked before training, and used by evaluate without options."""
    config = configs.load(str(ROOT / 'configs' / 'digits_teacher.py')).unlock()
    config.training.steps, config.training.batch_size, config.training.checkpoint_every = 2, 16, 0
    config.evaluation = {
        'protocol': 'edm',
        'detector': 'nosuch',
        'statistics': str(files / 'real.npz'),
        'samples': 30,
        'ranges': 2,
    }
    with pytest.raises(UserError, match='no such file'):
        build.train(config, tmp_path / 'run', quiet=True)
    config.evaluation.seed = 3
    with pytest.raises(UserError, match='seeds of its own'):
        build.train(config, tmp_path / 'run', quiet=True)
    del config.evaluation.seed
    assert not (tmp_path / 'run').exists()
    config.evaluation.detector = str(files / 'w.safetensors')
    build.train(config, tmp_path / 'run', quiet=True)
    row = build.evaluate(None, tmp_path / 'run', quiet=True)
    assert row['protocol']['fid30'] == 'fid30[edm,2x30,squares,mean]' and row['fid30'] > 0


def test_a_part_of_a_protocol_does_not_take_the_place_of_the_whole(files, tmp_path, monkeypatch):
    config = configs.load(DIGITS).unlock()
    config.training.steps, config.training.batch_size, config.training.checkpoint_every = 1, 16, 0
    build.train(config, tmp_path, quiet=True)
    rules = protocol.get('edm')._replace(samples=20, seeds=((0, 19), (20, 39), (40, 59)))
    monkeypatch.setitem(protocol.PROTOCOLS, 'edm', rules)
    given = {
        'protocol': 'edm',
        'detector': str(files / 'w.safetensors'),
        'statistics': str(files / 'real.npz'),
    }
    for part in ({}, {'ranges': 1}, {'ranges': 2}, {'samples': 10}):
        build.evaluate(None, tmp_path, quiet=True, metrics=('fid',), **given, **part)
    names = {re.sub('-[0-9a-f]{8}[.]', '.', path.name) for path in (tmp_path / 'eval').iterdir()}
    assert names == {f'step-000000001-edm{part}.json' for part in ('', '-20', '-2x20', '-3x10')}


def test_on_the_way(files, tmp_path, monkeypatch):
    """Statistics of another protocol are refused before the first step; the network is loaded once
    for all evaluations."""
    config = configs.load(DIGITS).unlock()
    config.training.update(steps=2, batch_size=16, checkpoint_every=0, evaluate_every=1)
    given = {
        'detector': str(files / 'w.safetensors'),
        'statistics': str(files / 'real.npz'),
        'samples': 20,
        'ranges': 1,
    }
    config.evaluation = {'protocol': 'adm', **given}
    with pytest.raises(
        UserError, match="are of protocol 'edm' and detector 'inception', not of 'adm'"
    ):
        build.train(config, tmp_path / 'run', quiet=True)
    assert not (tmp_path / 'run').exists()
    config.evaluation = {'protocol': 'edm', 'metrics': ('fid',), **given}
    config.training.update(checkpoint_every=1, keep_best='fid')
    with pytest.raises(UserError, match="keep_best: unknown 'fid'; did you mean fid20"):
        build.train(config, tmp_path / 'run', quiet=True)
    config.training.keep_best = 'fid20'
    loaded, detector = [], extract.detector
    monkeypatch.setattr(
        extract, 'detector', lambda *given: loaded.append(given) or detector(*given)
    )
    build.train(config, tmp_path / 'run', quiet=True)
    assert len(loaded) == 1
    files_written = sorted((tmp_path / 'run' / 'eval').iterdir())
    wanted = ['step-000000001-edm-20', 'step-000000002-edm-20']
    assert [path.name.rpartition('-')[0] for path in files_written] == wanted
    last = json.loads(files_written[-1].read_text())
    again = build.evaluate(None, tmp_path / 'run', quiet=True)
    with checkpoint.Checkpoints(tmp_path / 'run') as checkpoints:
        rating = checkpoints.restore({})[1]['rating']
    assert rating == {'name': 'fid20', 'value': last['fid20'], 'sign': -1}
    assert (
        again['fid20'] == pytest.approx(last['fid20'], rel=1e-5)
        and again['details'] == last['details']
    )


def test_own_features_by_name(tmp_path):
    """In a config, and in place of a published protocol that a config names."""
    config = configs.load(str(ROOT / 'configs' / 'pair_exact.py')).unlock()
    config.training.steps, config.training.sample_every = 2, 0
    config.evaluation = {'protocol': 'own-features', 'samples': 50}
    build.train(config, tmp_path / 'run', quiet=True)
    row = build.evaluate(None, tmp_path / 'run', quiet=True)
    assert row['protocol']['pixel_fd'].startswith('fd[pixels,50,')
    config.evaluation = {'protocol': 'edm', 'samples': 30}
    again = build.evaluate(
        config, tmp_path / 'run', quiet=True, protocol='own-features', samples=50
    )
    assert again['pixel_fd'] == row['pixel_fd']


@pytest.mark.slow
def test_the_real_network_behind_the_door(tmp_path):
    """Inception with random weights through a file and EDM's protocol is its own `apply` on
    prepared images."""
    rng = np.random.default_rng(0)
    arrays = {
        name: (
            np.ones(shape)
            if name.endswith('var')
            else rng.normal(0, 1 / np.sqrt(np.prod(shape[1:]) or 1), shape)
        ).astype(np.float32)
        for name, shape in inception.shapes().items()
    }
    store.save(tmp_path / 'w.safetensors', arrays, {'kind': 'inception'})
    with pytest.MonkeyPatch.context() as patch:
        real = DETECTORS['inception']._replace(network=INCEPTION)
        patch.setitem(DETECTORS, 'inception', real)
        mesh = sharding.make_mesh()
        rules = protocol.get('edm')
        found = extract.detector(rules, str(tmp_path / 'w.safetensors'), mesh).apply(images(8))
    wanted = inception.apply(
        inception.from_arrays(arrays), protocol.prepare(rules, images(8))
    )._asdict()
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-4 * np.abs(value).max())
    assert noise(0, np.arange(2), (2,)).shape == (2, 2)


PLACES = {'detector': 'w.safetensors', 'statistics': 'real.npz'}


def test_weights_of_a_teacher(files, tmp_path, capsys):
    """A published denoiser under a published protocol, by two solvers: a file each."""
    model = {
        'network': {'name': 'mlp', 'width': 16, 'blocks': 1, 'embedding': 8},
        'denoiser': {'name': 'edm'},
        'image': {'shape': [8, 8, 3], 'num_classes': 0},
    }
    rng = np.random.default_rng(0)
    shapes = published.shapes_of(model)
    arrays = {name: rng.normal(size=shape).astype(np.float32) / 9 for name, shape in shapes.items()}
    denoisers.save(tmp_path / 't.safetensors', arrays, model, licence='MIT')
    given = [f'--{name}={files / file}' for name, file in PLACES.items()]
    words = ['evaluate', f'--weights={tmp_path / "t.safetensors"}', *given, '--protocol=edm']
    words += ['--metrics=fid', '--samples=40', '--ranges=1', '--batch-size=64', '--quiet']
    found = []
    for solver in (['--sampler=euler', '--steps=3'], ['--steps=2']):
        assert cli.main([*words, *solver]) == 0
        row = json.loads(capsys.readouterr().out)
        found.append((row['nfe'], row['details']['solver']['sampler'], row['fid40']))
    assert [one[:2] for one in found] == [(3, 'euler'), (3, 'heun')] and found[0] != found[1]
    kept = sorted((tmp_path / 't' / 'eval').glob('step-000000000-edm-40-*.json'))
    assert {json.loads(path.read_text())['fid40'] for path in kept} == {one[2] for one in found}
