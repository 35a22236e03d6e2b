"""The benchmark measures what it says, on small networks, and names mistakes in one line."""

import importlib.util
import json
import pathlib
import sys

import pytest

from fdistill.errors import UserError

ROOT = pathlib.Path(__file__).parents[1]


def load(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / 'experiments' / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


bench, bench_fastgen = load('bench'), load('bench_fastgen')
CONFIGS = sorted(
    str(path.relative_to(ROOT))
    for folder in ('configs', 'configs/sweeps')
    for path in (ROOT / folder).glob('*.py')
)


@pytest.fixture
def measure(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, 'LONG_ENOUGH', 0.0)
    monkeypatch.setattr(bench, 'peak_matmul', lambda: 1e9)

    def run(*words):
        assert bench.main([*words, '--repeats=1', f'--json={tmp_path / "report.json"}']) == 0
        return json.loads((tmp_path / 'report.json').read_text())

    return run


def test_student(measure):
    report = measure(
        f'--config={ROOT}/configs/ring.py:js',
        '--batch=8',
        '--config.network.width=32',
        '--config.network.blocks=1',
    )
    assert list(report['programs']) == ['student step', 'critic step', 'sampling']
    assert report['overrides'] == ['--config.network.width=32', '--config.network.blocks=1']
    for row in report['programs'].values():
        assert row['images_per_second'] == pytest.approx(8e3 / row['milliseconds'])
        assert row['share_of_peak'] == pytest.approx(row['gflop'] / (row['milliseconds'] / 1e3))
        assert row['compile_seconds'] > 0 and row['program_mib'] > 0


def test_teacher_of_given_shape_counts_every_evaluation(measure):
    words = [
        f'--config={ROOT}/configs/digits_teacher.py',
        '--shape=4,4,1',
        '--classes=3',
        '--batch=4',
    ]
    reports = [measure(*words, f'--config.method.grid.steps={steps}') for steps in (2, 4)]
    few, many = ({**report['programs']['sampling'], 'nfe': report['nfe']} for report in reports)
    assert list(reports[0]['programs']) == ['student step', 'sampling']
    assert (few['nfe'], many['nfe']) == (3, 7)
    assert many['gflop'] / few['gflop'] == pytest.approx(7 / 3)


def test_flops_of_a_dense_layer():
    import jax
    import jax.numpy as jnp

    compiled = jax.jit(lambda a, b: a @ b).lower(jnp.ones((8, 16)), jnp.ones((16, 32))).compile()
    assert bench._flops(compiled) == 2 * 8 * 16 * 32


@pytest.mark.parametrize('file', CONFIGS)
def test_every_config_needs_neither_data_nor_teacher(file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plain, size = resolve(file)
    assert size > 1 and 'network' in plain
    for part in ('teacher', 'start'):
        if not plain.get(part, {}).keys().isdisjoint(('workdir', 'weights')):
            assert plain[part]['network']['name']


def resolve(file, *words):
    return bench.resolve(*bench.parse([f'--config={ROOT}/{file}', *words]))


def test_a_student_of_another_network_is_what_it_starts_as():
    small, large = dict(width=64, heads=2), dict(width=128, heads=4)
    flow_map, _ = resolve('configs/sweeps/mnist_small.py:flow_map')
    assert flow_map['network'].items() >= (small | dict(name='dit', numbers=['until'])).items()
    plain, _ = resolve('configs/sweeps/mnist_small.py:sim')
    assert plain['network'].items() >= small.items() and plain['network'] == plain['start'].pop(
        'network'
    )
    assert plain['teacher']['network'].items() >= large.items()


@pytest.mark.slow  # It compiles two networks of the size that they have.
def test_a_student_of_another_network_is_measured(measure):
    report = measure(f'--config={ROOT}/configs/sweeps/mnist_small.py:sim', '--batch=1')
    assert list(report['programs']) == ['student step', 'critic step', 'sampling']


def test_data_that_are_reduced():
    plain, _ = resolve('configs/cifar10_dit_teacher.py')
    assert plain['image'] == {'shape': [16, 16, 3], 'num_classes': 4}
    plain, _ = resolve('configs/cifar10_dit_teacher.py:all')
    assert plain['image'] == {'shape': [16, 16, 3], 'num_classes': 10}
    plain, _ = resolve('configs/cifar10_dit_teacher.py', '--config.data.size=8', '--classes=3')
    assert plain['image'] == {'shape': [8, 8, 3], 'num_classes': 3}
    with pytest.raises(UserError, match='config.data: size=5: must be a divisor of the side'):
        resolve('configs/cifar10_dit_teacher.py', '--config.data.size=5')


@pytest.mark.parametrize(
    'words, message',
    [
        (['--batch=0'], '--batch=0: need at least 1'),
        (['--batch=many'], 'invalid int value'),
        (['--repeats=0'], '--repeats=0: need at least 1'),
        (['--shape=3,x'], '--shape: give height,width,channels'),
        (['--shape=3,0,1'], '--shape: give height,width,channels'),
        (['--colour'], 'unknown argument --colour'),
        (['--config.seed'], 'unknown argument --config.seed'),
        (['--config=nowhere.py'], '--config=nowhere.py: no such file'),
        (
            [f'--config={ROOT}/configs/digits_sid.py', '--config.data.name=zoo'],
            "no shape known for data 'zoo'",
        ),
        (
            [f'--config={ROOT}/configs/digits_sid.py', '--config.teacher.workdir=runs/ring-2x-1'],
            'no file of configs/ is that of config.teacher, runs/ring-2x-1',
        ),
        (
            [f'--config={ROOT}/configs/digits_sid.py', '--config.method.alhpa=1'],
            'did you mean config.method.alpha',
        ),
    ],
)
def test_mistakes_are_one_line(words, message):
    with pytest.raises(UserError, match=message.replace('(', r'\(')) as error:
        bench.main(words)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize(
    'words, message',
    [
        ([], 'required: --fastgen, --python'),
        (['--fastgen=.', '--python=python', '--batch=0'], '--batch=0: need at least 1'),
        (['--fastgen=nowhere', '--python=python'], '--fastgen=nowhere: no checkout of FastGen'),
        (['--fastgen=.', '--python=nowhere'], '--python=nowhere: no Python that can import torch'),
        (['--fastgen=.', f'--python={sys.executable}'], 'no Python that can import torch'),
    ],
)
def test_mistakes_against_fastgen_are_one_line(words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'fastgen/methods').mkdir(parents=True)
    (tmp_path / 'fastgen/methods/model.py').touch()
    # So that this interpreter has no torch, wherever the test runs.
    (tmp_path / 'torch.py').write_text('raise ImportError')
    monkeypatch.setenv('PYTHONPATH', str(tmp_path))
    with pytest.raises(UserError, match=message) as error:
        bench_fastgen.main(words)
    assert '\n' not in str(error.value)


def test_a_cycle_against_fastgen_is_a_students_step_and_four_of_the_critics(monkeypatch):
    monkeypatch.setattr(bench_fastgen, 'PAUSE', 0.0)
    cost = {'student step': 2.0, 'critic step': 1.0}
    sides = {
        side: lambda program, count, factor=factor: [count * factor * cost[program]] * 2
        for side, factor in (('fdistill', 1.0), ('fastgen', 3.0))
    }
    rows = bench_fastgen.table(bench_fastgen.measure(sides, 3))
    assert rows['cycle']['cpu_seconds'] == {
        'fdistill': 6.0,
        'fastgen': 18.0,
        'speed': 3.0,
        'least': 3.0,
        'most': 3.0,
    }
