"""Devices that are not there, to compile for: a pod of TPUs, or a CPU that plays many."""

import importlib.util
import os
import re
from collections.abc import Sequence

import jax
from jax.experimental import topologies

from fdistill.errors import UserError, pick
from fdistill.training import cost

# Two cores of a chip that work as one device.
MEGACORE = ('v4', 'v5p')
# Else libtpu asks the network what machine this is, and says at length that it is none; and only
# one process may compile at a time.
ALONE = {
    'TPU_SKIP_MDS_QUERY': '1',
    'TPU_WORKER_HOSTNAMES': 'localhost',
    'TPU_WORKER_ID': '0',
    'TPU_ACCELERATOR_TYPE': 'v4-8',
    'TPU_MIN_LOG_LEVEL': '3',
    'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
}


def devices(topology: str) -> tuple[Sequence[jax.Device], cost.Chip | None]:
    """(The devices of a topology, what one can do; None where nobody knows).

    To be called before anything else touches a device: no TPU is looked for.

    Args:
      topology: 'v5e:16x16' or another of `cost.CHIPS` and its shape, or 'cpu:64', simulated.

    Raises:
      UserError: an unknown topology, or no compiler for it.
    """
    kind, _, shape = topology.partition(':')
    if not re.fullmatch(r'[1-9]\d*(x[1-9]\d*)*', shape) or kind == 'cpu' and 'x' in shape:
        raise UserError(
            f'--topology={topology}: give a kind of chip and its shape, as v5e:2x4, or cpu:8'
        )
    jax.config.update('jax_platforms', 'cpu')
    if kind == 'cpu':
        return _simulated(int(shape)), None
    chip = pick(cost.CHIPS, kind, '--topology')
    if importlib.util.find_spec('libtpu') is None:
        raise UserError(
            f"--topology={topology}: the compiler for TPUs is missing; pip install 'fdistill[plan]'"
        )
    for name, value in ALONE.items():
        os.environ.setdefault(name, value)
    options = {'chip_config_name': 'megacore'} if kind in MEGACORE else {}
    try:
        described = topologies.get_topology_desc(topology, platform='tpu', **options)
    except jax.errors.JaxRuntimeError as error:
        said = str(error).splitlines()[0].removeprefix('INVALID_ARGUMENT: ')
        raise UserError(f'--topology={topology}: there is no such pod: {said}') from error
    return described.devices, chip


def _simulated(count):
    try:
        jax.config.update('jax_num_cpu_devices', count)
    except RuntimeError:
        pass  # There are devices already, maybe enough.
    there = jax.devices('cpu')
    if len(there) < count:
        raise UserError(
            f'--topology=cpu:{count}: this process has only {len(there)} simulated devices; '
            'start another'
        )
    return there[:count]
