"""When to stop early: on SIGTERM, which a scheduler sends before it takes the machine."""

import signal
import threading

import jax


class Stop:
    """Whether to stop after the present step: set by SIGTERM, which a scheduler sends before it
    takes the machine.

    Used as a context, in the main thread of a lone process only. Several processes would have to
    stop at the same step, which orbax's own preemption check would have to arrange; there JAX
    catches the signal.
    """

    def __init__(self):
        self.requested = False
        self._previous = None
        self._possible = (
            jax.process_count() == 1 and threading.current_thread() is threading.main_thread()
        )

    def __enter__(self):
        if self._possible:
            self._previous = signal.signal(
                signal.SIGTERM, lambda *_: setattr(self, 'requested', True)
            )
        return self

    def __exit__(self, *_):
        if self._possible:
            signal.signal(signal.SIGTERM, self._previous)
