"""Published denoisers: converted, and loaded as a config's network."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from fdistill import config as configs
from fdistill.build.models import fitting, make_denoiser, place
from fdistill.build.sections import image_misfit
from fdistill.config import call
from fdistill.diffusion.denoiser import Denoiser
from fdistill.errors import UserError
from fdistill.files import disk
from fdistill.weights import denoisers, store


def name_of(path: tuple[Any, ...]) -> str:
    """What a parameter is called in a file: its keys from the root joined by '/'."""
    return jax.tree_util.keystr(path, simple=True, separator='/')


def make(model: Mapping[str, Any], where: str) -> Denoiser:
    """The `Denoiser` of a `weights.denoisers.Model`."""
    return make_denoiser(model['network'], model['denoiser'], model['image'], f'{where}: ')


def with_names(params: Any) -> dict[str, np.ndarray]:
    """{name: array} of parameters."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {name_of(path): np.asarray(leaf) for path, leaf in leaves}


def as_params(arrays: Mapping[str, Any], like: Any) -> Any:
    """Parameters of the structure of `like` from {name: array}."""
    return jax.tree_util.tree_map_with_path(lambda path, _: arrays[name_of(path)], like)


def shapes_of(model: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """{name: shape} of the parameters of a `weights.denoisers.Model`."""
    if found := image_misfit(model['image']):
        raise UserError(found)
    shapes = call(
        fitting, {}, 'the network', model=make(model, 'the network'), image=model['image']
    )
    return {name_of(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(shapes)}


def convert(source: disk.Path, out: disk.Path, **options: Any) -> dict[str, Any]:
    """Writes a published denoiser as ours: `weights.denoisers.convert`."""
    return denoisers.convert(source, out, shapes_of, **options)


def save_teacher(
    out: disk.Path,
    params: Any,
    *,
    network: Mapping[str, Any],
    denoiser: Mapping[str, Any],
    image: Mapping[str, Any],
    licence: str,
) -> None:
    """Writes parameters of a network of `networks.NETWORKS`, one's own too, as a teacher's file.

    Args:
      out: .safetensors file; its folder is made when missing.
      params: as the network's `init` gives them, of a type of `denoisers.DTYPES`.
      network, denoiser: sections of a config, with the names of what they are.
      image: {'shape', 'num_classes': 0 for none} of the data.
      licence: of the weights.

    Raises:
      UserError: the parameters are not those of the network or not finite, or a section is wrong.
    """
    out = disk.file_for(out, 'out', ('.safetensors',))
    given = {'network': network, 'denoiser': denoiser, 'image': image}
    model = {name: configs.to_json(section, name) for name, section in given.items()}
    arrays = with_names(params)
    with configs.told(f'{out}: params'):
        store.check(arrays, shapes_of(model), denoisers.DTYPES)
    denoisers.save(out, arrays, model, licence=licence)


def load(
    model: Denoiser, path: disk.Path, image: Mapping[str, Any], mesh: Mesh | None = None
) -> tuple[Any, str]:
    """(Parameters of a denoiser out of a file, their digest), on the mesh or the first device.

    Raises:
      UserError: the file is missing, damaged, or holds other arrays.
    """
    shapes = call(fitting, {}, f'{path}', model=model, image=image)
    leaves = jax.tree_util.tree_leaves_with_path(shapes)
    wanted = {name_of(leaf): array.shape for leaf, array in leaves}
    arrays, row = denoisers.load(path, wanted)
    return place(as_params(arrays, shapes), mesh, row['content_sha256'])
