"""The notebooks run from a clean kernel, in order, and what is kept of their outputs is small and
names no place."""

import json
import pathlib
import re
import sys

import nbclient
import nbformat
import pytest

FOLDER = pathlib.Path(__file__).parents[1] / 'notebooks'
NOTEBOOKS = sorted(FOLDER.glob('*.ipynb'))
# Where a notebook says how long it trains. One in each run; all of them, whole, are slow tests.
STEPS = {'sample': ['small(\n        1500,', 'small(\n        600,']}


@pytest.fixture(scope='module')
def kernel(tmp_path_factory):
    """Name of a kernel of this Python, whatever is installed for the user."""
    folder = tmp_path_factory.mktemp('jupyter') / 'kernels' / 'fdistill-test'
    folder.mkdir(parents=True)
    argv = [
        sys.executable,
        '-Xfrozen_modules=off',
        '-m',
        'ipykernel_launcher',
        '-f',
        '{connection_file}',
    ]
    (folder / 'kernel.json').write_text(
        json.dumps({'argv': argv, 'display_name': 'test', 'language': 'python'})
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('JUPYTER_PATH', str(folder.parents[1]))
        yield folder.name


def shortened(notebook, name):
    """The notebook with its `STEPS` divided by ten, each of which is there."""
    for old in STEPS.get(name, ()):
        cells = [cell for cell in notebook.cells if cell.cell_type == 'code' and old in cell.source]
        (cell,) = cells
        new = re.sub(r'\d+', lambda number: str(int(number[0]) // 10), old)
        cell.source = cell.source.replace(old, new)


@pytest.mark.parametrize(
    'path, short',
    [
        *((path, True) for path in NOTEBOOKS if path.stem in STEPS),
        *(pytest.param(path, False, marks=pytest.mark.slow) for path in NOTEBOOKS),
    ],
    ids=lambda value: {True: 'short', False: 'whole'}.get(value) or value.stem,
)
def test_runs_from_a_clean_kernel(path, short, kernel, tmp_path, monkeypatch):
    notebook = nbformat.read(path, as_version=4)
    if short:
        monkeypatch.setenv('JAX_DISABLE_MOST_OPTIMIZATIONS', '1')
        shortened(notebook, path.stem)
    resources = {'metadata': {'path': str(tmp_path)}}
    nbclient.NotebookClient(
        notebook, timeout=180, kernel_name=kernel, resources=resources
    ).execute()
    for cell in notebook.cells:
        for output in cell.get('outputs', []):
            assert output.output_type != 'stream' or output.name != 'stderr', output.text


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)
def test_kept_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == 'code']
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert path.stat().st_size < 1e6
    text = ''.join(
        str(output.get('text', '')) + str(output.get('data', {}).get('text/plain', ''))
        for cell in code
        for output in cell.outputs
    )
    assert not re.search(r'/(home|root|tmp|work|Users)/|token|password', text)


def test_there_are_notebooks():
    assert NOTEBOOKS
