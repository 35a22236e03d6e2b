"""Everything a user does, through the command line: a teacher, a student by every method, its
numbers, its samples."""

import inspect
import json
import pathlib
import re
import shutil

import jax
import numpy as np
import pytest
import stops
from ml_collections import ConfigDict
from PIL import Image
from registered import every, taught

from fdistill import build, cli
from fdistill import config as configs
from fdistill.build.train import ready
from fdistill.config import parameters
from fdistill.errors import UserError
from fdistill.files import disk
from fdistill.methods import METHODS
from fdistill.training import loop, sharding

CONFIGS = pathlib.Path(__file__).parents[1] / 'configs'
LAW = dict(name='lognormal', mean=0.0, std=1.0)
STUDENTS = [name for name in METHODS if taught(name)]


def degraded(teacher):
    """A degradation of ten steps, of which two are kept."""
    folder = teacher.parent / 'degraded'
    if not folder.exists():
        settings = student_config('degrade', teacher)
        settings['training'] = settings['training'] | {'checkpoint_every': 5}
        build.train(ConfigDict(settings), folder, quiet=True)
    return folder


def student_config(method, teacher):
    """A few steps of a method on the digits: what it takes, what the `TINY` of its own file says,
    and an optimizer for each of its roles."""
    function = METHODS[method]
    own = inspect.getmodule(getattr(function, 'func', function)).TINY[method]
    laws = {
        name: LAW for name in ('law', 'student_law', 'critic_law') if name in parameters(function)
    }
    plain = dict(
        seed=0,
        data=dict(name='digits'),
        teacher=dict(workdir=str(teacher)),
        method=dict(name=method) | laws,
        training=dict(
            steps=10,
            batch_size=16,
            ema_half_life=1e3,
            log_every=5,
            checkpoint_every=0,
            sample_every=10,
        ),
        evaluation=dict(samples=64, batch_size=64),
    )
    for section, values in own.items():
        if section == 'network':  # The teacher's, but for what it embeds besides.
            values = {'numbers': values['numbers']}
        plain[section] = plain.get(section, {}) | values
    if 'path' in own:
        plain['path'] = plain['path'] | {'workdir': str(degraded(teacher))}
    resolved = build.resolve(plain, build.load_data(plain, 'train'))
    roles = build.experiment(resolved).method.losses
    return plain | dict(optimizer={role: dict(learning_rate=1e-4) for role in roles})


def run(capsys, *words):
    """Runs a command that must succeed; what it printed."""
    capsys.readouterr()
    assert cli.main([str(word) for word in words]) == 0
    return capsys.readouterr()


@pytest.fixture(scope='module')
def teacher(tmp_path_factory):
    """The digits teacher of configs/, smaller and after 20 steps."""
    workdir = tmp_path_factory.mktemp('end') / 'teacher'
    small = {
        'network.width': 32,
        'network.blocks': 1,
        'network.embedding': 16,
        'method.grid.steps': 4,
    }
    small |= {
        'training.steps': 20,
        'training.log_every': 10,
        'optimizer.student.warmup': 5,
        'evaluation.samples': 64,
    }
    overrides = [f'--config.{name}={value}' for name, value in small.items()]
    assert (
        cli.main(
            [
                'train',
                f'--config={CONFIGS / "digits_teacher.py"}',
                f'--workdir={workdir}',
                *overrides,
            ]
        )
        == 0
    )
    return workdir


