import json
import subprocess
import sys
import types

import pytest

import fdistill
from fdistill import cli, config
from fdistill.errors import UserError


@pytest.fixture
def calls(monkeypatch):
    """What the commands ask of fdistill.build, which is not run here."""
    made = []
    build = types.SimpleNamespace(
        train=lambda config, workdir, change: made.append((config, workdir)),
        evaluate=lambda config, workdir, **options: (
            made.append((config, workdir, options)) or {'fd': 0.5, 'bad': float('nan')}
        ),
        sample=lambda workdir, **options: made.append((workdir, options)),
        override=config.override,
    )
    monkeypatch.setitem(sys.modules, 'fdistill.build', build)
    monkeypatch.setattr(fdistill, 'build', build, raising=False)
    for name in ('SLURM_STEP_NUM_TASKS', 'OMPI_COMM_WORLD_SIZE', 'TPU_WORKER_HOSTNAMES'):
        monkeypatch.delenv(name, raising=False)
    return made


@pytest.fixture
def path(tmp_path):
    path = tmp_path / 'x.py'
    path.write_text(
        'from ml_collections import ConfigDict\n'
        'def get_config():\n'
        '    student = {"rate": 1.0}\n'
        '    return ConfigDict({"steps": 10, "fast": False, "optimizer": {"student": student}})\n'
    )
    return path


def refused(capsys, words):
    """The one line on stderr of a command line that must be refused."""
    assert cli.main(words) == 2
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert captured.out == '' and line.startswith('fdistill: ')
    return line


def test_train_overrides_the_config(calls, path):
    overrides = ['--config.steps', '20', '--config.fast', '--config.optimizer.student.rate=-2']
    # Before or after --config: the order is of no importance.
    assert cli.main(['train', *overrides, f'--config={path}', '--workdir=runs/x']) == 0
    ((config, workdir),) = calls
    assert workdir == 'runs/x'
    assert config.to_dict() == {'steps': 20, 'fast': True, 'optimizer': {'student': {'rate': -2.0}}}


def test_the_process_is_prepared_before_a_command(calls, path, monkeypatch):
    monkeypatch.setattr(cli.process, 'prepare', lambda: calls.append('prepared'))
    assert cli.main(['train', f'--config={path}', '--workdir=w']) == 0
    assert len(calls) == 2 and calls[0] == 'prepared'


def test_evaluate(calls, path, tmp_path, capsys):
    assert cli.main(['evaluate', '--workdir=w']) == 0
    assert json.loads(capsys.readouterr().out) == {'fd': 0.5, 'bad': 'nan'}
    (tmp_path / 'config.json').write_text('{"steps": 10}')
    options = ['--samples=100', '--seed=3', '--quiet', '--config.steps=7']
    assert cli.main(['evaluate', f'--workdir={tmp_path}', *options]) == 0
    assert cli.main(['evaluate', '--workdir=w', f'--config={path}']) == 0
    first, second, third = calls
    assert first == (None, 'w', {'quiet': False, 'solver': {}})
    assert second[0].steps == 7 and second[2].items() >= {'samples': 100, 'seed': 3}.items()
    assert second[2]['quiet']
    assert third[0].steps == 10


def test_sample(calls):
    assert cli.main(['sample', '--workdir=w', '--n=5', '--label=3', '--out=x.png']) == 0
    assert calls == [
        (
            'w',
            {
                'weights': None,
                'n': 5,
                'seed': 0,
                'label': 3,
                'out': 'x.png',
                'trajectory': False,
                'beside': [],
                'solver': {},
                'operator': 'or',
                'temperature': 1.0,
            },
        )
    ]


@pytest.mark.parametrize(
    'words, message',
    [
        ([], 'required: command'),
        (['trian'], 'unknown command trian; did you mean train?'),
        (['go'], 'unknown command go; known: train, evaluate, sample, sweep'),
        (
            ['train', '--confg=x.py', '--workdir=w'],
            'unknown argument --confg=x.py; did you mean --config?',
        ),
        (['train', '--config=x.py'], 'train: --workdir is missing'),
        (['train', '--workdir=w'], 'train: --config is missing'),
        (['train', '--workdir=w', '--config'], 'argument --config: expected one argument'),
        (['train', '--workdir=w', '--config=nosuch.py'], '--config=nosuch.py: no such file'),
        (['train', 'x.py', '--workdir=w'], 'unknown argument x.py'),
        (['evaluate', '--workdir=nosuch', '--config.steps=3'], 'has no config.json'),
        (['sample', '--workdir=w', f'--seed={2**63}'], f'--seed={2**63}: is out of range'),
        (['evaluate', '--workdir=w', f'--batch-size={10**20}'], '--batch-size=1000'),
        (['sample', '--workdir=w', '--temperature=nan'], '--temperature=nan: is out of range'),
        (
            ['evaluate', '--workdir=w', '--samples=few'],
            "argument --samples: invalid int value: 'few'",
        ),
        (
            ['sample', '--workdir=w', '--config.steps=3'],
            'sample takes the config kept in the workdir',
        ),
    ],
)
def test_a_mistake_is_one_line(calls, capsys, words, message):
    assert message in refused(capsys, words)
    assert not calls


