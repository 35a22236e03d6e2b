"""Measures real images: statistics files of a config's data."""

import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from fdistill.build.evaluators import splits
from fdistill.build.latents import of_images
from fdistill.build.sections import load_data
from fdistill.config import call
from fdistill.evaluation import scores, statistics_files
from fdistill.training import sharding


def make_statistics(
    config: Mapping[str, Any],
    out: str | pathlib.Path,
    *,
    split: str | None = None,
    reference: str | None = None,
    quiet: bool = False,
    **options: Any,
) -> Any:
    """Measures the real images of a config's data under a protocol; writes a statistics file and
    returns what it holds.

    Args:
      config: whose `data` is taken; of latents the images that they were made of.
      out: `.npz` file to write.
      split: 'train', 'held_out' or 'all'; default: 'all' of an image folder, whose splits are ours,
        else 'train'.
      reference: what the images are called in names of numbers; default: the data's name, with
        another split behind it.
      quiet: no progress on stderr.
      options: protocol, detector, keep and batch_size, as of `scores.make_statistics`.

    Raises:
      UserError: on whatever the user can mend; nothing has been written then.
    """
    statistics_files.vacant(out)  # Before an hour of features, not after it.
    config = of_images(config)
    usual = 'all' if config['data']['name'] == 'image_folder' else 'train'
    split = split or usual
    if split == 'all':
        parts = splits(config)
        joined = {
            field: np.concatenate([getattr(part, field) for part in parts])
            for field in ('images', 'labels')
        }
        source = parts[0]._replace(**joined)
    else:
        source = load_data(config, split)
    # So that numbers against several parts of a data set have several names.
    name = reference or source.name + ('' if split == usual else f'-{split}')
    made = call(
        scores.make_statistics,
        options,
        'stats make',
        source=source._replace(name=name),
        mesh=sharding.make_mesh(),
        progress=not quiet,
    )
    if jax.process_index() == 0:
        statistics_files.write(out, made)
    return made
