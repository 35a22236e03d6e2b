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


def needed(program: Any) -> int:
    """Bytes that a compiled program takes with its arguments and results."""
    sizes = program.memory_analysis()
    return (
        sizes.argument_size_in_bytes
        + sizes.output_size_in_bytes
        - sizes.alias_size_in_bytes
        + sizes.temp_size_in_bytes
    )
