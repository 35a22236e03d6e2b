"""Placement on a mesh ('data', 'fsdp') or ('data', 'fsdp', 'model') by rule; networks and methods
know nothing of it."""

import math
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.experimental.mesh_utils import create_device_mesh
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from fdistill.errors import UserError

# Of one array, an axis of the mesh or None for each of its own axes.
Rules = tuple[tuple[str, tuple[str | None, ...]], ...]
# Elements of the smallest array that is split where no rule names it.
MIN_SIZE = 2**16


def make_mesh(data: int = -1, fsdp: int = 1, model: int = 1) -> Mesh:
    """A mesh of all devices: the batch is split over `data` and `fsdp`, big parameters over `fsdp`
    and `model`.

    Weights that are split over `fsdp` are gathered before a network is computed; of those that are
    split over `model` each device computes with its own part, and XLA exchanges activations
    (tensor parallelism; arXiv 1909.08053).

    Args:
      data: data-parallel size, or -1 for whatever is left.
      fsdp: number of shards of each big array.
      model: number of devices that share the samples of a batch, in one process.

    Raises:
      ValueError: if data * fsdp * model is not the number of devices, or model does not divide
        those of a process.
    """
    return mesh_over(jax.devices(), data, fsdp, model)


def mesh_over(those: Sequence[jax.Device], data: int = -1, fsdp: int = 1, model: int = 1) -> Mesh:
    """The same of given devices, which need not be there: see `topology.devices`."""
    devices = len(those)
    if fsdp < 1 or model < 1 or (data != -1 and data < 1):
        raise ValueError(
            f'mesh data={data}, fsdp={fsdp}, model={model}: need fsdp, model >= 1 and data >= 1 '
            '(or -1 for the rest)'
        )
    if data == -1:
        if devices % (fsdp * model):
            shards = f'fsdp={fsdp}' if model == 1 else f'fsdp={fsdp} x model={model}'
            raise ValueError(
                f'mesh {shards}: does not divide the {devices} devices; use a divisor, e.g. 1'
            )
        data = devices // (fsdp * model)
    if data * fsdp * model != devices:
        raise ValueError(
            f'mesh data={data} x fsdp={fsdp} x model={model} = {data * fsdp * model}, but there '
            f'are {devices} devices; set data=-1'
        )
    # The devices of another process read other samples.
    here = sum(device.process_index == those[0].process_index for device in those)
    if here % model:
        raise ValueError(f'mesh model={model}: must divide the {here} devices of a process')
    sizes = {'data': data, 'fsdp': fsdp} | ({'model': model} if model > 1 else {})
    # Not by make_mesh, which refuses eight of the sixteen chips along an axis of a pod.
    placed = create_device_mesh(tuple(sizes.values()), those, allow_split_physical_axes=True)
    # Under Explicit axes, a concatenate of differently sharded operands is an error.
    return Mesh(placed, tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The leading axis over all devices, but those that share samples."""
    return NamedSharding(mesh, PartitionSpec(('data', 'fsdp')))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def state_sharding(tree: Any, mesh: Mesh, rules: Rules = (), min_size: int = MIN_SIZE) -> Any:
    """Shardings for a pytree of shapes.

    Of an array of min_size elements the last axis is split over `model`, if it has two, and the
    largest that is left over `fsdp`, each if divisible.

    Args:
      tree: of arrays, or of shapes.
      mesh: Mesh.
      rules: ((pattern, axes), ...): an array in whose name the pattern is found, as
        'dense0/kernel$' in 'params/student/block0/dense0/kernel', is split as `axes` says, whatever
        its size; the first that is found decides. Optimizer and averages have the same ends of
        names.
      min_size: elements.

    Raises:
      ValueError: a rule that an array, or the mesh, cannot follow.
    """
    fsdp, model = mesh.shape['fsdp'], mesh.shape.get('model', 1)
    leaves, structure = jax.tree_util.tree_flatten_with_path(tree)
    placed = []
    for path, leaf in leaves:
        shape, name = leaf.shape, jax.tree_util.keystr(path, simple=True, separator='/')
        axes = next((axes for pattern, axes in rules if re.search(pattern, name)), None)
        if axes is not None and not _fits(axes, shape, mesh):
            raise ValueError(
                f'partition rule {axes}: cannot split {name}, which has the shape {shape}, on a '
                f'mesh {dict(mesh.shape)}'
            )
        if axes is None:
            large, split = math.prod(shape) >= min_size, {}
            if large and model > 1 and len(shape) > 1 and shape[-1] % model == 0:
                split[len(shape) - 1] = 'model'
            free = [i for i, size in enumerate(shape) if i not in split and size % fsdp == 0]
            if large and fsdp > 1 and free:
                split[max(free, key=lambda i: shape[i])] = 'fsdp'
            axes = [split.get(i) for i in range(max(split, default=-1) + 1)]
        placed.append(NamedSharding(mesh, PartitionSpec(*axes)))
    return jax.tree.unflatten(structure, placed)


def _fits(axes, shape, mesh):
    named = [axis for axis in axes if axis is not None]
    return (
        len(axes) <= len(shape)
        and len(set(named)) == len(named)
        and all(
            axis is None or (axis in mesh.shape and size % mesh.shape[axis] == 0)
            for axis, size in zip(axes, shape)
        )
    )


def compiler_options(mesh: Mesh) -> dict[str, Any]:
    """What a program for the devices of a mesh is compiled with."""
    if mesh.devices.flat[0].platform != 'tpu':
        return {}
    # Else weights that are split go from chip to chip in the midst of products, with more memory
    # and traffic than if they are gathered: 1.8 and 1.25 times as much for a CIFAR-10 step of
    # f-distill on v5e:2x4.
    return {'xla_jf_spmd_threshold_for_windowed_einsum_mib': '1000000'}


def check_agreement(digest: str) -> None:
    """Raises UserError in every process of a run unless all give the same digest, hexadecimal.

    With other settings in one of them, they would train on with wrong weights and without a word.
    """
    ours = np.frombuffer(bytes.fromhex(digest), np.uint8)
    theirs = multihost_utils.process_allgather(ours)
    if others := np.flatnonzero(np.any(theirs != theirs[0], axis=1)).tolist():
        raise UserError(
            f'process {", ".join(map(str, others))}: has another config, data or frozen weights '
            'than process 0; start all with the same command, files and version'
        )


def of_first(values: Any) -> Any:
    """An array, or a tree of them, as process 0 has it, in all processes; none goes on before all
    are there."""
    if jax.process_count() > 1:
        values = multihost_utils.broadcast_one_to_all(values)
    return values


def gather(tree: Any, mesh: Mesh, rules: Rules = ()) -> Any:
    """The arrays of a tree, within a program, not split over `data` or `fsdp`. Without it XLA keeps
    weights split and moves activations, which are larger."""

    def whole(array, placed):
        axes = (axis if axis == 'model' else None for axis in placed.spec)
        return jax.lax.with_sharding_constraint(array, NamedSharding(mesh, PartitionSpec(*axes)))

    return jax.tree.map(whole, tree, state_sharding(tree, mesh, rules))


def scatter(tree: Any, mesh: Mesh, rules: Rules = ()) -> Any:
    """The arrays of a tree, within a program, as `state_sharding` places them."""
    return jax.lax.with_sharding_constraint(tree, state_sharding(tree, mesh, rules))


def put_batch(batch: Any, sharding: NamedSharding) -> Any:
    """This process's part of a batch, a tree of numpy arrays, as global arrays."""
    return jax.tree.map(
        lambda value: jax.make_array_from_process_local_data(sharding, np.asarray(value)), batch
    )
