"""Every command and every piece of Python in the README runs, in short form, and what the documents
name exists."""

import ast
import pathlib
import re
import shlex
import subprocess

import pytest

from fdistill import cli, networks
from fdistill import config as configs
from fdistill.evaluation.protocol import PROTOCOLS
from fdistill.export import TARGETS
from fdistill.weights import CONVERTERS

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / 'README.md').read_text()
METHODS = (ROOT / 'docs' / 'methods.md').read_text()
ACCELERATOR = '# needs an accelerator'
FILES = '# needs published files'
EXTRA = '# needs an extra'
SHORT = {
    'train': ['--config.training.steps=2'],
    'evaluate': ['--samples=200', '--quiet'],
    'sample': [],
    'export': [],
    'report': ['--quiet'],
    'check-data': [],
    'plan': [],
    'sweep': ['--config.training.steps=2', '--only=divergence=js,seed=0'],
    'run': ['--dry-run'],
    'pairs': ['--count=64'],
}


def _blocks(language):
    return re.findall(rf'```{language}\n(.*?)```', README, re.DOTALL)


LINES = [line for block in _blocks('sh') for line in block.splitlines() if line]


def _words(line):
    """Words of a command without settings of the environment before it and without a comment."""
    words = shlex.split(line, comments=True)
    while re.fullmatch(r'[A-Z_]+=.*', words[0]):
        words.pop(0)
    return [re.sub('^--(config|recipe)=', rf'--\1={ROOT}/', word) for word in words]


def test_commands_are_of_a_kind_that_is_tested():
    for line in LINES:
        first = _words(line)[0]
        assert first in ('make', 'fdistill') or line.endswith((ACCELERATOR, FILES, EXTRA)), line


def test_make_targets_exist():
    targets = {word for line in LINES if line.startswith('make ') for word in _words(line)[1:]}
    targets |= set(re.findall(r'`make ([a-z-]+)`', README))
    for target in targets:
        subprocess.run(['make', '-n', target], cwd=ROOT, check=True, capture_output=True)
    assert {'demo', 'test', 'bench'} <= targets


def test_commands_for_accelerators_have_a_config():
    lines = [line for line in LINES if line.endswith(ACCELERATOR)]
    for line in lines:
        words = _words(line)
        words = words[words.index('fdistill') + 1 :]
        parser, commands = cli._parsers()
        rest, overrides = cli.split(words)
        options = parser.parse_args(rest)
        configs.override(configs.load(options.config), overrides)
        assert options.command in commands and options.workdir
    assert lines


def test_commands_for_published_files_parse():
    lines = [line for line in LINES if line.endswith((FILES, EXTRA))]
    for line in lines:
        options = cli._parsers()[0].parse_args(_words(line)[1:])
        assert options.command in cli.COMMANDS
        # Tests of weights, statistics, scores and exports run them on files of their own.
        assert getattr(options, 'protocol', 'edm') in PROTOCOLS and getattr(
            options, 'kind', 'teacher'
        ) in (*CONVERTERS, *cli.CONVERT)
        assert getattr(options, 'to', 'jax') in TARGETS
    assert lines


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    """Runs the `fdistill` commands one after another, each training cut to a few steps; gives the
    folder of the runs."""
    folder = tmp_path_factory.mktemp('readme')
    for line in LINES:
        words = _words(re.sub(r'(?<=[= ])runs/', f'{folder}/', line))
        if words[0] == 'fdistill' and not line.endswith((ACCELERATOR, FILES, EXTRA)):
            assert cli.main(words[1:] + SHORT[words[1]]) == 0, line
    return folder


def test_commands_run(runs):
    assert (runs / 'ring-js' / 'samples' / 'sample-0.png').is_file()
    assert list((runs / 'ring-js' / 'eval').glob('*.json'))
    for name in ('digits-js', 'ring-mesh', 'ring-alpha'):
        assert (runs / name / 'checkpoints').is_dir()


def test_what_a_run_folder_holds(runs):
    sentence = re.search(r'A run folder holds (.*?)`tensorboard --', README, re.DOTALL)[1]
    for name in re.findall(r'`([\w/.*]+\.\w+|\w+/)`', sentence):
        assert list((runs / 'ring-js').glob(name)), name


def test_python_runs(runs, monkeypatch):
    monkeypatch.setattr(networks, 'NETWORKS', dict(networks.NETWORKS))
    for block in _blocks('python'):
        if block.startswith("'"):  # The row of a table.
            name = ast.literal_eval(block.split(':')[0])
            block = (
                'import jax.numpy as jnp\nfrom fdistill.divergences import get\nget({'
                + block
                + f'}}[{name!r}])'
            )
        exec(block.replace("'runs/", f"'{runs}/"), {})


@pytest.mark.parametrize('folder', ['configs', 'configs/recipes'])
def test_configs_are_those_that_exist(folder):
    files = {path.name for path in (ROOT / folder).glob('*.py')}
    lines = (line for line in README.splitlines() if re.match(rf'\| `{folder}/[^/`]+`', line))
    named = set(re.findall(r'\b([\w*]+\.py)\b', ' '.join(lines)))
    covered = {path.name for pattern in named for path in (ROOT / folder).glob(pattern)}
    assert covered == files
    assert all(list((ROOT / folder).glob(pattern)) for pattern in named)


@pytest.mark.parametrize(
    'document', ['README.md', 'docs/methods.md', 'docs/results.md', 'docs/architecture.md']
)
def test_links_lead_somewhere(document):
    path = ROOT / document
    for target in re.findall(r'\]\(([^)#]+)\)', path.read_text()):
        assert target.startswith('http') or (path.parent / target).exists(), target


def _defined(path):
    names = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return names


@pytest.mark.parametrize('file', sorted(set(re.findall(r'`([\w/]+\.py)[:`]', METHODS))))
def test_equations_name_code_and_tests_that_exist(file):
    path = ROOT / 'tests' / file if file.startswith('test_') else ROOT / 'fdistill' / file
    path = ROOT / file if file.startswith('tests/') else path
    names = set(re.findall(rf'`{re.escape(file)}:(\w+)`', METHODS))
    assert names <= _defined(path)


def test_every_registered_thing_has_its_equation():
    """Methods and losses; a row less is a claim less, so nobody would miss it."""
    for path in (ROOT / 'fdistill' / 'methods' / 'losses.py', ROOT / 'fdistill' / 'divergences.py'):
        for name in _defined(path):
            if not name.startswith('_') and name not in (
                'EPSILON',
                'PROBE',
                'FAMILIES',
                'EDGES',
                'Generator',
                'Named',
                'LEVELS',
                'histogram',
            ):
                assert f'{path.name}:{name}`' in METHODS, name
    from fdistill import methods

    for name in methods.METHODS:
        assert f':{name}`' in METHODS, name
