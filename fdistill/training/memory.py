"""What memory a device has left, and what a compiled program takes."""

import math
import pathlib
from collections.abc import Mapping
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


def besides(program: Any) -> int:
    """Bytes that a compiled program takes besides its arguments."""
    sizes = program.memory_analysis()
    return sizes.output_size_in_bytes - sizes.alias_size_in_bytes + sizes.temp_size_in_bytes


def needed(program: Any) -> int:
    """Bytes that a compiled program takes with its arguments and results."""
    return program.memory_analysis().argument_size_in_bytes + besides(program)


def of_halves(gradient: Any, update: Any) -> int:
    """Bytes that the compiled `step.Halves` of a role take besides what is `resident`."""
    found = gradient.memory_analysis().output_size_in_bytes
    return max(besides(gradient), found + besides(update))


def resident(state: Any, frozen: Any, batch: Any) -> dict[str, float]:
    """Bytes on each device of what is there in every step, by part.

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
    return {name: size(tree) for name, tree in parts.items()}


def with_activations(parts: Mapping[str, float], needed: float) -> dict[str, float]:
    """Of `resident`, with what is left of all that is `needed`, which are activations."""
    return parts | {'activations': max(needed - sum(parts.values()), 0), 'needed': needed}


def size(tree: Any) -> int:
    """Bytes on each device of arrays, or of their shapes, with shardings."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )
