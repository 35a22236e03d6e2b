"""Published denoisers as files of ours: safetensors that say themselves what network they are of.

The arrays have the names of our parameters, their path joined by '/', in the types they were
published in. The metadata holds, as text:

    kind             'denoiser'
    model            JSON: the sections network, denoiser and image of a config
    licence          of the weights
    source, source_sha256    the published file
    derived_from     JSON: files that it was made from, [{'name', 'sha256', 'licence'}, ...]
    trained_on       JSON: names of the features that it was trained on, where there are such
    generator        of a student, JSON: its `methods.generator.Steps`; of a flow map its `Jumps`

Beside it lies the report, the same name with .json: all of this, and of every array where it was
found.
"""

import inspect
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypedDict

import numpy as np

from fdistill.errors import UserError, pick
from fdistill.files import disk
from fdistill.weights import diffusers, dit, edm, store
from fdistill.weights.found import DTYPES, Found, Refused, ShapesOf, sha256

KIND = 'denoiser'


class Model(TypedDict):
    """Sections of a config: what makes a denoiser, and of what data it is."""

    network: dict
    denoiser: dict
    image: dict


class Origin(NamedTuple):
    """Where published denoisers come from.

    what: in words.
    fits(tree) -> whether a file, as `reader.read` gives it, or the path of a folder, may be one.
    find(tree, shapes_of, **options) -> `Found`; raises `Refused`.
    """

    what: str
    fits: Callable[[Any], bool]
    find: Callable[..., Found]


ORIGINS = {
    'edm': Origin('a network of EDM, .pkl', edm.fits, edm.find),
    'edm2': Origin('a network of EDM2, .pkl', edm.fits_edm2, edm.find_edm2),
    'dit': Origin('a DiT, .pt', dit.fits, dit.find),
    'sit': Origin('a SiT, .pt', dit.fits_sit, dit.find_sit),
    'diffusers': Origin('a model folder of diffusers', diffusers.fits, diffusers.find),
}


