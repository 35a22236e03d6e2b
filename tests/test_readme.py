"""Every command and every piece of Python in the README runs, in short form."""

import pathlib
import re
import shlex
import subprocess

import pytest

from fdistill import cli

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / 'README.md').read_text()


def _blocks(language):
    return re.findall(rf'```{language}\n(.*?)```', README, re.DOTALL)


COMMANDS = [line for block in _blocks('sh') for line in block.splitlines() if line]


def test_make_targets_exist():
    targets = {word for command in COMMANDS if command.startswith('make ') for word in shlex.split(command)[1:]}
    targets |= set(re.findall(r'`make ([a-z-]+)`', README))
    for target in targets:
        subprocess.run(['make', '-n', target], cwd=ROOT, check=True, capture_output=True)
    assert 'demo' in targets


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    """Runs the `fdistill` commands one after another, each training cut to a few steps; gives the folder of the runs."""
    folder = tmp_path_factory.mktemp('readme')
    for command in COMMANDS:
        words = shlex.split(command.replace('=runs/', f'={folder}/').replace('JAX_NUM_CPU_DEVICES=8 ', ''))
        if words[0] != 'fdistill':
            assert words[0] == 'make', command
            continue
        words = [word.replace('--config=', f'--config={ROOT}/') for word in words[1:]]
        short = {'train': ['--config.training.steps=2'], 'evaluate': ['--samples=200', '--quiet'], 'sample': []}
        assert cli.main(words + short[words[0]]) == 0, command
    return folder


def test_commands_run(runs):
    assert (runs / 'ring-js' / 'samples' / 'sample-0.png').is_file()
    assert list((runs / 'ring-js' / 'eval').glob('*.json'))
    assert (runs / 'digits-js' / 'checkpoints').is_dir()
    assert (runs / 'ring-mesh' / 'metrics.jsonl').is_file()


def test_python_runs(runs):
    for block in _blocks('python'):
        if block.startswith("'"):  # The row of a table.
            block = 'import jax.numpy as jnp\nfrom fdistill.divergences import get\nget({' + block + "}['triangular'])"
        exec(block.replace("'runs/", f"'{runs}/"), {})
