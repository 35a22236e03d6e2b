"""Trains configs that differ in their seed and continuous settings alone as one program."""

import pathlib
from collections.abc import Sequence
from typing import Any

from fdistill import config as configs
from fdistill.build.experiment import experiment, optimizers
from fdistill.build.sections import replaced
from fdistill.build.settings import common, continuous
from fdistill.build.train import ready
from fdistill.config import call
from fdistill.errors import NotFinite, UserError
from fdistill.files import disk
from fdistill.training import lanes, loop


def train_lanes(
    trials: Sequence[tuple[Any, str | pathlib.Path]], *, quiet: bool = False
) -> list[NotFinite | None]:
    """Trains configs as one vmapped program; see `lanes.train`.

    Args:
      trials: [(config, workdir)], of workdirs without a checkpoint, whose configs have all in
        `common` but their seed and numbers marked `Continuous`.
      quiet: no progress on stderr.

    Returns:
      [None, or the NotFinite that ended the run].

    Raises:
      UserError: on whatever the user can mend.
      MemoryError: when they are too many for the device.
    """
    (config, workdir), *others = trials
    shared = common(configs.to_json(config))
    if any(common(configs.to_json(other)) != shared for other, _ in others):
        raise UserError(
            'train_lanes: the configs differ in more than their seed and continuous settings'
        )
    first = ready(config, workdir)
    made = [first, *(ready(other, folder, like=first) for other, folder in others)]
    flats = [disk.flat(one.plain) for one in made]
    loose = continuous(first.plain)
    names = [name for name in flats[0] if name in loose and len({own[name] for own in flats}) > 1]

    def make(values):
        plain = replaced(first.plain, values)
        method = experiment(plain, first.training.microbatches).method
        given = {name: plain['training'].get(name) for name in first.training._fields}
        own = first.training._replace(
            **{name: value for name, value in given.items() if value is not None}
        )
        decay = call(loop.decay, {}, 'config.training', training=own)
        return method, optimizers(plain, method), decay

    return call(
        lanes.train,
        {},
        'config.training',
        make=make,
        frozen=first.frozen,
        lanes=[
            lanes.Lane(
                one.seed, one.batches, folder, one.plain, {name: own[name] for name in names}
            )
            for one, own, (_, folder) in zip(made, flats, trials)
        ],
        training=first.training,
        quiet=quiet,
    )
