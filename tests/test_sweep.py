"""Sweeps: which trials there are, that one's failure is its own, that what is done stays done, and
that all ways to run agree."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from fdistill import build, cli, divergences, sweep
from fdistill.errors import NotFinite, Stopped, UserError
from fdistill.files import disk, lock
from fdistill.training import sharding

pytestmark = pytest.mark.optimised

ROOT = pathlib.Path(__file__).parents[1]
FILE = """
from fdistill.config import load

def get_config():
    config = load('{base}').unlock()
    config.training.steps, config.training.batch_size, config.training.log_every = {steps}, 64, 10
    config.evaluation.samples, config.evaluation.batch_size = 500, 500
    config.data = dict(config.data, n=2000)
    config.update({update})
    return config

def get_sweep():
    return {sweep}
"""
GRID = {'method.divergence': ('reverse_kl', 'js'), 'seed': (0, 1)}


def write(folder, trials=GRID, steps=20, base='pair_exact.py', update=None):
    path = folder / 'sweep.py'
    path.write_text(
        FILE.format(base=ROOT / 'configs' / base, sweep=trials, steps=steps, update=update or {})
    )
    return str(path)


def rows(results):
    """What has to be equal, whoever ran it."""
    timeless = {trial.name: dict(outcome) for trial, outcome in results}
    for outcome in timeless.values():
        outcome.pop('seconds')
        # The number of devices is one of the versions.
        outcome['row'] = {
            key: value for key, value in outcome['row'].items() if key not in ('seconds', 'details')
        }
    return timeless


@pytest.fixture(scope='module')
def unbroken(tmp_path_factory):
    folder = tmp_path_factory.mktemp('sweep')
    path = write(folder)
    return path, folder / 'w', sweep.run(path, folder / 'w', quiet=True)


@pytest.fixture
def instant(monkeypatch):
    """Trials that take no time; gives the folders of those that were trained."""
    trained = []

    def train(config, folder, quiet):
        trained.append(folder)

    row = {'step': 20, 'protocol': {'loss': 'loss[x]'}, 'loss': 1.0}
    monkeypatch.setattr(sweep.build, 'train', train)
    monkeypatch.setattr(sweep.build, 'evaluate', lambda *given, **options: row)
    monkeypatch.setattr(sweep, 'reference', lambda config, kept: None)
    return trained


def test_trials_of_a_grid_and_of_a_list(tmp_path):
    trials = sweep.load(write(tmp_path))
    assert [trial.name for trial in trials] == [
        f'divergence={d},seed={s}' for d in ('reverse_kl', 'js') for s in (0, 1)
    ]
    assert trials[3].config.method.divergence == 'js' and trials[3].config.seed == 1
    trials = sweep.load(
        write(
            tmp_path,
            [
                {'seed': 1},
                {'method.divergence': 'alpha(0.5)', 'optimizer.student.learning_rate': 0.1},
            ],
        )
    )
    assert [trial.name for trial in trials] == ['seed=1', 'divergence=alpha(0.5),learning_rate=0.1']
    (trial,) = sweep.load(write(tmp_path, [{'seed': 5}]))
    assert trial.name == 'base' and trial.config.seed == 5
    assert sweep.load(write(tmp_path), ['--config.training.steps=7'])[0].config.training.steps == 7


def test_trials_of_several_methods(tmp_path, capsys):
    """The key `config` is the argument of get_config(); what is overridden, is so in all."""
    path = tmp_path / 'sweep.py'
    path.write_text(
        'import pathlib\n'
        'from fdistill.config import load\n'
        "def get_config(name='pair_exact'):\n"
        f"    return load(f'{ROOT}/configs/{{name}}.py')\n"
        'def get_sweep():\n'
        "    return [{'config': 'ring_sim'}, {'config': 'ring', 'method.divergence': 'js'}, "
        "{'seed': 1}]\n"
    )
    trials = sweep.load(str(path), ['--config.training.steps=7'])
    assert [trial.name for trial in trials] == [
        'config=ring_sim',
        'config=ring,divergence=js',
        'seed=1',
    ]
    names = [trial.config.method.name for trial in trials]
    assert names == ['sim', 'f_distill', 'exact']
    assert all(trial.config.training.steps == 7 for trial in trials)
    assert trials[0].config.to_dict().keys() >= {'method', 'training'}
    written = path.read_text()
    path.write_text(written.replace('ring_sim', 'ring_sin'))
    at = f'--config={path}: get_sweep(): config='
    with pytest.raises(UserError, match='ring_sin.py: no such file') as error:
        sweep.load(str(path))
    assert str(error.value).startswith(f"{at}'ring_sin': ")
    for argument in (3, None, ['ring_sim'], {'name': 'ring_sim'}):
        path.write_text(written.replace("'ring_sim'", repr(argument)))
        with pytest.raises(UserError) as error:
            sweep.load(str(path))
        assert (
            str(error.value) == f'{at}{argument!r}: must be the argument of get_config(), a string'
        )


@pytest.mark.parametrize(
    ('trials', 'message'),
    [
        (
            {'method.divergnce': ('js',)},
            'unknown key config.method.divergnce; did you mean config.method.divergence',
        ),
        ({'seed.x': (1,)}, 'unknown key config.seed.x'),
        (
            {'training.steps': ('many',)},
            "config.training.steps='many' is of type str; the config has 20",
        ),
        ([{'seed': 1}, {'seed': 1}], 'the trial base twice'),
        ([], 'returns no trial'),
        ({'seed': 3}, 'must return a dict of key: values'),
        ({'config': 'sim'}, "give a tuple in the place of config='sim'"),
        (3, 'must return a dict of key: values'),
    ],
)
def test_bad_sweeps_are_one_line(trials, message, tmp_path, capsys):
    assert (
        cli.main(['sweep', f'--config={write(tmp_path, trials)}', f'--workdir={tmp_path / "w"}'])
        == 2
    )
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not (tmp_path / 'w').exists()


def test_a_config_is_no_sweep(tmp_path, capsys):
    assert (
        cli.main(['sweep', f'--config={ROOT / "configs" / "ring.py"}', f'--workdir={tmp_path}'])
        == 2
    )
    assert 'has no get_sweep()' in capsys.readouterr().err


def test_results(unbroken):
    _, workdir, results = unbroken
    assert len(results) == 4
    for trial, outcome in results:
        folder = workdir / 'trials' / trial.name
        assert outcome == json.loads((folder / 'result.json').read_text())
        assert outcome['status'] == 'done' and outcome['overrides'] == trial.overrides
        assert outcome['row']['step'] == 20 and outcome['seconds'] > 0
        assert (folder / 'metrics.jsonl').is_file() and (folder / 'config.json').is_file()
    listed = json.loads((workdir / 'sweep.json').read_text())
    assert list(listed['trials']) == [trial.name for trial, _ in results]


def test_only_what_is_missing_runs(unbroken, tmp_path, capsys):
    path, workdir, results = unbroken
    before = {file: file.stat().st_mtime_ns for file in workdir.rglob('result.json')}
    lost = workdir / 'trials' / 'divergence=js,seed=0' / 'result.json'
    lost.unlink()
    assert cli.main(['sweep', f'--config={path}', f'--workdir={workdir}', '--dry-run']) == 0
    assert '4 trials, 1 without a result' in capsys.readouterr().out
    assert cli.main(['sweep', f'--config={path}', f'--workdir={workdir}', '--commands']) == 0
    command = capsys.readouterr().out.strip()
    assert command.endswith('--only=divergence=js,seed=0') and command.startswith('fdistill sweep ')
    assert cli.main(['sweep', f'--config={path}', f'--workdir={workdir}']) == 0
    captured = capsys.readouterr()
    assert captured.out == '4 trials done, 0 failed\n'
    assert captured.err.count('[') == 1 and '[4/4] divergence=js,seed=0' in captured.err
    assert ' s  nfe 1  ' in captured.err
    assert {file for file in before if file.stat().st_mtime_ns != before[file]} == {lost}
    assert rows(sweep.finished(workdir, sweep.load(path))) == rows(results)


def test_another_config_in_the_same_folder_is_refused(unbroken):
    path, workdir, _ = unbroken
    with pytest.raises(UserError, match='another config than the sweep now has'):
        sweep.run(path, workdir, overrides=['--config.training.steps=30'], quiet=True)
    (workdir / 'trials' / 'divergence=js,seed=1').exists()
    with pytest.raises(UserError, match='--only=js: no such trial'):
        sweep.run(path, workdir, only=['js'], quiet=True)


def test_a_failing_trial_fails_alone(tmp_path, capsys):
    trials = [
        {'method.divergence': 'no_such'},
        {'method.divergence': 'forward_kl', 'optimizer.student.learning_rate': 1e38},
        {'method.divergence': 'js'},
    ]
    path, workdir = write(tmp_path, trials), tmp_path / 'w'
    assert cli.main(['sweep', f'--config={path}', f'--workdir={workdir}']) == 1
    captured = capsys.readouterr()
    assert '1 trials done, 2 failed' in captured.out and captured.err.count('FAILED') == 2
    first, second, third = (outcome for _, outcome in sweep.finished(workdir, sweep.load(path)))
    assert (
        'no_such' in first['error']
        and 'not finite' in second['error']
        and third['status'] == 'done'
    )
    # Not tried again, unless asked.
    assert sweep.missing(workdir, sweep.load(path)) == []
    assert len(sweep.missing(workdir, sweep.load(path), retry=True)) == 2


def test_kill_leaves_what_is_done_and_nothing_half_done(tmp_path, unbroken):
    """kill -9 in the second trial; then the same command: equal to the unbroken sweep, the first
    trial untouched."""
    _, _, results = unbroken
    path, workdir = write(tmp_path), tmp_path / 'w'
    words = [sys.executable, '-m', 'fdistill', 'sweep', f'--config={path}', f'--workdir={workdir}']
    environment = os.environ | {'PYTHONPATH': str(ROOT)}
    process = subprocess.Popen(
        words, env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while (
        not (workdir / 'trials' / 'divergence=reverse_kl,seed=1').exists()
        and time.monotonic() < deadline
    ):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    first = workdir / 'trials' / 'divergence=reverse_kl,seed=0' / 'result.json'
    untouched = first.stat().st_mtime_ns
    assert len(list(workdir.rglob('result.json'))) < 4
    again = sweep.run(path, workdir, quiet=True)
    assert first.stat().st_mtime_ns == untouched
    assert rows(again) == rows(results)


def test_sigterm_ends_the_sweep_and_leaves_no_result(tmp_path, monkeypatch, capsys):
    """A trial stopped by the scheduler is not done: it has no result, no trial begins after it, and
    it goes on later."""
    path, started = write(tmp_path), []

    def train(config, workdir, quiet):
        started.append(workdir)
        if len(started) > 1:
            return train_all(config, workdir, quiet=quiet)
        train_all(config, workdir, quiet=quiet, stop_at=7)
        raise Stopped('stopped', signal.SIGTERM)

    train_all = build.train
    monkeypatch.setattr(build, 'train', train)
    words = ['sweep', f'--config={path}', f'--workdir={tmp_path / "sweep"}']
    assert (
        cli.main(words) == 143
        and len(started) == 1
        and 'give the same command again' in capsys.readouterr().err
    )
    assert not list((tmp_path / 'sweep').glob('trials/*/result.json'))
    assert cli.main(words) == 0
    results = [
        json.loads(file.read_text()) for file in (tmp_path / 'sweep').glob('trials/*/result.json')
    ]
    assert results and {known['row']['step'] for known in results} == {20}


def test_in_processes_of_their_own(tmp_path, unbroken, monkeypatch, capsys):
    monkeypatch.setenv('PYTHONPATH', str(ROOT))
    _, _, results = unbroken
    path, workdir = write(tmp_path), tmp_path / 'w'
    assert (
        cli.main(
            [
                'sweep',
                f'--config={path}',
                f'--workdir={workdir}',
                '--executor=local',
                '--parallel=2',
            ]
        )
        == 0
    )
    ours, theirs = rows(sweep.finished(workdir, sweep.load(path))), rows(results)
    for name in theirs:
        # On one device instead of eight.
        theirs[name]['row'].pop('protocol')
        assert ours[name]['row'].pop('protocol')
        assert ours[name].pop('row') == pytest.approx(theirs[name].pop('row'), rel=1e-2)
    assert ours == theirs
    assert capsys.readouterr().err.count(']') == 4


def test_slurm_gets_one_array_job(tmp_path, monkeypatch, capsys):
    """With commands in the place of Slurm's that keep the script they are given."""
    path, workdir, programs = write(tmp_path), tmp_path / 'w', tmp_path / 'bin'
    words = [
        'sweep',
        f'--config={path}',
        f'--workdir={workdir}',
        '--executor=slurm',
        '--parallel=3',
    ]
    monkeypatch.setenv('PATH', str(tmp_path / 'empty'))
    assert cli.main(words) == 2
    assert 'srun' in capsys.readouterr().err
    programs.mkdir()
    for name, body in {
        'srun': '',
        'sbatch': f'cp "$1" {tmp_path}/script; echo Submitted batch job 77',
    }.items():
        (programs / name).write_text(f'#!/bin/sh\n{body}\n')
        (programs / name).chmod(0o755)
    monkeypatch.setenv('PATH', f'{programs}:/usr/bin:/bin')
    assert cli.main([*words, '--slurm_partition=gpu', '--timeout_min=60', '--gpus_per_node=1']) == 0
    assert 'queued 4 trials as job 77' in capsys.readouterr().out
    script = (tmp_path / 'script').read_text()
    for line in (
        '--array=0-3%3',
        '--partition=gpu',
        '--time=60',
        '--gpus-per-node=1',
        '--job-name=fdistill-sweep',
    ):
        assert f'#SBATCH {line}\n' in script
    assert 'srun' in script and not list(workdir.rglob('result.json'))


