"""What a run would need of each device, from its programs compiled for devices that need not be
there."""

import collections
import functools
import re
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax
from jax.sharding import Mesh

from fdistill.files.text import clock
from fdistill.methods.method import Method
from fdistill.training import checkpoint, cost, loop, memory, sharding
from fdistill.training.loop import Training
from fdistill.training.step import ends

# What a program that does not fit a chip takes, in XLA's errors: all of it, or what is temporary.
_TOO_LARGE = re.compile(
    r'RESOURCE_EXHAUSTED.*(?:Used ([\d.]+)([KMG]) of|temporaries \(([\d.]+)([KMG])\))', re.DOTALL
)
_UNITS = {'K': 2**10, 'M': 2**20, 'G': 2**30}

# A plan compiles in a tenth of the time so; FLOPs stay, and memory to some per cent.
QUICKLY = {'exec_time_optimization_effort': -1.0}

ASSUMPTIONS = (
    'seconds are a lower bound: products at the peak of bfloat16, each byte of memory at full '
    'bandwidth, and all that is sent in a ring along one axis of the torus, the three at once',
    'what is in a loop over microbatches counts as often as the loop turns, and so does all else '
    'of a gradient',
    'logs, checkpoints, previews, evaluations and reading the data are not in it',
)


def estimate(
    method: Method,
    optimizers: Mapping[str, optax.GradientTransformation],
    training: Training,
    frozen: Any,
    batch: Any,
    *,
    mesh: Mesh,
    chip: cost.Chip | None,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """What each device needs for a run, as plain values: 'memory' in bytes, 'programs', seconds.

    The memory of a program counts also what it does not read.

    Args:
      method, optimizers, training, mesh: as of `loop.train`.
      frozen, batch: shapes and dtypes; the whole batch.
      chip: what a device can do; None: nothing is said of seconds or of what fits.
      say: is told how far it is, for compiling takes minutes.
    """
    key = jax.eval_shape(lambda: jax.random.key(0))
    key = checkpoint.abstract(key, sharding.replicated(mesh))
    placed = sharding.state_sharding(frozen, mesh, training.partition_rules)
    frozen = checkpoint.abstract(frozen, placed)
    by_batch = sharding.batch_sharding(mesh)
    batch = checkpoint.abstract(batch, jax.tree.map(lambda _: by_batch, batch))
    say('tracing')
    made = loop.programs(method, optimizers, training, frozen, batch, key, mesh)
    state = loop.named(made, mesh)
    turns = [turn for done in range(training.steps) for turn in ends(method.cycle(done))]
    # Name -> how it is lowered, how often its loops turn, and what is there besides it.
    lower = {'init': (functools.partial(made.init.lower, frozen, key), 1, ())}
    # An update that is the last of its step is the same but for a counter.
    for role, last in dict(turns).items():
        gradient = made.gradient(role)
        update = functools.partial(
            made.update.lower, state, gradient.out_info, role=role, last=last
        )
        lower[f'{role} gradient'] = gradient.lower, training.microbatches, ()
        lower[f'{role} update'] = update, 1, (made.read, batch)
    programs, options = {}, sharding.compiler_options(mesh) | (QUICKLY if chip else {})
    for name, how in lower.items():
        say(f'{name}: compiling for {mesh.size} devices')
        programs[name] = _analysed(*how, chip, options)
        say(f'{name}: compiled in {clock(programs[name]["compile_seconds"])}')
    needed = max(one['memory'] for one in programs.values())
    sizes = memory.by_part(state, made.read, batch, needed)
    result = {'devices': mesh.size, 'mesh': dict(mesh.shape), 'memory': sizes, 'programs': programs}
    for role, count in collections.Counter(role for role, _ in turns).items():
        for half in ('gradient', 'update'):
            programs[f'{role} {half}']['share'] = count / training.steps
    if chip:
        sizes['chip'] = chip.memory
        result['fits'] = all(one['fits'] for one in programs.values())
        if all('flops' in one for one in programs.values()):
            times = [
                (max(one['seconds'].values()), one.get('share', 0)) for one in programs.values()
            ]
            result['seconds_a_step'] = sum(seconds * share for seconds, share in times)
            result['hours'] = result['seconds_a_step'] * training.steps / 3600
    return result | {'assumptions': list(ASSUMPTIONS if chip else ASSUMPTIONS[1:])}


def _analysed(lower, times, rest, chip, options):
    """What one program needs, or what the compiler says of it where it does not fit.

    Args:
      lower: () -> lowered program.
      times: how often its loops turn.
      rest: what is there and is no argument of it.
    """
    began = time.monotonic()
    try:
        program = lower().compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as error:
        found = _TOO_LARGE.search(str(error))
        if not found:
            raise
        number, unit = filter(None, found.groups())
        used = float(number) * _UNITS[unit]
        return {'compile_seconds': time.monotonic() - began, 'memory': used, 'fits': False}
    spent = time.monotonic() - began
    counted = program.cost_analysis()
    moved = cost.collectives(program.as_text())
    # XLA counts what is in a loop once.
    flops, accessed = (counted.get(name, 0) * times for name in ('flops', 'bytes accessed'))
    code = program.memory_analysis().generated_code_size_in_bytes
    needed = memory.needed(program) + memory.size(rest) + code
    result = {
        'compile_seconds': spent,
        'memory': needed,
        'flops': flops,
        'bytes_accessed': accessed,
        'sent': {kind: one._asdict() for kind, one in moved.items()},
    }
    if chip:
        result['fits'] = needed <= chip.memory
        result['seconds'] = cost.seconds(chip, flops, accessed, moved)
    return result
