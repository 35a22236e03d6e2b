"""Recipes: which stages there are, that what is done is kept and what was stopped goes on, that a
mistake anywhere is told before anything is trained, and that what is foreseen is what is done."""

import json
import os
import pathlib
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import pytest
import stops

from fdistill import build, cli, recipe, report
from fdistill import config as configs
from fdistill.errors import Stopped, UserError
from fdistill.files import disk
from fdistill.report import collect
from fdistill.training import checkpoint

ROOT = pathlib.Path(__file__).parents[1]
OFTEN = dict(steps=20, checkpoint_every=10, log_every=5)
STUDENT = """
from ml_collections import ConfigDict
def get_config(segments='1'):
    return ConfigDict(dict(
        seed=0,
        data=dict(name='mixture', mixture='ring', labelled=False, n=1000),
        teacher=dict(workdir='nowhere'),
        method=dict(
            name='tscd', segments=int(segments),
            grid=dict(name='karras', steps=4, sigma_min=0.02, sigma_max=5.0)),
        optimizer=dict(student=dict(learning_rate=1e-3)),
        training=dict(
            steps=20, batch_size=64, ema_half_life=1e3, checkpoint_every=10, log_every=5,
            sample_every=0),
        evaluation=dict(samples=100),
    ))
"""
TEACHER = {'name': 'teacher', 'config': 'teacher.py', 'evaluate': False}
FIRST = {'name': 'first', 'config': 'student.py:2', 'set': {'teacher.workdir': '@teacher'}}
SECOND = {
    'name': 'second',
    'config': 'student.py',
    'set': {'teacher.workdir': '@teacher', 'start': {'workdir': '@first'}},
}
STAGES = [TEACHER, FIRST, SECOND]


def write(folder, stages=STAGES):
    """The file of a recipe, beside the configs that it names."""
    (folder / 'teacher.py').write_text(stops.ring(**OFTEN))
    (folder / 'student.py').write_text(STUDENT)
    path = folder / 'recipe.py'
    path.write_text(f'def get_recipe(which=None):\n    return {stages!r}\n')
    return str(path)


def words(path, workdir, *more):
    return ['run', f'--recipe={path}', f'--workdir={workdir}', *more]


def records(workdir):
    return json.loads((workdir / 'recipe.json').read_text())['stages']


def same(one, other):
    """Whether what two recipes made is equal, bit for bit."""
    for name, record in records(one).items():
        theirs = records(other)[name]
        for key in ('digest', 'parents', 'settings', 'status'):
            assert record[key] == theirs[key], (name, key)
        assert numbers(record) == numbers(theirs), name
        logs = [(folder / name / 'metrics.jsonl').read_bytes() for folder in (one, other)]
        assert logs[0] == logs[1], name


def numbers(record):
    row = record.get('row') or {}
    return {key: value for key, value in row.items() if key not in ('seconds', 'details')}


@pytest.fixture(scope='module')
def unbroken(tmp_path_factory):
    folder = tmp_path_factory.mktemp('recipe')
    path = write(folder)
    recipe.run(path, folder / 'w', quiet=True)
    return path, folder / 'w'


@pytest.fixture
def done(unbroken, tmp_path):
    """A copy of it, with the file beside it."""
    shutil.copytree(unbroken[1], tmp_path / 'w')
    return write(tmp_path), tmp_path / 'w'


def test_stages_are_run_folders_that_name_their_parents(unbroken):
    path, workdir = unbroken
    found = records(workdir)
    assert list(found) == ['teacher', 'first', 'second']
    assert [record['status'] for record in found.values()] == ['done'] * 3
    digests = {name: record['digest'] for name, record in found.items()}
    for name, digest in digests.items():
        assert build.from_workdir(workdir / name).digest == digest
        assert checkpoint.newest(workdir / name) == 20
    assert [record['parents'] for record in found.values()] == [
        {},
        {'teacher': digests['teacher']},
        {'teacher': digests['teacher'], 'first': digests['first']},
    ]
    origin = configs.read(workdir / 'second').origin
    assert (origin.teacher, origin.start) == (digests['teacher'], digests['first'])
    assert found['teacher']['row'] is None and not (workdir / 'teacher' / 'eval').exists()
    for name in ('first', 'second'):
        (file,) = (workdir / name / 'eval').iterdir()
        assert json.loads(file.read_text()) == found[name]['row']
    assert found['first']['row']['nfe'] == 2 and found['second']['row']['nfe'] == 1


