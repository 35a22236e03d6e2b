"""A number in the features that a run was trained on says so, wherever it stands."""

import json

import numpy as np
import pytest
from ml_collections import ConfigDict

from fdistill import build, cli, export, report, sweep
from fdistill import config as configs
from fdistill.build.trained_on import trained_on
from fdistill.data.sources import Source, load
from fdistill.errors import UserError
from fdistill.evaluation.evaluate import Judge, evaluate
from fdistill.weights import denoisers

BRIGHT = ['reward-brightness']
LARGE = Source(np.zeros((2, 16, 16, 1), np.uint8), np.zeros(2, np.int32), 1, 255, 'large')


@pytest.mark.parametrize(
    'sections, names',
    [
        ({}, []),
        ({'features': 'pixels'}, ['pixels']),
        ({'features': {'name': 'classifier', 'seed': 0}}, ['digits-clf']),
        ({'reward': {'name': 'classifier', 'seed': 1, 'strength': 3.0}}, ['digits-clf-s1']),
        # As the reward's own default has it.
        ({'reward': {'name': 'classifier', 'wanted': 3}}, ['digits-clf-s1']),
        # A function of the image itself.
        ({'reward': 'brightness'}, ['reward-brightness']),
        ({'features': {'name': 'inception', 'weights': 'w.safetensors'}}, ['inception']),
        ({'features': {'name': 'lpips-vgg', 'resize': 64}}, ['lpips-vgg']),
        ({'features': {'name': 'classifier', 'layers': True}}, ['digits-clf']),
        (
            {'features': [{'name': 'classifier', 'seed': 2}, 'pixels', {'name': 'dinov2'}]},
            ['digits-clf-s2', 'dinov2', 'pixels'],
        ),
        (
            {'features': ({'name': 'classifier', 'seed': 1}, 'pixels')},
            ['digits-clf-s1', 'pixels'],
        ),
        ({'trained_on': ['dinov2'], 'features': 'pixels'}, ['dinov2', 'pixels']),
        # What is only measured taught nothing; a method of pairs has no weight.
        ({'reward': 'brightness', 'method': {'name': 'dmd2'}}, []),
        ({'reward': 'brightness', 'method': {'name': 'dmd2', 'reward_weight': 0.0}}, []),
        ({'reward': 'brightness', 'method': {'name': 'dmd2', 'reward_weight': 0.1}}, BRIGHT),
        ({'reward': 'brightness', 'method': {'name': 'di_star'}}, BRIGHT),
        ({'reward': 'brightness', 'method': {'name': 'mapo'}}, BRIGHT),
    ],
)
def test_names_are_those_of_protocols(sections, names):
    assert trained_on(sections, lambda: load('digits')) == names
    # What it learns from hands it on.
    assert trained_on({}, lambda: load('digits'), [{}, {'trained_on': names}]) == names


def test_names_follow_the_size_of_images():
    assert trained_on({'features': 'classifier'}, lambda: LARGE) == ['large-clf2']


def config(**sections):
    return ConfigDict(
        {
            'data': {'name': 'mixture', 'mixture': 'ring', 'n': 100},
            'network': {'name': 'mlp', 'width': 8, 'blocks': 1},
            'method': {
                'name': 'pretrain',
                'sampler': 'heun',
                'law': {'name': 'loguniform', 'sigma_min': 0.1, 'sigma_max': 2.0},
                'grid': {'name': 'karras', 'steps': 2, 'sigma_min': 0.1, 'sigma_max': 2.0},
            },
            'optimizer': {'student': {'learning_rate': 1e-3}},
            'training': {'steps': 1, 'batch_size': 8, 'ema_half_life': 10.0, 'sample_every': 0},
            'evaluation': {'samples': 50},
            **sections,
        }
    )


MATCHED = {
    'method': {'name': 'mmd', 'sigma_init': 1.4},
    'features': ('pixels', {'name': 'fourier', 'count': 4}),
}


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    """Two runs, one of which learned from the other, which was trained on coordinates."""
    folder = tmp_path_factory.mktemp('runs')
    build.train(config(**MATCHED), folder / 'first', quiet=True)
    student = config(start={'workdir': str(folder / 'first')})
    student.unlock()
    del student['network']
    build.train(student, folder / 'second', quiet=True)
    return folder


MARKED = ['spread', 'pixel_fd']  # The density of a named mixture is no feature.


def test_a_run_hands_it_on_to_those_that_start_from_it(runs):
    for name in ('first', 'second'):
        plain = configs.to_json(configs.read(runs / name))
        assert plain['trained_on'] == ['pixels']
    # It follows from the rest, and makes no other run.
    assert 'trained_on' not in ' '.join(build.comparable(plain))
    build.train(config(**MATCHED), runs / 'first', quiet=True)
    assert build.evaluate(None, runs / 'first', quiet=True)['trained_on'] == MARKED


