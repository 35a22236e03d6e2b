"""Published autoencoders as files of ours: safetensors that say themselves what they are of.

The arrays have their published names, in the types they were published in. The metadata holds, as
text:

    kind             'autoencoder'
    model            JSON: a row of `networks.autoencoder.AUTOENCODERS` by name, and its settings
    licence          of the weights
    source, source_sha256    the published folder
"""

import hashlib
import json
import pathlib
import typing
from collections.abc import Mapping
from typing import Any

import numpy as np

from fdistill.errors import UserError
from fdistill.files import disk
from fdistill.networks.autoencoder import AUTOENCODERS, Autoencoder
from fdistill.types import misfit
from fdistill.weights import diffusers, diffusers_config, store
from fdistill.weights.found import DTYPES, Refused, matched, sha256

KIND = 'autoencoder'
MOST_NUMBER = 1e9  # of a setting
# Of a pipeline, the folder that it lies in.
PARTS = ('vae',)


def make(model: Mapping[str, Any], where: Any) -> Autoencoder:
    """The `Autoencoder` of a row and its settings.

    Raises:
      UserError: it has none of that name, or other settings.
    """
    options = {
        key: tuple(value) if isinstance(value, list) else value for key, value in model.items()
    }
    name = options.pop('name', None)
    if not isinstance(name, str) or name not in AUTOENCODERS:
        raise UserError(f'{where}: has an autoencoder {name!r:.40}, which is not known')
    kinds = typing.get_type_hints(AUTOENCODERS[name])
    try:
        for key, value in options.items():
            if fault := misfit(value, kinds.get(key, Any), key):
                raise Refused(fault)
            parts = value if isinstance(value, tuple) else (value,)
            if any(isinstance(part, (int, float)) and abs(part) > MOST_NUMBER for part in parts):
                raise Refused(f'{key}={value!r:.80}: is out of range')
        return AUTOENCODERS[name](**options)
    except (TypeError, ValueError) as error:
        raise UserError(
            f'{where}: {error!s:.400}; take the autoencoder as it was published'
        ) from error


def convert(
    source: disk.Path, out: disk.Path, *, variant: str | None = None, licence: str | None = None
) -> dict[str, Any]:
    """Writes an autoencoder of diffusers as ours.

    Args:
      source: folder of the model, or of a pipeline with a folder vae.
      out: the .safetensors file; its folder is made when missing.
      variant: of the weights, as 'fp16'.
      licence: of the weights, where the folder does not say it, or says it wrongly.

    Returns:
      `about` of the file.

    Raises:
      UserError: the folder is unreadable, of something else, or has no licence; or `out` holds
        something else.
    """
    out, source = disk.file_for(out, 'OUT', ('.safetensors',)), pathlib.Path(source)
    if not source.is_dir():
        raise UserError(f'{source}: is no folder; name the folder of a model or a pipeline')
    try:
        folder = diffusers.read(source, PARTS, variant)
        name, options = diffusers_config.settings(folder.config, folder.place)
        if name not in AUTOENCODERS:
            raise Refused(
                f'{folder.place} is of {name}, which is no autoencoder; name the folder of one'
            )
        model = {'name': name, **options}
        shapes = make(model, folder.place).shapes()
        matched(folder.arrays, {key: key for key in shapes}, {})
        store.check(folder.arrays, shapes, DTYPES)
    except ValueError as error:
        raise UserError(f'{source}: {error}') from error
    licence = licence or folder.licence
    if not licence:
        raise UserError(
            f'{source}: does not say its licence; look it up where it was published and give '
            '--licence=NAME'
        )
    if store.is_there(out, KIND, folder.arrays):
        store.same_said(out, about(out), {'model': model, 'licence': licence})
    else:
        origin = {'source': source.name, 'source_sha256': sha256(source)}
        save(out, folder.arrays, model, licence=licence, **origin)
    return about(out)


def save(
    out: disk.Path,
    arrays: Mapping[str, np.ndarray],
    model: Mapping[str, Any],
    *,
    licence: str,
    **more: str,
) -> None:
    """Writes an autoencoder.

    Args:
      out: of the file.
      arrays: {published name: array}.
      model: a row of `AUTOENCODERS` by name, and its settings.
      licence: of the weights.
      more: other metadata.
    """
    said = {'kind': KIND, 'model': json.dumps(model, sort_keys=True), 'licence': licence}
    store.save(out, arrays, said | more)


def about(path: disk.Path) -> dict[str, Any]:
    """The metadata of an autoencoder's file, {'model', 'licence', ...}; its arrays are not read.

    'digest' is of its arrays and settings: latents of another scale are others.

    Raises:
      UserError: the file is missing, damaged, or holds something else.
    """
    row: dict[str, Any] = store.metadata(path)
    if row.get('kind') != KIND:
        raise UserError(
            f'{path}: holds {row.get("kind")!r:.40}, not an autoencoder; make one with '
            '`fdistill convert vae`'
        )
    try:
        model = disk.from_json(row.get('model', ''))
        store.check_said(row, 'licence')
    except ValueError as error:
        raise UserError(f'{path}: its metadata is damaged ({error}); convert it again') from error
    own = row['content_sha256'] + json.dumps(model, sort_keys=True)
    return row | {'model': model, 'digest': hashlib.sha256(own.encode()).hexdigest()}


def load(path: disk.Path) -> tuple[Autoencoder, dict[str, np.ndarray], dict[str, Any]]:
    """(`Autoencoder`, {name: float32 array}, `about`) of a file.

    Raises:
      UserError: the file is missing, damaged, or its arrays are not those of its autoencoder.
    """
    row = about(path)
    network = make(row['model'], path)
    arrays, _ = store.load(path, network.shapes(), DTYPES)
    return (
        network,
        {name: array.astype(np.float32, copy=False) for name, array in arrays.items()},
        row,
    )