def check_run(capsys, workdir, steps, nfe):
    """Evaluates and samples a run through the command line and through from_workdir."""
    lines = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
    assert lines[-1]['step'] == steps and all(
        np.isfinite(list(line.values())).all() for line in lines
    )

    row = json.loads(run(capsys, 'evaluate', f'--workdir={workdir}', '--quiet').out)
    assert (row['step'], row['nfe']) == (steps, nfe)
    assert row['details']['versions']['jax'] == jax.__version__
    # What a run was trained on is told beside the numbers.
    told = ('protocol', 'details', 'trained_on')
    numbers = {key: value for key, value in row.items() if key not in told}
    assert all(np.isfinite(value) for value in numbers.values())
    assert set(row['protocol']) == set(numbers) - {'step', 'nfe', 'seconds'}
    assert json.loads((workdir / 'eval' / f'step-{steps:09d}.json').read_text()) == row

    printed = run(capsys, 'sample', f'--workdir={workdir}', '--n=9', '--seed=3', '--label=7').out
    path = pathlib.Path(printed.splitlines()[-1])
    assert path == workdir / 'samples' / 'sample-3.png'
    with Image.open(path) as picture:
        # Three rows of three digits of 8 x 8 pixels, each eight times as large and framed.
        assert picture.size == (3 * 66, 3 * 66) and picture.mode == 'RGB'
    array = workdir / 'few.npy'
    run(
        capsys, 'sample', f'--workdir={workdir}', '--n=9', '--seed=3', '--label=7', f'--out={array}'
    )

    loaded = build.from_workdir(workdir)
    samples = loaded.generate(jax.random.key(3), 9, 7)
    np.testing.assert_array_equal(samples, np.load(array))
    assert samples.shape == (9, 8, 8, 1) and (loaded.step, loaded.nfe, loaded.num_classes) == (
        steps,
        nfe,
        10,
    )
    assert not np.array_equal(samples, loaded.generate(jax.random.key(4), 9, 7))
    x0 = loaded.denoise(samples + 0.01, 0.01)
    np.testing.assert_allclose(x0, samples, atol=0.05)
    return loaded


@pytest.mark.optimised  # As it evaluates first, it trains the classifier, 1500 steps.
def test_teacher(teacher, capsys):
    loaded = check_run(capsys, teacher, 20, 7)
    # Heun with twice the steps, and Euler, are other samples by other costs; the run in the folder
    # stays as it is.
    assert build.from_workdir(teacher, steps=8).nfe == 15
    assert build.from_workdir(teacher, sampler='euler').nfe == 4
    label = np.zeros(2, np.int32)
    noise = np.random.default_rng(0).standard_normal((2, 8, 8, 1)).astype(np.float32)
    np.testing.assert_array_equal(
        loaded.sample(noise, label), build.from_workdir(teacher).sample(noise, label)
    )


def test_samplers_of_a_teacher(teacher, capsys):
    """By name with options, its trajectory as a picture and as an array; samples with noise are
    functions of their start."""
    words = ['sample', f'--workdir={teacher}', '--n=3', '--seed=1']
    run(capsys, *words, '--sampler=ghvb', '--order=3.8', '--steps=5', f'--out={teacher}/ghvb.npy')
    section = {'name': 'ghvb', 'order': 3.8}
    np.testing.assert_array_equal(
        np.load(teacher / 'ghvb.npy'),
        build.from_workdir(teacher, sampler=section, steps=5).generate(jax.random.key(1), 3),
    )
    run(capsys, *words, '--trajectory', '--steps=5', f'--out={teacher}/path.png')
    with Image.open(teacher / 'path.png') as picture:
        # A row a sample; the network's estimates at five levels, then the sample.
        assert picture.size == (6 * 66, 3 * 66)
    run(
        capsys,
        *words,
        '--trajectory',
        '--sampler=ancestral',
        '--steps=5',
        f'--out={teacher}/path.npy',
    )
    path = np.load(teacher / 'path.npy')
    assert path.shape == (3, 6, 8, 8, 1)
    random = build.from_workdir(teacher, sampler='ancestral', steps=5)
    np.testing.assert_allclose(random.generate(jax.random.key(1), 3), path[:, -1], atol=1e-5)
    for words, message in (
        (['--sampler=ghvb', '--order=6'], 'order=6: must lie in (0, 5]'),
        (['--sampler=ghvb', '--oder=3'], 'did you mean order?'),
        (['--sampler=heun', '--s_churn=lots'], "'lots' is of type str; expected float"),
        (['--order=3'], 'unknown argument --order=3'),
    ):
        assert message in refused(capsys, 'sample', f'--workdir={teacher}', *words)


