"""`fdistill doctor`: what is wrong is named in words, what is not is called normal, and nothing but
numbers is read."""

import json
import os
import time

import numpy as np
import pytest

from fdistill import cli
from fdistill.report import doctor

STEPS = np.arange(50, 1001, 50)
NOISE = np.random.default_rng(0).normal(0, 0.05, len(STEPS))
HEALTHY = {
    'critic/denoising': 0.3 + NOISE,
    'critic/discriminator_accuracy': 0.6 + 0.1 * NOISE,
    'critic/grad_norm': np.exp(NOISE),
    'student/clipped': 0.1 + NOISE / 10,
    'student/grad_norm': np.exp(NOISE) / 5,
    'student/h': 0.25 + NOISE / 10,
    'student/h_max': 0.5 + NOISE,
    'student/ratio': 1 + NOISE,
    'student/sample_std': 0.9 + NOISE,
    'student/data_std': 1 + NOISE / 10,
    'student/score_gap': np.exp(NOISE - STEPS / 1000),
    'student/kl': 2 + NOISE,
    'student/kl_noise': 0.05,
    'student/kl_seen': 3 + NOISE,
    'student/skipped': 0 * STEPS,
    'critic/skipped': 0 * STEPS,
}


@pytest.fixture
def folder(tmp_path):
    """folder(config, speed, last, **series) -> a run folder that was left an hour ago, which says
    what a healthy one does but for these series; None: not logged."""

    def make(config=None, speed=None, last=1000, age=3600, **series):
        changed = {name.replace('__', '/'): values for name, values in series.items()}
        values = {
            name: np.broadcast_to(of, len(STEPS))
            for name, of in (HEALTHY | changed).items()
            if of is not None
        }
        plain = {
            'seed': 0,
            'data': {'name': 'mixture', 'mixture': 'ring'},
            'method': {'name': 'f_distill', 'divergence': 'js', 'student_every': 1},
            'denoiser': {'sigma_data': 2.0},
            'training': {'steps': 1000},
        }
        (tmp_path / 'config.json').write_text(json.dumps(plain | (config or {})))
        lines = [
            {'step': int(step)} | {name: of[i].item() for name, of in values.items()}
            for i, step in enumerate(STEPS)
            if step <= last
        ]
        text = '\n'.join(map(json.dumps, lines)) + '\n'
        (tmp_path / 'metrics.jsonl').write_text(text.replace('NaN', '"nan"'))
        if speed is not None:
            timing = [{'step': n, 'images_per_second': of} for n, of in enumerate(speed)]
            (tmp_path / 'timing.jsonl').write_text('\n'.join(map(json.dumps, timing)) + '\n')
        then = time.time() - age
        os.utime(tmp_path / 'metrics.jsonl', (then, then))
        return tmp_path

    return make


def found(folder):
    """{metric: [(level, text)]} and whether it is healthy."""
    result, said = doctor.examine(folder), {}
    for one in result['findings']:
        said.setdefault(one['what'], []).append((one['level'], one['text']))
    return said, result['healthy']


def test_a_healthy_run_is_called_so(folder):
    said, healthy = found(folder(speed=[100.0] * 12))
    assert healthy
    for name in ('log', 'finite', 'speed', 'student/clipped', 'student/sample_std'):
        assert said[name][0][0] == 'normal', name
    assert not any(level == 'wrong' for levels in said.values() for level, _ in levels)


RISING, HOLE = np.exp(STEPS / 100), np.where(STEPS == 500, np.nan, 1.0)