def test_what_a_config_says_is_not_lost_at_a_resume(tmp_path):
    build.train(config(trained_on=['digits-clf']), tmp_path, quiet=True)
    build.train(config(), tmp_path, quiet=True)
    assert configs.to_json(configs.read(tmp_path))['trained_on'] == ['digits-clf']


@pytest.mark.parametrize('features', [(3,), ({'name': ['pixels']},)])
def test_sections_of_another_type_are_one_line(features):
    told = config(method={'name': 'mmd', 'sigma_init': 1.4}, features=features)
    with pytest.raises(UserError, match='config.features'):
        build.resolve(told, build.load_data(told, 'train'))


def test_a_run_that_was_not_says_nothing(tmp_path):
    build.train(config(), tmp_path, quiet=True)
    assert 'trained_on' not in configs.read(tmp_path)
    assert 'trained_on' not in build.evaluate(None, tmp_path, quiet=True)


def test_a_method_without_features_refuses_them(tmp_path):
    for part in ('features', 'reward'):
        with pytest.raises(UserError, match=f'config.{part}.*has none'):
            build.train(config(**{part: {'name': 'pixels'}}), tmp_path / part, quiet=True)


def test_the_mark_is_in_json_line_table_and_figures(runs, capsys):
    folder = runs / 'second'
    cli.main(['evaluate', f'--workdir={folder}', '--quiet'])
    row = json.loads(capsys.readouterr().out)
    assert row['trained_on'] == MARKED and row.keys() > {*MARKED, 'kl'}
    assert json.loads((folder / 'eval' / 'step-000000001.json').read_text()) == row
    said = sweep.summary({'status': 'done', 'row': row})
    assert said.count('(trained on it)') == 2
    assert f'pixel_fd {row["pixel_fd"]:.4g} (trained on it)' in said and ' (' not in said[:20]
    written = report.write([folder], runs / 'report', quiet=True)
    page = written['report.md'].read_text()
    assert f'{row["pixel_fd"]:.4g} (n = 1), trained on it' in page
    assert f'{row["kl"]:.4g} (n = 1) |' in page
    assert '†: trained on it' in page
    (comparison,) = json.loads(written['report.json'].read_text())['comparisons']
    assert comparison['measure'] == 'kl'
    (group,) = comparison['groups']
    assert [key for key, of in group['measures'].items() if of['trained_on']] == [
        key for key in group['measures'] if key in MARKED
    ]


def test_weights_take_it_along(runs, tmp_path):
    build.evaluate(None, runs / 'second', quiet=True)
    export.export(runs / 'second', 'safetensors', tmp_path / 'out', licence='MIT')
    file = tmp_path / 'out' / 'model.safetensors'
    assert denoisers.about(file)['trained_on'] == ['pixels']
    row = build.evaluate(config(), weights=file, quiet=True)
    assert row['trained_on'] == MARKED
    again = build.resolve(config(teacher={'weights': str(file)}), load('mixture', mixture='ring'))
    assert again['trained_on'] == ['pixels']
    card = (tmp_path / 'out' / 'README.md').read_text()
    assert card.count('(trained on it)') == 2


def test_evaluations_while_training_are_marked(tmp_path):
    made = config(trained_on=('pixels',))
    made.training.evaluate_every = 1
    build.train(made, tmp_path, quiet=True)
    row = json.loads((tmp_path / 'eval' / 'step-000000001.json').read_text())
    assert row['trained_on'] == MARKED


def test_only_the_same_features_are_marked():
    source = load('mixture', mixture='ring', n=100)
    rows = [
        evaluate(
            lambda noise, condition: noise,
            source,
            source,
            nfe=1,
            samples=50,
            progress=False,
            trained_on=names,
        )
        for names in ((), ('digits-clf',), ('pixels', 'inception'))
    ]
    assert [row.get('trained_on') for row in rows] == [None, None, MARKED]
    kept = [{k: v for k, v in row.items() if k not in ('seconds', 'trained_on')} for row in rows]
    assert kept[0] == kept[1] == kept[2]


@pytest.mark.parametrize(
    'sees, name, trained, marked',
    [
        ('digits-clf-s1', 'reward-classifier(wanted=3)', 'digits-clf-s1', True),
        ('digits-clf', 'reward-classifier(wanted=3)', 'digits-clf-s1', False),
        ('pixels', 'reward-brightness', 'reward-brightness', True),
        ('pixels', 'reward-linear(towards=1)', 'reward-linear', True),
        ('pixels', 'reward-linear(towards=1)', 'reward-brightness', False),
    ],
)
def test_rewards_are_marked_by_what_they_see_or_are(sees, name, trained, marked):
    source = load('mixture', mixture='ring', n=100)
    row = evaluate(
        lambda noise, condition: noise,
        source,
        source,
        nfe=1,
        samples=50,
        progress=False,
        rewards={'reward': Judge(name, sees, lambda images, condition: images[:, 0])},
        trained_on=(trained,),
    )
    assert row.get('trained_on') == (['reward'] if marked else None)