def test_corrections_and_superposition_of_teachers(teacher, tmp_path, capsys):
    """What changes sampling at inference time, through the command line."""

    def drawn(*words):
        run(capsys, 'sample', f'--workdir={teacher}', '--n=4', f'--out={tmp_path}/x.npy', *words)
        return np.load(tmp_path / 'x.npy')

    plain = drawn()
    for words in (
        ['--sampler=heun', '--shift_window=0.3', '--shift_variance=0.2'],
        ['--sampler=heun', '--start_mean=1.0', '--start_variance=0.5'],
        [f'--with={teacher}', '--operator=or', '--steps=6'],
    ):
        samples = drawn(*words)
        assert samples.shape == plain.shape and np.isfinite(samples).all()
        assert not np.array_equal(samples, plain)
    # Batches of any size begin alike.
    np.testing.assert_allclose(drawn('--batch-size=4'), plain, atol=1e-6)
    several = drawn('--batch-size=3')
    assert several.shape == plain.shape and not np.array_equal(several[3], plain[3])
    for words, message in (
        (['--sampler=heun', '--shift_window=1.5'], 'window=1.5'),
        ([f'--with={teacher}', '--temperature=0'], 'temperature=0.0: must be > 0'),
        ([f'--with={teacher}', '--trajectory'], 'several teachers at once have none'),
        (['--batch-size=0'], '--batch-size=0'),
        (['--n=20000', f'--out={tmp_path}/x.png'], 'at most 10000'),
    ):
        assert message in refused(capsys, 'sample', f'--workdir={teacher}', *words)


@pytest.mark.parametrize('method', every(STUDENTS))
def test_student(teacher, tmp_path, capsys, method):
    file, workdir = tmp_path / f'{method}.py', tmp_path / 'run'
    file.write_text(
        'from ml_collections import ConfigDict\n'
        f'def get_config(): return ConfigDict({student_config(method, teacher)!r})\n'
    )
    run(capsys, 'train', f'--config={file}', f'--workdir={workdir}')
    assert (workdir / 'samples' / '000000010.png').exists()
    assert any((workdir / 'tensorboard').iterdir())
    stops.check(configs.load(str(file)), workdir, tmp_path / 'broken')
    # A student needs neither its teacher nor the config file any more.
    file.unlink()
    made = configs.to_json(configs.read(workdir))
    if build.has_solver(made):  # No generator: sampled as a teacher is.
        check_run(capsys, workdir, 10, 2 if method == 'reflow' else 5)
        return
    jumps = 2 if method == 'progressive' else made['method'].get('segments', 1)
    check_run(capsys, workdir, 10, jumps)
    if jumps == 1:
        assert '--trajectory: ' in refused(capsys, 'sample', f'--workdir={workdir}', '--trajectory')
    if not build.is_flow_map(configs.read(workdir)):
        assert 'takes neither --sampler nor --steps' in refused(
            capsys, 'sample', f'--workdir={workdir}', '--steps=5'
        )


