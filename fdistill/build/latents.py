"""Latents in place of images: they are encoded once, and what is sampled is decoded."""

import math
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from fdistill import config as configs
from fdistill.build.sections import load_data, plain_of, real, section_of, with_data
from fdistill.data import latents
from fdistill.data.sources import SPLITS, Source, to_float
from fdistill.errors import UserError
from fdistill.files import disk
from fdistill.training import sharding
from fdistill.weights import autoencoders

DTYPES = ('float32', 'float16')


def of_images(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """A config whose `data` are real images: those that latents were made of, as what is decoded is
    compared with images; of pairs those of their teacher.

    Raises:
      UserError: the latents or pairs are not there.
    """
    config = real(config)
    section = section_of(config, 'data')
    if section.get('name') != 'latents':
        return config
    return with_data(config, latents.read(plain_of(section).get('path', ''))['data'])


class Decoder(NamedTuple):
    """What is seen of samples.

    images(samples[B,...]) -> [B,*shape], placed as the samples are.
    shape: of one.
    digest: of the autoencoder, '' where samples are seen as they are.
    """

    images: Callable[[jax.Array], jax.Array]
    shape: tuple[int, ...]
    digest: str = ''


def decoder(
    image: Mapping[str, Any], vae: disk.Path | None, mesh: Mesh | None, where: str
) -> Decoder:
    """The `Decoder` of samples; without an autoencoder they are seen as they are.

    Args:
      image: what the samples are, see `sections.resolve`.
      vae: file of the autoencoder.
      mesh: of the samples; default: the first device.
      where: what the user calls the file.

    Raises:
      UserError: it is another autoencoder than the one of the latents, or does not fit them.
    """
    if vae is None:
        return Decoder(lambda samples: samples, tuple(image['shape']))
    network, params, about = autoencoders.load(vae)
    known, digest = image.get('latents'), about['digest']
    if known and known['autoencoder'] != digest:
        raise UserError(
            f'{where}={vae}: is another autoencoder ({digest[:12]}) than the one that made the '
            f'latents ({known["autoencoder"][:12]}); give that one'
        )
    if len(image['shape']) != 3 or image['shape'][-1] != network.latent_channels:
        raise UserError(
            f'{where}={vae}: decodes {network.latent_channels} channels of latents, the samples '
            f'are {image["shape"]}; give the autoencoder of the data'
        )
    params = jax.device_put(params, sharding.replicated(mesh) if mesh else jax.local_devices()[0])
    height, width, _ = image['shape']

    def images(samples):
        return jax.device_put(network.decode(params, samples), samples.sharding)

    shape = (height * network.factor, width * network.factor, network.channels)
    return Decoder(images, shape, digest)


def decoder_of(plain: Mapping[str, Any], mesh: Mesh | None) -> Decoder:
    """`decoder` of a resolved config."""
    return decoder(plain['image'], vae_of(plain), mesh, 'config.data.vae')


def vae_of(plain: Mapping[str, Any]) -> disk.Path | None:
    """What decodes the samples of a resolved config: the autoencoder that its data name, or that of
    their teacher; None where they are no latents, or no one says."""
    section = plain.get('data', {})
    if 'vae' in section or section.get('name') != 'pairs' or 'latents' not in plain['image']:
        return section.get('vae')
    return real(plain)['data'].get('vae')


def encode(
    config: Mapping[str, Any],
    vae: disk.Path,
    out: disk.Path,
    *,
    dtype: str = 'float32',
    batch_size: int = 64,
    quiet: bool = False,
) -> dict[str, Any]:
    """Encodes the data of a config, both splits, for `data.sources.latents`.

    Args:
      config: whose `data` is taken; with `flip`, mirror images of the training images are encoded
        too, for a mirrored latent is not the latent of a mirrored image.
      vae: file of the autoencoder, of `fdistill convert vae`.
      out: folder to write to.
      dtype: of `DTYPES`, what moments are kept in.
      batch_size: images at once on all devices, which share them evenly: it may become some more.
      quiet: no progress on stderr.

    Returns:
      What `latents.json` holds.

    Raises:
      UserError: on whatever the user can mend; nothing has been written then, but for splits that
        are whole.
    """
    if dtype not in DTYPES:
        raise UserError(f'--dtype={dtype}: must be {" or ".join(DTYPES)}')
    if batch_size < 1:
        raise UserError(f'--batch-size={batch_size}: must be >= 1')
    out = disk.folder_for(out, '--out')
    if (pathlib.Path(out) / latents.NOTE).exists():
        raise UserError(f'--out={out}: holds latents already; give the name of a new folder')
    network, params, about = autoencoders.load(vae)
    mesh = sharding.mesh_over(jax.local_devices())
    by_batch = sharding.batch_sharding(mesh)
    params = jax.device_put(params, sharding.replicated(mesh))
    batch_size = math.ceil(batch_size / mesh.size) * mesh.size
    # In this order, so that a folder whose second split cannot be read stays as it was.
    loaded: dict[str, Source] = {split: load_data(config, split) for split in SPLITS}
    train = loaded['train']
    height, width, channels = train.images.shape[1:] if train.levels else (0, 0, 0)
    if not train.levels or train.given:
        what = 'has conditions besides a label' if train.given else 'is not of images'
        raise UserError(f'config.data: {train.name!r} {what}; latents are of images with labels')
    factor = network.factor
    if channels != network.channels or height % factor or width % factor:
        raise UserError(
            f'config.data: {train.name!r} has images of {height} x {width} x {channels}, the '
            f'autoencoder {vae} takes multiples of {factor} pixels a side and {network.channels} '
            'channels; give images that fit, or another autoencoder'
        )
    mirrored = bool(plain_of(config['data']).get('flip', False))
    section = configs.to_json(config)['data']
    section.pop('flip', None)
    note: latents.Note = {
        'format': latents.FORMAT,
        'name': train.name,
        'num_classes': train.num_classes,
        'image': [height, width, channels],
        'data': section,
        'latent': [height // factor, width // factor, network.latent_channels],
        'mirrored': mirrored,
        'autoencoder': about['digest'],
        'splits': {},
    }
    for split, source in loaded.items():
        twice = mirrored and split == 'train'

        def images(start, stop, source=source):
            index, count = np.arange(start, stop), len(source.images)
            chosen = to_float(source.images[index % count], source.levels)
            return np.where((index >= count)[:, None, None, None], chosen[:, :, ::-1], chosen)

        note['splits'][split] = latents.write_split(
            out,
            split,
            images,
            np.tile(source.labels, 2 if twice else 1),
            lambda batch: network.encode(params, jax.device_put(batch, by_batch)),
            dtype=dtype,
            batch_size=batch_size,
            progress=not quiet,
        )
    latents.write(out, note)
    return dict(note)
