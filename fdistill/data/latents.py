"""Images as latents of an autoencoder, encoded once: a folder of moments, and what is drawn from
it.

    latents.json            what they are of, and digests: `Note`; written last
    train-moments.npy       float32 or float16 [N,h,w,2c], mean and log variance side by side
    train-labels.npy        int32 [N]
    held_out-...            the same

Moments and not latents: they do not depend on a random number, and latents of another seed cost
nothing.
"""

import hashlib
import pathlib
from collections.abc import Callable
from typing import Any, TypedDict

import jax
import numpy as np
import tqdm

from fdistill.data import cache
from fdistill.errors import UserError
from fdistill.files import disk

FORMAT, NOTE = 'fdistill latents 1', 'latents.json'
CHUNK = 1000  # latents drawn at once
AGAIN = 'encode the data again'


class Split(TypedDict):
    """How many latents a split has, and SHA-256 of its two files."""

    count: int
    moments: str
    labels: str


class Note(TypedDict):
    """What a folder of latents is of.

    name, num_classes, image, data: of the images: `Source.name`, its classes, [H,W,C], and the
      section `data` of the config they came with.
    latent: [h,w,c].
    mirrored: behind the training images there are their mirror images, in the same order.
    autoencoder: SHA-256 of its arrays and settings.
    """

    format: str
    name: str
    num_classes: int
    image: list[int]
    data: dict[str, Any]
    latent: list[int]
    mirrored: bool
    autoencoder: str
    splits: dict[str, Split]


def read(path: disk.Path) -> Note:
    """The note of a folder of latents.

    Raises:
      UserError: there is none, or it is damaged.
    """
    place = pathlib.Path(path) / NOTE
    if not place.is_file():
        raise UserError(
            f'latents {str(path)!r}: has no {NOTE}; make the folder with `fdistill encode`'
        )
    note = disk.read_json(place, Note, AGAIN)
    if note['format'] != FORMAT:
        raise UserError(f'{place}: its format is {note["format"]!r:.40}, not {FORMAT!r}; {AGAIN}')
    counts = [note['num_classes'], *(split['count'] for split in note['splits'].values())]
    for name, sizes in (('image', note['image']), ('latent', note['latent']), ('', counts)):
        if min(sizes, default=0) < 1 or max(sizes) >= 2**31 or (name and len(sizes) != 3):
            raise UserError(f'{place}: {name or "counts"} {sizes!r:.80}: are no sizes; {AGAIN}')
    return note


def write(folder: disk.Path, note: Note) -> None:
    """Writes the note, which makes a folder of latents whole."""
    disk.write_json(pathlib.Path(folder) / NOTE, note)


def write_split(
    folder: disk.Path,
    split: str,
    images: Callable[[int, int], np.ndarray],
    labels: np.ndarray,
    encode: Callable[[np.ndarray], Any],
    *,
    dtype: str,
    batch_size: int,
    progress: bool,
) -> Split:
    """Writes the moments and labels of a split; each file is absent or whole.

    Args:
      folder, split: where.
      images: (start, stop) -> float32 [n,H,W,C] in [-1, 1].
      labels: int32 [N].
      encode: images[batch_size,...] -> moments, jitted.
      dtype: 'float32' or 'float16', to keep them in.
      batch_size: images at once.
      progress: show a bar where it takes long.

    Raises:
      UserError: moments are not finite in that type.
    """
    count = len(labels)
    paths = _paths(folder, split)

    def save(temporary):
        array = None
        with tqdm.tqdm(
            desc=f'encoding {split}',
            total=count,
            unit='img',
            disable=None if progress else True,
            delay=2,
            leave=False,
        ) as bar:
            for start in range(0, count, batch_size):
                stop = min(start + batch_size, count)
                batch = images(start, stop)
                # As large as the others, so that one program serves all.
                spare = np.zeros((batch_size - len(batch), *batch.shape[1:]), batch.dtype)
                moments = np.asarray(encode(np.concatenate([batch, spare])))[: stop - start]
                with np.errstate(over='ignore'):
                    moments = moments.astype(dtype)
                if not np.isfinite(moments).all():
                    raise UserError(
                        f'the latents of {split} {start} to {stop - 1} are not finite in {dtype}; '
                        'keep them in float32, or take another autoencoder'
                    )
                if array is None:
                    shape = (count, *moments.shape[1:])
                    array = disk.array(temporary, dtype, shape)
                array[start:stop] = moments
                bar.update(stop - start)
        array.flush()

    disk.write(paths['moments'], save)
    disk.write(paths['labels'], lambda temporary: np.save(temporary, labels.astype(np.int32)))
    return {'count': count, **{kind: disk.sha256(path) for kind, path in paths.items()}}


