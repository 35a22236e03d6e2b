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
    'what is in a loop over microbatches counts as often as the loop turns, the optimizer with it',
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
    everything = functools.partial(made.step, roles=tuple(method.losses))
    after = jax.eval_shape(everything, made.state, made.read, batch, key)
    state = loop.named(made.state, after, mesh)
    turns = collections.Counter(map(method.cycle, range(training.steps)))
    lower = {'init': functools.partial(made.init.lower, frozen, key)}
    for roles in turns:
        given = functools.partial(made.step.lower, state, made.read, batch, key, roles=roles)
        lower[' + '.join(roles)] = given
    programs, options = {}, sharding.compiler_options(mesh) | (QUICKLY if chip else {})
    for name, make in lower.items():
        say(f'{name}: compiling for {mesh.size} devices')
        parts = training.microbatches if name != 'init' else 1
        programs[name] = _analysed(make, parts, chip, options)
        say(f'{name}: compiled in {clock(programs[name]["compile_seconds"])}')
    needed = max(one['memory'] for one in programs.values())
    sizes = memory.by_part(state, made.read, batch, needed)
    result = {'devices': mesh.size, 'mesh': dict(mesh.shape), 'memory': sizes, 'programs': programs}
    for roles, count in turns.items():
        programs[' + '.join(roles)]['share'] = count / training.steps
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


def _analysed(lower, microbatches, chip, options):
    """What one program needs, or what the compiler says of it where it does not fit."""
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
    flops, accessed = (counted.get(name, 0) * microbatches for name in ('flops', 'bytes accessed'))
    needed = memory.needed(program) + program.memory_analysis().generated_code_size_in_bytes
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
