"""What a compiled program moves between devices, read from its text, and how long a chip takes."""

import math
import re
from collections.abc import Mapping
from typing import NamedTuple

# XLA's operations between devices -> bytes that a device of a ring of n sends for a byte that it
# holds when the operation begins.
KINDS = {
    'all-gather': lambda n: n - 1,
    'reduce-scatter': lambda n: (n - 1) / n,
    'all-reduce': lambda n: 2 * (n - 1) / n,
    'all-to-all': lambda n: (n - 1) / n,
    'collective-permute': lambda n: 1,
}
_COMPUTATION = re.compile(r'(ENTRY )?%?([\w.\-]+) \(.*-> .*\{$')
_OPERATION = re.compile(r'\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][a-z\-]*)\((.*?)\)(.*)$')
_CALLED = re.compile(r'(?:calls|to_apply|body|(?:true|false)_computation)=%?([\w.\-]+)')
_BRANCHES = re.compile(r'branch_computations=\{([^}]*)\}')
_TURNS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
# The devices of a group: listed; [groups, devices of a group]; or axes of a mesh.
_GROUPS = re.compile(
    r'replica_groups=(?:\{\{([\d,]+)\}|\[\d+,(\d+)\]'
    r'|mesh\[([^\]]*)\](?:, device_ids=[^{]*)? \{([^}]*)\})'
)
_CHANNEL = re.compile(r'channel_id=(\d+)')
_ARRAY = re.compile(r'\b(pred|[a-z]+\d+)\w*\[([\d,]*)\]')


class Collective(NamedTuple):
    """What the operations of one kind do in one run of a program.

    count: how often one runs.
    bytes: that a device sends, of a ring.
    """

    count: int = 0
    bytes: float = 0.0


def collectives(text: str) -> dict[str, Collective]:
    """{kind of `KINDS`: `Collective`} of one run of a program.

    What is in a loop counts as often as the loop turns, once where the compiler does not know; of
    branches each counts.

    Args:
      text: `compiled.as_text()`.
    """
    types, inside, called, first = {}, {}, {}, None
    for line in text.splitlines():
        if match := _COMPUTATION.match(line):
            name = match[2]
            first = name if match[1] else first
        elif match := _OPERATION.match(line):
            made, types[made], kind, given, rest = match.groups()
            if (kind := kind.removesuffix('-start')) in KINDS:
                operands = re.findall(r'%([\w.\-]+)', given)
                channel = _CHANNEL.search(rest)
                key = channel[1] if channel else operands[0]
                # A TPU's reduce-scatter is a sum within a computation of this name; all may have
                # one channel.
                if name.startswith('all-reduce-scatter'):
                    kind, key = 'reduce-scatter', name
                inside.setdefault(name, []).append((kind, key, operands, rest))
            turns = int(_TURNS.search(rest)[1]) if kind == 'while' and _TURNS.search(rest) else 1
            others = _CALLED.findall(rest)
            others += [o.strip(' %') for b in _BRANCHES.findall(rest) for o in b.split(',')]
            called.setdefault(name, []).extend((other, turns) for other in others)
    total, seen = {}, {}

    def run(name, times):
        for kind, key, operands, rest in inside.get(name, ()):
            # A TPU begins, awaits and ends one operation in several places.
            more = max(times - seen.get((kind, key), 0), 0)
            seen[kind, key] = seen.get((kind, key), 0) + more
            old, sent = total.get(kind, Collective()), KINDS[kind](_group(rest))
            held = sum(_size(*array) for o in operands for array in _ARRAY.findall(types[o]))
            total[kind] = Collective(old.count + more, old.bytes + more * sent * held)
        for other, turns in called.get(name, ()):
            run(other, times * turns)

    run(first, 1)
    return dict(sorted(total.items()))


def _group(rest):
    """Devices that take part in an operation together."""
    match = _GROUPS.search(rest)
    listed, number, mesh, axes = match.groups() if match else ('', '1', '', '')
    if listed:
        return len(listed.split(','))
    if number:
        return int(number)
    sizes = dict(re.findall(r"'(\w+)'=(\d+)", mesh))
    # 'axis':(2)4 is a part, of size 4, of an axis.
    parts = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", axes)
    return math.prod(int(part or sizes[axis]) for axis, part in parts)


def _size(kind, shape):
    bits = 8 if kind == 'pred' else int(re.search(r'\d+', kind)[0])
    return math.prod(int(n) for n in shape.split(',') if n) * bits // 8


class Chip(NamedTuple):
    """What a chip can do at most.

    flops: per second, of products in bfloat16.
    memory: bytes.
    bandwidth: bytes per second between chip and memory.
    interconnect: bytes per second that it sends in a ring along one axis of the torus, both ways
      round, which takes two of its ports.
    """

    flops: float
    memory: float
    bandwidth: float
    interconnect: float


# docs.cloud.google.com/tpu/docs/{v5e,v5p,v6e}; of v4, arXiv 2304.01433, table 4. An interconnect of
# P ports that moves B bytes both ways sends B/P along an axis.
CHIPS = {
    'v4': Chip(275e12, 32 * 2**30, 1200e9, 600e9 / 6),
    'v5e': Chip(197e12, 16 * 2**30, 819e9, 400e9 / 4),
    'v5p': Chip(459e12, 95 * 2**30, 2765e9, 1200e9 / 6),
    'v6e': Chip(918e12, 32 * 2**30, 1638e9, 800e9 / 4),
}


def seconds(
    chip: Chip, flops: float, accessed: float, moved: Mapping[str, Collective]
) -> dict[str, float]:
    """{'products', 'memory', 'interconnect'}: seconds that each takes at the chip's best; a step
    takes at least the largest (roofline, DOI 10.1145/1498765.1498785).

    Args:
      chip: of `CHIPS`.
      flops, accessed: operations, and bytes to and from memory, of a device.
      moved: of `collectives`.
    """
    return {
        'products': flops / chip.flops,
        'memory': accessed / chip.bandwidth,
        'interconnect': sum(one.bytes for one in moved.values()) / chip.interconnect,
    }
