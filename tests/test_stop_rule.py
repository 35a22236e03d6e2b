"""What ends a run whose samples go wrong: measured as theory says, with a checkpoint, and for good
unless the rule is another."""

import json
import pathlib

import jax
import numpy as np
import pytest

from fdistill import build, config
from fdistill.config import parameters
from fdistill.errors import UserError
from fdistill.evaluation import metrics
from fdistill.report import collect, doctor, summary
from fdistill.training import checkpoint, lanes, loop

FILE = str(pathlib.Path(__file__).parents[1] / 'configs' / 'pair_exact.py')
DATA = np.random.default_rng(0).uniform(-1, 1, (600, 4, 4, 1))
LABELS = np.arange(600) % 3


def test_samples_like_the_data_are_healthy():
    found = metrics.health(DATA[:300], DATA[300:], LABELS[:300])
    assert found['diversity'] == pytest.approx(1, abs=0.02)
    assert found['saturation'] == pytest.approx(0, abs=0.02)


def test_a_collapse_is_seen_within_a_class():
    """Classes that differ are no diversity."""
    one_a_class = DATA[LABELS]
    assert np.std(one_a_class, axis=0).mean() > 0.1
    assert metrics.health(one_a_class, DATA, LABELS)['diversity'] < 1e-9
    half = metrics.health(0.5 * DATA, DATA, LABELS)
    assert half['diversity'] == pytest.approx(0.5) and half['saturation'] < 0


@pytest.mark.parametrize('contrast', [2, 4])
def test_saturation_is_the_share_at_the_ends_above_the_data_s(contrast):
    """Uniform values times c have 1/c of them inside the range, and these miss its edges."""
    inside = (1 - 2 * metrics.EDGE) / contrast
    for clip in (1, 9):
        samples = np.clip(contrast * DATA, -clip, clip)
        found = metrics.saturation(samples, DATA)
        assert found == pytest.approx(1 - inside - 2 * metrics.EDGE, abs=0.02)
    assert metrics.saturation(DATA, DATA) == 0


def test_points_saturate_beyond_the_range_of_their_own_coordinate():
    points = np.random.default_rng(1).uniform([-1, -10], [1, 10], (4000, 2))
    assert metrics.saturation(points * [1, 1.5], points) == pytest.approx(1 / 6, abs=0.03)
    assert metrics.saturation(points[:, ::-1], points) > 0.3


@pytest.mark.parametrize(
    ('health', 'rule', 'said'),
    [
        (
            {'diversity': 0.41, 'saturation': 0.0},
            {'least': 0.5},
            "diversity 0.41 < 0.5 of the data's",
        ),
        ({'diversity': 0.9, 'saturation': 0.3}, {'most': 0.2}, 'saturation 0.3 > 0.2 above'),
        ({'diversity': 0.0, 'saturation': 0.9}, {}, ''),
        ({'diversity': 0.6, 'saturation': 0.1}, {'least': 0.5, 'most': 0.2}, ''),
        ({}, {'least': 0.5, 'most': 0.2}, ''),
    ],
)
def test_what_is_unhealthy_is_said(health, rule, said):
    found = loop.unhealthy(health, **rule)
    assert bool(found) == bool(said) and said in found


def training(**changes):
    given = dict(steps=4, batch_size=8, ema_half_life=9.0)
    return loop.Training(**given | changes)


@pytest.mark.parametrize(
    'changes',
    [
        {'diversity_below': 0.5},
        {'diversity_below': 1.0, 'evaluate_every': 1},
        {'diversity_below': -0.1, 'evaluate_every': 1},
        {'saturation_above': 0.0, 'evaluate_every': 1},
        {'saturation_above': 0.2},
    ],
)
def test_rules_out_of_range_or_never_looked_at_are_refused(changes):
    with pytest.raises(ValueError, match='diversity_below=.* saturation_above=.* evaluate_every='):
        loop.check(training(**changes))


def test_a_lane_cannot_end_alone():
    rule = training(evaluate_every=2, saturation_above=0.5)
    with pytest.raises(ValueError, match='saturation_above=0.5: a lane cannot end alone'):
        lanes.train(None, {}, [], rule)
    known = parameters(loop.Training)
    assert known['diversity_below'].default == 0 and known['saturation_above'].default == 1
    assert not loop.watched(training(evaluate_every=2))


