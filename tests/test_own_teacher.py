"""A teacher that is a user's own function: wrapped without a change of its numbers, kept, distilled
and sampled, and missed in one line by a process that does not know it."""

import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fdistill import build, cli, networks
from fdistill import config as configs
from fdistill.build import published
from fdistill.build.teachers import mixture_of
from fdistill.errors import UserError

FILE = pathlib.Path(__file__).parents[1] / 'experiments' / 'own_teacher.py'
FLOW = {'name': 'prediction', 'prediction': 'flow', 'schedule': 'flow'}


@pytest.fixture(autouse=True)
def known(monkeypatch):
    """The networks, of which a copy is changed."""
    monkeypatch.setattr(networks, 'NETWORKS', dict(networks.NETWORKS))
    return networks.NETWORKS


@pytest.fixture
def own(known):
    return configs.module(str(FILE))


@pytest.fixture
def saved(own, tmp_path):
    own.save(tmp_path / 'own.safetensors')
    return tmp_path / 'own.safetensors'


def test_it_is_the_users_function(own, x64):
    """D(x, sigma) = x_t - t u(x_t, t, t) with t = sigma/(1 + sigma), x_t = x/(1 + sigma)."""
    model = {
        'network': {'name': 'own'},
        'denoiser': FLOW,
        'image': {'shape': [2], 'num_classes': 8},
    }
    denoiser = published.make(model, 'here')
    params = jax.tree.map(lambda array: array.astype(jnp.float64), own.parameters())
    random = np.random.default_rng(0)
    sigma = np.geomspace(0.01, 50, 16)
    x = random.standard_normal((16, 2)) * (1 + sigma[:, None])
    label = np.arange(16, dtype=np.int32) % 9 - 1
    ours, _ = denoiser.apply(params, jnp.asarray(x), jnp.asarray(sigma), {'label': label})
    t = sigma / (1 + sigma)
    x_t = x / (1 + sigma)[:, None]
    expected = x_t - t[:, None] * own.velocity(params, x_t, t, t, label)
    np.testing.assert_allclose(ours, expected, rtol=1e-12, atol=1e-13)
    # The example itself is right: the mean of its mixture, with its parameters in float32.
    exact = mixture_of('ring').denoise(jnp.asarray(x), jnp.asarray(sigma), jnp.asarray(label))
    np.testing.assert_allclose(ours, exact, atol=1e-6)


def test_it_is_kept_as_it_is(own, saved):
    run = build.from_weights(saved)
    for name, array in own.parameters().items():
        np.testing.assert_array_equal(run.params[name], array)
    samples = np.asarray(run.generate(jax.random.key(0), 64, 3))
    # Class 3 lies at 135 degrees, with a standard deviation of a tenth.
    np.testing.assert_allclose(samples.mean(0), [-np.sqrt(0.5), np.sqrt(0.5)], atol=0.06)
    np.testing.assert_allclose(samples.std(0), 0.1, rtol=0.3)


def test_it_is_distilled_and_then_missed(own, saved, tmp_path, known, capsys):
    folder = tmp_path / 'run'
    words = ['--config.training.steps=2', f'--config.teacher.weights={saved}']
    small = ['--config.training.batch_size=8', '--config.training.sample_every=0']
    train = ['train', f'--config={FILE}', f'--workdir={folder}', *words, *small]
    assert cli.main(train) == 0
    run = build.from_workdir(folder)
    assert run.nfe == 1 and run.step == 2
    capsys.readouterr()
    # A process that has not run the file.
    del known['own']
    for words in (f'sample --workdir={folder}', f'sample --weights={saved}'):
        assert cli.main(words.split()) == 2
        said = capsys.readouterr().err
        assert "network.name: unknown 'own'; known: mlp" in said and said.count('\n') == 1
        assert 'one of your own is known after networks.NETWORKS[NAME]' in said
    assert not list(folder.rglob('*.png')) and not list(tmp_path.rglob('sample*'))


def test_the_file_is_a_command_line(saved, tmp_path):
    out = tmp_path / 'samples.npy'
    words = [
        'sample',
        f'--weights={saved}',
        '--n=8',
        '--sampler=euler',
        '--steps=2',
        f'--out={out}',
    ]
    environment = os.environ | {'PYTHONPATH': str(FILE.parents[1])}
    subprocess.run([sys.executable, FILE, *words], env=environment, check=True, timeout=120)
    assert np.load(out).shape == (8, 2)


@pytest.mark.parametrize(
    'change, said',
    [
        (dict(params={}), r"'means' is missing"),
        (dict(params={'means': jnp.zeros((8, 3)), 'std': jnp.ones(())}), 'has the shape'),
        (dict(params={'means': jnp.full((8, 2), jnp.nan), 'std': jnp.ones(())}), 'not finite'),
        (dict(params={'means': jnp.zeros((8, 2)), 'std': jnp.ones((), int)}), 'is int32, not'),
        (dict(network={'name': 'owm'}), "unknown 'owm'; did you mean own"),
        (dict(network={'name': 'own', 'width': 3}), 'network.width: unknown'),
        (dict(denoiser={**FLOW, 'prediction': 'u'}), "prediction='u': known are x0, eps, v, flow"),
        (dict(out='a.npz'), 'give the name of a .safetensors file'),
    ],
)
def test_what_does_not_fit_is_not_kept(change, said, own, tmp_path):
    given = dict(
        params=own.parameters(),
        network={'name': 'own'},
        denoiser=FLOW,
        image={'shape': [2], 'num_classes': 8},
        licence='MIT',
    )
    given |= {'out': 'a.safetensors'} | change
    with pytest.raises(UserError, match=said) as caught:
        build.save_teacher(tmp_path / given.pop('out'), given.pop('params'), **given)
    assert '\n' not in str(caught.value)
    assert not list(tmp_path.iterdir())