@pytest.mark.parametrize(
    ('what', 'level', 'text', 'changes'),
    [
        ('not finite', 'wrong', 'student/score_gap from step 500', {'student__score_gap': HOLE}),
        ('student/skipped', 'wrong', '5.00% of the updates', {'student__skipped': STEPS // 20}),
        ('student/skipped', 'watch', '0.20% of the updates', {'student__skipped': STEPS // 500}),
        ('critic/spikes', 'wrong', 'no longer the exception', {'critic__spikes': STEPS // 10}),
        ('critic/spikes', 'normal', 'none', {'critic__spikes': 0}),
        ('rollbacks', 'watch', '2: went back', {'rollbacks': 2}),
        ('critic/grad_norm', 'wrong', 'lower optimizer.critic', {'critic__grad_norm': RISING}),
        ('student/grad_norm', 'watch', 'drifts', {'student__grad_norm': RISING**0.3}),
        ('student/score_gap', 'wrong', 'moves away from the', {'student__score_gap': RISING}),
        ('student/denoiser_gap', 'wrong', 'moves away', {'student__denoiser_gap': RISING}),
        ('student/h_max', 'wrong', '80 times the mean', {'student__h': 1, 'student__h_max': 80}),
        (
            'student/kl',
            'wrong',
            'moves away',
            {'student__kl': 2 * RISING, 'student__kl_seen': 3 * RISING},
        ),
        ('student/kl', 'normal', 'at least 1.3', {'student__kl': 1 - NOISE}),
        # It rises, but no further than its noise.
        (
            'student/kl',
            'normal',
            'nats from the teacher',
            {'student__kl': RISING, 'student__kl_seen': RISING, 'student__kl_noise': RISING},
        ),
        ('student/kl_seen', 'wrong', 'tells more of it than', {'student__kl': -0.6}),
        ('student/kl_seen', 'watch', 'farther off', {'student__kl': 10.0}),
        ('student/kl_seen', 'normal', '17% of the way', {}),
        ('student/clipped', 'wrong', '70% of the ratios', {'student__clipped': 0.7}),
        ('student/sample_std', 'wrong', 'collapse', {'student__sample_std': 0.3}),
        ('student/sample_std', 'wrong', 'over-saturated', {'student__sample_std': 3}),
        ('student/sample_std', 'wrong', '45% of the', {'student__data_std': None}),
        (
            'critic/discriminator_accuracy',
            'wrong',
            'always right',
            {'critic__discriminator_accuracy': 0.995},
        ),
        (
            'critic/discriminator_accuracy',
            'watch',
            'learned nothing',
            {'critic__discriminator_accuracy': 0.5},
        ),
        ('speed', 'wrong', '40 images a second, 100 at first', {'speed': [100.0] * 6 + [40.0] * 6}),
        ('log', 'wrong', 'step 500 of 1000, 1.0 h ago: stopped in the middle', {'last': 500}),
        ('log', 'watch', 'may still go on', {'last': 500, 'age': 5}),
        ('student/h_max', 'watch', 'in the reference', {'student__h_max': 10}),
    ],
)
def test_what_is_wrong_is_named(folder, what, level, text, changes):
    said, healthy = found(folder(**changes))
    assert (level, True) in [(one, text in words) for one, words in said[what]], said[what]
    assert healthy == (level != 'wrong')


@pytest.mark.parametrize('last', [50, 150])
def test_a_log_may_be_short_or_hold_nothing_finite(folder, last):
    """Of few values no trend is made; what was never finite is named, and nothing else said."""
    names = [name.replace('/', '__') for name in HEALTHY if 'skipped' not in name]
    said, healthy = found(folder(last=last))
    assert not healthy and said['log'][0][0] == 'wrong' and 'student/score_gap' not in said
    said, _ = found(folder(last=last, **dict.fromkeys(names, np.nan)))
    assert said['not finite'][0][1].count('from step 50') == len(names)
    assert said.keys() == {'log', 'not finite', 'student/skipped', 'critic/skipped'}


@pytest.mark.parametrize(('diversity', 'ended'), [(0.41, True), (0.6, False)])
def test_what_a_rule_ended_is_said(folder, diversity, ended):
    rules = {'training': {'steps': 1000, 'diversity_below': 0.5}}
    said, healthy = found(folder(rules, last=500, ema__diversity=diversity, ema__saturation=0.0))
    ((level, text),) = said['log']
    assert level == 'wrong' and not healthy
    assert ("by its rule: diversity 0.41 < 0.5 of the data's" in text) == ended
    assert ('stopped in the middle' in text) != ended


def test_skips_are_a_share_of_the_role_s_own_updates(folder):
    config = {'method': {'name': 'dmd2', 'student_every': 10}}
    said, _ = found(folder(config, student__skipped=5, critic__skipped=5))
    assert '5.00%' in said['student/skipped'][0][1] and '0.50%' in said['critic/skipped'][0][1]


def test_growth_is_the_factor_over_the_last_half():
    steps = np.arange(0.0, 101.0)
    values = np.where(steps < 50, 7.0, np.exp((steps - 50) / 50))
    assert doctor.growth((steps, values)) == pytest.approx(np.e, rel=1e-6)
    assert doctor.growth((steps, np.where(steps < 99, np.nan, 1.0))) is None


def test_what_means_nothing_is_said(folder, capsys):
    assert cli.main(['doctor', str(folder(critic__denoising=STEPS))]) == 0
    out = capsys.readouterr().out
    assert 'say nothing by themselves' in out and 'critic/denoising' in out.split('nothing by')[1]


def test_json_pictures_and_exit_codes(folder, tmp_path, capsys):
    run, out = folder(student__clipped=0.7, critic__grad_norm=HOLE), tmp_path / 'out'
    assert cli.main(['doctor', str(run), '--json', f'--out={out}']) == 1
    result = json.loads(capsys.readouterr().out)
    assert result == json.loads((out / 'doctor.json').read_text()) and not result['healthy']
    assert result['findings'][0]['level'] == 'wrong' and result['reference']['seed'] == 0
    assert (out / 'doctor.png').read_bytes().startswith(b'\x89PNG')
    assert {path.name for path in run.iterdir()} == {'config.json', 'metrics.jsonl', 'out'}
    assert cli.main(['doctor', str(folder())]) == 0
    assert capsys.readouterr().out.endswith('\nhealthy\n')


@pytest.mark.parametrize(
    'series',
    [
        {'student__kl_noise': np.nan},
        {'student__kl': np.nan},
        {'student__kl': None, 'student__kl_noise': None},
        {'student__kl_seen': 0.0},
    ],
)
def test_a_run_without_an_estimate_is_read(series, folder):
    told, _ = found(folder(**series))
    assert 'student/kl' not in told


@pytest.mark.parametrize(
    ('damage', 'message'),
    [
        (lambda run: (run / 'config.json').unlink(), 'has no config.json'),
        (lambda run: (run / 'metrics.jsonl').unlink(), 'nothing is logged there yet'),
        (lambda run: (run / 'metrics.jsonl').write_text('{"a": 1}\n{"step": 2}\n'), 'is damaged'),
        (lambda run: (run / 'config.json').write_text('{"training": {}}'), 'training.steps=None'),
    ],
)
def test_bad_input_is_one_line(folder, damage, message, capsys):
    run = folder()
    damage(run)
    assert cli.main(['doctor', str(run)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_a_folder_that_cannot_be_written_is_refused_first(folder, capsys):
    run = folder()
    assert cli.main(['doctor', str(run), f'--out={run}/config.json']) == 2
    assert capsys.readouterr().out == ''


SHIPPED = sorted(doctor.REFERENCES.glob('*.jsonl'))


def test_there_are_reference_logs():
    assert {path.stem for path in SHIPPED} == {
        'digits-js',
        'digits-sim',
        'digits-teacher',
        'ring-js',
    }


@pytest.mark.parametrize('path', SHIPPED, ids=lambda path: path.stem)
def test_a_reference_is_healthy_and_its_own(path, tmp_path):
    header, *lines = map(json.loads, path.read_text().splitlines())
    assert path.stat().st_size < 50_000
    config = {name: header[name] for name in ('seed', 'data', 'method')}
    config |= {'training': {'steps': lines[-1]['step']}}
    (tmp_path / 'config.json').write_text(json.dumps(config))
    (tmp_path / 'metrics.jsonl').write_text('\n'.join(map(json.dumps, lines)) + '\n')
    result = doctor.examine(tmp_path)
    assert result['healthy'] and result['reference']['name'] == path.stem
    said = [one['text'] for one in result['findings'] if one['what'] == 'reference']
    assert said and said[0].endswith('metrics lie where its do')


def test_another_method_has_no_reference(folder):
    result = doctor.examine(folder({'method': {'name': 'sid'}}))
    assert result['reference'] is None and 'no reference log' in doctor.page(result)
