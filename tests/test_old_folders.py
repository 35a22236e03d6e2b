"""A run folder that version 0.1 left in the middle: it is evaluated, sampled and resumed.

tests/data/run_folder_0_1.zip is f-distill on points of the ring with a divergence that changes with
the student's updates, stopped after step 5 of 8, and what that version then made of it.
"""

import json
import pathlib
import zipfile

import jax
import numpy as np
import pytest
from jax.sharding import AxisType
from ml_collections import ConfigDict

from fdistill import build
from fdistill import config as configs
from fdistill.files import disk
from fdistill.training import sharding

pytestmark = pytest.mark.optimised

CONFIGS = pathlib.Path(__file__).parents[1] / 'configs'
DATA = pathlib.Path(__file__).parent / 'data' / 'run_folder_0_1.zip'


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """(the run folder, what was expected of it), on one device as it was."""
    with zipfile.ZipFile(DATA) as file:
        file.extractall(tmp_path / 'run')
    kinds = (AxisType.Auto,) * 2
    mesh = jax.make_mesh((1, 1), ('data', 'fsdp'), axis_types=kinds, devices=jax.devices()[:1])
    monkeypatch.setattr(sharding, 'mesh_over', lambda **_: mesh)
    return tmp_path / 'run', json.loads((tmp_path / 'run' / 'expected.json').read_text())


def start():
    noise = np.random.default_rng(0).standard_normal((6, 2)).astype(np.float32)
    return noise, np.arange(6, dtype=np.int32)


def test_it_is_sampled_and_evaluated(folder):
    workdir, expected = folder
    run = build.from_workdir(workdir)
    assert run.digest == expected['digest'] and run.step == 5
    np.testing.assert_allclose(run.sample(*start()), expected['samples'], rtol=1e-5, atol=1e-6)
    row = build.evaluate(None, workdir, quiet=True)
    for name, value in expected['row'].items():
        assert row[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name


def test_it_goes_on_where_it_was(folder):
    """To the same weights and logs; on the machine that recorded them, to the last bit."""
    workdir, expected = folder
    build.train(ConfigDict(expected['config']).lock(), workdir, quiet=True)
    lines = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
    # What is measured since then begins with the step that it is resumed at.
    since = 'h_min sample_mean sample_std data_std kl kl_noise kl_seen'
    since = {f'student/{name}' for name in since.split()}
    for line, known in zip(lines, expected['metrics'], strict=True):
        assert line.keys() - since == known.keys()
        for name, value in known.items():
            assert line[name] == pytest.approx(value, rel=1e-3, abs=1e-5), name
    samples = build.from_workdir(workdir).sample(*start())
    np.testing.assert_allclose(samples, expected['resumed'], rtol=1e-4, atol=1e-5)


def test_what_makes_pairs_was_called_pairing(tmp_path):
    """A run with that section is opened, and goes on, as the same under the name of today."""
    config = configs.load(str(CONFIGS / 'ring_pairs.py:kd'))
    small = {'training.steps': 4, 'training.batch_size': 16, 'training.checkpoint_every': 0}
    build.override(config, [f'--config.{name}={value}' for name, value in small.items()])
    whole, old = tmp_path / 'whole', tmp_path / 'old'
    build.train(config, whole, quiet=True)
    build.train(config, old, quiet=True, stop_at=2)
    known = json.loads((old / 'config.json').read_text())
    known['pairing'] = known.pop('pairs')
    disk.write_json(old / 'config.json', known)
    assert build.from_workdir(old).step == 2
    build.train(config, old, quiet=True)
    ends = [build.from_workdir(folder).params for folder in (whole, old)]
    jax.tree.map(np.testing.assert_array_equal, *ends)