def test_what_is_done_is_kept(unbroken, capsys):
    path, workdir = unbroken
    before = {file: file.stat().st_mtime_ns for file in workdir.rglob('*') if file.is_file()}
    assert cli.main(words(path, workdir)) == 0
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert [line.split()[0] for line in lines] == ['teacher', 'first', 'second']
    assert 'nfe 2' in lines[1] and '[3/3] second: done, ' in captured.err
    changed = {file.name for file in before if file.stat().st_mtime_ns != before[file]}
    assert changed <= {'.lock'}


def test_a_stop_between_and_within_stages_changes_nothing(unbroken, tmp_path, monkeypatch, capsys):
    """Within a stage by a signal, after its training, and by one that fails once."""
    path, workdir = write(tmp_path), tmp_path / 'w'
    train, evaluate, again = build.train, build.evaluate, []

    def stopped(config, folder, quiet):
        if folder.name == 'teacher':
            return train(config, folder, quiet=quiet)
        train(config, folder, quiet=quiet, stop_at=7)
        raise Stopped(f'{folder}: stopped at step 7 of 20', signal.SIGTERM)

    def interrupted(*given, **options):
        raise Stopped('SIGHUP', signal.SIGHUP)

    def failing(*given, **options):
        raise OSError(28, 'No space left on device', 'somewhere')

    def tells(name, code, *said):
        assert cli.main(words(path, workdir, '--quiet')) == code
        *_, line = capsys.readouterr().err.splitlines()
        assert all(part in line for part in (f'stage {name}: ', *said)), line
        again.append(records(workdir)[name]['status'])

    monkeypatch.setattr(build, 'train', stopped)
    tells('first', 143, 'stopped at step 7 of 20; to go on, give the same command again: ')
    monkeypatch.setattr(build, 'train', train)
    monkeypatch.setattr(build, 'evaluate', interrupted)
    tells('first', 129, 'SIGHUP; to go on')
    monkeypatch.setattr(build, 'evaluate', failing)
    tells('first', 2, 'somewhere: No space left on device; make room there')
    assert again == ['begun', 'begun', 'failed'] and not (workdir / 'second').exists()
    monkeypatch.setattr(build, 'evaluate', evaluate)
    recipe.run(path, workdir, quiet=True)
    same(workdir, unbroken[1])


@pytest.mark.slow
def test_a_stage_made_anew_is_equal_and_its_children_are_kept(unbroken, done, tmp_path):
    path, workdir = done
    (workdir / 'first').rename(tmp_path / 'lost')
    before = (workdir / 'second' / 'config.json').stat().st_mtime_ns
    recipe.run(path, workdir, quiet=True)
    same(workdir, unbroken[1])
    assert (workdir / 'second' / 'config.json').stat().st_mtime_ns == before
    # What is to be measured after all is not made anew for it.
    recipe.run(write(tmp_path, [TEACHER | {'evaluate': True}, FIRST, SECOND]), workdir, quiet=True)
    known = records(workdir)['teacher']
    assert known['row']['nfe'] == 5 and known['digest'] == records(unbroken[1])['teacher']['digest']


def test_another_evaluation_measures_again_and_makes_nothing(done, tmp_path):
    path, workdir = done
    before = records(workdir)
    recipe.run(path, workdir, words=['--second.evaluation.samples=90'], quiet=True)
    known = records(workdir)
    assert known['second']['row']['protocol']['modes'].startswith('modes[pixels,90,')
    assert {name: one['digest'] for name, one in known.items()} == {
        name: one['digest'] for name, one in before.items()
    }
    assert known['first'] == before['first']