def test_parameters_of_submitit_are_checked(tmp_path, monkeypatch):
    with pytest.raises(UserError, match='nonsense'):
        sweep.executor('local', tmp_path, 2, nonsense=3)
    monkeypatch.setitem(sys.modules, 'submitit', None)
    with pytest.raises(
        UserError, match=r"needs submitit; install it with pip install -e '.\[slurm\]'"
    ):
        sweep.executor('local', tmp_path, 2)


RATE = 'optimizer.student.learning_rate'
# name -> base, trials, relative error of parameters (measured: 1e-7, 4e-6), shared settings that
# the base lacks.
TOGETHER = {
    'exact': ('pair_exact.py', {RATE: (0.02, 0.05), 'seed': (0, 1)}, 2e-6, {}),
    'f_distill': (
        'ring.py:js',
        [
            {'seed': 3},
            {
                'seed': 4,
                RATE: 1e-3,
                'optimizer.student.b2': 0.999,
                'optimizer.student.clip': 0.5,
                'optimizer.critic.weight_decay': 0.02,
                'optimizer.critic.final': 0.1,
                'training.ema_half_life': 500.0,
                'training.ema_ramp_up': 0.3,
                'method.ratio_low': 0.2,
                'method.ratio_high': 5.0,
                'method.bins_decay': 0.5,
                'method.sigma_init': 1.2,
                'method.critic_law.sigma_max': 2.0,
            },
        ],
        1e-4,
        {
            'method': {'bins_decay': 0.9},
            'optimizer': {'student': {'clip': 1.0, 'warmup': 5}, 'critic': {'weight_decay': 0.01}},
        },
    ),
}


