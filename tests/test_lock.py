"""One writer a folder."""

import os
import subprocess
import sys

import pytest

from fdistill.errors import UserError
from fdistill.files import lock


def test_a_second_writer_is_told_who_is_there(tmp_path):
    folder = tmp_path / 'run'
    with lock.held(folder):
        for again in (lock.check, lambda path: lock.held(path).__enter__()):
            with pytest.raises(UserError, match=f'process {os.getpid()} is writing there'):
                again(folder)
    lock.check(folder)
    with lock.held(folder):
        pass


def test_it_ends_with_its_process(tmp_path):
    code = 'import os, sys; from fdistill.files import lock\n'
    code += 'held = lock.held(sys.argv[1]); held.__enter__(); print(flush=True); sys.stdin.read()'
    with subprocess.Popen(
        [sys.executable, '-c', code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        other.stdout.readline()
        with pytest.raises(UserError, match=f'process {other.pid} '):
            lock.check(tmp_path)
        other.kill()
        other.wait()
    lock.check(tmp_path)


def test_looking_makes_nothing_and_a_link_is_not_followed(tmp_path):
    lock.check(tmp_path / 'none')
    assert not (tmp_path / 'none').exists()
    (tmp_path / lock.NAME).symlink_to(tmp_path / 'elsewhere')
    with pytest.raises(UserError, match='cannot be opened'):
        with lock.held(tmp_path):
            pass
    assert not (tmp_path / 'elsewhere').exists()