def process(path, workdir, *more, **environment):
    environment = {'PYTHONPATH': str(ROOT), 'JAX_NUM_CPU_DEVICES': '8'} | environment
    return subprocess.Popen(
        [sys.executable, '-m', 'fdistill', *words(path, workdir, *more)],
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_sigterm_ends_with_the_code_of_a_stop(tmp_path):
    path, workdir = write(tmp_path, [TEACHER]), tmp_path / 'w'
    running = process(path, workdir, '--teacher.training.steps=1000000')
    stops.wait_for((workdir / 'teacher' / 'metrics.jsonl').exists)
    running.send_signal(signal.SIGTERM)
    _, said = running.communicate(timeout=120)
    step = checkpoint.newest(workdir / 'teacher')
    assert running.returncode == 143 and step > 0
    last = f'fdistill: stage teacher: {workdir}/teacher: stopped at step {step} of 1000000; '
    assert said.splitlines()[-1].startswith(last), said


@pytest.mark.slow
@pytest.mark.faults
def test_kills_at_random_change_nothing(unbroken, tmp_path, survived):
    """SIGKILL ten times, whatever is done then, until the recipe is done."""
    path, workdir, times = write(tmp_path), tmp_path / 'w', random.Random(0)
    file = workdir / 'recipe.json'

    def written():
        return file.stat().st_mtime_ns if file.exists() else 0

    for _ in range(10):
        before, running = written(), process(path, workdir, '--quiet')
        while running.poll() is None and written() == before:
            time.sleep(0.02)
        time.sleep(times.uniform(0, 6))
        running.kill()
        running.communicate()
        survived('SIGKILL of a recipe')
    assert cli.main(words(path, workdir, '--quiet')) == 0
    same(workdir, unbroken[1])


@pytest.mark.slow
@pytest.mark.faults
def test_two_processes_run_a_recipe_together(tmp_path):
    """They stop together, and go on; the first of them keeps the records."""
    path, workdir = write(tmp_path), tmp_path / 'w'

    def both(*more):
        with socket.socket() as free:
            free.bind(('localhost', 0))
            place = f'localhost:{free.getsockname()[1]}'
        several = {'JAX_COORDINATOR_ADDRESS': place, 'JAX_NUM_PROCESSES': '2'}
        several |= {'JAX_NUM_CPU_DEVICES': '1'}
        return [process(path, workdir, *more, **several, JAX_PROCESS_ID=str(k)) for k in (0, 1)]

    running = both('--first.training.steps=100000')
    stops.wait_for((workdir / 'first' / 'metrics.jsonl').exists, 240)
    running[1].send_signal(signal.SIGTERM)
    said = [one.communicate(timeout=240)[1].splitlines()[-1] for one in running]
    assert [one.returncode for one in running] == [143, 143], said
    assert all('fdistill: stage first: ' in line for line in said)
    assert records(workdir)['first']['status'] == 'begun'
    shutil.rmtree(workdir / 'first')
    running = both()
    out = [one.communicate(timeout=240)[0] for one in running]
    assert [one.returncode for one in running] == [0, 0]
    assert [len(re.findall('second +done', one)) for one in out] == [1, 0]
    assert [record['status'] for record in records(workdir).values()] == ['done'] * 3


TWICE = [TEACHER, TEACHER]
LATER = [{**FIRST, 'set': {'teacher.workdir': '@second'}}, SECOND]


def changed(stage, **values):
    return [TEACHER, {**stage, 'set': stage['set'] | values}]


def pairs(**values):
    return [TEACHER, {'name': 'pairs', 'pairs': {'workdir': '@teacher', 'count': 10} | values}]


@pytest.mark.parametrize(
    ('stages', 'more', 'message'),
    [
        ({}, [], 'get_recipe() returned {}; it must return a list of stages'),
        ([], [], 'get_recipe() returned []'),
        ([3], [], 'stage 1: 3 is of type int; expected Entry'),
        ([{'config': 'teacher.py'}], [], 'stage 1.name: missing'),
        ([{'name': 'teacher'}], [], 'stage 1 (teacher): give one of config, pairs'),
        ([TEACHER | {'pairs': {}}], [], 'stage 1 (teacher): give one of config, pairs'),
        ([TEACHER | {'sett': {}}], [], "stage 1 (teacher): unknown 'sett'; did you mean set?"),
        ([TEACHER | {'set': []}], [], 'stage 1.set: [] is of type list; expected dict'),
        ([TEACHER | {'name': '../up'}], [], "name='../up' cannot be that of a folder"),
        ([TEACHER | {'name': 'seed'}], [], "name='seed' cannot be that of a folder and of an opt"),
        (TWICE, [], 'has two stages teacher; give each a name of its own'),
        (LATER, [], "stage first: teacher.workdir='@second': is this stage or a later one"),
        (
            changed(FIRST, **{'teacher.workdir': '@techer'}),
            [],
            "teacher.workdir='@techer': is no stage; did you mean @teacher?",
        ),
        ([TEACHER | {'config': 'none.py'}], [], 'stage teacher: --config=none.py: no such file'),
        (
            changed(FIRST, **{'method.segmens': 3}),
            [],
            'stage first: set: unknown key config.method.segmens; did you mean config.method.segm',
        ),
        (
            changed(FIRST, **{'training.steps': 'many'}),
            [],
            "stage first: set: config.training.steps='many' is of type str; the config has 20",
        ),
        (STAGES, ['--third=x'], '--third=x: no such stage; known: --teacher, --first, --second'),
        (STAGES, ['--frist.seed=1'], '--frist.seed=1: no such stage; did you mean --first?'),
        (STAGES, ['--second.sead=1'], 'stage second: unknown key config.sead; did you mean'),
        (STAGES, ['--second.seed=x'], 'stage second: --second.seed=x: not of type int'),
        (STAGES, ['--config.seed=1'], 'a recipe has stages; set --STAGE.key=value'),
        (STAGES, ['--retry'], 'run: unknown argument --retry'),
        (STAGES, ['--teacher=nowhere'], '--teacher=nowhere: has no config.json; give a folder'),
        (STAGES, ['--teacher=nowhere', '--teacher.seed=1'], '--teacher.seed: the stage is given'),
        # What only the last stage is wrong in.
        (STAGES, ['--second.method.segments=9'], 'stage second: config.method: segments=9: must'),
        (STAGES, ['--second.optimizer.student.learning_rate=-1'], 'stage second: config.optim'),
        (STAGES, ['--second.training.batch_size=63'], 'batch_size=63 is not divisible by the 8'),
        (
            STAGES,
            ['--second.seed=-1'],
            'stage second: config.data: seed=-1, start_step=0: must not',
        ),
        (
            changed(FIRST, data=dict(name='mixture', mixture='ring', labelled=False, flip=True)),
            [],
            "stage first: config.data: flip=True: 'ring' has no left and right",
        ),
        (STAGES, ['--second.evaluation.samples=0'], 'stage second: config.evaluation'),
        (
            [
                TEACHER,
                SECOND | {'set': {'teacher.workdir': '@teacher', 'start': {'workdir': 'no'}}},
            ],
            [],
            'stage second: config.start.workdir=no: has no config.json',
        ),
        (
            changed(FIRST, network=dict(name='mlp', width=8, blocks=1, embedding=8)),
            [],
            'stage first: config.network: has other parameters than that of config.teacher',
        ),
        (
            changed(FIRST, **{'data': dict(name='mixture', mixture='pair', labelled=False)}),
            [],
            'stage first: config.teacher.workdir=w/teacher: was trained on',
        ),
    ],
)
def test_a_mistake_is_one_line_before_anything_is_trained(
    stages, more, message, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, stages)
    assert cli.main(words('recipe.py', 'w', *more)) == 2
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert message in line and captured.out == ''
    assert not (tmp_path / 'w').exists()


def test_a_file_that_is_no_recipe_is_one_line(tmp_path, capsys):
    path = write(tmp_path)
    for text, message in (
        ('x = 1', 'has no get_recipe(); define this function, returning a list of dicts'),
        ('def get_recipe(): return 1 / 0', 'line 1: ZeroDivisionError'),
        ('def get_recipe(:', 'SyntaxError'),
    ):
        pathlib.Path(path).write_text(text)
        assert cli.main(words(path, tmp_path / 'w')) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f'fdistill: --recipe={path}: ') and message in line


