"""Trains on a Slurm cluster: prints a batch script, and submits it.

    python experiments/launch/slurm.py --nodes=4 --gpus=8 [--partition=P] [--time=24:00:00] \\
        [--dry-run] -- train --config=configs/cifar10_sim.py --workdir=runs/sim

What follows `--` is a command line of `fdistill`. Each GPU has a process: under Slurm, JAX gives a
process the one GPU of its number alone; it finds the others by Slurm's variables. Two minutes
before the time is up, or when the job is preempted, the processes get SIGTERM: they save and stop
at one step with exit code 143, and the job is put into the queue again and goes on. So it is after
a failure, at most --restarts times; not after a wrong command (exit code 2).
"""

import argparse
import shlex
import subprocess
import sys

SCRIPT = """\
#!/bin/bash
#SBATCH --job-name={name}
#SBATCH --nodes={nodes}
#SBATCH --ntasks-per-node={tasks}
{lines}#SBATCH --time={time}
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output={name}-%j.log
#SBATCH --signal=TERM@120
# Not B: in front of TERM: the signal is for the processes, which save and stop.
srun --kill-on-bad-exit=0 {command}
code=$?
# 143: stopped by a signal, with a checkpoint. 2: a wrong command, which no restart mends.
if [ $code -ne 0 ] && [ $code -ne 2 ] && [ "${{SLURM_RESTART_COUNT:-0}}" -lt {restarts} ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit $code
"""


def parse(words):
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0], allow_abbrev=False)
    parser.add_argument('--nodes', type=int, default=1, help='default: %(default)s')
    parser.add_argument('--gpus', type=int, default=0, help='of each node; default: none')
    parser.add_argument('--tasks', type=int, help='processes of each node; default: one a GPU')
    parser.add_argument('--cpus', type=int, default=0, help='of each process; default: the site')
    parser.add_argument('--partition', help="default: the site's")
    parser.add_argument('--time', default='24:00:00', help='of one job; default: %(default)s')
    parser.add_argument('--name', default='fdistill', help='of the job; default: %(default)s')
    parser.add_argument('--restarts', type=int, default=100, help='default: %(default)s')
    parser.add_argument('--dry-run', action='store_true', help='print the script, submit nothing')
    parser.add_argument('command', nargs='+', help='of fdistill, after --')
    options = parser.parse_args(words)
    if options.tasks is None:
        options.tasks = max(options.gpus, 1)
    for name, least in (('nodes', 1), ('tasks', 1), ('gpus', 0), ('cpus', 0), ('restarts', 0)):
        if getattr(options, name) < least:
            parser.error(f'--{name}={getattr(options, name)}: need at least {least}')
    return options


def script(options):
    given = {
        'gpus-per-node': options.gpus,
        'cpus-per-task': options.cpus,
        'partition': options.partition,
    }
    lines = ''.join(f'#SBATCH --{name}={value}\n' for name, value in given.items() if value)
    command = [sys.executable, '-m', 'fdistill', *options.command]
    if options.nodes * options.tasks > 1 and '--distributed' not in command:
        command.append('--distributed')
    return SCRIPT.format(
        name=options.name,
        nodes=options.nodes,
        tasks=options.tasks,
        lines=lines,
        time=options.time,
        restarts=options.restarts,
        command=shlex.join(command),
    )


def main(words=None):
    options = parse(words)
    text = script(options)
    if options.dry_run:
        print(text, end='')
        return 0
    try:
        return subprocess.run(['sbatch'], input=text, text=True).returncode
    except FileNotFoundError:
        print('sbatch is not on PATH: run this on a login node, or --dry-run', file=sys.stderr)
        return 2


if __name__ == '__main__':
    sys.exit(main())
