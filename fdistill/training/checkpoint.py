"""Checkpoints: the one place that uses orbax.

A step holds separate items, each of which can be restored alone: `state` (to resume), `ema` (to
sample from), `config` and `position` (next batch, and a digest of every array). orbax restores a
flipped bit without an error. Digests are therefore verified here, and a step whose digests do not
fit is passed over: the newest that does fit is restored.
"""

import logging
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from fdistill.errors import UserError
from fdistill.methods.method import DEPLOYED
from fdistill.training.state import TrainState

FOLDER = 'checkpoints'
ARRAYS = ('state', 'ema')


class Saved(NamedTuple):
    """`TrainState` as the item `state` holds it, in the layout of the first version.

    `ema` has the averages other than the one that is sampled from, and is () where there are none.
    """

    step: Any
    params: Any
    opt_state: Any
    ema: Any
    aux: Any
    skipped: Any
    skipped_in_a_row: Any
    metrics: Any


def items(state: TrainState) -> dict[str, Any]:
    """{'state', 'ema'}: a state as it is saved, with the average that is sampled from apart."""
    fields = state._asdict()
    averages = dict(fields.pop('averages'))
    deployed = averages.pop(DEPLOYED)
    return {'state': Saved(**fields, ema=averages or ()), 'ema': deployed}


def joined(arrays: Mapping[str, Any]) -> TrainState:
    """The state that `items` took apart."""
    fields = arrays['state']._asdict()
    others = dict(fields.pop('ema') or {})
    return TrainState(**fields, averages={**others, DEPLOYED: arrays['ema']})


def digests(tree: Any) -> dict[str, int]:
    """{path: int}, a checksum of each array's bits: the sum of words times odd weights, modulo
    2^32.

    Any single changed word changes the sum, and integer sums are equal on every mesh.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    sums = jax.device_get(_checksums([leaf for _, leaf in leaves]))
    return {jax.tree_util.keystr(path): int(value) for (path, _), value in zip(leaves, sums)}


def _checksum(x):
    if x.dtype == jnp.bool_:
        x = x.astype(jnp.uint8)
    words = jax.lax.bitcast_convert_type(
        x, {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}[x.dtype.itemsize]
    )
    words = words.reshape(-1).astype(jnp.uint32)
    return jnp.sum(words * (2 * jnp.arange(words.size, dtype=jnp.uint32) + 1), dtype=jnp.uint32)


@jax.jit
def _checksums(leaves):
    return [_checksum(leaf) for leaf in leaves]


def abstract(tree: Any, shardings: Any = None) -> Any:
    """Shapes, dtypes and shardings, by default those that the arrays have, as a restore target."""
    if shardings is None:
        shardings = jax.tree.map(lambda x: x.sharding, tree)
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings
    )


def newest(workdir: str | pathlib.Path) -> int:
    """Step of the newest checkpoint of a run, verified or not; 0 where there is none."""
    folder = pathlib.Path(workdir) / FOLDER
    return max((int(path.name) for path in folder.glob('[0-9]*') if path.name.isdigit()), default=0)


ITEMS = ('state', 'ema')


class Checkpoints:
    """The checkpoints of one run.

    Args:
      workdir: run folder; checkpoints lie in its `checkpoints/`.
      keep: newest steps kept, >= 1.

    Raises:
      ValueError: if keep < 1.
    """

    def __init__(self, workdir: str | pathlib.Path, keep: int = 2):
        if keep < 1:
            raise ValueError(f'keep={keep}: at least one checkpoint must be kept')
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            step_format_fixed_length=9,
            cleanup_tmp_directories=True,
            enable_async_checkpointing=True,
        )
        # An array that several devices hold alike is written in parts, one by each; cutting off a
        # part is a program for each shape, which a small array is not worth.
        handler = ocp.type_handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=2**20)
        types = ocp.type_handlers.create_type_handler_registry((jax.Array, handler))
        handlers = ocp.handlers.DefaultCheckpointHandlerRegistry()
        for name in ITEMS:
            arrays = ocp.PyTreeCheckpointHandler(type_handler_registry=types)
            handlers.add(name, ocp.args.PyTreeSave, arrays)
            handlers.add(name, ocp.args.PyTreeRestore, arrays)
        folder = pathlib.Path(workdir).absolute() / FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        self._manager = ocp.CheckpointManager(folder, options=options, handler_registry=handlers)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        # Waits: an error of an asynchronous save appears only here.
        self._manager.close()

    def save(self, step: int, state: TrainState, config: Mapping[str, Any]) -> None:
        """Saves in the background; the arrays may be donated right after."""
        # Steps not before this one were passed over as damaged; orbax would silently save nothing
        # beside them.
        for damaged in [other for other in self._manager.all_steps() if other >= step]:
            self._manager.delete(damaged)
        arrays = items(state)
        position = {
            'next_step': step,
            'digests': {name: digests(tree) for name, tree in arrays.items()},
        }
        self._manager.save(
            step,
            args=ocp.args.Composite(
                **{name: ocp.args.PyTreeSave(tree) for name, tree in arrays.items()},
                config=ocp.args.JsonSave(config),
                position=ocp.args.JsonSave(position),
            ),
        )

    def restore(self, target: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """The newest verified checkpoint.

        Args:
          target: {'state': ..., 'ema': ...} or a part of it, of `abstract` arrays.

        Returns:
          ({name: tree}, position), or None where there is no checkpoint.

        Raises:
          UserError: if there are checkpoints and none can be restored.
        """
        reasons = []
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                return self._verified(step, target)
            except (
                Exception
            ) as error:  # Damage shows as anything from a KeyError to a tensorstore error.
                reason = str(error).strip().split('\n')[0] or type(error).__name__
                reasons.append(f'step {step}: {reason}')
                logging.warning('checkpoint %s is passed over: %s', step, reason)
        if reasons:
            raise UserError(
                f'no checkpoint in {self._manager.directory} can be restored '
                f'({"; ".join(reasons)[:500]}); bring one back from a copy, '
                'or give another folder to start anew'
            )
        return None

    def _verified(self, step, target):
        position = self._manager.restore(
            step, args=ocp.args.Composite(position=ocp.args.JsonRestore())
        ).position
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                **{
                    name: ocp.args.PyTreeRestore(
                        tree, restore_args=ocp.checkpoint_utils.construct_restore_args(tree)
                    )
                    for name, tree in target.items()
                }
            ),
        )
        restored = {name: restored[name] for name in target}
        for name, tree in restored.items():
            for (path, leaf), wanted in zip(
                jax.tree_util.tree_leaves_with_path(tree), jax.tree.leaves(target[name])
            ):
                if leaf.dtype != wanted.dtype:
                    raise ValueError(
                        f'{name}{jax.tree_util.keystr(path)} is {leaf.dtype}, not {wanted.dtype}'
                    )
            for path, value in digests(tree).items():
                if value != position['digests'][name].get(path):
                    raise ValueError(
                        f'{name}{path} is damaged: its digest differs from the one saved'
                    )
        return restored, position
