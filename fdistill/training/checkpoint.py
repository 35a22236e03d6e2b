"""Checkpoints: the one place that uses orbax.

A step holds separate items, each of which can be restored alone: `state` (to resume), `ema` (to
sample from), `config` and `position` (next batch, roll-backs so far, of every array its shape, type
and checksum, and how good the step and how healthy its samples were, if that was measured).
orbax restores a flipped bit without an error. Checksums are therefore verified here, and a step
that does not fit is passed over: the newest that does fit is restored.
"""

import contextlib
import errno
import hashlib
import json
import logging
import os
import pathlib
import re
import shutil
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypedDict

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from fdistill.errors import UserError
from fdistill.files import disk
from fdistill.methods.method import DEPLOYED
from fdistill.training.state import TrainState

FOLDER = 'checkpoints'
ARRAYS = ('state', 'ema')
# Path of what is measured from log to log. A version or a setting may add to it, which then begins
# empty, or take from it.
METRICS = '.metrics'
SPIKES = 'spikes'  # a name beside those of the roles, and of no role


class Saved(NamedTuple):
    """`TrainState` as the item `state` holds it, in the layout of the first version.

    `ema` has the averages other than the one that is sampled from, and is () where there are none.
    `metrics` has the norms of `TrainState.spikes` beside those of the roles.
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
    spikes = fields.pop('spikes')
    fields['metrics'] = fields['metrics'] | ({SPIKES: spikes} if spikes else {})
    return {'state': Saved(**fields, ema=averages or ()), 'ema': deployed}


def joined(arrays: Mapping[str, Any]) -> TrainState:
    """The state that `items` took apart."""
    fields = arrays['state']._asdict()
    others, metrics = dict(fields.pop('ema') or {}), dict(fields.pop('metrics'))
    fields |= {'spikes': metrics.pop(SPIKES, {}), 'metrics': metrics}
    return TrainState(**fields, averages={**others, DEPLOYED: arrays['ema']})


def digests(tree: Any) -> dict[str, int]:
    """{path: int}, by which weights are known: of each array the sum of its words times odd
    weights, modulo 2^32, equal on every mesh.

    What changes in two places at once may leave it as it was; `checksums` see that.
    """
    return {path: digest for path, (digest, _) in _sums_of(tree).items()}


def checksums(tree: Any) -> dict[str, str]:
    """{path: 'float32[3, 4] 0123456789abcdef'}: type and shape of each array and a checksum of its
    bits.

    The checksum is sum_i m_i and sum_i (2 i + 1) m_i modulo 2^32, m_i = mix(w_i xor g i) of the
    words w_i, where `mix` is the last step of MurmurHash3 and g the odd number next to 2^32 over
    the golden ratio: a change of one word is always seen, one of several goes unseen with a chance
    of about 2^-60. Integer sums are equal on every mesh.
    """
    return {path: checksum for path, (_, checksum) in _sums_of(tree).items()}


def _sums_of(tree):
    """{path: (digest, checksum)}."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    # One program for each shape, which most arrays of a network share with others: one for all
    # arrays takes seconds to compile, and to load. One after another, for on CPUs of several
    # processes those that are under way at once may wait for each other for ever.
    sums = [jax.device_get(_sums(leaf)) for _, leaf in leaves]
    return {
        jax.tree_util.keystr(path): (
            int(of[0]),
            f'{leaf.dtype}{list(leaf.shape)} {of[1]:08x}{of[2]:08x}',
        )
        for (path, leaf), of in zip(leaves, sums)
    }


@jax.jit
def _sums(x):
    """uint32 [3]: the digest of an array and both halves of its checksum."""
    unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}
    x = x.astype(jnp.uint8) if x.dtype == jnp.bool_ else x
    of = jax.lax.bitcast_convert_type(x, unsigned[x.dtype.itemsize]).astype(jnp.uint32)
    at, stride = jnp.zeros_like(of), 1  # Not of the array made flat, which may be split anywhere.
    for axis in reversed(range(of.ndim)):
        at += jax.lax.broadcasted_iota(jnp.uint32, of.shape, axis) * jnp.uint32(stride % 2**32)
        stride *= of.shape[axis]
    odd, mixed = 2 * at + 1, of ^ (at * jnp.uint32(0x9E3779B9))
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        mixed = (mixed ^ (mixed >> shift)) * jnp.uint32(factor)
    mixed ^= mixed >> 16
    # As one reduction: the words are read, and mixed, once.
    terms, zero = (of * odd, mixed, mixed * odd), jnp.uint32(0)
    sums = jax.lax.reduce(terms, (zero,) * 3, _added, tuple(range(of.ndim)))
    return jnp.stack(sums)