def _paths(folder, split):
    return {kind: pathlib.Path(folder) / f'{split}-{kind}.npy' for kind in ('moments', 'labels')}


def labels(path: disk.Path, note: Note, split: str) -> np.ndarray:
    """The labels of a split, int32 [N].

    Raises:
      UserError: the file is missing or not what was written.
    """
    found, classes = np.asarray(_array(path, note, split, 'labels')), note['num_classes']
    if found.min() < 0 or found.max() >= classes:
        raise UserError(
            f'latents {str(path)!r}: has labels {found.min()} to {found.max()} in {classes} '
            f'classes; {AGAIN}'
        )
    return found


def _array(path, note, split, kind):
    """An array of a split as it was written, memory-mapped."""
    place, known = _paths(path, split)[kind], note['splits'].get(split)
    if known is None:
        raise UserError(f'latents {str(path)!r}: has no split {split!r}; {AGAIN}')
    if not place.is_file() or disk.sha256(place) != known[kind]:
        raise UserError(f'{place}: is not what was written; {AGAIN}')
    try:
        array = np.load(place, mmap_mode='r')
    except (ValueError, OverflowError) as error:
        raise UserError(f'{place}: is no array ({error}); {AGAIN}') from error
    *sides, channels = note['latent']
    shape, types = {
        'moments': ((known['count'], *sides, 2 * channels), ('float32', 'float16')),
        'labels': ((known['count'],), ('int32',)),
    }[kind]
    if array.shape != shape or array.dtype.name not in types:
        raise UserError(
            f'{place}: is {array.dtype.name:.40} of shape {array.shape}, not {" or ".join(types)} '
            f'of {shape}; {AGAIN}'
        )
    return array


def drawn(
    path: disk.Path,
    note: Note,
    split: str,
    latents: Callable[..., jax.Array],
    sampled: bool,
    seed: int,
) -> np.ndarray:
    """The latents of a split, float32 [N,h,w,c]; kept below $FDISTILL_CACHE, memory-mapped.

    Args:
      path, note, split: of the folder.
      latents: `Autoencoder.latents`.
      sampled: draw each from its normal distribution, else its mean. The noise of latent i is
        normal(fold_in(key(seed), i)), whatever the others.
      seed: of that noise.

    Raises:
      UserError: the moments are not what was written.
    """
    own = ['latents', note['autoencoder'], note['splits'].get(split), sampled, seed]
    key = hashlib.sha256(repr(own).encode()).hexdigest()

    def make(paths):
        moments = _array(path, note, split, 'moments')
        root = jax.random.key(seed)

        @jax.jit
        def draw(moments, index):
            shape = (*moments.shape[1:-1], moments.shape[-1] // 2)
            one = jax.vmap(lambda i: jax.random.normal(jax.random.fold_in(root, i), shape))
            return latents(moments, one(index) if sampled else None)

        def save(temporary):
            shape = (len(moments), *note['latent'])
            made = disk.array(temporary, np.float32, shape)
            for start in range(0, len(moments), CHUNK):
                stop = min(start + CHUNK, len(moments))
                index = np.arange(start, stop, dtype=np.uint32)
                made[start:stop] = draw(np.asarray(moments[start:stop]), index)
            made.flush()

        disk.write(paths['latents'], save)
        return key

    return cache.arrays(key[:32], ('latents',), 'latents', make)[0]['latents']