@pytest.mark.parametrize('name', ['exact', pytest.param('f_distill', marks=pytest.mark.slow)])
def test_as_one_program(name, tmp_path, monkeypatch):
    """The numbers of one after another, to rounding, in ordinary run folders, though a first
    attempt was killed."""
    base, trials, error, update = TOGETHER[name]
    path = write(tmp_path, trials, base=base, update=update)
    # So that nothing but the lanes differs.
    auto = (jax.sharding.AxisType.Auto, jax.sharding.AxisType.Auto)
    one_device = jax.make_mesh((1, 1), ('data', 'fsdp'), auto, devices=jax.devices()[:1])
    monkeypatch.setattr(sharding, 'mesh_over', lambda **_: one_device)
    theirs = rows(sweep.run(path, tmp_path / 'one', quiet=True))
    loaded = sweep.load(path)
    assert len(sweep.lanes(tmp_path / 'w', loaded)) == 1
    killed = sweep.folder_of(tmp_path / 'w', loaded[0])
    killed.mkdir(parents=True)
    (killed / 'metrics.jsonl').write_text('{"step": 10, "student/score_gap": 1.0}\n')
    ours = rows(sweep.run(path, tmp_path / 'w', vmap_seeds=True, quiet=True))
    for trial in loaded:
        row, other = ours[trial.name].pop('row'), theirs[trial.name].pop('row')
        assert row.pop('protocol') == other.pop('protocol') and row == pytest.approx(
            other, rel=1e-2, abs=1e-3
        )
        lane, alone = (sweep.folder_of(tmp_path / folder, trial) for folder in ('w', 'one'))
        assert json.loads((lane / 'config.json').read_text()) == json.loads(
            (alone / 'config.json').read_text()
        )
        files = [(folder / 'metrics.jsonl').read_text().splitlines() for folder in (lane, alone)]
        logged, expected = ([json.loads(line) for line in lines] for lines in files)
        assert [line['step'] for line in logged] == [10, 20]
        assert [
            json.loads(line)['step']
            for line in (lane / 'histograms.jsonl').read_text().splitlines()
        ] == [10, 20]
        for line, other in zip(logged, expected):
            assert line == pytest.approx(other, rel=error, abs=1e-6)
        for value, other in zip(
            *(jax.tree.leaves(build.from_workdir(folder).params) for folder in (lane, alone))
        ):
            np.testing.assert_allclose(value, other, rtol=0, atol=error * np.abs(other).max())
    assert ours == theirs
    # Ordinary runs, which are not trained again.
    assert sweep.missing(tmp_path / 'w', loaded) == []