STEPS, EVERY = 60, 10
RULE = dict(steps=STEPS, evaluate_every=EVERY, checkpoint_every=45, log_every=20, keep=5)


def settings(divergence, **rule):
    """One Gaussian, exactly: by reverse KL it falls into one of two modes, a quarter as wide as
    the data; by forward KL it becomes as wide."""
    chosen = config.load(f'{FILE}:{divergence}')
    training = RULE | dict(batch_size=256, ema_half_life=2000.0) | rule
    changes = {f'training.{name}': value for name, value in training.items()}
    changes |= {'optimizer.student.learning_rate': 0.1}
    changes |= {'network.scale': 0.5, 'network.offset': 1.0}
    changes |= {'evaluation.samples': 200, 'evaluation.batch_size': 200}
    build.override(chosen, [f'--config.{name}={value}' for name, value in changes.items()])
    return chosen


def lines(folder):
    return [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]


@pytest.fixture(scope='module')
def collapsed(tmp_path_factory):
    """(Folder of a run that its rule ended, what was said, its step)."""
    folder = tmp_path_factory.mktemp('collapsed') / 'run'
    with pytest.raises(UserError) as error:
        build.train(settings('reverse_kl', diversity_below=0.4), folder, quiet=True)
    return folder, str(error.value), checkpoint.newest(folder)


def test_a_collapse_ends_the_run_with_a_checkpoint(collapsed):
    folder, said, step = collapsed
    health = {line['step']: line for line in lines(folder) if 'ema/diversity' in line}
    assert max(health) == step < STEPS and step % EVERY == 0 and len(health) > 1
    assert all(line['ema/diversity'] >= 0.4 for at, line in health.items() if at < step)
    found = health[step]['ema/diversity']
    assert found < 0.4 and f'stopped at step {step} of {STEPS}: diversity {found:.3g} < 0.4' in said
    run = build.from_workdir(folder)
    assert run.step == step
    samples = np.asarray(run.generate(jax.random.key(0), 2000))
    data = build.load_data(run.config, 'train').images
    assert samples.std() / data.std() == pytest.approx(found, rel=0.1)


def test_it_does_not_go_on_by_itself_and_does_by_another_rule(collapsed, tmp_path):
    folder, said, step = collapsed
    before = (folder / 'metrics.jsonl').read_bytes()
    with pytest.raises(UserError, match=f'stopped at step {step} of {STEPS}: diversity') as error:
        build.train(settings('reverse_kl', diversity_below=0.4), folder, quiet=True)
    assert str(error.value) == said and (folder / 'metrics.jsonl').read_bytes() == before
    whole = build.train(settings('reverse_kl'), tmp_path, quiet=True)
    resumed = build.train(settings('reverse_kl', diversity_below=0.01), folder, quiet=True)
    for one, other in zip(jax.tree.leaves(whole.params), jax.tree.leaves(resumed.params)):
        np.testing.assert_array_equal(one, other)
    logged = [line for line in lines(folder) if 'ema/diversity' not in line]
    assert logged == lines(tmp_path)
    assert checkpoint.newest(folder) == STEPS


def test_a_healthy_run_is_left_alone(tmp_path):
    rule = dict(diversity_below=0.4, saturation_above=0.2)
    build.train(settings('forward_kl', **rule), tmp_path, quiet=True)
    health = [line for line in lines(tmp_path) if 'ema/saturation' in line]
    assert [line['step'] for line in health] == list(range(EVERY, STEPS + 1, EVERY))
    assert not collect.stopped(build.from_workdir(tmp_path).config, lines(tmp_path))


def test_doctor_and_report_say_what_ended_it(tmp_path):
    rule = settings('reverse_kl', diversity_below=0.4)
    with pytest.raises(UserError):
        build.train(rule, tmp_path / 'run', quiet=True)
    found = {one['what']: one for one in doctor.examine(tmp_path / 'run')['findings']}
    assert found['log']['level'] == 'wrong' and 'by its rule: diversity' in found['log']['text']
    run, *_ = collect.runs([_measured(tmp_path / 'run')])
    assert run.stopped.startswith('diversity 0.') and run.status == 'done'
    assert f'run ended early: {run.stopped}.' in summary.summarise([run])['notes'][0]


def _measured(folder):
    build.evaluate(None, folder, samples=50, quiet=True)
    return folder