@pytest.mark.parametrize(
    ('more', 'message'),
    [
        (
            ['--degrade.training.keep=3'],
            'stage student: config.path.steps=[50, 100, 200, 400]: that run will keep no '
            'checkpoint of step 50, but of 300, 350, 400; name these',
        ),
        (['--degrade.method.sigma_init=2.0'], 'holds a run of degrade at sigma_init=2.0; give one'),
    ],
)
def test_the_way_back_of_a_run_to_come_is_checked(more, message, tmp_path, capsys):
    path = ROOT / 'configs' / 'recipes' / 'disback.py'
    assert cli.main(words(path, tmp_path / 'w', *more)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line and not (tmp_path / 'w').exists()


def test_other_settings_or_parents_are_told_with_a_remedy(unbroken, done, tmp_path):
    path, workdir = done
    before = records(workdir)

    def told(message, **given):
        with pytest.raises(UserError, match=message) as error:
            recipe.run(path, workdir, quiet=True, **given)
        assert '\n' not in str(error.value) and records(workdir) == before

    folder = workdir / 'first'
    told(
        f'stage first: {folder} was made with optimizer.student.learning_rate=0.001, now 0.002; '
        f'give the same again, remove {folder} to make it anew, or give another --workdir',
        words=['--first.optimizer.student.learning_rate=2e-3'],
    )
    told('stage teacher: .* was made with seed=0, now 1', seed=1)
    # How often is logged is no matter, nor where the recipe lies.
    recipe.run(path, workdir, quiet=True, words=['--first.training.log_every=7'])
    moved = workdir.rename(tmp_path / 'moved')
    recipe.run(path, moved, quiet=True)
    workdir = moved
    other = unbroken[1] / 'first'
    told('stage first: .* was made from another teacher .digest', words=[f'--teacher={other}'])
    (workdir / 'first').rename(tmp_path / 'first')
    shutil.copytree(workdir / 'second', workdir / 'first')
    told('stage first: .*/first is no more what was made .digest .* bring it back from a copy')


def test_a_stage_may_be_given(unbroken, tmp_path, capsys):
    """Whoever has a teacher does not train it again; what is made from it is the same."""
    path, workdir, theirs = write(tmp_path), tmp_path / 'w', unbroken[1] / 'teacher'
    given = f'--teacher={theirs}'
    assert cli.main(words(path, workdir, given, '--quiet')) == 0
    assert f'teacher  given, {theirs}' in capsys.readouterr().out
    assert not (workdir / 'teacher').exists()
    ours, others = records(workdir), records(unbroken[1])
    for name in others:
        assert ours[name]['digest'] == others[name]['digest']
        assert ours[name]['parents'] == others[name]['parents']
    # It has to be said again: else the same command would train one.
    assert cli.main(words(path, workdir)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(f'stage teacher: was given; add {given} again, or give another --workdir')
    found = collect.runs([workdir])
    assert [run.name for run in found] == ['first', 'second']


@pytest.mark.slow
def test_what_is_foreseen_is_what_is_done(tmp_path, capsys):
    """Steps, numbers and bytes, of a network large enough that they are most of its files."""
    workdir = tmp_path / 'w'
    wide = ['--teacher.network.width=256', '--teacher.network.blocks=2']
    stages = [{**stage, 'evaluate': False} for stage in STAGES]
    path = write(tmp_path, stages)
    assert cli.main(words(path, workdir, '--dry-run', *wide)) == 0
    table = capsys.readouterr().out
    assert not workdir.exists()
    stages = recipe.load(path, workdir, wide)
    seen = recipe.ahead(stages)
    recipe.run(path, workdir, words=wide, quiet=True)
    for stage in stages:
        one, folder = seen[stage.name], workdir / stage.name
        made = build.from_workdir(folder)
        assert one.parameters == sum(leaf.size for leaf in jax.tree.leaves(made.params))
        assert one.work == '20 x 64' and one.samples == 20 * 64 and made.step == 20
        size = sum(f.stat().st_size for f in (folder / 'checkpoints').rglob('*') if f.is_file())
        assert 0.9 < size / one.bytes < 1.03  # They are compressed.
    evaluations = [of.evaluations for of in seen.values()]
    assert evaluations == [
        {'student': (1280, 1280)},
        *[{'teacher': (1280, 0), 'student': (2560, 1280)}] * 2,
    ]
    assert (
        'teacher  -               20 x 64' in table and '3 stages, 3 to do: 3,840 samples' in table
    )
    assert cli.main(words(path, workdir, '--dry-run', *wide)) == 0
    assert '3 stages, 0 to do: 0 samples' in capsys.readouterr().out


def test_a_failing_stage_is_named_with_its_code(tmp_path, capsys, monkeypatch):
    path, workdir = write(tmp_path), tmp_path / 'w'
    failing = '--first.optimizer.student.learning_rate=1e38'
    assert cli.main(words(path, workdir, failing, '--quiet')) == 1
    *_, line = capsys.readouterr().err.splitlines()
    assert line.startswith('fdistill: stage first: step ') and 'not finite' in line
    record = records(workdir)['first']
    assert record['status'] == 'failed' and 'not finite' in record['error']
    assert records(workdir)['teacher']['status'] == 'done' and 'second' not in records(workdir)
    with pytest.raises(UserError, match='1 failed, the first with: .* not finite'):
        collect.runs([workdir])
    assert cli.main(words(path, workdir, '--quiet')) == 2
    assert 'now 0.001; give the same again, remove' in capsys.readouterr().err
    tried = []
    monkeypatch.setattr(build, 'train', lambda config, folder, quiet: tried.append(folder.name))

    def bug(*given, **options):
        raise KeyError('a bug')

    monkeypatch.setattr(build, 'evaluate', bug)
    with pytest.raises(KeyError) as error:
        recipe.run(path, workdir, words=[failing], quiet=True)
    assert error.value.__notes__ == ['in the stage first'] and tried == ['first']


def test_one_recipe_runs_in_a_folder(unbroken, capsys):
    path, workdir = unbroken
    with recipe.lock.held(workdir):
        assert cli.main(words(path, workdir)) == 2
    assert 'is writing there; wait for it' in capsys.readouterr().err


def test_a_damaged_record_is_one_line(unbroken, tmp_path, capsys):
    path, workdir = write(tmp_path), tmp_path / 'w'
    workdir.mkdir()
    away = json.loads((unbroken[1] / 'recipe.json').read_text())
    away['stages']['first']['folder'] = '../elsewhere'
    for text in ('{', '{"recipe": "x"}', json.dumps(away)):
        (workdir / 'recipe.json').write_text(text)
        for command in (words(path, workdir), ['report', str(workdir)]):
            assert cli.main(command) == 2
            (line,) = capsys.readouterr().err.splitlines()
            assert f'{workdir}/recipe.json is damaged' in line


def test_a_report_of_a_recipe_shows_its_stages(unbroken, tmp_path):
    _, workdir = unbroken
    found = collect.runs([workdir])
    assert [run.name for run in found] == ['first', 'second']
    assert all(run.seconds > 0 and run.row['nfe'] for run in found)
    files = report.write([workdir], tmp_path / 'report', quiet=True)
    text = files['report.md'].read_text()
    assert 'first' in text and 'second' in text


@pytest.fixture
def make_pairs(monkeypatch):
    """Of the signature that `build.make_pairs` has; keeps what it was asked for."""
    asked = []

    def make_pairs(
        out,
        *,
        workdir: disk.Path | None = None,
        weights: disk.Path | None = None,
        count: int,
        seed: int = 0,
        solver: dict | None = None,
        dtype: str = 'float32',
        batch_size: int = 100,
        quiet: bool = False,
    ):
        asked.append((out, workdir, count, seed, solver))
        out.mkdir()
        (out / 'pairs.json').write_text(json.dumps({'count': count, 'seed': seed}))

    monkeypatch.setattr(build, 'make_pairs', make_pairs, raising=False)
    return asked


def test_pairs_are_a_stage(make_pairs, unbroken, tmp_path, capsys):
    stages = pairs(solver={'steps': 3})
    path, workdir, theirs = write(tmp_path, stages), tmp_path / 'w', unbroken[1] / 'teacher'
    given = [f'--teacher={theirs}', '--pairs.solver.sampler=euler', '--seed=3', '--quiet']
    assert cli.main(words(path, workdir, *given, '--dry-run')) == 0
    assert '10 pairs  0           teacher 30' in capsys.readouterr().out  # Of three steps.
    assert cli.main(words(path, workdir, *given)) == 0
    solver = {'steps': 3, 'sampler': 'euler'}
    assert make_pairs == [(workdir / 'pairs', str(theirs), 10, 3, solver)]
    record = records(workdir)['pairs']
    assert record['parents'] == {'teacher': records(unbroken[1])['teacher']['digest']}
    assert record['digest'] and record['settings']['solver.sampler'] == 'euler'
    assert cli.main(words(path, workdir, *given)) == 0 and len(make_pairs) == 1
    assert cli.main(words(path, workdir, *given, '--pairs.count=11')) == 2
    assert 'stage pairs: ' in (said := capsys.readouterr().err) and 'count=10, now 11' in said


def test_what_learns_from_pairs_to_come_is_checked(make_pairs, tmp_path, capsys):
    """Its data have the shape of its teacher's."""
    student = changed(FIRST, data=dict(name='pairs', path='@pairs'))[1:]
    path = write(tmp_path, pairs() + student)
    seen = recipe.ahead(recipe.load(path, tmp_path / 'w'))
    assert seen['first'].plain['image'] == {'shape': [2], 'num_classes': 0}
    assert seen['pairs'].bytes == 10 * 2 * 4


@pytest.mark.parametrize(
    ('stages', 'more', 'message'),
    [
        (pairs(cuont=3), [], 'stage pairs: pairs.cuont: unknown; did you mean count?'),
        (pairs(count='many'), [], "stage pairs: pairs.count: 'many' is of type str; expected int"),
        (pairs(quiet=True), [], 'stage pairs: pairs.quiet: unknown'),
        (pairs(solver={'step': 3}), [], 'stage pairs: pairs.solver.step: unknown; did you mean'),
        (pairs(solver={'sampler': 'hoin'}), [], 'stage pairs: config.method.sampler.name: unkno'),
        (pairs(), ['--pairs.count.x=3'], 'stage pairs: --pairs.count.x: count is a value, not a'),
        (pairs(workdir='nowhere'), [], 'stage pairs: pairs.workdir=nowhere: has no config.json'),
        (pairs(), ['--pairs.workdir=7'], 'stage pairs: pairs.workdir: 7 is of type int; exp'),
        (pairs(weights='a.safetensors'), [], 'stage pairs: give either --workdir=DIR'),
        (pairs(dtype='int8'), [], "stage pairs: --dtype: unknown 'int8'; did you mean uint8?"),
        (pairs(dtype='uint8'), [], 'stage pairs: --dtype=uint8: is for images'),
        (pairs(count=-3), [], 'stage pairs: --count=-3'),
        (pairs(seed=-1), [], 'stage pairs: --count=10, --batch-size=256, --seed=-1'),
        (pairs(batch_size=2000), [], 'the batch size at most 1024'),
        (pairs(solver=3), [], 'stage pairs: pairs.solver: 3 is of type int; expected'),
        (
            pairs() + changed(FIRST, **{'teacher.workdir': '@pairs'})[1:],
            [],
            "stage first: teacher.workdir='@pairs': will hold pairs; name a stage with 'config'",
        ),
        (
            [TEACHER, *changed(FIRST, data=dict(name='pairs', path='@teacher'))[1:]],
            [],
            "data.path='@teacher': will hold a run with a checkpoint; name a stage with 'pairs'",
        ),
    ],
)
def test_a_mistake_in_pairs_is_one_line(
    stages, more, message, make_pairs, tmp_path, capsys, monkeypatch
):
    test_a_mistake_is_one_line_before_anything_is_trained(
        stages, more, message, tmp_path, capsys, monkeypatch
    )
    assert not make_pairs
