"""Run folders in an object store: gs:// as a folder of this machine, without a network."""

import json
import os
import pathlib
import shutil

import jax
import numpy as np
import pytest
import stops
from etils.epath import backend
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.local import LocalFileSystem
from ml_collections import ConfigDict
from orbax.checkpoint._src.path import gcs_utils

from fdistill import build, config, report
from fdistill.build.train import ready
from fdistill.errors import UserError
from fdistill.files import disk, lock
from fdistill.files.disk import place
from fdistill.files.mirror import Mirror
from fdistill.report import doctor
from fdistill.training import checkpoint

RUN = 'gs://bucket/run'


@pytest.fixture
def store(tmp_path, monkeypatch):
    """The folder that holds what the fake store does: a bucket has to be there, folders need not,
    nothing is added to."""
    root = tmp_path / 'store'
    (root / 'bucket').mkdir(parents=True)

    class Store(DirFileSystem):
        def _join(self, path):
            return super()._join(os.fspath(path).removeprefix('gs://'))

        def open(self, path, mode):
            file = pathlib.Path(self._join(path))
            assert mode in ('r', 'rb', 'w', 'wb')
            if 'w' in mode and (root / file.relative_to(root).parts[0]).is_dir():
                file.parent.mkdir(parents=True, exist_ok=True)
            return open(file, mode)

    def kvstore(path):
        return {'driver': 'file', 'path': f'{root}/{path.removeprefix("gs://")}'}

    use(monkeypatch, lambda: Store(root, LocalFileSystem()))
    # Arrays go past the file system, by tensorstore.
    monkeypatch.setattr(gcs_utils, 'get_kvstore_for_gcs', kvstore)
    monkeypatch.setattr(gcs_utils, 'is_hierarchical_namespace_enabled', lambda path: False)
    # Nothing of this machine is left there by a path that was taken for one of it.
    monkeypatch.chdir(tmp_path / 'store' / 'bucket')
    yield root
    assert not list(root.glob('bucket/gs:'))


def use(monkeypatch, made):
    """Makes fsspec's file system of gs:// by `made`."""

    def filesystem(name):
        return LocalFileSystem() if name == 'file' else made()

    monkeypatch.setattr(backend.fsspec_backend, '_get_filesystem', filesystem)


def ring(path, **training):
    """A run of points in the plane, of six steps."""
    given = dict(steps=6, log_every=2, checkpoint_every=2, sample_every=3, batch_size=16)
    path.write_text(stops.ring(**given | training))
    return config.load(str(path))


@pytest.fixture(scope='module')
def here(tmp_path_factory):
    """(config, folder) of a run of this machine that nothing broke."""
    folder = tmp_path_factory.mktemp('runs') / 'here'
    settings = ring(folder.with_name('ring.py'))
    build.train(settings, folder, quiet=True)
    return settings, folder


def test_a_run_stopped_and_resumed_is_the_unbroken_one(here, store):
    """What it leaves is that of a run of this machine, and its numbers and samples are too."""
    stops.check(*here, RUN)
    files = [
        {path.relative_to(root) for path in root.glob('*')} for root in (here[1], store / RUN[5:])
    ]
    assert files[0] ^ files[1] == {pathlib.Path(lock.NAME), pathlib.Path('.owner')}
    for pattern in ('config.json', 'samples/*.png'):
        for path in here[1].glob(pattern):
            there = place(RUN) / path.relative_to(here[1])
            assert path.read_bytes() == there.read_bytes()
    assert list((place(RUN) / 'tensorboard').iterdir())
    rows = [build.evaluate(None, folder, quiet=True) for folder in (here[1], RUN)]
    assert [row.pop('seconds') > 0 for row in rows] and rows[0] == rows[1]
    assert (place(RUN) / 'eval' / 'step-000000006.json').is_file()
    drawn = [build.sample(folder, n=5).read_bytes() for folder in (here[1], RUN)]
    assert drawn[0] == drawn[1]
    found = [doctor.examine(folder) for folder in (here[1], RUN)]
    assert found[0]['step'] == found[1]['step'] == 6
    levels = [[(one['level'], one['what']) for one in of['findings']] for of in found]
    assert levels[0] == levels[1]
    paths = report.write([RUN], quiet=True)
    assert [str(path.parent) for path in paths.values()] == [f'{RUN}/report'] * 3
    assert json.loads(paths['report.json'].read_bytes())['paths'] == [RUN]