def convert(
    source: disk.Path,
    out: disk.Path,
    shapes_of: ShapesOf,
    *,
    of: str | None = None,
    licence: str | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Writes a published denoiser as ours, and its report; nothing in the source is run.

    Args:
      source: a file that `reader.read` reads, or a folder.
      out: the .safetensors file; its folder is made when missing.
      shapes_of: of a `Model`, its parameters as {our name: shape}.
      of: a key of `ORIGINS`; default: the one that the file looks like.
      licence: of the weights, where the source does not say it, or says it wrongly.
      options: of `Origin.find`, such as what the source does not tell.

    Returns:
      The report.

    Raises:
      UserError: the source is unreadable, of no origin, of several, does not hold all of its
        network or more than that, has no licence; or `out` holds something else.
    """
    from fdistill.weights import reader  # What reads a stranger's file is there only for that.

    origin = pick(ORIGINS, of, '--of') if of is not None else None
    out = disk.file_for(out, 'OUT', ('.safetensors',))
    report = disk.file_for(out.with_suffix('.json'), 'OUT')
    source = pathlib.Path(source)
    tree = source if source.is_dir() else reader.read(source)
    try:
        origin = _origin(tree, origin)
        for name in options.keys() - inspect.signature(origin.find).parameters.keys():
            raise UserError(f'--{name}: is unknown of {origin.what}; leave it out')
        found = origin.find(tree, shapes_of, **options)
        store.check(found.arrays, shapes_of(found.model), DTYPES)
    except ValueError as error:
        # A stranger's numbers may be long.
        raise UserError(f'{source}: {str(error):.500}') from error
    licence = licence or found.licence
    if not licence:
        raise UserError(
            f'{source}: does not say its licence; look it up where it was published and give '
            '--licence=NAME'
        )
    if store.is_there(out, KIND, found.arrays):
        store.same_said(out, about(out), {'model': found.model, 'licence': licence})
    else:
        save(out, found.arrays, found.model, licence=licence, source=source)
    row = about(out)
    row['arrays'] = [
        {
            'name': name,
            'shape': list(array.shape),
            'dtype': array.dtype.name,
            'found_as': list(found.sources[name]),
        }
        for name, array in sorted(found.arrays.items())
    ]
    row['left_out'] = dict(found.unused)
    disk.write_json(report, row)
    return row


def _origin(tree, given):
    """What a file is of: what the user says where it may be that, else what it looks like."""
    fitting = [name for name, origin in ORIGINS.items() if origin.fits(tree)]
    if given is not None and any(ORIGINS[name] is given for name in fitting):
        return given
    if given is not None and fitting:
        raise Refused(f'is not {given.what}, as --of says; give --of={" or ".join(fitting)}')
    if len(fitting) == 1:
        return ORIGINS[fitting[0]]
    if fitting:
        raise Refused(f'may be {" or ".join(fitting)}; say which with --of=NAME')
    known = ', '.join(origin.what for origin in ORIGINS.values())
    raise Refused(f'{_looks(tree)}; known are {known}; take the file as it was published')


def _looks(tree):
    """What a file holds, in a few words."""
    if isinstance(tree, pathlib.Path):
        return 'is a folder of another kind'
    if isinstance(tree, dict):
        keys = ', '.join(f'{key!r:.40}' for key in list(tree)[:4])
        return f'holds {len(tree)} entries ({keys}{", ..." * (len(tree) > 4)})'
    return f'holds a {type(tree).__name__}'


def save(
    out: disk.Path,
    arrays: Mapping[str, np.ndarray],
    model: Model,
    *,
    licence: str,
    source: pathlib.Path | None = None,
    derived_from: tuple[Mapping[str, str], ...] = (),
    **more: str,
) -> None:
    """Writes a denoiser.

    Args:
      out: of the file.
      arrays: {our name: array of a type of `DTYPES`}.
      model: see `Model`.
      licence: of the weights.
      source: the file or folder that they are out of, if any.
      derived_from: of each file that they were made from {'name', 'sha256', 'licence'}.
      more: other metadata.
    """
    metadata = {
        'kind': KIND,
        'model': json.dumps(model, sort_keys=True),
        'licence': licence,
        'derived_from': json.dumps([dict(one) for one in derived_from]),
        **more,
    }
    if source is not None:
        metadata |= {'source': source.name, 'source_sha256': sha256(source)}
    store.save(out, arrays, metadata)


def about(path: disk.Path) -> dict[str, Any]:
    """The metadata of a denoiser's file, {'model': `Model`, 'licence', ...}; its arrays are not
    read.

    Raises:
      UserError: the file is missing, damaged, or holds something else.
    """
    row: dict[str, Any] = store.metadata(path)
    if row.get('kind') != KIND:
        raise UserError(
            f'{path}: holds {row.get("kind")!r:.40}, not a denoiser; make one with '
            '`fdistill convert teacher`'
        )
    kinds = {'model': Model, 'derived_from': list, 'generator': dict, 'trained_on': list[str]}
    try:
        store.check_said(row, 'model', 'licence', 'derived_from')
        read = {key: disk.from_json(row[key], kind) for key, kind in kinds.items() if key in row}
        read['model'] = {name: read['model'][name] for name in Model.__annotations__}
        return row | read
    except ValueError as error:
        raise UserError(f'{path}: its metadata is damaged ({error}); convert it again') from error


def load(
    path: disk.Path, shapes: Mapping[str, tuple[int, ...]]
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """({our name: float32 array}, `about`) of a denoiser's file.

    Args:
      path: of the file.
      shapes: {our name: shape} that there must be.

    Raises:
      UserError: the file is missing, damaged, or its arrays are not those.
    """
    row = about(path)
    arrays, _ = store.load(path, shapes, DTYPES)
    return {name: array.astype(np.float32, copy=False) for name, array in arrays.items()}, row
