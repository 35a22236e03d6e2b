"""What every floor reads, writes and says."""

import errno
import io
import json
import os
import pathlib
import platform
import struct
import subprocess
import sys
import warnings
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from fdistill.errors import UserError, pick
from fdistill.files import disk, pictures
from fdistill.files import progress as progress_module
from fdistill.files.archive import Refused, open_archive
from fdistill.files.progress import Progress
from fdistill.files.text import clock, table
from fdistill.weights import store


def test_json_is_plain_and_replaces_the_old_file(tmp_path):
    path = tmp_path / 'eval' / 'x.json'
    disk.write_json(path, {'old': 1})
    disk.write_json(
        path,
        {'fd': np.float64(1 / 3), 'n': np.int32(2), 'list': (jnp.arange(2), np.nan), 'no': None},
    )
    assert json.loads(path.read_text()) == {
        'fd': 1 / 3,
        'n': 2,
        'list': [[0, 1], 'nan'],
        'no': None,
    }
    assert list(path.parent.iterdir()) == [path]


def test_leaves_of_nested_dicts():
    assert disk.flat({'a': 1, 'b': {'c': (2,), 'd': {'e': None}, 'f': {}}}) == {
        'a': 1,
        'b.c': (2,),
        'b.d.e': None,
    }


def test_digest_of_a_file(tmp_path):
    (tmp_path / 'abc').write_bytes(b'abc')
    assert disk.sha256(tmp_path / 'abc').startswith('ba7816bf8f01cfea414140de5dae2223')


def test_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / 'x.json'
    disk.write_json(path, {'old': 1})
    with pytest.raises(TypeError):
        disk.write_json(path, {'new': object()})
    with pytest.raises(RuntimeError):
        disk.write(path, lambda temporary: (_ for _ in ()).throw(RuntimeError))
    assert json.loads(path.read_text()) == {'old': 1} and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize('channels', [1, 3])
def test_image_grid(tmp_path, channels):
    images = np.full((5, 4, 4, channels), -1.0)
    images[1] = 1
    images[2] = 7
    images[3, 0, 0] = np.nan
    grid = pictures.image_grid(images, columns=2, tile=16)
    assert grid.dtype == np.uint8 and grid.shape == (3 * 18, 2 * 18, 3)
    assert not grid[1:17, 1:17].any() and (grid[1:17, 19:35] == 255).all()
    assert (grid[19:35, 1:17] == 255).all()
    assert (grid[19:23, 19:23] == (255, 0, 255)).all() and not grid[23:35, 19:35].any()
    pictures.write_png(tmp_path / 'grid.png', grid)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / 'grid.png')), grid)


def test_image_grid_does_not_shrink_and_refuses_other_shapes():
    assert pictures.image_grid(np.zeros((3, 96, 64, 3))).shape == (2 * 98, 2 * 66, 3)
    for shape in [(0, 4, 4, 3), (2, 4, 4, 2), (4, 4, 3)]:
        with pytest.raises(ValueError, match='grid needs'):
            pictures.image_grid(np.zeros(shape))


def test_scatter_puts_points_where_they_are():
    points = np.array([[0.8, 0.5], [np.nan, 0.0], [9.0, 9.0]])
    picture = pictures.scatter(points, reference=[[-0.5, -0.5]], limit=1.0, size=100, dot=1)
    assert picture.shape == (100, 100, 3) and picture.dtype == np.uint8
    rows, columns = np.nonzero((picture < 255).any(axis=-1))
    assert sorted(zip(rows.tolist(), columns.tolist(), strict=True)) == [(24, 90), (74, 25)]


def test_progress_prints_lines_off_a_terminal(capsys, monkeypatch):
    clock = iter([0.0, 1.0, 11.0, 11.0, 12.0, 20.0, 22.0])
    monkeypatch.setattr(progress_module.time, 'monotonic', lambda: next(clock))
    progress = Progress(total=100, start=20, images=64)
    progress.note({'loss': 0.25})
    assert progress.update(21) is None
    assert progress.update(42) == {'images_per_second': pytest.approx(134.4), 'seconds': 11.0}
    waited = []
    assert progress.update(43, lambda: waited.append(43)) is None
    # What is still being computed is waited for before it counts.
    assert progress.update(100, lambda: waited.append(100))['seconds'] == 22
    assert waited == [100]
    progress.close()
    first, last = capsys.readouterr().err.splitlines()
    assert first == 'step 42/100 (42 %)  134 images/s  0:00:11 elapsed  0:00:28 left  loss 0.25'
    assert '100 %' in last and '0:00:00 left' in last


