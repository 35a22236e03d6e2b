"""Runs of flow maps: jumps as often as is asked, here and out of a file."""

import json

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from fdistill import build, cli, export
from fdistill import config as configs
from fdistill.errors import UserError
from fdistill.export import card
from fdistill.export.model import opened
from fdistill.report import collect
from fdistill.weights import denoisers


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
    """Points of the ring, a few steps of MeanFlow."""
    folder = tmp_path_factory.mktemp('flow-map')
    config = dict(
        seed=0,
        data=dict(name='mixture', mixture='ring', labelled=False, n=100),
        network=dict(name='mlp', width=16, blocks=1, embedding=8, numbers=('until',)),
        denoiser=dict(sigma_data=0.7),
        method=dict(name='improved_mean_flow', law=dict(name='lognormal'), levels=(10.0,)),
        optimizer=dict(student=dict(learning_rate=1e-2)),
        training=dict(
            steps=3,
            batch_size=16,
            ema_half_life=100.0,
            log_every=3,
            checkpoint_every=0,
            sample_every=0,
        ),
        evaluation=dict(samples=200, batch_size=100),
    )
    build.train(ConfigDict(config), folder, quiet=True)
    return folder


def test_a_run_jumps_as_often_as_is_asked(workdir):
    one, three = build.from_workdir(workdir), build.from_workdir(workdir, steps=3)
    assert (one.nfe, three.nfe) == (1, 3) and one.trajectory is None
    noise = jax.random.normal(jax.random.key(0), (4, 2))
    x0, levels = three.trajectory(noise, {})
    assert levels.shape == (3, 4, 2)
    np.testing.assert_array_equal(x0, three.sample(noise, {}))
    assert np.abs(x0 - one.sample(noise, {})).max() > 1e-4
    # As a denoiser it is told a level for each sample, or one for all.
    told = [one.denoise(x0, 2.0, {'until': until}) for until in (0.5, np.full(4, 0.5), 2.0)]
    np.testing.assert_array_equal(told[0], told[1])
    np.testing.assert_array_equal(told[2], one.denoise(x0, 2.0))
    assert np.abs(told[0] - told[2]).max() > 1e-6


def test_a_file_of_weights_jumps_as_its_run(workdir):
    folder = workdir / 'out'
    words = [f'--workdir={workdir}', '--to=safetensors', f'--out={folder}', '--licence=MIT']
    assert cli.main(['export', *words]) == 0
    (path,) = folder.glob('*.safetensors')
    noise = jax.random.normal(jax.random.key(0), (4, 2))
    for steps in (None, 3):
        found = build.from_weights(path, steps=steps)
        wanted = build.from_workdir(workdir, steps=steps)
        assert found.nfe == wanted.nfe
        np.testing.assert_array_equal(found.sample(noise, {}), wanted.sample(noise, {}))


def test_results_of_other_jumps_are_other_results(workdir, tmp_path):
    """What is measured of a file in one jump and in several is not mixed in one row."""
    words = [f'--workdir={workdir}', '--to=safetensors', f'--out={tmp_path / "out"}']
    assert cli.main(['export', *words, '--licence=MIT']) == 0
    path, rows = tmp_path / 'out' / 'model.safetensors', []
    config = build.from_workdir(workdir).config
    for steps in (None, 1, 3):
        solver = {} if steps is None else {'steps': steps}
        rows.append(build.evaluate(config, weights=path, solver=solver, quiet=True))
    one, same, three = (row['details'] for row in rows)
    assert one['generator']['levels'] == [10.0] and len(three['generator']['levels']) == 3
    assert one['checkpoint'] == same['checkpoint'] != three['checkpoint']
    assert [row['nfe'] for row in rows] == [1, 1, 3]
    kept = [json.loads(file.read_text()) for file in path.with_suffix('').rglob('eval/*.json')]
    assert sorted(row['nfe'] for row in kept) == [1, 1, 3]


def test_an_export_jumps_as_often_as_was_asked(workdir, tmp_path):
    """Of a run and of a file; the card says the levels that are used."""
    noise = jax.random.normal(jax.random.key(0), (4, 2))
    three = build.from_workdir(workdir, steps=3)
    levels = three.config.method.levels
    solver = {'steps': 3}
    export.export(workdir, 'safetensors', tmp_path / 'one', licence='MIT')
    export.export(workdir, 'safetensors', tmp_path / 'three', licence='MIT', solver=solver)
    one, file = (tmp_path / name / 'model.safetensors' for name in ('one', 'three'))
    np.testing.assert_array_equal(
        build.from_weights(file).sample(noise, {}), three.sample(noise, {})
    )
    for made in (
        opened(None, file),
        opened(None, one, steps=3),
        opened(workdir, licence='MIT', steps=3),
    ):
        assert made.steps.levels == levels and made.run.nfe == 3
        facts = card.facts(made)
        assert facts['levels of noise'] == ', '.join(map(str, levels))
        assert facts['network evaluations a sample'] == 3
    again = tmp_path / 'again'
    export.export(None, 'safetensors', again, weights=one, solver=solver)
    assert denoisers.about(again / 'model.safetensors')['generator']['levels'] == list(levels)


