"""Model folders of diffusers, read without diffusers and without torch, and written so that it
loads them.

    model_index.json                          of a pipeline: its parts are folders
    unet|transformer|vae/config.json          of a model; that of a lone model lies at the top
      .../diffusion_pytorch_model.safetensors         or diffusion_pytorch_model.bin
      .../diffusion_pytorch_model.safetensors.index.json    and the files that it names
      .../diffusion_pytorch_model.fp16.safetensors    a variant
    scheduler/scheduler_config.json           beside a lone model: at the top
    README.md                                 with the licence

Nothing outside the folder is read, whatever a link or a name in it says.
"""

import pathlib
import re
from collections.abc import Mapping
from typing import Any, NamedTuple, TypedDict

import numpy as np

from fdistill.errors import UserError
from fdistill.files import disk
from fdistill.weights import reader, store

STEM = 'diffusion_pytorch_model'
CONFIG, SCHEDULER, PIPELINE = 'config.json', 'scheduler_config.json', 'model_index.json'
AGAIN = 'download the folder again from its publisher'
FLOATS = ('float16', 'bfloat16', 'float32')
MOST_README = 2**20  # bytes of a README.md
_SHARD = re.compile(r'[\w-][\w.-]*\.safetensors')
_VARIANT = re.compile(r'[\w-]{1,32}')
_LICENCE = re.compile(r'^license:[ \t]*["\']?([\w .+-]{1,80}?)["\']?[ \t]*$', re.MULTILINE)
# Names that attention has in files before diffusers 0.17, which it still loads.
_OLD = {'query': 'to_q', 'key': 'to_k', 'value': 'to_v', 'proj_attn': 'to_out.0'}
_ATTENTION = re.compile(r'(.*\battentions\.\d+)\.(query|key|value|proj_attn)\.(weight|bias)')


class Folder(NamedTuple):
    """What a folder holds of one model.

    config: of the model, as it stands in its file.
    arrays: {published name: float32 array}; attention has its present names.
    sources: {published name: name in the file}.
    scheduler: its scheduler's config, or None.
    licence: as its README.md says, or None.
    files: paths of config, weights and scheduler config.
    place, scheduler_place: files of the two configs, for messages.
    """

    config: dict[str, Any]
    arrays: dict[str, np.ndarray]
    sources: dict[str, str]
    scheduler: dict[str, Any] | None
    licence: str | None
    files: tuple[pathlib.Path, ...]
    place: pathlib.Path
    scheduler_place: pathlib.Path | None


class Index(TypedDict):
    """A file that says which file holds which array."""

    weight_map: dict[str, str]


def read(
    path: disk.Path, parts: tuple[str, ...] = ('unet', 'transformer'), variant: str | None = None
) -> Folder:
    """Reads a model out of a folder of its own or of a pipeline.

    Args:
      path: the folder.
      parts: names of the folder of the model, where it is one of a pipeline.
      variant: of the weights, as 'fp16'; default: those without one.

    Raises:
      UserError: on whatever is missing, damaged or leads out of the folder.
    """
    root = pathlib.Path(path)
    if not root.is_dir():
        raise UserError(f'{root}: is no folder; name the folder of a model or a pipeline')
    if variant is not None and not _VARIANT.fullmatch(variant):
        raise UserError(f"variant={variant!r:.80}: give a name such as 'fp16'")
    found = [part for part in ('.', *parts) if _file(root, f'{part}/{CONFIG}')]
    if not found:
        raise UserError(
            f'{root}: has no {CONFIG}, nor has a folder {" or ".join(parts)} in it; name the '
            'folder of a model or a pipeline'
        )
    folder = root / found[0]
    place = folder / CONFIG
    config = disk.read_json(place, dict, AGAIN)
    files, read_arrays = _weights(root, folder, variant)
    sources = {}
    arrays = {}
    for name, array in read_arrays().items():
        known, arrays_name = name, _ATTENTION.fullmatch(name)
        if arrays_name:
            known = f'{arrays_name[1]}.{_OLD[arrays_name[2]]}.{arrays_name[3]}'
            if array.ndim == 4:
                raise UserError(
                    f'{folder}: {name!r:.200} is a convolution, which diffusers does not load '
                    'either; take newer files of the model'
                )
        if known in sources:
            raise UserError(
                f'{folder}: holds {name!r:.200} and {sources[known]!r:.200}, which are one; {AGAIN}'
            )
        if array.dtype.name not in FLOATS:
            raise UserError(
                f'{folder}: {name!r:.200} is {array.dtype.name}, and weights are '
                f'{", ".join(FLOATS)}; take the files as they were published'
            )
        array = np.asarray(array, np.float32)
        if not np.isfinite(array).all():
            raise UserError(
                f'{folder}: {name!r:.200} is not finite; take other files of the model, as those '
                'in float32'
            )
        arrays[known], sources[known] = array, name
    scheduler = next(
        filter(None, (_file(root, f'{part}/{SCHEDULER}') for part in ('scheduler', '.', found[0]))),
        None,
    )
    return Folder(
        config=config,
        arrays=arrays,
        sources=sources,
        scheduler=scheduler and disk.read_json(scheduler, dict, AGAIN),
        licence=_licence(root),
        files=(place, *files, *([scheduler] if scheduler else [])),
        place=place,
        scheduler_place=scheduler,
    )


def _file(root, name):
    """A file of the folder, or None where there is none."""
    path = root / name
    if not path.exists():
        return None
    if not path.resolve().is_relative_to(root.resolve()):
        raise UserError(
            f'{path}: is a link that leads out of the folder; copy the folder with its files, as '
            'by `cp -rL`'
        )
    if not path.is_file():
        raise UserError(f'{path}: is no file; {AGAIN}')
    return path


def _weights(root, folder, variant):
    """(files, () -> {name: array}) of the weights of a folder."""
    middle = f'.{variant}' if variant else ''
    inside = folder.relative_to(root).as_posix()
    single, index, pickled = (
        _file(root, f'{inside}/{STEM}{name}')
        for name in (
            f'{middle}.safetensors',
            f'.safetensors.index{middle}.json',
            f'{middle}.bin',
        )
    )
    if single and index:
        raise UserError(f'{folder}: holds {single.name} and {index.name}; remove one of them')
    if index:
        shards = _shards(root, folder, index)
        files = (index, *shards)
        _check_size(folder, files)
        return files, lambda: _joined(index, shards)
    if not (single or pickled):
        there = sorted(path.name for path in folder.glob(f'{STEM}*'))
        hint = f'; there is {", ".join(there[:4])}' if there else ''
        raise UserError(
            f'{folder}: has no {STEM}{middle}.safetensors{hint}; give the variant that is there, or'
            ' download the folder again'
        )
    # Beside safetensors, a pickle holds the same, and is the poorer of the two.
    file = single or pickled
    _check_size(folder, (file,))
    if single:
        return (file,), lambda: store.read(file)[0]
    return (file,), lambda: _flat(file)


def _check_size(folder, files):
    size = sum(file.stat().st_size for file in files)
    if size > reader.LIMITS.total:
        raise UserError(
            f'{folder}: its weights have {size} bytes, more than {reader.LIMITS.total}; take a '
            'smaller model'
        )


def _flat(file):
    tree = reader.read(file)
    if not isinstance(tree, dict) or not all(isinstance(x, np.ndarray) for x in tree.values()):
        raise UserError(f'{file}: is no dict of arrays, as a model has it; {AGAIN}')
    return tree


def _shards(root, folder, index):
    """{file: names of its arrays} as an index says."""
    shards = {}
    for name, file in disk.read_json(index, Index, AGAIN)['weight_map'].items():
        if not _SHARD.fullmatch(file):
            raise UserError(
                f'{index}: {file!r:.200} is no safetensors file of this folder; {AGAIN}'
            )
        shards.setdefault(file, []).append(name)
    if not shards:
        raise UserError(f'{index}: names no array; {AGAIN}')
    found = {}
    for file, names in shards.items():
        path = _file(root, f'{folder.relative_to(root).as_posix()}/{file}')
        if path is None:
            raise UserError(f'{index}: names {file!r:.200}, which is not there; {AGAIN}')
        found[path] = names
    return found


def _joined(index, shards):
    arrays = {}
    for path, names in shards.items():
        held, _ = store.read(path)
        for said, there, what in (
            (names, held, 'does not hold'),
            (held, names, 'holds, beside what the index says,'),
        ):
            if wrong := sorted(set(said) - set(there)):
                raise UserError(f'{path}: {what} {wrong[0]!r:.200}; {AGAIN}')
        arrays |= held
    return arrays


def _licence(root):
    """`license:` of the front matter of README.md."""
    readme = _file(root, 'README.md')
    if not readme:
        return None
    with readme.open('rb') as file:
        text = file.read(MOST_README).decode(errors='replace')
    matter = re.match(r'---\s*\n(.*?)\n---\s*\n', text, re.DOTALL)
    found = matter and _LICENCE.search(matter[1])
    return found[1] if found else None


def write(
    folder: disk.Path,
    config: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray],
    scheduler: Mapping[str, Any] | None = None,
    where: str = 'OUT',
) -> None:
    """Writes the folder of a lone model, which diffusers' `from_pretrained` loads; its config is
    written last.

    Args:
      folder: to write to, empty or not there.
      config: of the model, `diffusers_config.config_of`.
      arrays: {published name: float32 array}.
      scheduler: config of its scheduler, `diffusers_config.scheduler_of`; None: none is written.
      where: what the user calls the folder.

    Raises:
      UserError: there is something in the folder, or it cannot be written to.
    """
    folder = disk.folder_for(folder, where)
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f'{where}={folder}: is not empty; give the name of a new folder')
    store.check(arrays)
    store.write(folder / f'{STEM}.safetensors', arrays, {'format': 'pt'})
    if scheduler:
        disk.write_json(folder / SCHEDULER, scheduler)
    disk.write_json(folder / CONFIG, config)
