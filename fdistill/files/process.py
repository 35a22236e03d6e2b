"""What a process keeps: compiled programs from run to run, memory from step to step."""

import ctypes
import importlib.util
import os
import pathlib
import sys

# Names of malloc.h, and what they are set to: one heap for all threads, no block with a mapping of
# its own, nothing of the heap given back below 2 GiB.
MALLOPT = {'M_ARENA_MAX': (-8, 1), 'M_MMAP_MAX': (-4, 0), 'M_TRIM_THRESHOLD': (-1, 2**31 - 1)}
# Where one of these is installed, the arrays of a step are not in this process' heap.
ACCELERATORS = ('jax_plugins', 'libtpu')


def prepare() -> None:
    """Keeps compiled programs below $FDISTILL_CACHE, unless the environment says where, or not at
    all; and on CPU the memory of a step's arrays for the next step.

    To be called before jax is imported, which reads these variables then. Memory is kept by glibc
    alone, and only in a process that has not imported jax yet: its threads have heaps by then. XLA
    takes the temporary arrays of a program as one block and frees it after each run; given back to
    the system, each of its pages is cleared and mapped anew in the next step. That was a fifth of
    the time of a transformer's step on MNIST. What is kept counts as used, until `memory.free`
    asks for what is free.
    """
    own = pathlib.Path.home() / '.cache' / 'fdistill'  # As of `data.cache`, without importing it.
    folder = pathlib.Path(os.environ.get('FDISTILL_CACHE') or own) / 'programs'
    os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(folder))
    os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')
    elsewhere = os.environ.get('JAX_PLATFORMS') != 'cpu' and any(
        importlib.util.find_spec(name) for name in ACCELERATORS
    )
    if sys.platform == 'linux' and 'jax' not in sys.modules and not elsewhere:
        mallopt = getattr(ctypes.CDLL(None), 'mallopt', None)
        for name, value in MALLOPT.values() if mallopt else ():
            mallopt(name, value)
