"""What memory a device has left, and what a compiled program takes."""

import math
import pathlib
from typing import Any

import jax


def free() -> float:
    """Bytes that the first device has left, or its host where it has no memory of its own; infinite
    where neither tells."""
    stats = jax.local_devices()[0].memory_stats()
    if stats:
        return stats['bytes_limit'] - stats['bytes_in_use']
    file = pathlib.Path('/proc/meminfo')
    lines = (
        dict(line.split(':') for line in file.read_text().splitlines()) if file.is_file() else {}
    )
    return int(lines['MemAvailable'].split()[0]) * 1024 if 'MemAvailable' in lines else math.inf


def check(arrays: Any, what: str) -> None:
    """Raises ValueError where arrays are larger than the memory of all devices together.

    Args:
        arrays: a tree with shapes and types; nothing is allocated.
        what: they are, for the message.
    """
    leaves = jax.tree.leaves(arrays)
    # In Python's integers: the products of shapes may exceed 64 bits.
    size = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)
    if size > (most := free() * jax.device_count()):
        raise ValueError(
            f'{what} takes {size / 2**30:,.0f} GiB, {most / 2**30:,.0f} GiB are free; make it '
            'smaller'
        )


def needed(program: Any) -> int:
    """Bytes that a compiled program takes with its arguments and results."""
    sizes = program.memory_analysis()
    return (
        sizes.argument_size_in_bytes
        + sizes.output_size_in_bytes
        - sizes.alias_size_in_bytes
        + sizes.temp_size_in_bytes
    )
