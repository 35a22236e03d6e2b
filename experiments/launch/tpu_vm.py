"""Trains on a TPU VM slice: runs one command on all of its hosts, and again after a failure.

    python experiments/launch/tpu_vm.py --name=SLICE --zone=ZONE [--restarts=10] [--dry-run] -- \\
        train --config=configs/imagenet64_sim.py --workdir=gs://BUCKET/sim

What follows `--` is a command line of `fdistill`, run in --folder of each host, where a checkout
has been installed (`make venv`, `pip install -e '.[tpu]'`). The hosts find one another. After a
failure it starts again and goes on from the newest checkpoint; not after a wrong command (exit
code 2) or a stop that was asked for (143).
"""

import argparse
import shlex
import subprocess
import sys

FINAL = (0, 2, 143)


def parse(words):
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0], allow_abbrev=False)
    parser.add_argument('--name', required=True, help='of the TPU VM')
    parser.add_argument('--zone', required=True)
    parser.add_argument(
        '--folder', default='fdistill', help='checkout on each host; default: ~/%(default)s'
    )
    parser.add_argument('--restarts', type=int, default=10, help='default: %(default)s')
    parser.add_argument('--dry-run', action='store_true', help='print the command, run nothing')
    parser.add_argument('command', nargs='+', help='of fdistill, after --')
    options = parser.parse_args(words)
    if options.restarts < 0:
        parser.error(f'--restarts={options.restarts}: need at least 0')
    return options


def command(options):
    ours = shlex.join(['.venv/bin/fdistill', *options.command])
    remote = f'cd {shlex.quote(options.folder)} && {ours}'
    place = ['gcloud', 'compute', 'tpus', 'tpu-vm', 'ssh', options.name, f'--zone={options.zone}']
    return [*place, '--worker=all', f'--command={remote}']


def main(words=None):
    options = parse(words)
    if options.dry_run:
        print(shlex.join(command(options)))
        return 0
    for attempt in range(options.restarts + 1):
        if attempt:
            print(f'start {attempt + 1} of {options.restarts + 1}', file=sys.stderr, flush=True)
        try:
            code = subprocess.run(command(options)).returncode
        except FileNotFoundError:
            print('gcloud is not on PATH: install it, or --dry-run', file=sys.stderr)
            return 2
        if code in FINAL:
            return code
    return code


if __name__ == '__main__':
    sys.exit(main())