def test_a_run_is_measured_in_other_jumps_too(workdir, capsys):
    """Beside what its own are measured by, which a report shows alone."""
    words = ['evaluate', f'--workdir={workdir}', '--quiet']
    rows = []
    for more in ([], ['--steps=2']):
        assert cli.main(words + more) == 0
        rows.append(json.loads(capsys.readouterr().out))
    one, two = rows
    assert (one['nfe'], two['nfe']) == (1, 2) and one['kl'] != two['kl']
    assert one == build.evaluate(None, workdir, quiet=True) | {'seconds': one['seconds']}
    files = sorted((workdir / 'eval').glob('*.json'))
    assert len(files) == 2
    # One jump is what it makes anyway.
    assert cli.main([*words, '--steps=1']) == 0
    same = json.loads(capsys.readouterr().out)
    assert same == one | {'seconds': same['seconds']}
    assert sorted((workdir / 'eval').glob('*.json')) == files
    assert [row['nfe'] for row in opened(workdir).evaluations] == [1]
    (collected,) = collect._rows(workdir).values()
    assert collected['nfe'] == 1
    assert cli.main([*words, '--sampler=heun']) == 2
    assert 'takes --steps, no --sampler' in capsys.readouterr().err


def test_a_card_has_numbers_of_the_same_jumps_alone(workdir):
    row = build.evaluate(None, workdir, quiet=True)
    assert opened(workdir).evaluations == [row]
    assert opened(workdir, steps=3).evaluations == []


def test_a_config_without_a_section_denoiser_is_exported(workdir, tmp_path):
    """It has EDM's preconditioning, as where it was trained."""
    folder = tmp_path / 'run'
    plain = configs.to_json(build.from_workdir(workdir).config)
    del plain['denoiser'], plain['image']
    plain['training']['steps'] = 1
    build.train(configs.from_json(plain), folder, quiet=True)
    run = build.from_workdir(folder)
    assert 'denoiser' not in run.config
    export.export(folder, 'safetensors', tmp_path / 'out', licence='MIT')
    again = build.from_weights(tmp_path / 'out' / 'model.safetensors')
    noise = jax.random.normal(jax.random.key(0), (4, 2))
    np.testing.assert_array_equal(run.sample(noise, {}), again.sample(noise, {}))


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (['--steps=0'], 'steps=0'),
        (['--sampler=heun'], 'takes --steps, no --sampler'),
        (['--guidance=2'], 'have no condition'),
    ],
)
def test_refused(workdir, options, message, capsys):
    assert cli.main(['sample', f'--workdir={workdir}', *options]) == 2
    assert message in capsys.readouterr().err


def test_a_network_without_a_second_time_is_refused(tmp_path):
    config = ConfigDict(
        dict(
            data=dict(name='mixture', mixture='ring', labelled=False, n=100),
            network=dict(name='mlp', width=16),
            method=dict(name='mean_flow', law=dict(name='lognormal')),
            optimizer=dict(student=dict(learning_rate=1e-2)),
            training=dict(steps=1, batch_size=16, ema_half_life=100.0),
        )
    )
    with pytest.raises(UserError, match=r"config.method: .* give its network numbers=\('until',\)"):
        build.train(config, tmp_path, quiet=True)


@pytest.mark.parametrize(
    ('name', 'numbers', 'settings'),
    [
        ('mean_flow', ('until',), dict(guidance=2.0, condition_dropout=0.1)),
        ('improved_mean_flow', ('until', 'guidance'), {}),
    ],
)
def test_guidance_without_anything_to_guide_by_is_refused(
    name, numbers, settings, workdir, tmp_path
):
    plain = configs.to_json(build.from_workdir(workdir).config)
    del plain['image']
    plain['network']['numbers'] = numbers
    plain['method'] |= {'name': name} | settings
    with pytest.raises(UserError, match='no condition to guide by'):
        build.train(configs.from_json(plain), tmp_path / 'run', quiet=True)