def test_groups(tmp_path):
    """Of trials in which a divergence and a seed differ, and whether they have begun; what else
    goes together: test_lanes."""
    trials = sweep.load(write(tmp_path))
    assert [
        [trial.config.seed for trial in group] for group in sweep.lanes(tmp_path / 'w', trials)
    ] == [[0, 1], [0, 1]]
    (sweep.folder_of(tmp_path / 'w', trials[0]) / 'checkpoints').mkdir(parents=True)
    assert sorted(len(group) for group in sweep.lanes(tmp_path / 'w', trials)) == [1, 1, 2]


def test_what_does_not_run_together_goes_in_halves(tmp_path, monkeypatch, instant, capsys):
    """No more than two lanes fit, and one of five fails."""
    trained = []

    def train_lanes(given, quiet):
        seeds = [config.seed for config, _ in given]
        if len(seeds) > 2:
            raise MemoryError(f'{len(seeds)} lanes need 2.00 GiB, 1.00 GiB are free')
        trained.append(seeds)
        return [NotFinite('not finite') if seed == 1 else None for seed in seeds]

    monkeypatch.setattr(sweep.build, 'train_lanes', train_lanes)
    path = write(tmp_path, {'seed': (0, 1, 2, 3, 4)})
    sweep.run(path, tmp_path / 'w', vmap_seeds=True)
    assert trained == [[0, 1], [3, 4]]
    said = capsys.readouterr().err
    assert (
        '5 trials as one program: MemoryError: 5 lanes need 2.00 GiB, 1.00 GiB are free; so in '
        'halves' in said
    )
    assert (
        said.count('in halves') == 2
        and said.count('FAILED: not finite') == 1
        and '[1/5] seed=0 and 4 others at once' in said
    )