@pytest.mark.parametrize('method', every(STUDENTS))
def test_student_of_another_network(teacher, tmp_path, method):
    """`start` names the run that the student begins as; its network is that run's, while the fake
    score has the teacher's and begins as the teacher."""
    small = configs.load(str(CONFIGS / 'digits_teacher.py'))
    build.override(
        small,
        [
            f'--config.{name}={value}'
            for name, value in {
                'network.width': 16,
                'network.blocks': 1,
                'network.embedding': 8,
                'denoiser.sigma_data': 0.3,
                'method.grid.steps': 4,
                'training.steps': 2,
                'training.batch_size': 16,
            }.items()
        ],
    )
    build.train(small, tmp_path / 'small', quiet=True)
    plain = student_config(method, teacher) | {'start': {'workdir': str(tmp_path / 'small')}}
    made = ready(ConfigDict(plain), tmp_path / 'run')
    assert made.plain['network']['width'] == 16 and made.plain['teacher']['network']['width'] == 32
    batch = {'x': np.zeros((2, 8, 8, 1), np.float32), 'condition': {'label': np.zeros(2, np.int32)}}
    assert made.built.method.begins == ('start',)
    # The critic's loss is weighed as its fake score, which is like the teacher.
    of_teacher = made.plain['teacher']['denoiser']['sigma_data']
    assert made.built.parts.get('sigma_data', of_teacher) == of_teacher != 0.3
    params, _ = made.built.method.init(jax.random.key(0), batch, made.frozen)
    compared = {'student': (params['student'], tmp_path / 'small')}
    if 'fake_score' in params.get('critic', {}):
        theirs = degraded(teacher) if 'path' in plain else teacher
        compared['fake_score'] = params['critic']['fake_score'], theirs
    for own, folder in compared.values():
        theirs = build.from_workdir(folder).params
        found = dict(jax.tree.leaves_with_path(own))  # Of numbers it has arrays of its own.
        for path, leaf in jax.tree.leaves_with_path(theirs):
            np.testing.assert_array_equal(found[path], leaf)
    if method == 'sim':  # Its steps are those of all, and the quickest to compile.
        build.train(ConfigDict(plain), tmp_path / 'run', quiet=True)
        assert build.from_workdir(tmp_path / 'run').config.network.width == 16
        planned = build.plan(ConfigDict(plain), 'cpu:1', tmp_path / 'plan')
        assert planned['memory']['frozen'] > 0

    for change, message in (
        ({'start': {}}, 'config.start={}: give one of workdir, weights'),
        ({'start': {'workdir': str(teacher), 'guidance': 2.0}}, 'and nothing else'),
        ({'start': {'workdir': 3}}, 'config.start.workdir=3: must be a path'),
        ({'network': {'name': 'mlp', 'width': 8}}, 'config.network: has other parameters than'),
        ({'network': {'blocks': 3}}, 'config.network: has other parameters than'),
        ({'denoiser': {'noise_input': 'angle'}}, 'were trained with .log'),
    ):
        with pytest.raises(UserError, match=message):
            ready(ConfigDict(plain | change), tmp_path / 'run')


def warmed(teacher):
    """A one-step student half as wide as the teacher, after ten steps."""
    folder = teacher.parent / 'warmed'
    if not folder.exists():
        build.train(ConfigDict(of_another_size('sim', teacher, 'slice')), folder, quiet=True)
    return folder


def of_another_size(method, teacher, begins):
    """The config of a student half as wide as its teacher: a slice of it, a student that has been
    warmed up by another method, or with weights of its own."""
    plain = student_config(method, teacher)
    plain['network'] = plain.get('network', {}) | {'width': 16, 'embedding': 8}
    if begins == 'slice':
        return plain | {'start': {'slice': True}}
    if begins == 'warmed':
        return plain | {'start': {'workdir': str(warmed(teacher))}}
    own = {'from_teacher': False} if 'from_teacher' in parameters(METHODS[method]) else {}
    return plain | {'method': plain['method'] | own}


