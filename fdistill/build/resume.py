"""Whether a run folder may go on: the same config, data and frozen weights, or what was changed."""

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from fdistill import config as configs
from fdistill.build.run import digest_of
from fdistill.build.settings import comparable
from fdistill.data.sources import Source
from fdistill.errors import UserError
from fdistill.files import CONFIG, disk
from fdistill.training.checkpoint import FOLDER, Checkpoints, newest


def digest(workdir: str | pathlib.Path) -> str | None:
    """Of the averaged weights of a run's newest checkpoint, as `Run.digest` and the `origin` of
    what is made from it; None where there is none."""
    if not newest(workdir):
        return None
    with Checkpoints(workdir) as checkpoints:
        found = checkpoints.restore({})
    return found and digest_of(found[1]['digests']['ema'])


def origin(source: Source, frozen: Mapping[str, Any]) -> dict[str, str]:
    """{'data' and 'images', or 'pairs', and the name of each network that is not trained}: digests
    of what a run is made from, which do not depend on where it is stored.

    Args:
      source: 'data' has its labels and other conditions, 'images' its images as they are stored:
        their pixels may be decoded a little differently by another library. Without 'images' where
        they are computed, as the config says them all.
      frozen: {name: what identifies its weights}.
    """
    data = source.labels.tolist()
    if source.given:
        data = [data, {name: digest_of(np.asarray(v).tolist()) for name, v in source.given.items()}]
    parts = {'data': data, **({'images': source.stored} if source.stored else {})}
    # Their digest is of all that they are.
    parts = ({'pairs': source.stored} if source.pairs else parts) | dict(frozen)
    return {name: digest_of(part) for name, part in parts.items()}


def check_resumable(
    plain: Mapping[str, Any], workdir: str | pathlib.Path, change: bool = False
) -> list[dict[str, Any]]:
    """The changes that the run has seen so far, each {'step', 'setting', 'before', 'after'}.

    Args:
      change: settings of the optimizers may differ from those that the run has.

    Raises:
      UserError: the folder holds a run of another experiment, or has lost its checkpoints: to begin
        anew would overwrite what is left.
    """
    if not (disk.place(workdir) / CONFIG).is_file():
        return []
    if not (disk.place(workdir) / FOLDER).is_dir():
        raise UserError(
            f'--workdir={workdir}: holds a run without its {FOLDER}/; bring them back from a copy, '
            'or give another folder to start anew'
        )
    before = configs.to_json(configs.read(workdir))
    # A run of 0.1 has no digests, so its places have to stay.
    places = 'origin' not in before
    old, new = comparable(before, places), comparable(plain, places)
    changes, step = list(before.get('changes', [])), newest(workdir)
    for key in sorted(old.keys() | new.keys()):
        was, now = old.get(key), new.get(key)
        if was != now and change and key.startswith('optimizer.'):
            changes.append({'step': step, 'setting': key, 'before': was, 'after': now})
        elif was != now:
            say = ', say --change to go on with this one,' * key.startswith('optimizer.')
            raise UserError(
                f'--workdir={workdir}: holds a run with config.{key}={was!r}, now {now!r}; go on '
                f'with the same config{say} or give another folder'
            )
    for name, digest in before.get('origin', {}).items():
        if digest != plain['origin'].get(name):
            what = (
                f'other {name}'
                if name in ('data', 'images', 'pairs')
                else f'other weights of its {name}'
            )
            raise UserError(
                f'--workdir={workdir}: its run began with {what}; go on with the same or give '
                'another folder'
            )
    return changes


def trained_before(workdir: str | pathlib.Path) -> list[str]:
    """The features that the config of a run says it was trained on, if there is a run: a mark that
    a resumption without it must not lose."""
    there = (disk.place(workdir) / CONFIG).is_file()
    return configs.to_json(configs.read(workdir)).get('trained_on', []) if there else []


def as_begun(plain: Mapping[str, Any]) -> dict[str, Any]:
    """A config with the optimizers that its run began with, before any of its changes."""
    section = {role: dict(settings) for role, settings in plain['optimizer'].items()}
    for change in reversed(plain['changes']):
        _, role, setting = change['setting'].split('.')
        if change['before'] is None:  # It was not set.
            section[role].pop(setting, None)
        else:
            section[role][setting] = change['before']
    return {**plain, 'optimizer': section}