def test_a_new_divergence_is_in_the_shipped_sweep_with_its_row(tmp_path, monkeypatch):
    monkeypatch.setitem(
        divergences.DIVERGENCES, 'symmetric_chi2', lambda r: (r - 1) ** 2 * (r + 1) / r
    )
    path = str(ROOT / 'configs' / 'sweeps' / 'mixtures.py')
    assert len(sweep.load(path)) == 5 * len(divergences.DIVERGENCES)
    only, short = (
        ['divergence=symmetric_chi2,seed=0'],
        ['--config.training.steps=10', '--config.evaluation.samples=500'],
    )
    ((_, outcome),) = sweep.run(path, tmp_path, overrides=short, only=only, quiet=True)
    assert (
        outcome['status'] == 'done'
        and outcome['overrides']['method.divergence'] == 'symmetric_chi2'
    )


def test_a_job_whose_time_is_up_leaves_no_result(tmp_path, monkeypatch):
    class UncompletedJobError(Exception):
        pass

    def end(*given, **options):
        raise UncompletedJobError

    (trial,) = sweep.load(write(tmp_path, [{'seed': 0}]))
    monkeypatch.setattr(sweep.build, 'train', end)
    with pytest.raises(UncompletedJobError):
        sweep.run_trial(tmp_path / 'w', trial)
    assert sweep.result(tmp_path / 'w', trial) is None


