"""When to stop early: on a signal, which a scheduler sends before it takes the machine, or a user
who has seen enough; and when nothing has happened for too long."""

import contextlib
import faulthandler
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator

import jax
from jax.experimental import multihost_utils

from fdistill.errors import Stopped

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Stop:
    """Whether to stop after the present step, with a checkpoint: asked for by SIGTERM, Ctrl-C or
    the end of the terminal. The same signal once more has its usual effect.

    Used as a context, in the main thread. Several processes stop at the same step: JAX catches the
    SIGTERM of any of them, and its preemption service says at which step all have it; the other
    signals keep their usual effect there.

    Attributes:
      signum: number of the signal, 0 before there was one.
    """

    def __init__(self):
        self.signum = 0
        self._several = jax.process_count() > 1
        self._previous = {}

    def __enter__(self):
        if not self._several and threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *_):
        self._restore()

    def requested(self, step: int) -> bool:
        """Whether to stop after this step; in several processes asked once a step, by all."""
        if self._several and multihost_utils.reached_preemption_sync_point(step):
            self.signum = signal.SIGTERM
        return bool(self.signum)

    def _note(self, number, _):
        self.signum = number
        self._restore()
        name = signal.Signals(number).name
        print(f'{name}: stops after this step, with a checkpoint', file=sys.stderr, flush=True)

    def _restore(self):
        while self._previous:
            signal.signal(*self._previous.popitem())


@contextlib.contextmanager
def interrupting() -> Iterator[None]:
    """Turns the signals of `Stop` into a `Stopped` where they come, for work between trainings; the
    same signal once more has its usual effect. Likewise in the main thread of one process alone."""
    previous = {}

    def interrupt(number, _):
        signal.signal(number, previous[number])
        raise Stopped(signal.Signals(number).name, number)

    if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
        previous = {number: signal.signal(number, interrupt) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def watchdog(seconds: float) -> Iterator[Callable[[], None]]:
    """Ends this process with exit code 1 and the stacks of its threads on stderr when the function
    that it gives has not been called for so many seconds; 0: never.

    A collective whose peer is stuck hangs for ever, and nothing else ends it. Between the stacks
    and the end lie some seconds: the end of one process ends the others, also the one that is
    stuck, whose stacks say why.
    """
    # pytest replaces sys.stderr by what has no file descriptor.
    file, grace = sys.__stderr__, min(5, seconds / 3)
    last, armed, over = time.monotonic(), -math.inf, threading.Event()

    def alive():
        nonlocal last, armed
        last = time.monotonic()
        # Where not even Python's threads run any more. Setting it starts a thread, which every step
        # need not do.
        if seconds and last - armed > min(1, seconds / 10):
            faulthandler.dump_traceback_later(seconds + 2 * grace, exit=True, file=file)
            armed = last

    def watch():
        while not over.wait(max(last + seconds - time.monotonic(), 0.01)):
            if time.monotonic() - last >= seconds:
                print(f'Timeout: no step was finished in {seconds:g} s', file=file, flush=True)
                faulthandler.dump_traceback(file)
                time.sleep(grace)
                os._exit(1)

    alive()
    if seconds:
        threading.Thread(target=watch, daemon=True).start()
    try:
        yield alive
    finally:
        over.set()
        if seconds:
            faulthandler.cancel_dump_traceback_later()