@pytest.mark.parametrize(
    'method, begins',
    [
        *(pytest.param(*one.values, 'slice', marks=one.marks) for one in every(STUDENTS)),
        ('f_distill', 'warmed'),
        ('f_distill', 'scratch'),
        *(
            pytest.param(method, begins, marks=pytest.mark.slow)
            for method in STUDENTS
            for begins in ('warmed', 'scratch')
            if method != 'f_distill'
        ),
    ],
)
def test_student_of_another_size_begins(teacher, tmp_path, method, begins):
    """As what it is told to, and its fake score as the teacher in any case."""
    plain = of_another_size(method, teacher, begins)
    made = ready(ConfigDict(plain), tmp_path / 'run')
    batch = {'x': np.zeros((2, 8, 8, 1), np.float32), 'condition': {'label': np.zeros(2, np.int32)}}
    params, _ = made.built.method.init(jax.random.key(0), batch, made.frozen)
    own = dict(jax.tree.leaves_with_path(params['student']))
    base = build.from_workdir(teacher).params
    wanted = build.from_workdir(warmed(teacher)).params if begins == 'warmed' else base
    for path, leaf in jax.tree.leaves_with_path(wanted):
        half = leaf[tuple(slice(None, None, N // n) for N, n in zip(leaf.shape, own[path].shape))]
        assert half.shape == own[path].shape
        assert np.array_equal(own[path], half) == (begins != 'scratch')
    if 'fake_score' in params.get('critic', {}):
        theirs = build.from_workdir(degraded(teacher)).params if 'path' in plain else base
        jax.tree.map(np.testing.assert_array_equal, params['critic']['fake_score'], theirs)


@pytest.mark.parametrize(
    'method, begins',
    [  # The program is the same whatever a student begins as.
        ('sim', 'slice'),
        pytest.param('f_distill', 'scratch', marks=pytest.mark.slow),
        *(
            pytest.param(method, 'slice', marks=pytest.mark.slow)
            for method in STUDENTS
            if method != 'sim'
        ),
    ],
)
def test_student_of_another_size_is_trained(teacher, tmp_path, method, begins):
    """Eight devices take the steps of one, and a stop changes nothing."""
    plain = of_another_size(method, teacher, begins)
    plain['training'] = plain['training'] | {'sample_every': 0}
    config = ConfigDict(plain).lock()
    eight = build.train(config, tmp_path / 'eight', quiet=True)
    stops.check(config, tmp_path / 'eight', tmp_path / 'broken')
    made = ready(config, tmp_path / 'one', mesh := sharding.mesh_over(jax.devices()[:1]))
    given = made.built.method, made.optimizers, made.frozen, made.batches, made.training
    saved = dict(workdir=tmp_path / 'one', config=made.plain, seed=made.seed, quiet=True)
    one = loop.train(*given, mesh=mesh, **saved)
    for a, b in zip(jax.tree.leaves(one.params), jax.tree.leaves(eight.params), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        assert np.linalg.norm(a - b) <= 1e-4 * max(np.linalg.norm(a), 1e-2)


def test_what_is_no_slice_of_a_teacher_is_one_line(teacher, tmp_path):
    plain = student_config('sim', teacher) | {'start': {'slice': True}}
    small = str(tmp_path / 'small')
    of_images = {'name': 'dit', 'width': 16, 'depth': 1, 'heads': 2, 'patch': 4}
    for change, message in (
        ({'network': {'width': 40}}, 'config.network: .* has shape .* make it smaller along each'),
        ({'network': of_images}, "name='dit': no slice of config.start, which is 'mlp'"),
        ({'denoiser': {'noise_input': 'angle'}}, 'were trained with .log'),
        ({'start': {'slice': 1}}, 'config.start.slice: 1 is of type int; expected bool'),
        ({'start': {'slice': False}}, 'give one of workdir, weights.* or slice=True'),
        ({'start': {'slice': True, 'workdir': small}}, 'config.start.workdir=.*no config.json'),
        ({'teacher': {}, 'network': {'name': 'mlp'}}, "config.start={'slice': True}: give one of"),
    ):
        with pytest.raises(UserError, match=message):
            ready(ConfigDict(plain | change), tmp_path / 'run')
    # Of another run than the teacher.
    build.train(ConfigDict(plain | {'network': {'width': 16}}), small, quiet=True)
    cut = plain | {'network': {'width': 8}, 'start': {'slice': True, 'workdir': small}}
    made = ready(ConfigDict(cut), tmp_path / 'run')
    theirs = build.from_workdir(small).params['input']['bias']
    np.testing.assert_array_equal(made.frozen['start']['input']['bias'], theirs[::2])
    assert made.plain['network'] == made.plain['start']['network'] | {'width': 8}
    assert made.plain['origin'].keys() == {'data', 'images', 'teacher', 'start'}


def test_a_way_back_is_of_one_folder_and_one_student(teacher, tmp_path, capsys):
    """What is no degradation of this student is one line, and other checkpoints are other weights
    of its path."""
    plain = student_config('disback', teacher)
    made = ready(ConfigDict(plain), tmp_path / 'run')
    assert made.plain['origin'].keys() == {'data', 'images', 'teacher', 'path'}
    kept = [build.from_workdir(degraded(teacher), step=step).params for step in (5, 10)]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *kept)
    jax.tree.map(np.testing.assert_array_equal, made.frozen['path'], stacked)
    run_of = {'workdir': str(degraded(teacher)), 'steps': (5, 10)}
    for change, message in (
        ({'path': run_of | {'workdir': str(teacher)}}, 'holds a run of pretrain; give one of'),
        ({'path': run_of | {'workdir': str(tmp_path)}}, 'config.path.workdir=.*has no config.json'),
        ({'path': run_of | {'steps': (5, 7)}}, 'step=7: .* has checkpoints of the steps 5, 10'),
        ({'path': run_of | {'steps': (10, 5)}}, 'name checkpoints of the run, rising'),
        ({'path': run_of | {'step': 5}}, 'config.path.step: unknown'),
        ({'method': plain['method'] | {'sigma_init': 2.0}}, 'degrade at sigma_init=1.0; give'),
        ({'method': plain['method'] | {'interval': 0}}, 'interval=0: must be >= 1'),
    ):
        with pytest.raises(UserError, match=message) as error:
            ready(ConfigDict(plain | change), tmp_path / 'run')
        assert '\n' not in str(error.value)
    # The same run, had it been of other data or of another teacher; of before origins were noted.
    copy = shutil.copytree(degraded(teacher), tmp_path / 'copy')
    known = json.loads((copy / 'config.json').read_text())
    other_data = known | {'image': known['image'] | {'num_classes': 9}}
    other_teacher = known | {'origin': known['origin'] | {'teacher': 'ab'}}
    unknown = {name: section for name, section in known.items() if name != 'origin'}
    there = ConfigDict(plain | {'path': run_of | {'workdir': str(copy)}})
    for written, message in (
        (other_data, 'was trained on .*9.*, not .*10'),
        (other_teacher, 'began with other weights of its teacher'),
    ):
        disk.write_json(copy / 'config.json', written)
        with pytest.raises(UserError, match=f'config.path.workdir=.*{message}') as error:
            ready(there, tmp_path / 'run')
        assert '\n' not in str(error.value)
    disk.write_json(copy / 'config.json', unknown)
    ready(there, tmp_path / 'run')
    del plain['path']
    with pytest.raises(UserError, match='config.path: missing'):
        ready(ConfigDict(plain), tmp_path / 'run')


def test_student_of_two_steps(teacher, tmp_path, capsys):
    """Its evaluation counts two evaluations; it has a trajectory; stopped at a log and after it, it
    resumes as the same run, and as no run of other levels or of another teacher."""
    levels = '--config.method.levels=(0.8,)'
    small = {'teacher.workdir': teacher, 'training.steps': 10, 'training.batch_size': 16}
    small |= {'training.log_every': 5, 'evaluation.samples': 64, 'evaluation.batch_size': 64}
    words = [f'--config={CONFIGS / "digits_sim.py"}', levels]
    words += [f'--config.{name}={value}' for name, value in small.items()]
    workdir = tmp_path / 'run'
    run(capsys, 'train', *words, f'--workdir={workdir}')
    loaded = check_run(capsys, workdir, 10, 2)
    assert loaded.config.method.levels == (0.8,)

    array = tmp_path / 'path.npy'
    few = ['sample', f'--workdir={workdir}', '--n=3', '--seed=1', '--trajectory']
    run(capsys, *few, f'--out={array}')
    path = np.load(array)
    assert path.shape == (3, 3, 8, 8, 1)  # What it took x0 for at two levels, then the sample.
    np.testing.assert_allclose(path[:, 1], path[:, 2], rtol=0, atol=1e-6)
    samples = loaded.generate(jax.random.key(1), 3)
    np.testing.assert_allclose(path[:, -1], samples, atol=1e-5)
    run(capsys, *few, f'--out={tmp_path}/path.png')
    with Image.open(tmp_path / 'path.png') as picture:
        assert picture.size == (3 * 66, 3 * 66)
    assert 'takes neither --sampler nor --steps' in refused(capsys, *few, '--steps=3')

    config = configs.load(str(CONFIGS / 'digits_sim.py'))
    build.override(config, words[1:])
    for stop in (5, 6):
        build.train(config, tmp_path / 'broken', quiet=True, stop_at=stop)
    words.append(f'--workdir={tmp_path / "broken"}')
    other = levels.replace('0.8', '0.5')
    assert 'config.method.levels=' in refused(capsys, 'train', *words, other)
    # A teacher of the same config and other weights is another; the same one may lie elsewhere.
    build.train(build.from_workdir(teacher).config, tmp_path / 'young', quiet=True, stop_at=2)
    young, moved = (f'--config.teacher.workdir={tmp_path / name}' for name in ('young', 'moved'))
    shutil.copytree(teacher, tmp_path / 'moved')
    line = refused(capsys, 'train', *words, young)
    assert 'began with other weights of its teacher' in line
    run(capsys, 'train', *words, moved)
    for one, two in zip(
        *(jax.tree.leaves(build.from_workdir(f).params) for f in (workdir, tmp_path / 'broken'))
    ):
        np.testing.assert_array_equal(one, two)
    for wrong in ('(3.0,)', '(0.8, 0.8)', '(0.0,)'):
        line = refused(
            capsys, 'train', *words, levels.replace('(0.8,)', wrong), f'--workdir={tmp_path / "no"}'
        )
        assert 'strictly falling from below sigma_init' in line


def refused(capsys, *words):
    capsys.readouterr()
    assert cli.main([str(word) for word in words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_what_can_be_wrong_with_a_run_is_one_line(teacher, tmp_path, capsys):
    for command in ('evaluate', 'sample'):
        assert 'has no config.json' in refused(capsys, command, f'--workdir={tmp_path}')
    copy = shutil.copytree(teacher, tmp_path / 'copy')
    for words, message in (
        (['--label=10'], '--label=10'),
        (['--n=0'], '--n=0'),
        (['--out=x.jpg'], '--out=x.jpg'),
        (['--sampler=huen'], 'huen'),
    ):
        assert message in refused(capsys, 'sample', f'--workdir={copy}', *words)
    assert 'samples=1' in refused(capsys, 'evaluate', f'--workdir={copy}', '--samples=1', '--quiet')
    for path in (copy / 'checkpoints').rglob('d/*'):
        path.write_bytes(b'')
    for command in ('evaluate', 'sample'):
        assert re.search(
            'no checkpoint in .* can be restored', refused(capsys, command, f'--workdir={copy}')
        )
    shutil.rmtree(copy / 'checkpoints')
    assert 'has no checkpoint yet' in refused(capsys, 'sample', f'--workdir={copy}')
    (copy / 'config.json').write_text('{')
    assert 'config.json is damaged' in refused(capsys, 'sample', f'--workdir={copy}')
