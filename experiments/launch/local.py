"""Trains with several processes on this machine, and starts them again when one of them dies.

    python experiments/launch/local.py --processes=2 [--restarts=3] [--dry-run] -- \\
        train --config=configs/digits_sim.py --workdir=runs/sim

What follows `--` is a command line of `fdistill`. Each process gets its number and the address of
the first; their output is shown with the number before each line. A process that ends takes the
others with it (`fdistill` sees to that within half a minute); then all start again and go on from
the newest checkpoint, unless the command was wrong (exit code 2). SIGTERM and Ctrl-C reach the
processes as SIGTERM: they save and stop at one step, with exit code 143.
"""

import argparse
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time

LEAVING = 60  # Seconds that the others have once one has ended.
WRONG, STOPPED = 2, 128 + signal.SIGTERM  # Exit codes.


def parse(words):
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0], allow_abbrev=False)
    parser.add_argument('--processes', type=int, default=2, help='default: %(default)s')
    parser.add_argument(
        '--restarts', type=int, default=3, help='times to start again; default: %(default)s'
    )
    parser.add_argument('--dry-run', action='store_true', help='print the commands, run nothing')
    parser.add_argument('command', nargs='+', help='of fdistill, after --')
    options = parser.parse_args(words)
    for name, least in (('processes', 1), ('restarts', 0)):
        if getattr(options, name) < least:
            parser.error(f'--{name}={getattr(options, name)}: need at least {least}')
    return options


def commands(options, port):
    """[(what a process has besides in its environment, its command)]."""
    several = options.processes > 1
    return [
        (
            {
                'JAX_COORDINATOR_ADDRESS': f'localhost:{port}',
                'JAX_NUM_PROCESSES': str(options.processes),
                'JAX_PROCESS_ID': str(number),
            }
            if several
            else {},
            [sys.executable, '-m', 'fdistill', *options.command],
        )
        for number in range(options.processes)
    ]


def free_port():
    with socket.socket() as tried:
        tried.bind(('localhost', 0))
        return tried.getsockname()[1]


def show(number, stream):
    for line in stream:
        print(f'[{number}] {line}', end='', file=sys.stderr, flush=True)


def once(options):
    """(Exit codes of the processes, whether they were asked to stop)."""
    running = [
        subprocess.Popen(
            command,
            env=os.environ | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors='replace',
            start_new_session=True,  # Ctrl-C is for this process to pass on.
        )
        for environment, command in commands(options, free_port())
    ]

    asked = False

    def stop(*_):
        nonlocal asked
        asked = True
        for process in running:
            process.send_signal(signal.SIGTERM)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    shown = [
        threading.Thread(target=show, args=(number, process.stdout), daemon=True)
        for number, process in enumerate(running)
    ]
    for thread in shown:
        thread.start()
    ended = None
    while any(process.poll() is None for process in running):
        time.sleep(0.1)
        if ended is None and any(process.poll() for process in running):
            ended = time.monotonic()
        if ended is not None and time.monotonic() - ended > LEAVING:
            for process in running:  # JAX catches a SIGTERM.
                process.kill()
    for thread in shown:
        thread.join()
    return [process.wait() for process in running], asked


def main(words=None):
    options = parse(words)
    if options.dry_run:
        for environment, command in commands(options, 'PORT'):
            said = [f'{name}={value}' for name, value in environment.items()]
            print(shlex.join([*said, *command]))
        return 0
    for attempt in range(options.restarts + 1):
        codes, asked = once(options)
        if not any(codes):
            return 0
        if asked or all(code in (0, STOPPED) for code in codes):
            return STOPPED
        print(f'exit codes {", ".join(map(str, codes))}', file=sys.stderr, flush=True)
        if WRONG in codes:
            return WRONG
        if attempt < options.restarts:
            print(f'start {attempt + 2} of {options.restarts + 1}', file=sys.stderr, flush=True)
    return 1


if __name__ == '__main__':
    sys.exit(main())