@pytest.mark.parametrize(
    'name', sorted(path.name for path in (ROOT / 'configs' / 'sweeps').glob('*.py'))
)
def test_shipped_sweeps_load(name):
    trials = sweep.load(str(ROOT / 'configs' / 'sweeps' / name))
    assert len({trial.name for trial in trials}) == len(trials) >= 3
    for trial in trials:
        if trial.config.method.name in ('f_distill', 'exact'):
            divergences.weighting(trial.config.method.divergence)


def test_a_name_too_long_for_a_folder_is_refused(tmp_path):
    path = write(tmp_path, [{'method.divergence': 'js' * 150}, {'method.divergence': 'js'}])
    with pytest.raises(UserError, match='is too long for a folder'):
        sweep.load(path)


def test_one_sweep_a_folder(tmp_path, instant, capsys):
    path, workdir = write(tmp_path, {'seed': (0, 1)}), tmp_path / 'w'
    words = ['sweep', f'--config={path}', f'--workdir={workdir}']
    with lock.held(workdir):
        for more in ([], ['--executor=local']):
            assert cli.main([*words, *more]) == 2
            (line,) = capsys.readouterr().err.splitlines()
            assert f'process {os.getpid()} is writing there' in line
        assert not instant and not (workdir / 'trials').exists()
        # As a scheduler runs them, side by side.
        assert cli.main([*words, '--only=seed=1']) == 0
    assert cli.main(words) == 0 and len(instant) == 2


def test_a_trial_that_another_process_runs_is_left_to_it(tmp_path, instant, capsys):
    path, workdir = write(tmp_path, {'seed': (0, 1, 2)}), tmp_path / 'w'
    words = ['sweep', f'--config={path}', f'--workdir={workdir}']
    held = sweep.folder_of(workdir, sweep.load(path)[1])
    with lock.held(held, name='.trial'):
        assert cli.main(words) == 1
    captured = capsys.readouterr()
    assert '2 trials done, 1 failed: seed=1' in captured.out
    assert f'process {os.getpid()} is writing there' in captured.err
    assert not (held / 'result.json').exists() and held not in instant
    assert cli.main(words) == 0 and held in instant


