"""From sections to networks that fit the data, and from run folders to their weights."""

import inspect
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from fdistill import config as configs
from fdistill import networks
from fdistill.build.sections import named, plain_of, section_of
from fdistill.config import call
from fdistill.diffusion import denoiser as denoisers
from fdistill.diffusion import noise
from fdistill.diffusion.denoiser import Denoiser
from fdistill.errors import UserError, suggest
from fdistill.files import disk
from fdistill.training import checkpoint, memory, sharding

# What turns a network into a denoiser.
DENOISERS = {
    'edm': denoisers.precondition,
    'prediction': denoisers.from_prediction,
    've': denoisers.variance_exploding,
}


def condition_names(image: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the conditions that the data gives."""
    return (*(['label'] if image['num_classes'] else []), *image.get('given', {}))


def conditions(image: Mapping[str, Any], count: int) -> dict[str, jax.Array]:
    """A condition of zeros in the shapes of the data, {name: [count, ...]}."""
    label = {'label': jnp.zeros(count, jnp.int32)} if image['num_classes'] else {}
    given = image.get('given', {}).items()
    return label | {name: jnp.zeros((count, *shape)) for name, shape in given}


def make_denoiser(
    network: Mapping[str, Any],
    section: Mapping[str, Any],
    image: Mapping[str, Any],
    where: str,
    at: str | None = None,
) -> Denoiser:
    """A network that fits the data, as a denoiser.

    Args:
      network, section: the sections `network` and `denoiser`.
      image: what the data is, see `sections.resolve`.
      where: 'config.', or what the sections are in; at: what the section is called, if not so.

    Raises:
      UserError: on whatever does not fit, as a condition that the network does not take.
    """
    name = network.get('name')
    if not isinstance(name, str) or name not in networks.NETWORKS:
        raise UserError(
            f'{where}network.name: unknown {name!r}{suggest(name, networks.NETWORKS)}; one of your '
            'own is known after networks.NETWORKS[NAME] = ..., as with `python FILE.py sample ...` '
            'of experiments/own_teacher.py'
        )
    factory = networks.NETWORKS[name]
    accepted = inspect.signature(factory).parameters
    fitting = {'num_classes': image['num_classes']}
    if 'given' in accepted:
        fitting['given'] = {name: tuple(shape) for name, shape in image.get('given', {}).items()}
    if 'resolution' in accepted:
        height, width, channels = image['shape'] if len(image['shape']) == 3 else (0, 1, 0)
        if height != width:
            raise UserError(
                f'{where}network.name={network["name"]}: needs square images, the data has '
                f'{image["shape"]}'
            )
        fitting |= {'resolution': height, 'channels': channels}
    built = named(networks.NETWORKS, network, f'{where}network', **fitting)
    for name in condition_names(image):
        if name not in built.takes:
            raise UserError(
                f'{where}network.name={network["name"]}: the data gives the condition {name!r}, '
                f'and this network takes {", ".join(map(repr, built.takes)) or "none"}; '
                'choose another network, or data without it'
            )
    section, at = {'name': 'edm'} | plain_of(section), at or f'{where}denoiser'
    if 'schedule' in section:
        section['schedule'] = named(noise.SCHEDULES, section['schedule'], f'{at}.schedule')
    return named(DENOISERS, section, at, network=built)


def first_device() -> jax.sharding.Sharding:
    return jax.sharding.SingleDeviceSharding(jax.local_devices()[0])


def place(params: Any, mesh: Mesh | None, known: Any = None) -> tuple[Any, Any]:
    """(Parameters on the mesh or the first device, what identifies them).

    Args:
      params: arrays on the host.
      mesh: None for the first device.
      known: what identifies them; None: their digests.
    """
    known = checkpoint.digests(params) if known is None else known
    placed = sharding.state_sharding(params, mesh) if mesh else first_device()
    return jax.device_put(params, placed), known


def fitting(model: Denoiser, image: Mapping[str, Any]) -> Any:
    """Shapes of the parameters of a network; ValueError where all devices together have no memory
    for them."""
    x = jax.ShapeDtypeStruct((1, *image['shape']), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), x, conditions(image, 1))
    # In Python's integers: the products of shapes may exceed 64 bits.
    size = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))
    if size > (most := memory.free() * jax.device_count()):
        raise ValueError(
            f'the network takes {size / 2**30:,.0f} GiB, {most / 2**30:,.0f} GiB are free; make it '
            'smaller'
        )
    return shapes


def load_ema(
    model: Denoiser,
    workdir: str | pathlib.Path,
    mesh: Mesh | None = None,
    step: int | str | None = None,
) -> tuple[Any, dict[str, Any]]:
    """(Averaged weights of a run, position of their checkpoint), on the mesh or the first device;
    `step` is as of `Checkpoints.restore`.

    Raises:
      UserError: if there is no run or no checkpoint.
    """
    image = section_of(configs.to_json(configs.read(workdir)), 'image')
    shapes = call(fitting, {}, f'{workdir}', model=model, image=image)
    if not (disk.place(workdir) / checkpoint.FOLDER).is_dir():
        raise UserError(f'{workdir}: has no checkpoint yet; run `fdistill train` on it first')
    placed = (
        sharding.state_sharding(shapes, mesh)
        if mesh
        else jax.tree.map(lambda _: first_device(), shapes)
    )
    with checkpoint.Checkpoints(workdir) as checkpoints:
        restored = checkpoints.restore({'ema': checkpoint.abstract(shapes, placed)}, step)
    if restored is None:
        raise UserError(f'{workdir}: has no finished checkpoint; run `fdistill train` on it first')
    arrays, position = restored
    return arrays['ema'], position