def test_whenever_its_machine_is_lost_a_run_is_the_unbroken_one(here, store, monkeypatch):
    """Between logs and checkpoint, and between checkpoint and the next logs: what no one had copied
    yet is logged again, and nothing twice."""
    lost = []

    def losing(function):
        def lose(self, *arguments):
            checkpoints[0]._wait()
            lost.append(f'gs://bucket/{len(lost)}')
            shutil.copytree(store / RUN[5:], store / lost[-1][5:])
            return function(self, *arguments)

        return lose

    class Checkpoints(checkpoint.Checkpoints):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            checkpoints.append(self)

        save = losing(checkpoint.Checkpoints.save)

    checkpoints = []
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, 'Checkpoints', Checkpoints)
        patch.setattr(Mirror, 'push', losing(Mirror.push))
        build.train(here[0], RUN, quiet=True)
    # Of checkpoints at 2, 4 and 6, each after its push, and of the push at the end.
    assert [checkpoint.newest(folder) for folder in lost] == [0, 0, 2, 2, 4, 4, 6]
    logged = (here[1] / 'metrics.jsonl').read_bytes()
    for folder, lines in zip(lost[2:4], (1, 2), strict=True):
        file = place(folder) / 'metrics.jsonl'
        assert file.read_bytes().splitlines() == logged.splitlines()[:lines]
        build.train(here[0], folder, quiet=True)
        assert file.read_bytes() == logged


def test_a_student_learns_from_a_teacher_there(here, store):
    settings, folder = here
    shutil.copytree(folder, store / RUN[5:])
    law, role = dict(name='lognormal'), dict(learning_rate=1e-3)
    plain = settings.to_dict() | dict(
        method=dict(name='sim', student_law=law, critic_law=law),
        optimizer=dict(student=role, critic=role),
    )
    made = [
        ready(ConfigDict(plain | dict(teacher=dict(workdir=str(teacher)))), folder.with_name('s'))
        for teacher in (folder, RUN)
    ]
    assert made[0].plain['origin'] == made[1].plain['origin']
    weights = [jax.tree.leaves(one.frozen['teacher']) for one in made]
    for one, other in zip(*weights, strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_last_to_begin_has_the_place(store):
    """The one before it, which may be of a machine that is thought lost, leaves nothing more."""
    first = Mirror(place(RUN), ())
    disk.write_bytes(first.folder / 'a', b'1')
    first.push()
    second = Mirror(place(RUN), ('a', 'b'))
    assert [path.name for path in second.folder.iterdir()] == ['a']
    (first.folder / 'a').write_text('22')
    for leave in (first.push, first.close):
        with pytest.raises(lock.Held, match='--workdir=gs://bucket/run: process .* ends') as error:
            leave()
        assert '\n' not in str(error.value)
    assert (place(RUN) / 'a').read_text() == '1' and not first.folder.exists()
    (second.folder / 'a').write_text('333')
    second.close()
    assert (place(RUN) / 'a').read_text() == '333'


def test_a_training_that_lost_its_place_ends_before_it_saves(here, store, monkeypatch):
    def save(self, step, *arguments):
        real(self, step, *arguments)
        if step == 2:
            Mirror(place(RUN), ())

    real = checkpoint.Checkpoints.save
    monkeypatch.setattr(checkpoint.Checkpoints, 'save', save)
    with pytest.raises(lock.Held, match='has begun to train there'):
        build.train(here[0], RUN, quiet=True)
    assert checkpoint.newest(RUN) == 2
    assert (place(RUN) / 'metrics.jsonl').read_bytes().count(b'\n') == 1


def missing():
    raise ImportError('Please install gcsfs')


def refusing():
    raise RuntimeError('Anonymous caller\nis not allowed')


@pytest.mark.parametrize(
    ('made', 'message'),
    [
        (missing, "not installed: pip install 'fdistill\\[remote\\]'"),
        (refusing, r'\(RuntimeError: Anonymous caller\); see that there is such'),
    ],
)
@pytest.mark.parametrize(
    'use_it',
    [
        lambda settings: build.train(settings, RUN, quiet=True),
        lambda settings: build.evaluate(None, RUN, quiet=True),
        lambda settings: build.sample(RUN),
        lambda settings: build.from_workdir(RUN),
        lambda settings: build.resolve(
            {'teacher': {'workdir': RUN}}, build.load_data(settings, 'train')
        ),
        lambda settings: report.write([RUN]),
        lambda settings: doctor.examine(RUN),
    ],
)
def test_a_store_that_cannot_be_reached_is_one_line(made, message, use_it, tmp_path, monkeypatch):
    use(monkeypatch, made)
    settings = ring(tmp_path / 'ring.py')
    with pytest.raises(UserError, match=message) as error:
        use_it(settings)
    assert '\n' not in str(error.value)


def test_a_bucket_that_is_not_there_is_one_line(store, tmp_path):
    with pytest.raises(UserError, match='--workdir=gs://other/run: .* there is such a bucket'):
        build.train(ring(tmp_path / 'ring.py'), 'gs://other/run', quiet=True)
    assert [path.name for path in store.iterdir()] == ['bucket']