def test_a_folder_that_cannot_be_written_costs_its_own_trial_alone(tmp_path, instant, capsys):
    path, workdir = write(tmp_path, {'seed': (0, 1, 2)}), tmp_path / 'w'
    first = sweep.folder_of(workdir, sweep.load(path)[0])
    first.parent.mkdir(parents=True)
    first.write_text('')
    assert cli.main(['sweep', f'--config={path}', f'--workdir={workdir}']) == 1
    captured = capsys.readouterr()
    assert '2 trials done, 1 failed: seed=0' in captured.out
    assert 'FAILED: its result cannot be kept' in captured.err
    assert len(instant) == 2


def test_a_trial_whose_process_dies_does_not_keep_the_others(tmp_path, instant, capsys):
    """It is tried again after them, fails at its second death at one checkpoint, and is run again
    where that is asked for."""
    path, workdir = write(tmp_path, {'seed': (0, 1, 2)}), tmp_path / 'w'
    words = ['sweep', f'--config={path}', f'--workdir={workdir}']
    deadly = 'import os, sys; from fdistill import build, cli; '
    deadly += 'build.train = lambda *given, **options: os.abort(); '
    environment = os.environ | {'PYTHONPATH': str(ROOT)}
    died = subprocess.run(
        [sys.executable, '-c', deadly + f'cli.main({words})'], env=environment, capture_output=True
    )
    first = sweep.folder_of(workdir, sweep.load(path)[0])
    assert died.returncode == -signal.SIGABRT and not (first / 'result.json').exists()
    assert [trial.config.seed for trial in sweep.missing(workdir, sweep.load(path))] == [1, 2, 0]
    begun = json.loads((first / sweep.BEGUN).read_text())
    disk.write_json(first / sweep.BEGUN, begun | {'times': begun['times'] + 1})
    assert cli.main(words) == 1 and first not in instant and len(instant) == 2
    captured = capsys.readouterr()
    assert 'its process ended 2 times at step 0 without a result' in captured.err
    assert '2 trials done, 1 failed: seed=0' in captured.out
    assert cli.main([*words, '--retry']) == 0 and instant[-1] == first
    assert not list(workdir.rglob(sweep.BEGUN))


def test_a_checkpoint_since_it_began_gives_a_trial_another_chance(tmp_path, instant):
    path, workdir = write(tmp_path, [{'seed': 0}]), tmp_path / 'w'
    (trial,) = sweep.load(path)
    folder = sweep.folder_of(workdir, trial)
    disk.write_json(folder / sweep.BEGUN, {'step': 0, 'times': 2})
    (folder / 'checkpoints' / '000000010').mkdir(parents=True)
    ((_, outcome),) = sweep.run(path, workdir, quiet=True)
    assert outcome['status'] == 'done' and not (folder / sweep.BEGUN).exists()


def test_a_process_of_its_own_that_dies_is_a_failure(tmp_path, monkeypatch, capsys):
    path, workdir = write(tmp_path, [{'seed': 0}]), tmp_path / 'w'
    with open(path, 'a') as file:
        file.write('\nimport os\nif "SUBMITIT_LOCAL_JOB_ID" in os.environ:\n    os.abort()\n')
    monkeypatch.setenv('PYTHONPATH', str(ROOT))
    words = ['sweep', f'--config={path}', f'--workdir={workdir}', '--executor=local']
    for _ in range(2):  # It is not run again.
        assert cli.main(words) == 1
        assert '0 trials done, 1 failed: base' in capsys.readouterr().out
    ((_, outcome),) = sweep.finished(workdir, sweep.load(path))
    assert 'its process ended without a result' in outcome['error']
    assert len(list((workdir / 'jobs').glob('*_submitted.pkl'))) == 1
