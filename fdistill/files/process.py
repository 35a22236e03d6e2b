"""What a process keeps: compiled programs from run to run, memory from step to step."""

import ctypes
import gc
import importlib.util
import os
import pathlib
import sys

# Names of malloc.h, and what they are set to: one heap for all threads, no block with a mapping of
# its own, nothing of the heap given back by itself.
MALLOPT = {'M_ARENA_MAX': (-8, 1), 'M_MMAP_MAX': (-4, 0), 'M_TRIM_THRESHOLD': (-1, -1)}
MADV_HUGEPAGE = 14  # of sys/mman.h
# Where one of these is installed, the arrays of a step are not in this process' heap.
ACCELERATORS = ('jax_plugins', 'libtpu')


def _glibc():
    """The C library, where it is glibc's, with all that is called here looked up: nothing is while
    files of strangers are read."""
    libc = ctypes.CDLL(None) if sys.platform == 'linux' else None
    if not (hasattr(libc, 'mallopt') and hasattr(libc, 'malloc_trim')):
        return None
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.restype, libc.free.argtypes = None, [ctypes.c_void_p]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return libc


LIBC = _glibc()


def prepare() -> None:
    """Keeps compiled programs below $FDISTILL_CACHE, unless the environment says where, or not at
    all; and on CPU the memory of a step's arrays for the next step. Python looks less often for
    what is no more in use: what is traced is many objects and no garbage.

    To be called before jax is imported, which reads these variables then. Memory is kept by glibc
    alone, and only in a process that has not imported jax yet: its threads have heaps by then. XLA
    takes the temporary arrays of a program as one block and frees it after each run; given back to
    the system, each of its pages is cleared and mapped anew in the next step. That was a fifth of
    the time of a transformer's step on MNIST. The heap is of huge pages, where the system has
    them: a step of a U-Net takes a fifth less time. What is kept counts as used, until `release`.
    """
    own = pathlib.Path.home() / '.cache' / 'fdistill'  # As of `data.cache`, without importing it.
    folder = pathlib.Path(os.environ.get('FDISTILL_CACHE') or own) / 'programs'
    os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(folder))
    os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')
    gc.set_threshold(50_000, 50, 100)
    elsewhere = os.environ.get('JAX_PLATFORMS') != 'cpu' and any(
        importlib.util.find_spec(name) for name in ACCELERATORS
    )
    if LIBC and 'jax' not in sys.modules and not elsewhere:
        for name, value in MALLOPT.values():
            LIBC.mallopt(name, value)
        _reserve()


def release() -> None:
    """Gives the system back what is freed and was kept."""
    if LIBC:
        LIBC.malloc_trim(0)
        _reserve()


def _reserve():
    """Asks for huge pages of half the machine's memory, as addresses alone: what the heap grows
    into. Where there is no such room, it grows as ever; where nothing is kept, a block so large is
    a mapping of its own, which is gone at once."""
    page = 2**21
    size = os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') // 2
    if block := LIBC.malloc(size):
        begin = -(-block // page) * page
        LIBC.madvise(begin, (block + size - begin) // page * page, MADV_HUGEPAGE)
        LIBC.free(block)
