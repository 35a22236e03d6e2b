"""Every test sees eight simulated CPU devices and caches of its own."""

import collections
import ctypes
import ctypes.util
import gc
import importlib.metadata
import os
import pathlib
import resource

import pytest

# In the environment rather than in jax.config, so that subprocesses started by tests have it too. A
# GPU would change the rounding that tests pin; JAX_PLATFORMS=cuda asks for one.
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault(
    'JAX_COMPILATION_CACHE_DIR', str(pathlib.Path(__file__).parents[1] / '.cache' / 'jax')
)
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES', '0')
# The older emitters of loops compile a step in half the time; later versions have none.
# `XLA_FLAGS= make test` compiles as users do.
EMITTERS = 'xla_cpu_use_fusion_emitters'
if importlib.metadata.version('jaxlib').startswith('0.10.'):
    os.environ.setdefault('XLA_FLAGS', f'--{EMITTERS}=false')

# Before anything imports absl: submitit's set-up of logging closes absl's handler, and with it the
# stderr pytest captures.
import submitit  # noqa: E402, F401, I001

import jax  # noqa: E402

# Not in the environment: a process started by a test has one device unless it says otherwise.
jax.config.update('jax_num_cpu_devices', 8)
# Several simulated devices can deadlock when their collectives wait for one another in the same
# thread pool.
jax.config.update('jax_cpu_enable_async_dispatch', False)


@pytest.fixture(scope='session', autouse=True)
def cache(tmp_path_factory):
    """Where datasets and feature networks are kept: fresh, so that no test leans on what an older
    version left."""
    folder = tmp_path_factory.mktemp('cache')
    os.environ['FDISTILL_CACHE'] = str(folder)
    return folder


@pytest.fixture
def x64():
    """float64 while the test runs."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def as_users():
    """Options to `jax.jit` with which an `optimised` test compiles exactly as users do."""
    return {EMITTERS: True} if EMITTERS in os.environ.get('XLA_FLAGS', '') else {}


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Most programs of tests run a few times: compiling them well would take longer than it saves.

    A hook, because the fixtures of a test compile too.
    """
    quick = item.get_closest_marker('optimised') is None
    jax.config.update('jax_disable_most_optimizations', quick)


def _resident():
    """Bytes of memory that this process has, where the system says so."""
    pages = pathlib.Path('/proc/self/statm')
    return int(pages.read_text().split()[1]) * resource.getpagesize() if pages.exists() else 0


@pytest.fixture(scope='session')
def limit():
    """Memory of a worker, in bytes, above which compiled programs are let go."""
    return [1.25 * 2**30]


@pytest.fixture(scope='session', autouse=True)
def seldom_collected():
    """What is traced is many objects and no garbage: looking through them takes longer than most
    tests."""
    gc.freeze()
    gc.set_threshold(50_000, 50, 100)


@pytest.fixture(autouse=True)
def tidy(limit):
    yield
    if _resident() > limit[0]:
        jax.clear_caches()
        gc.collect()
        libc = ctypes.util.find_library('c')
        if hasattr(trim := libc and ctypes.CDLL(libc), 'malloc_trim'):
            trim.malloc_trim(0)  # Else the freed memory stays with the process.
        # What is left is not of programs.
        limit[0] = max(limit[0], _resident() + 2**28)


PEAKS, SURVIVED = {}, collections.Counter()


@pytest.fixture
def survived():
    """survived(kind, count=1) notes faults that did no harm, to be said at the end."""
    return lambda kind, count=1: SURVIVED.update({kind: count})


def pytest_sessionfinish(session):
    """What memory a worker took at most, for the controller to say at the end."""
    if hasattr(session.config, 'workeroutput'):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        session.config.workeroutput['peak'] = peak


def pytest_testnodedown(node, error):
    if getattr(node, 'workeroutput', None):
        PEAKS[node.gateway.id] = node.workeroutput.get('peak', 0) / 2**20


def pytest_terminal_summary(terminalreporter):
    if PEAKS:
        said = ', '.join(f'{name} {peak:.1f} GiB' for name, peak in sorted(PEAKS.items()))
        terminalreporter.write_line(f'memory of the workers at most: {said}')
    if SURVIVED:
        said = ', '.join(f'{count} x {kind}' for kind, count in SURVIVED.items())
        terminalreporter.write_line(f'{SURVIVED.total()} faults survived: {said}')
