"""What memory a device has left, and what a compiled program takes."""

import math
import pathlib
from typing import Any

import jax

from fdistill.files import process


def free() -> float:
    """Bytes that the first device has left, or its share of the host's where it has no memory of
    its own; infinite where neither tells."""
    stats = jax.local_devices()[0].memory_stats()
    if stats:
        return stats['bytes_limit'] - stats['bytes_in_use']
    process.release()  # What `process.prepare` keeps would count as used.
    file = pathlib.Path('/proc/meminfo')
    lines = (
        dict(line.split(':') for line in file.read_text().splitlines()) if file.is_file() else {}
    )
    left = int(lines['MemAvailable'].split()[0]) * 1024 if 'MemAvailable' in lines else math.inf
    return left / jax.local_device_count()


def needed(program: Any) -> int:
    """Bytes that a compiled program takes with its arguments and results."""
    sizes = program.memory_analysis()
    return (
        sizes.argument_size_in_bytes
        + sizes.output_size_in_bytes
        - sizes.alias_size_in_bytes
        + sizes.temp_size_in_bytes
    )


def of_role(gradient: Any, update: Any, rest: Any) -> int:
    """Bytes that the compiled `step.Halves` of a role take, of which `rest` is there during the
    update but is no argument of it."""
    return max(needed(gradient), needed(update) + size(rest))


def by_part(state: Any, frozen: Any, batch: Any, needed: float) -> dict[str, float]:
    """Bytes on each device of what a step takes, by part: what is left of `needed`, which it takes
    in all, are activations.

    Args:
      state: `TrainState`; as frozen and batch, of arrays or of their shapes, with shardings.
    """
    parts = {
        'parameters': state.params,
        'optimizer': state.opt_state,
        'averages': state.averages,
        'frozen': frozen,
        'batch': batch,
    }
    sizes = {name: size(tree) for name, tree in parts.items()}
    return sizes | {'activations': max(needed - sum(sizes.values()), 0), 'needed': needed}


def size(tree: Any) -> int:
    """Bytes on each device of arrays, or of their shapes, with shardings."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )
