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

import itertools
import pathlib
import re
from collections.abc import Mapping
from typing import Any, NamedTuple, TypedDict

import numpy as np

from fdistill.errors import UserError, suggest
from fdistill.files import disk
from fdistill.weights import diffusers_config, dit, store
from fdistill.weights.found import DTYPES, Found, Refused, ShapesOf, matched

STEM = 'diffusion_pytorch_model'
CONFIG, SCHEDULER = 'config.json', 'scheduler_config.json'
AGAIN = 'download the folder again from its publisher'
MOST_BYTES, MOST_README = 2**35, 2**20  # of all weights of a model, of its README.md
_SHARD = re.compile(r'[\w-][\w.-]*\.safetensors')
_VARIANT = re.compile(r'[\w-]{1,32}')
_LICENCE = re.compile(r'^license:[ \t]*["\']?([\w .+-]{1,80}?)["\']?[ \t]*$', re.MULTILINE)
# Names that attention has in old files, which diffusers still loads.
_OLD = {'query': 'to_q', 'key': 'to_k', 'value': 'to_v', 'proj_attn': 'to_out.0'}
_ATTENTION = re.compile(r'(.*\battentions\.\d+)\.(query|key|value|proj_attn)\.(weight|bias)')


class Folder(NamedTuple):
    """What a folder holds of one model.

    config: of the model, as it stands in its file.
    arrays: {published name: array}, in the types of the files; attention has its present names.
    sources: {published name: names in the files}.
    scheduler: its scheduler's config, or None.
    licence: as its README.md says, or None.
    place, scheduler_place: of the two configs in the folder, for messages.
    """

    config: dict[str, Any]
    arrays: dict[str, np.ndarray]
    sources: dict[str, tuple[str, ...]]
    scheduler: dict[str, Any] | None
    licence: str | None
    place: str
    scheduler_place: str


class Index(TypedDict):
    """A file that says which file holds which array."""

    weight_map: dict[str, str]


def place_of(root: pathlib.Path, parts: tuple[str, ...]) -> str | None:
    """Where in a folder the model lies: '.', one of `parts`, or None where there is none."""
    return next((part for part in ('.', *parts) if _file(root, part, CONFIG)), None)


def read(path: disk.Path, parts: tuple[str, ...], variant: str | None = None) -> Folder:
    """Reads a model out of a folder of its own or of a pipeline.

    Args:
      path: the folder.
      parts: names of the folder of the model, where it is one of a pipeline.
      variant: of the weights, as 'fp16'; default: those without one.

    Raises:
      Refused, UserError: on whatever is missing, damaged or leads out of the folder.
    """
    root = pathlib.Path(path)
    if variant is not None and not (isinstance(variant, str) and _VARIANT.fullmatch(variant)):
        raise Refused(f"variant={variant!r:.80}: give a name such as 'fp16'")
    part = place_of(root, parts)
    if part is None:
        raise Refused(
            f'has no {CONFIG}, nor has a folder {" or ".join(parts)} in it; name the folder of a '
            'model or a pipeline'
        )
    config = disk.read_json(root / part / CONFIG, dict, AGAIN)
    found = [at for at in ('scheduler', '.', part) if _file(root, at, SCHEDULER)]
    scheduler = disk.read_json(root / found[0] / SCHEDULER, dict, AGAIN) if found else None
    arrays, sources = _present(_weights(root, part, variant))
    return Folder(
        config=config,
        arrays=arrays,
        sources=sources,
        scheduler=scheduler,
        licence=_licence(root),
        place=f'{part}/{CONFIG}'.removeprefix('./'),
        scheduler_place=f'{found[0]}/{SCHEDULER}'.removeprefix('./') if found else SCHEDULER,
    )


def _present(held):
    """({present name: array}, {present name: names in the file}) of floating, finite arrays."""
    arrays, sources = {}, {}
    for name, array in held.items():
        known, old = name, _ATTENTION.fullmatch(name)
        if old:
            known = f'{old[1]}.{_OLD[old[2]]}.{old[3]}'
            if array.ndim == 4:
                raise Refused(
                    f'{name!r:.200} is a convolution, which diffusers does not load either; take '
                    'newer files of the model'
                )
        if known in sources:
            raise Refused(
                f'holds {name!r:.200} and {sources[known][0]!r:.200}, one of which is '
                f'the old name of the other; {AGAIN}'
            )
        if array.dtype.name not in DTYPES:
            raise Refused(
                f'{name!r:.200} is {array.dtype.name}, and weights are {", ".join(DTYPES)}; take '
                'the files as they were published'
            )
        if not np.isfinite(array).all():
            raise Refused(
                f'{name!r:.200} is not finite; take other files of the model, as those in float32'
            )
        arrays[known], sources[known] = array, (name,)
    return arrays, sources


def _file(root, part, name):
    """A file of the folder, or None where there is none."""
    path = root / part / name
    if not path.exists():
        return None
    if not path.resolve().is_relative_to(root.resolve()):
        raise Refused(
            f'{path.relative_to(root)} is a link that leads out of the folder; copy the folder '
            'with its files, as by `cp -rL`'
        )
    if not path.is_file():
        raise Refused(f'{path.relative_to(root)} is no file; {AGAIN}')
    return path


def _weights(root, part, variant):
    """{name: array} of the weights of a model."""
    middle = f'.{variant}' if variant else ''
    single, index, pickled = (
        _file(root, part, f'{STEM}{name}')
        for name in (
            f'{middle}.safetensors',
            f'.safetensors.index{middle}.json',
            f'{middle}.bin',
        )
    )
    if single and index:
        raise Refused(f'holds {single.name} and {index.name}; remove one of them')
    if index:
        shards = _shards(root, part, index)
        _check_size(shards)
        return _joined(shards)
    # Beside safetensors, a pickle holds the same, and is the poorer of the two.
    if file := single or pickled:
        _check_size([file])
        return store.read(file, AGAIN)[0] if single else _flat(file)
    there = sorted(path.name for path in (root / part).glob(f'{STEM}*'))
    hint = f'there is {", ".join(there[:4])}: name its variant' if there else AGAIN
    raise Refused(f'has no {STEM}{middle}.safetensors; {hint}')


def _check_size(files):
    size = sum(file.stat().st_size for file in files)
    if size > MOST_BYTES:
        raise Refused(
            f'its weights have {size} bytes, more than {MOST_BYTES}; take a smaller model'
        )


def _flat(file):
    from fdistill.weights import reader  # What reads a stranger's file is there only for that.

    tree = reader.read(file)
    if not isinstance(tree, dict) or not all(isinstance(x, np.ndarray) for x in tree.values()):
        raise Refused(f'{file.name} is no dict of arrays, as a model has it; {AGAIN}')
    return tree


def _shards(root, part, index):
    """{file: names of its arrays} as an index says."""
    names = {}
    for name, file in disk.read_json(index, Index, AGAIN)['weight_map'].items():
        if not _SHARD.fullmatch(file):
            raise Refused(f'{index.name}: {file!r:.200} is no file of this folder; {AGAIN}')
        names.setdefault(file, []).append(name)
    if not names:
        raise Refused(f'{index.name}: names no array; {AGAIN}')
    found = {}
    for file in names:
        path = _file(root, part, file)
        if path is None:
            raise Refused(f'{index.name}: names {file!r:.200}, which is not there; {AGAIN}')
        found[path] = names[file]
    return found


def _joined(shards):
    arrays = {}
    for path, names in shards.items():
        held, _ = store.read(path, AGAIN)
        for said, there, what in (
            (names, held, 'does not hold'),
            (held, names, 'holds, beside what the index says,'),
        ):
            if wrong := sorted(set(said) - set(there)):
                raise Refused(f'{path.name} {what} {wrong[0]!r:.200}; {AGAIN}')
        arrays |= held
    return arrays


def _licence(root):
    """`license:` of the front matter of README.md."""
    readme = _file(root, '.', 'README.md')
    if not readme:
        return None
    with readme.open('rb') as file:
        text = file.read(MOST_README).decode(errors='replace')
    matter = re.match(r'---\s*\n(.*?)\n---\s*\n', text, re.DOTALL)
    found = matter and _LICENCE.search(matter[1])
    return found[1] if found else None


# Of a pipeline, the folders that a denoiser may lie in.
PARTS = ('unet', 'transformer')


def fits(tree: Any) -> bool:
    """Whether a folder may hold a denoiser of diffusers."""
    return isinstance(tree, pathlib.Path) and place_of(tree, PARTS) is not None


def find(
    tree: pathlib.Path,
    shapes_of: ShapesOf,
    *,
    variant: str | None = None,
    resolution: int | None = None,
) -> Found:
    """The denoiser of a folder, with what its scheduler says it was trained under.

    Args:
      tree: the folder.
      shapes_of: of a model.
      variant: of the weights, as 'fp16'.
      resolution: of the images, where the config has no sample_size.

    Raises:
      Refused: what is there is no denoiser of ours.
    """
    folder = read(tree, PARTS, variant)
    kind = folder.config.get('_class_name')
    if not isinstance(kind, str) or kind not in READERS:
        raise Refused(
            f'{folder.place}: _class_name={kind!r:.80} is no denoiser that is supported'
            f'{suggest(kind, READERS)}'
        )
    if folder.scheduler is None:
        raise Refused(
            f'has no {SCHEDULER}, which says what the network predicts; put that of its pipeline '
            'beside it'
        )
    config = dict(folder.config)
    if resolution is not None:
        config['sample_size'] = resolution
    denoiser = diffusers_config.denoiser_of(folder.scheduler, folder.scheduler_place)
    found = READERS[kind](config, folder.arrays, denoiser, shapes_of, folder.licence)
    sources = {
        name: tuple(itertools.chain(*(folder.sources[part] for part in parts)))
        for name, parts in found.sources.items()
    }
    return found._replace(sources=sources)


def _unet(config, arrays, denoiser, shapes_of, licence):
    """A UNet2DModel out of what a folder holds; arguments as of `dit.from_diffusers`."""
    name, options = diffusers_config.settings(config, CONFIG)
    size = options.pop('resolution', None)
    if type(size) is not int:
        raise Refused(
            f'{CONFIG}: sample_size={size!r:.40} is no side of a square; give the side with '
            '--resolution=PIXELS'
        )
    shape, classes = [size, size, options.pop('channels', 3)], options.pop('num_classes', 0)
    if type(classes) is not int:
        raise Refused(f'{CONFIG}: num_class_embeds={classes!r:.40} is no number; {AGAIN}')
    image = {'shape': shape, 'num_classes': classes}
    model = {'network': {'name': name, **options}, 'denoiser': denoiser, 'image': image}
    names = list(shapes_of(model))
    matched(arrays, {key: key for key in names}, {})
    return Found(model, arrays, {key: (key,) for key in names}, licence)


def _unet_back(network, image, arrays):
    """(config, arrays) of a UNet2DModel; arguments as of `dit.to_diffusers`."""
    size, _, channels = image['shape']
    options = {key: value for key, value in network.items() if key != 'name'}
    options |= {'resolution': size, 'channels': channels, 'num_classes': image['num_classes']}
    return diffusers_config.config_of('UNet2DModel', options), dict(arrays)


# What reads a class of diffusers, and what writes a network of ours as one.
READERS = {
    'UNet2DModel': _unet,
    dit.CLASS: dit.from_diffusers,
    dit.OLD_CLASS: dit.from_diffusers,
}
WRITERS = {'unet2d': _unet_back, 'dit': dit.to_diffusers}


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
      arrays: {published name: array}.
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


def export(
    folder: disk.Path, model: Mapping[str, Any], arrays: Mapping[str, np.ndarray], where: str
) -> None:
    """Writes a denoiser as the folder of a model of diffusers and its scheduler; the way back of
    `find`.

    Args:
      folder, where: as of `write`.
      model: sections network, denoiser and image of a config.
      arrays: {our name: array}.

    Raises:
      UserError: diffusers has no such network or scheduler, or as of `write`.
    """
    name = model['network']['name']
    if name not in WRITERS or len(model['image']['shape']) != 3:
        raise UserError(f'{where}: diffusers has no network like {name!r}{suggest(name, WRITERS)}')
    if numbers := model['network'].get('numbers'):
        raise UserError(f'{where}: diffusers has no network that embeds {", ".join(numbers)}')
    try:
        scheduler = diffusers_config.scheduler_of(model['denoiser'])
        config, own = WRITERS[name](model['network'], model['image'], arrays)
    except Refused as error:
        raise UserError(f'{where}: {error}') from error
    write(folder, config, own, scheduler, where)