def _added(ours, theirs):
    return tuple(a + b for a, b in zip(ours, theirs))


def _seal(position):
    """Digest of all else that a position says."""
    rest = {name: value for name, value in position.items() if name != 'seal'}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def abstract(tree: Any, shardings: Any = None) -> Any:
    """Shapes, dtypes and shardings, by default those that the arrays have, as a restore target."""
    if shardings is None:
        shardings = jax.tree.map(lambda x: x.sharding, tree)
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings
    )


def newest(workdir: str | pathlib.Path) -> int:
    """Step of the newest checkpoint of a run, verified or not; 0 where there is none."""
    folder = disk.place(workdir) / FOLDER
    return max((int(path.name) for path in folder.glob('[0-9]*') if path.name.isdigit()), default=0)


class Rating(TypedDict):
    """How good a step was: a measured number, its name, and 1 if more is better, -1 if less is."""

    name: str
    value: float
    sign: int


class Checkpoints:
    """The checkpoints of one run.

    Args:
      workdir: run folder; checkpoints lie in its `checkpoints/`.
      keep: newest steps kept, >= 1, besides the best of those that were rated; a step that is known
        to be damaged counts for nothing. None to read only, beside a training that may go on:
        nothing in the folder is then made, changed or removed.

    Raises:
      ValueError: if keep < 1.
    """

    def __init__(self, workdir: str | pathlib.Path, keep: int | None = None):
        if keep is not None and keep < 1:
            raise ValueError(f'keep={keep}: at least one checkpoint must be kept')
        writes = keep is not None
        self._keep, self._damaged, self._ratings, self._saved = keep, set(), {}, None
        options = ocp.CheckpointManagerOptions(
            preservation_policy=self if writes else None,
            step_format_fixed_length=9,
            create=writes,
            cleanup_tmp_directories=writes,  # Another's would be the save it has in flight.
            enable_async_checkpointing=writes,
            save_root_metadata=writes,
        )
        # An array that several devices hold alike is written in parts, one by each; cutting off a
        # part is a program for each shape, which a small array is not worth.
        handler = ocp.type_handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=2**20)
        types = ocp.type_handlers.create_type_handler_registry((jax.Array, handler))
        handlers = ocp.handlers.DefaultCheckpointHandlerRegistry()
        for name in ARRAYS:
            arrays = ocp.PyTreeCheckpointHandler(type_handler_registry=types)
            handlers.add(name, ocp.args.PyTreeSave, arrays)
            handlers.add(name, ocp.args.PyTreeRestore, arrays)
        folder = disk.place(workdir) / FOLDER
        self._local = isinstance(folder, pathlib.Path)
        folder = folder.absolute() if self._local else folder
        if writes:
            folder.mkdir(parents=True, exist_ok=True)
        self._manager = ocp.CheckpointManager(folder, options=options, handler_registry=handlers)
        if writes:
            self._read_ratings()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        # Waits: an error of an asynchronous save appears only here.
        try:
            if self._saved is not None:
                self._wait()
            self._manager.close()
        except Exception as error:
            self._raise(error)

    def _wait(self):
        """Waits for the save in flight. If only the removal of another step failed, the next save
        tries it again."""
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            self._manager.reload()
            if self._saved not in self._manager.all_steps():
                raise
            logging.warning('an old checkpoint could not be removed: %s', error)

    def _read_ratings(self):
        for step in self._manager.all_steps():
            # Damage is told where a step is restored.
            with contextlib.suppress(Exception):
                _, position = self._verified(step, {})
                self._ratings[step] = position.get('rating')

    def _best(self, steps):
        """The best of those steps that were rated by the number that the newest of them was."""
        rated = {step: self._ratings[step] for step in steps if self._ratings.get(step)}
        name = rated[max(rated)]['name'] if rated else None
        values = {
            step: of['sign'] * of['value'] for step, of in rated.items() if of['name'] == name
        }
        return max(values, key=values.get, default=None)

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Which checkpoints stay after a save, as orbax asks it of a preservation policy."""
        whole = [of.step for of in checkpoints if of.step not in self._damaged]
        oldest, best = whole[-self._keep :][0], self._best(whole)
        return [of.step >= oldest or of.step == best for of in checkpoints]

    def _raise(self, error):
        """Raises what the system says of a save that failed, as an OSError, else the error itself:
        tensorstore gives its number within a message."""
        found = re.search(r"os_error_code='(\d+)'", str(error))
        number = int(found[1]) if found else getattr(error, 'errno', None)
        if number is None:
            raise error
        # The cause is many lines of other threads, and the same thing.
        raise OSError(number, os.strerror(number), str(self._manager.directory)) from None

    def save(
        self,
        step: int,
        state: TrainState,
        config: Mapping[str, Any],
        rating: Rating | None = None,
        rollbacks: int = 0,
        health: Mapping[str, float] | None = None,
    ) -> None:
        """Saves in the background; the arrays may be donated right after.

        Args:
          step, state, config: of the run.
          rating: how good the step is, if that was measured.
          rollbacks: that the run has had.
          health: of its samples, if that was measured.

        Raises:
          OSError: no room, or this or the last save could not be written; those before are whole.
        """
        try:
            self._wait()
            # Asked for before: a save that runs out of room fails in many threads.
            size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
            if self._local and shutil.disk_usage(self._manager.directory).free < size:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._save(step, state, config, rating, rollbacks, health)
        except Exception as error:
            self._raise(error)

    def _save(self, step, state, config, rating, rollbacks, health):
        # Steps not before this one were passed over as damaged; orbax would silently save nothing
        # beside them.
        for damaged in [other for other in self._manager.all_steps() if other >= step]:
            self._manager.delete(damaged)
        arrays = items(state)
        sums = {name: _sums_of(tree) for name, tree in arrays.items()}
        position = {'next_step': step} | ({'rollbacks': rollbacks} if rollbacks else {})
        for index, what in enumerate(('digests', 'checksums')):
            position[what] = {
                name: {path: both[index] for path, both in of.items()} for name, of in sums.items()
            }
        position |= {'rating': rating} if rating else {}
        position |= {'health': dict(health)} if health else {}
        position['seal'] = _seal(position)
        self._damaged.discard(step)
        self._ratings[step] = rating
        self._saved = step
        self._manager.save(
            step,
            args=ocp.args.Composite(
                **{name: ocp.args.PyTreeSave(tree) for name, tree in arrays.items()},
                config=ocp.args.JsonSave(config),
                position=ocp.args.JsonSave(position),
            ),
        )

    def restore(
        self, target: Mapping[str, Any], step: int | str | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """The newest verified checkpoint, once one that is being saved is there, or that of a step.

        Args:
          target: {'state': ..., 'ema': ...} or a part of it, of `abstract` arrays.
          step: one of those kept, or 'best', of those rated; no other takes its place.

        Returns:
          ({name: tree}, position), or None where there is no checkpoint.

        Raises:
          UserError: if there are checkpoints and none can be restored, or not that of the step.
          OSError: the last save could not be written.
        """
        if step is not None:
            return self._of_step(step, target)
        try:
            if self._saved is not None:
                self._wait()
        except Exception as error:
            self._raise(error)
        reasons = {}
        while untried := sorted(set(self._manager.all_steps()) - set(reasons), reverse=True):
            for step in untried:
                try:
                    return self._verified(step, target)
                except (
                    Exception
                ) as error:  # Damage shows as anything from a KeyError to a tensorstore error.
                    reasons[step] = str(error).strip().split('\n')[0] or type(error).__name__
                    self._damaged.add(step)
                    logging.warning('checkpoint %s is passed over: %s', step, reasons[step])
            # A training that goes on may have removed them, having saved others.
            self._manager.reload()
        if reasons:
            said = '; '.join(f'step {step}: {reason}' for step, reason in reasons.items())
            raise UserError(
                f'no checkpoint in {self._manager.directory} can be restored ({said[:500]}); '
                'bring one back from a copy, or give another folder to start anew'
            )
        return None

    def _of_step(self, step, target):
        there, chosen = self._manager.all_steps(), step
        if step == 'best':
            self._read_ratings()
            chosen = self._best(there)
        if chosen not in there:
            rated = ', none of them rated by config.training.keep_best' * (step == 'best')
            raise UserError(
                f'step={step!r}: {self._manager.directory} has checkpoints of the steps '
                f'{", ".join(map(str, sorted(there))) or "none"}{rated}; give another, or none for '
                'the newest'
            )
        try:
            return self._verified(chosen, target)
        except Exception as error:
            said = str(error).strip().split('\n')[0] or type(error).__name__
            raise UserError(
                f'step={step!r}: checkpoint {chosen} in {self._manager.directory} cannot be '
                f'restored ({said[:500]}); give another, or none for the newest that can'
            ) from error

    def _verified(self, step, target):
        read = self._manager.restore(step, args=ocp.args.Composite(position=ocp.args.JsonRestore()))
        position = read.position
        # Runs of 0.1 have neither checksums nor a seal.
        sealed = {'checksums', 'seal'} & position.keys()
        if position['next_step'] != step or sealed and position['seal'] != _seal(position):
            raise ValueError('its position is damaged: it does not fit its digest or its folder')
        if not target:
            return {}, position
        saved = position['checksums' if sealed else 'digests']
        whole = target
        if 'state' in target:
            there = _there(target['state'].metrics, saved['state'])
            target = target | {'state': target['state']._replace(metrics=there)}
        for name, tree in target.items():
            leaves = jax.tree_util.tree_leaves_with_path(tree)
            wanted = {
                jax.tree_util.keystr(path): f'{leaf.dtype}{list(leaf.shape)}'
                for path, leaf in leaves
            }
            # A digest of a run of 0.1 says neither shape nor type.
            had = {
                path: str(of).rpartition(' ')[0] if sealed else wanted.get(path)
                for path, of in saved[name].items()
                if path in wanted or not path.startswith(METRICS)
            }
            if had != wanted:
                raise ValueError(name + _difference(had, wanted))
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                **{
                    name: ocp.args.PyTreeRestore(
                        tree,
                        restore_args=ocp.checkpoint_utils.construct_restore_args(tree),
                        partial_restore=True,
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
            for path, both in _sums_of(tree).items():
                if both[bool(sealed)] != saved[name][path]:
                    raise ValueError(
                        f'{name}{path} is damaged: its digest differs from the one saved'
                    )
        if 'state' in whole:
            metrics = _filled(whole['state'].metrics, restored['state'].metrics)
            restored['state'] = restored['state']._replace(metrics=metrics)
        return restored, position


def _there(metrics, saved, path=METRICS):
    """Nested dicts without the names of which a checkpoint with these paths has no array."""
    if not isinstance(metrics, dict):
        return metrics
    paths = {name: f'{path}[{name!r}]' for name in metrics}
    return {
        name: _there(metrics[name], saved, path)
        for name, path in paths.items()
        if any(one.startswith(path) for one in saved)
    }


def _filled(metrics, there):
    """Nested dicts of arrays, with zeros for those that are not there."""
    if isinstance(metrics, dict):
        return {name: _filled(of, (there or {}).get(name)) for name, of in metrics.items()}
    if there is not None:
        return there
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype, device=x.sharding), metrics)


def _difference(had, wanted):
    """What is said of the first array that a checkpoint and a run do not have alike."""
    path = min(path for path in had | wanted if had.get(path) != wanted.get(path))
    of, to = (kinds.get(path, 'missing') for kinds in (had, wanted))
    return f'{path} is {of} in the checkpoint and {to} in the run: of another config or version'