def test_progress_can_be_quiet(capsys):
    progress = Progress(total=2, quiet=True)
    assert progress.update(1) is None
    assert progress.update(2)['images_per_second'] > 0
    assert capsys.readouterr() == ('', '')


def test_progress_is_a_bar_on_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, 'isatty', lambda: True, raising=False)
    progress = Progress(total=4)
    for step in range(1, 5):
        progress.note({'loss': 0.5})
        progress.update(step)
    progress.close()
    err = capsys.readouterr().err
    assert '4/4' in err and 'loss=0.5' in err


def test_files_of_the_cache_are_the_users(tmp_path):
    """They have the permissions of any other file that is made."""
    (tmp_path / 'other').write_text('')
    disk.write(tmp_path / 'a.npz', lambda path: pathlib.Path(path).write_text('x'))
    store.save(tmp_path / 'b.safetensors', {'a': np.zeros(1)}, {})
    modes = {file.name: file.stat().st_mode for file in tmp_path.iterdir()}
    assert modes == dict.fromkeys(['other', 'a.npz', 'b.safetensors'], modes['other'])


# Places where nothing can be written, also by root: (of a folder, its path below tmp_path).
NOWHERE = {
    'below a file': ('file/x', 'file is no folder'),
    'below a device': ('/dev/null/x', '/dev/null is no folder'),
    'in no file system of files': ('/proc/x', 'nothing can be written in /proc'),
    'of a name too long': ('x' * 300, 'File name too long'),
}


@pytest.mark.parametrize('ask', [disk.folder_for, disk.file_for])
@pytest.mark.parametrize('place', NOWHERE)
def test_a_place_that_cannot_be_written_to_is_one_line(ask, place, tmp_path):
    path, message = NOWHERE[place]
    (tmp_path / 'file').write_text('')
    path = tmp_path / path
    with pytest.raises(UserError) as caught:
        ask(path / 'y.png' if ask is disk.file_for else path, '--out')
    said = str(caught.value)
    assert said.startswith(f'--out={path}') and message in said and 'another place' in said


@pytest.mark.parametrize('ask', [disk.folder_for, disk.file_for])
def test_no_name_is_no_place(ask):
    with pytest.raises(UserError, match="^--out='': is empty; give the name of a f"):
        ask('', '--out')


@pytest.mark.skipif(os.geteuid() == 0, reason='root may write everywhere')
@pytest.mark.parametrize('ask', [disk.folder_for, disk.file_for])
def test_a_folder_of_others_is_no_place(ask, tmp_path):
    tmp_path.chmod(0o555)
    with pytest.raises(UserError, match='Permission denied.*; mend its permissions'):
        ask(tmp_path / 'x', '--out')
    tmp_path.chmod(0o755)


def test_asking_for_a_place_leaves_nothing_there(tmp_path):
    assert disk.folder_for(tmp_path / 'a' / 'b', '--out') == tmp_path / 'a' / 'b'
    assert disk.folder_for(str(tmp_path), '--out') == tmp_path
    assert disk.file_for(tmp_path / 'a' / 'b.npz', '--out', ('.npz',)) == tmp_path / 'a' / 'b.npz'
    assert not list(tmp_path.iterdir())
    (tmp_path / 'c.png').write_text('kept')
    assert disk.file_for(tmp_path / 'c.png', '--out').read_text() == 'kept'


@pytest.mark.parametrize(
    ('name', 'message'),
    [
        ('a.png', 'give the name of a .npz or .npy file'),
        ('a', 'give the name of a .npz or .npy file'),
        ('folder.npz', 'is a folder; give the name of a file'),
        ('/dev/null', 'is no ordinary file; give the name of a file'),
    ],
)
def test_what_is_no_file_of_that_kind(name, message, tmp_path):
    (tmp_path / 'folder.npz').mkdir()
    suffixes = () if name == '/dev/null' else ('.npz', '.npy')
    with pytest.raises(UserError, match=message):
        disk.file_for(tmp_path / name, '--out', suffixes)


def test_clock():
    assert [clock(seconds) for seconds in (0, 59.6, 3599, 360_000)] == [
        '0:00:00',
        '0:01:00',
        '0:59:59',
        '100:00:00',
    ]


