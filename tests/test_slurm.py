"""The Slurm launcher on a real Slurm of this one machine; `make test-slurm`.

It needs root, and Debian's packages munge, slurmctld, slurmd and slurm-client.
"""

import json
import os
import pathlib
import re
import shutil
import socket
import subprocess
import sys

import pytest
import stops
import test_faults

from fdistill.training import checkpoint

ROOT = pathlib.Path(__file__).parents[1]
NEEDED = ('munged', 'slurmctld', 'slurmd', 'sbatch')
PATH = os.environ['PATH'] + ':/usr/sbin'
missing = [name for name in NEEDED if not shutil.which(name, path=PATH)]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.slurm,
    pytest.mark.skipif(
        bool(missing) or os.geteuid() != 0,
        reason=f'needs root and Slurm; not there: {", ".join(missing) or "root"}',
    ),
]

CONFIG = """
ClusterName=loop
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/builtin
ReturnToService=2
MpiDefault=none
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """A Slurm of one node with two cores, on the loopback: runs one of its commands."""
    monkeypatch.setenv('PATH', PATH)
    for name in ('state', 'spool'):
        (tmp_path / name).mkdir()
    sockets = [socket.create_server(('127.0.0.1', 0)) for _ in range(2)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    host, file = socket.gethostname().split('.')[0], tmp_path / 'slurm.conf'
    file.write_text(CONFIG.format(host=host, folder=tmp_path, ports=ports))
    monkeypatch.setenv('SLURM_CONF', str(file))
    key, own_key = pathlib.Path('/etc/munge/munge.key'), tmp_path / 'munge.key'
    own_key.write_bytes(key.read_bytes() if key.exists() else os.urandom(1024))
    own_key.chmod(0o400)
    pathlib.Path('/run/munge').mkdir(exist_ok=True)
    munge = None
    if subprocess.run(['munge', '-n'], capture_output=True).returncode:
        words = [f'--key-file={own_key}', f'--log-file={tmp_path}/munged.log', '--force']
        munge = subprocess.Popen(['munged', '--foreground', *words])
    daemons = [subprocess.Popen([name, '-D']) for name in ('slurmctld', 'slurmd')]

    def run(*words):
        return subprocess.run(words, capture_output=True, text=True, timeout=30).stdout

    stops.wait_for(lambda: 'idle' in run('sinfo'))
    yield run
    run('scancel', '--user=root')
    for process in [*daemons, *([munge] if munge else [])]:
        process.terminate()
        process.wait(30)


def test_two_processes_are_preempted_queued_again_and_go_on(slurm, tmp_path):
    """SIGTERM, as before the time is up: both save one step and end with 143; Slurm starts the job
    again, and its end is that of a run which nobody stopped."""
    (tmp_path / 'config.py').write_text(stops.ring(steps=3000, checkpoint_every=100))
    train = ['train', f'--config={tmp_path}/config.py']
    launcher = ROOT / 'experiments' / 'launch' / 'slurm.py'
    command = [sys.executable, str(launcher), '--tasks=2', '--time=30', '--', *train]
    given = os.environ | {'PYTHONPATH': str(ROOT), 'JAX_NUM_CPU_DEVICES': '1'}
    run, unbroken = tmp_path / 'run', tmp_path / 'unbroken'

    def submit(folder):
        said = subprocess.run(
            [*command, f'--workdir={folder}'],
            env=given,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
        )
        return said.stdout.split()[-1]

    def state_of(job):
        said = slurm('scontrol', 'show', 'job', job)
        return said.split('JobState=')[1].split()[0] if 'JobState=' in said else ''

    job = submit(run)
    stops.wait_for(lambda: test_faults.last_log(run) > 2)
    slurm('scancel', '--signal=TERM', job)
    stops.wait_for(lambda: state_of(job) == 'PENDING')
    log = (tmp_path / f'fdistill-{job}.log').read_text()
    ends = [part.split()[0] for part in log.split('stopped at step ')[1:]]
    assert len(ends) == 2 and set(ends) == {str(checkpoint.newest(run))}
    # srun says it of both in one line where they end together.
    tasks = re.findall(r'tasks? ([\d-]+): Exited with exit code 143', log)
    assert sorted(tasks) in (['0', '1'], ['0-1'])
    slurm('scontrol', 'update', f'job={job}', 'StartTime=now')  # It would wait two minutes.
    stops.wait_for(lambda: state_of(job) == 'COMPLETED')
    log = (tmp_path / f'fdistill-{job}.log').read_text()
    assert f'going on from the checkpoint at step {ends[0]} of 3000' in log
    other = submit(unbroken)
    stops.wait_for(lambda: state_of(other) == 'COMPLETED')
    rows = [
        [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]
        for folder in (run, unbroken)
    ]
    assert len(rows[0]) == 60 and rows[0] == rows[1]


def test_a_wrong_command_is_not_queued_again(slurm, tmp_path):
    launcher = ROOT / 'experiments' / 'launch' / 'slurm.py'
    command = [sys.executable, str(launcher), '--', 'train', '--config=none.py', '--workdir=run']
    given = os.environ | {'PYTHONPATH': str(ROOT)}
    done = subprocess.run(
        command, env=given, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    job = done.stdout.split()[-1]
    stops.wait_for(lambda: 'JobState=FAILED' in slurm('scontrol', 'show', 'job', job))
    assert 'none.py' in (tmp_path / f'fdistill-{job}.log').read_text()
