"""The launchers: what they would do, and what the local one does."""

import importlib.util
import json
import os
import pathlib
import shlex
import signal
import subprocess
import sys

import pytest

LAUNCHERS = pathlib.Path(__file__).parents[1] / 'experiments' / 'launch'
TRAIN = ['--', 'train', '--config=c.py', '--workdir=runs/a b']


def launcher(name):
    spec = importlib.util.spec_from_file_location(f'launch_{name}', LAUNCHERS / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def dry(capsys, name, *options):
    assert launcher(name).main([*options, '--dry-run', *TRAIN]) == 0
    return capsys.readouterr().out


def test_local_dry_run_says_each_process(capsys):
    lines = [shlex.split(line) for line in dry(capsys, 'local', '--processes=3').splitlines()]
    assert [line[2] for line in lines] == [f'JAX_PROCESS_ID={k}' for k in range(3)]
    for line in lines:
        assert line[0] == 'JAX_COORDINATOR_ADDRESS=localhost:PORT'
        assert line[1] == 'JAX_NUM_PROCESSES=3' and line[-3:] == TRAIN[1:]
    (alone,) = dry(capsys, 'local', '--processes=1').splitlines()
    assert shlex.split(alone)[1:] == ['-m', 'fdistill', *TRAIN[1:]]


def test_slurm_dry_run_is_a_script_that_bash_reads(capsys):
    text = dry(capsys, 'slurm', '--nodes=4', '--gpus=8', '--partition=gpu', '--time=1:00:00')
    lines = text.splitlines()
    assert lines[0] == '#!/bin/bash'
    for wanted in (
        'nodes=4',
        'ntasks-per-node=8',
        'gpus-per-node=8',
        'partition=gpu',
        'time=1:00:00',
        'requeue',
    ):
        assert f'#SBATCH --{wanted}' in lines
    assert "fdistill train --config=c.py '--workdir=runs/a b' --distributed" in text
    subprocess.run(['bash', '-n'], input=text, text=True, check=True)
    assert '--distributed' not in dry(capsys, 'slurm')


@pytest.mark.parametrize(
    ('topology', 'hosts', 'chips', 'accelerator'),
    [
        ('v5e:2x4', 1, 8, 'tpu-v5-lite-podslice'),
        ('v5e:16x16', 64, 4, 'tpu-v5-lite-podslice'),
        ('v5p:4x4x4', 16, 4, 'tpu-v5p-slice'),
        ('v6e:2x2', 1, 4, 'tpu-v6e-slice'),
    ],
)
def test_gke_dry_run_has_a_pod_a_host(capsys, topology, hosts, chips, accelerator):
    found = json.loads(dry(capsys, 'gke', '--image=i', f'--topology={topology}', '--slices=2'))
    (replicated,) = found['spec']['replicatedJobs']
    job = replicated['template']['spec']
    pod = job['template']['spec']
    assert replicated['replicas'] == 2 and job['parallelism'] == job['completions'] == hosts
    (container,) = pod['containers']
    assert container['resources']['limits']['google.com/tpu'] == chips
    assert container['command'] == ['fdistill', *TRAIN[1:], '--distributed']
    selector = pod['nodeSelector']
    assert selector['cloud.google.com/gke-tpu-accelerator'] == accelerator
    assert selector['cloud.google.com/gke-tpu-topology'] == topology.split(':')[1]


def test_tpu_vm_dry_run_is_one_command_for_all_hosts(capsys):
    words = shlex.split(dry(capsys, 'tpu_vm', '--name=n', '--zone=z'))
    assert words[0] == 'gcloud' and '--worker=all' in words
    remote = words[-1].removeprefix('--command=')
    assert shlex.split(remote)[-4:] == ['.venv/bin/fdistill', *TRAIN[1:]]


@pytest.mark.parametrize(
    ('name', 'words'),
    [
        ('local', ['--processes=0']),
        ('slurm', ['--nodes=0']),
        ('gke', ['--image=i', '--topology=v9:2x2']),
        ('gke', ['--image=i', '--topology=v5e:2xtwo']),
        ('tpu_vm', ['--name=n', '--zone=z', '--restarts=-1']),
    ],
)
def test_wrong_options_are_one_line(capsys, name, words):
    with pytest.raises(SystemExit) as end:
        launcher(name).main([*words, *TRAIN])
    assert end.value.code == 2
    assert words[-1] in capsys.readouterr().err.splitlines()[-1]


# In place of fdistill: the process of number 1 dies, as often as the environment says.
STAND_IN = """
import os, pathlib, sys, time
number, folder = int(os.environ['JAX_PROCESS_ID']), pathlib.Path(os.environ['FOLDER'])
starts = folder / f'{number}'
starts.write_text(starts.read_text() + 'x' if starts.exists() else 'x')
print('here', os.environ['JAX_COORDINATOR_ADDRESS'], flush=True)
if number == 1 and len(starts.read_text()) <= int(os.environ['DEATHS']):
    sys.exit(int(os.environ['CODE']))
time.sleep(float(os.environ.get('LONG', 0)))
"""


@pytest.mark.parametrize(
    ('deaths', 'code', 'ends', 'starts'),
    [(0, 1, 0, 1), (1, 1, 0, 2), (9, 1, 1, 3), (9, 2, 2, 1), (9, 143, 143, 1)],
)
def test_local_starts_again_unless_that_is_of_no_use(tmp_path, deaths, code, ends, starts):
    (tmp_path / 'fdistill').mkdir()
    (tmp_path / 'fdistill' / '__main__.py').write_text(STAND_IN)
    given = {'FOLDER': str(tmp_path), 'DEATHS': str(deaths), 'CODE': str(code)}
    done = subprocess.run(
        [sys.executable, str(LAUNCHERS / 'local.py'), '--restarts=2', *TRAIN],
        cwd=tmp_path,
        env=os.environ | given,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == ends, done.stderr
    assert [len((tmp_path / str(k)).read_text()) for k in range(2)] == [starts] * 2
    assert {line[:8] for line in done.stderr.splitlines() if 'here' in line} == {
        '[0] here',
        '[1] here',
    }


def test_local_passes_signals_on(tmp_path):
    (tmp_path / 'fdistill').mkdir()
    (tmp_path / 'fdistill' / '__main__.py').write_text(STAND_IN)
    given = {'FOLDER': str(tmp_path), 'DEATHS': '0', 'CODE': '0', 'LONG': '60'}
    with subprocess.Popen(
        [sys.executable, str(LAUNCHERS / 'local.py'), *TRAIN],
        cwd=tmp_path,
        env=os.environ | given,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        for _ in range(2):
            process.stderr.readline()
        process.send_signal(signal.SIGINT)
        # A stand-in dies of the signal; fdistill saves, and ends with 143 itself.
        assert process.wait(30) == 143