@pytest.mark.parametrize(
    'override, message',
    [
        (
            '--config.optimizer.studnet.rate=1',
            'config.optimizer.studnet; did you mean config.optimizer.student?',
        ),
        ('--config.steps=1.5', '--config.steps=1.5: not of type int; the config has 10'),
        ('--config.optimizer={}', 'a section cannot be replaced'),
    ],
)
def test_a_bad_override_is_one_line(calls, capsys, path, override, message):
    assert message in refused(capsys, ['train', f'--config={path}', '--workdir=w', override])
    assert not calls


@pytest.mark.parametrize(
    'text', ['def get_config(:', 'x = 1', 'def get_config(): return 1/0', 'import nosuchmodule']
)
def test_a_bad_config_file_is_one_line(calls, capsys, path, text):
    path.write_text(text)
    assert f'--config={path}' in refused(capsys, ['train', f'--config={path}', '--workdir=w'])


def test_user_errors_are_one_line_and_bugs_keep_their_traceback(calls, capsys, path, monkeypatch):
    words = ['train', f'--config={path}', '--workdir=w']

    def fail(error):
        def train(config, workdir, change):
            raise error

        monkeypatch.setattr(fdistill.build, 'train', train)

    fail(UserError('config.data.batch_size: 3 does not divide\nby 2 devices; use 4'))
    assert (
        refused(capsys, words)
        == 'fdistill: config.data.batch_size: 3 does not divide by 2 devices; use 4'
    )
    fail(PermissionError(13, 'Permission denied', 'w/eval'))
    assert (
        refused(capsys, words)
        == 'fdistill: w/eval: Permission denied; mend its permissions or choose another place'
    )
    fail(ValueError('a bug'))
    with pytest.raises(ValueError, match='a bug'):
        cli.main(words)
    fail(KeyboardInterrupt())
    assert cli.main(words) == 130
    assert capsys.readouterr().err.splitlines()[0].endswith('again: fdistill ' + ' '.join(words))


@pytest.mark.parametrize(
    'environ, expected',
    [
        ({}, False),
        ({'SLURM_STEP_NUM_TASKS': '1', 'TPU_WORKER_HOSTNAMES': 'localhost'}, False),
        ({'SLURM_STEP_NUM_TASKS': '4'}, True),
        ({'OMPI_COMM_WORLD_SIZE': '2'}, True),
        ({'TPU_WORKER_HOSTNAMES': '10.0.0.1,10.0.0.2'}, True),
    ],
)
def test_distributed(calls, path, monkeypatch, environ, expected):
    joined = []
    monkeypatch.setattr(cli, '_join_others', lambda: joined.append(len(calls)))
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    words = ['train', f'--config={path}', '--workdir=w']
    assert cli.main(words) == 0
    assert joined == ([0] if expected else [])
    assert cli.main([*words, '--distributed']) == 0
    assert len(joined) == expected + 1


def test_a_number_of_processes_that_is_none_is_one_line(path, monkeypatch, capsys):
    monkeypatch.setenv('JAX_NUM_PROCESSES', 'x')
    words = ['train', f'--config={path}', '--workdir=w']
    assert refused(capsys, words) == 'fdistill: JAX_NUM_PROCESSES=x: must be a whole number'


def test_help_is_quick():
    code = (
        'import sys\nfrom fdistill.cli import main\n'
        'try:\n    main(sys.argv[1:])\nexcept SystemExit as done:\n'
        '    assert done.code == 0\n'
        'assert not {"jax", "numpy", "ml_collections"} & set(sys.modules)'
    )
    for words in ([], ['train'], ['evaluate'], ['sample'], ['sweep'], ['run'], ['check-data']):
        run = subprocess.run(
            [sys.executable, '-c', code, *words, '--help'],
            capture_output=True,
            text=True,
            check=True,
        )
        assert 'usage: fdistill' in run.stdout and run.stderr == ''


def test_module_is_the_command():
    run = subprocess.run(
        [sys.executable, '-m', 'fdistill', 'trian'], capture_output=True, text=True
    )
    assert (run.returncode, run.stderr) == (
        2,
        'fdistill: unknown command trian; did you mean train?\n',
    )


def test_short_memory_is_one_line(monkeypatch, capsys):
    def allocate(options, overrides):
        raise MemoryError('Unable to allocate 16.0 GiB')

    monkeypatch.setitem(cli.COMMANDS, 'report', allocate)
    assert cli.main(['report', 'x']) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert 'memory is short (Unable to allocate 16.0 GiB); lower the batch size' in line