def test_table():
    rows = [['', 'a'], ['name', 12.5], [3, '']]
    assert table(rows) == ['      a', 'name  12.5', '3']
    assert table(rows, str.rjust) == ['         a', 'name  12.5', '   3']


def test_pick():
    assert pick({'kl': 1}, 'kl', 'divergence') == 1
    with pytest.raises(UserError, match=r"^config.x: unknown 'vds'; did you mean vsd\?$"):
        pick({'vsd': 1}, 'vds', 'config.x')


def zipped(*names, **options):
    data = io.BytesIO()
    with zipfile.ZipFile(data, 'w') as file, warnings.catch_warnings(action='ignore'):
        for name in names:
            file.writestr(name, b'abc')
    return data.getvalue()


def test_an_archive_is_opened(tmp_path):
    archive, members = open_archive(io.BytesIO(zipped('a', 'b')), r'\w', 2)
    assert list(members) == ['a', 'b'] and archive.read(members['b']) == b'abc'


@pytest.mark.parametrize(
    ('data', 'message'),
    [
        (b'', 'is no zip archive'),
        (b'PK', 'is no zip archive'),
        (zipped('a')[:-1], 'is no zip archive'),
        (zipped('a') + b' ', 'behind its end'),
        (b' ' + zipped('a'), 'before or behind'),
        (zipped('../a'), "of the name '../a'"),
        (zipped('a', 'a'), "two members 'a'"),
        (zipped('a', 'b', 'c'), 'more than 2 members'),
        (zipped('a')[:-10] + struct.pack('<L', 1 << 30) + zipped('a')[-6:], 'before or behind'),
        (zipped('a' * 3000), 'more than 2 members'),
    ],
)
def test_an_archive_is_refused(data, message):
    with pytest.raises(Refused, match=message) as caught:
        open_archive(io.BytesIO(data), r'\w', 2)
    assert caught.value.large == ('more than' in message)


@pytest.mark.skipif(not hasattr(os, 'posix_fallocate'), reason='macOS has none')
def test_an_array_has_its_place_on_the_disk_before_it_is_filled(tmp_path, monkeypatch):
    """Else a disk that becomes full ends the process by a signal."""
    made = disk.array(tmp_path / 'a.npy', np.float32, (1000, 1000))
    about = (tmp_path / 'a.npy').stat()
    assert 512 * about.st_blocks >= about.st_size > made.nbytes == 4_000_000

    def full(*_):
        raise OSError(errno.ENOSPC, 'full')

    monkeypatch.setattr(os, 'posix_fallocate', full)
    with pytest.raises(OSError, match='full') as caught:
        disk.write(tmp_path / 'b.npy', lambda path: disk.array(path, np.float32, (3,)))
    assert caught.value.filename == str(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ['a.npy']


FAULTS = """
import resource, sys
if sys.argv[1:]:
    from fdistill.files import process
    process.prepare()
import jax.numpy as jnp
from jax import jit

run, x = jit(lambda x: jnp.sin(x) @ x[:2048, :64]), jnp.ones((4608, 2048))
for i in range(80):
    if i == 40:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    run(x).block_until_ready()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(
    platform.libc_ver()[0] != 'glibc' or jax.default_backend() != 'cpu',
    reason='of glibc and CPU alone',
)
def test_memory_of_a_step_is_kept_for_the_next():
    """What is freed is given to the next run of a program, but now and then where another thread
    has left a hole that is too small: hardly a page of it is mapped anew."""

    def faults(*words):
        command = [sys.executable, '-c', FAULTS, *words]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    assert 3 * faults('prepare') < faults()


HUGE = """
import pathlib
from fdistill.files import process
process.prepare()
import jax.numpy as jnp

def huge():
    lines = pathlib.Path('/proc/self/smaps').read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith('AnonHugePages'))

for _ in range(2):
    x = jnp.ones((64, 2**20)).block_until_ready()
    assert huge() > 200_000, huge()  # kB, of 262,144.
    del x
    process.release()
    assert huge() < 100_000, huge()
"""
PAGES = pathlib.Path('/sys/kernel/mm/transparent_hugepage/enabled')


@pytest.mark.skipif(
    platform.libc_ver()[0] != 'glibc'
    or jax.default_backend() != 'cpu'
    or not PAGES.is_file()
    or '[never]' in PAGES.read_text(),
    reason='of glibc and CPU alone, where the system has huge pages',
)
def test_memory_is_of_huge_pages_also_after_it_was_given_back():
    subprocess.run([sys.executable, '-c', HUGE], check=True, capture_output=True)
