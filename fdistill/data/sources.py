"""Data sets as arrays: scikit-learn's digits, points of named mixtures, a TFDS data set, a folder
or zip of images, latents of them, what a teacher made."""

import contextlib
import hashlib
import io
import json
import os
import pathlib
import re
import stat
import unittest.mock
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, NamedTuple

import numpy as np
import tqdm

from fdistill.data import cache
from fdistill.data import latents as encoded
from fdistill.data import pairs as paired
from fdistill.errors import UserError, pick
from fdistill.files import disk
from fdistill.types import Free, Place
from fdistill.weights import autoencoders

SPLITS = {'train': 0, 'held_out': 1}  # The numbers seed points that are drawn.
IMAGE_SUFFIXES = ('.png', '.jpg', '.jpeg')
IMAGE_FORMATS = ('PNG', 'JPEG')
IMAGE_MODES = {'L': 1, 'RGB': 3}
OTHER_MODES = {
    '1': 'one bit',
    'P': 'a palette',
    'PA': 'a palette',
    'LA': 'an alpha channel',
    'RGBA': 'an alpha channel',
    'I;16': '16 bits',
    'CMYK': "a printer's four colours",
}
FEATURES = 'BBoxFeature ClassLabel FeaturesDict Image Scalar Sequence Tensor Text'.split()
LABELS = 'dataset.json'
MAX_BYTES = 2**28  # No larger file is opened: no image of a training set needs it, a trap may.
# Of dataset.json, free and an image beside its name: read, JSON may take twenty times its bytes.
FREE_LABELS, LABEL_BYTES = 2**20, 256
MAX_POINTS = 10**8
MAX_CLASSES = 2**16  # A slip in a label must not become a one-hot code that fills the memory.
CACHE_VERSION = 3


class Decoded(NamedTuple):
    """What latents are of: images of that shape, as an autoencoder of that digest decodes them."""

    autoencoder: str
    shape: tuple[int, ...]


class Pairs(NamedTuple):
    """What samples are that a teacher made of noise.

    seed, index: uint32 [N], of which the noise of each follows, see `pairing.noise_of`.
    trained_on: features that the teacher was trained on, as in a protocol.
    """

    seed: np.ndarray
    index: np.ndarray
    trained_on: tuple[str, ...] = ()


class Source(NamedTuple):
    """A split of a data set, whole in memory or memory-mapped.

    images: uint8 [N, H, W, C] with grey levels 0..levels, or float32 with levels 0: [N, D] points,
      [N, h, w, c] latents, or what a teacher made.
    labels: int32 [N] in 0..num_classes - 1.
    num_classes: number of classes of the data set, 1 if it has no labels.
    levels: largest grey level (255 for 8 bits), 0 for points.
    name: what the data is called in results.
    given: further conditions by name, [N, ...] each, as embedded text or pictures of low
      resolution.
    stored: hex SHA-256 of the images as they are stored, before any library has decoded them; ''
      where they are computed.
    decoded: of latents.
    pairs: of samples that a teacher made of noise.
    """

    images: np.ndarray
    labels: np.ndarray
    num_classes: int
    levels: int
    name: str
    given: Mapping[str, Any] = {}
    stored: str = ''
    decoded: Decoded | None = None
    pairs: Pairs | None = None

    def condition(self, index: Any) -> dict[str, np.ndarray]:
        """What the samples of an index are to be like, {name: [n, ...]}; the label where there are
        classes."""
        label = {'label': np.asarray(self.labels[index], np.int32)} if self.num_classes > 1 else {}
        return label | {name: np.asarray(values[index]) for name, values in self.given.items()}


def to_float(images: np.ndarray, levels: int) -> np.ndarray:
    """Grey levels to numbers: x = 2 u / levels - 1.

    Args:
      images: uint8 [...] in 0..levels; float32 of any range if levels is 0.
      levels: largest grey level, or 0 to leave the values as they are.

    Returns:
      float32 [...] in [-1, 1], both ends exact.
    """
    return images / np.float32(levels / 2) - np.float32(1) if levels else images


def to_levels(images: np.ndarray, levels: int) -> np.ndarray:
    """Numbers to grey levels, rounding half up.

        u = clip(floor((x + 1) levels / 2 + 1/2), 0, levels)

    Truncation instead would darken images by half a level on average.

    Args:
      images: float [...], clipped to [-1, 1].
      levels: largest grey level, 1..255.

    Returns:
      uint8 [...] in 0..levels.
    """
    # In float64, or the product would round values just below an edge up to it.
    scaled = (np.asarray(images, np.float64) + 1) * (levels / 2) + 0.5
    return np.clip(np.floor(scaled), 0, levels).astype(np.uint8)


def quantise(images: np.ndarray, levels: int) -> np.ndarray:
    """What remains of samples stored as images: `to_float(to_levels(x))`, the nearest of levels + 1
    values in [-1, 1].

    Args:
      images: float [...], clipped to [-1, 1].
      levels: largest grey level, or 0 to leave the values as they are.

    Returns:
      float32 [...] of the same shape.
    """
    return to_float(to_levels(images, levels), levels) if levels else np.asarray(images, np.float32)


def load(name: str, split: str = 'train', **options: Any) -> Source:
    """Loads a split of a data set.

    Args:
      name: a key of SOURCES.
      split: 'train' or 'held_out'.
      **options: keyword arguments of the function SOURCES[name].

    Returns:
      Source.

    Raises:
      UserError: unknown name or split, or unreadable data; one line with the value and the remedy.
    """
    pick(SPLITS, split, 'split')
    return pick(SOURCES, name, 'data set')(split, **options)


def fingerprint(source: Source) -> str:
    """Hex SHA-256 of images, labels and grey levels: equal exactly if the data is."""
    header = (source.images.shape, str(source.images.dtype), source.num_classes, source.levels)
    digest = hashlib.sha256(repr(header).encode())
    digest.update(np.ascontiguousarray(source.images))
    digest.update(np.ascontiguousarray(source.labels))
    return digest.hexdigest()


def digits(split: str) -> Source:
    """The 1797 handwritten digits that come with scikit-learn, uint8 [N, 8, 8, 1] with levels
    0..16, ten classes.

    A fixed fifth of each class, rounded down, is held out: 1442 for training, 355 held out.

    Reference: Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, UCI 1998 (its test
      part).
    """
    from sklearn.datasets import load_digits

    data = load_digits()
    # RandomState and not default_rng: its stream is frozen, so the split is the same with every
    # numpy.
    order = np.random.RandomState(0).permutation(len(data.target))
    members = [order[data.target[order] == label] for label in range(10)]
    parts = {
        'held_out': [m[: len(m) // 5] for m in members],
        'train': [m[len(m) // 5 :] for m in members],
    }
    chosen = np.sort(np.concatenate(parts[split]))
    images, labels = (
        data.images[chosen, ..., None].astype(np.uint8),
        data.target[chosen].astype(np.int32),
    )
    stored = hashlib.sha256(images).hexdigest()
    return Source(images, labels, 10, 16, 'digits', stored=stored)


def _ring():
    angles = 2 * np.pi * np.arange(8) / 8
    return np.full(8, 1 / 8), np.stack([np.cos(angles), np.sin(angles)], axis=1), np.full(8, 0.1)


def _ring_missing():
    weights, means, stds = _ring()
    return weights[:-1] / weights[:-1].sum(), means[:-1], stds[:-1]


def _grid():
    axis = 0.5 * np.arange(-2, 3)
    return (
        np.full(25, 1 / 25),
        np.stack(np.meshgrid(axis, axis), axis=-1).reshape(25, 2),
        np.full(25, 0.08),
    )


def _two_modes():
    return np.array([0.4, 0.6]), np.array([[-1.0, 0.0], [1.0, 0.0]]), np.full(2, 0.2)


def _pair():
    return np.array([0.4, 0.6]), np.array([[-1.0], [1.0]]), np.full(2, 0.25)


def _triangle():
    angles = np.pi / 2 + 2 * np.pi * np.arange(3) / 3
    return (
        np.array([0.2, 0.3, 0.5]),
        np.stack([np.cos(angles), np.sin(angles)], 1),
        np.full(3, 0.25),
    )


MIXTURES = {
    'ring': _ring,
    'ring_missing': _ring_missing,
    'grid': _grid,
    'two_modes': _two_modes,
    'pair': _pair,
    'triangle': _triangle,
}


def mixture_parameters(name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weights, means and standard deviations of a named mixture of round Gaussians, in the plane
    unless said otherwise.

    'ring': 8 equal modes on the unit circle, std 0.1.
    'ring_missing': the same without the last of them, for a flawed teacher.
    'grid': 5 x 5 equal modes 0.5 apart, std 0.08.
    'two_modes': weight 0.4 at (-1, 0) and 0.6 at (1, 0), std 0.2.
    'pair': on the line, weight 0.4 at -1 and 0.6 at 1, std 0.25.
    'triangle': weights 0.2, 0.3, 0.5 at the corners of a triangle on the unit circle, std 0.25.

    Returns:
      (weights [K], means [K, D], stds [K]), float64; weights sum to 1.

    Raises:
      UserError: unknown name.
    """
    return pick(MIXTURES, name, 'mixture')()


def mixture(
    split: str, mixture: str = 'ring', n: int = 50000, seed: int = 0, labelled: bool = True
) -> Source:
    """Points of a named mixture, drawn once: float32 [n, D], levels 0.

    Args:
      split: the two splits are independent draws.
      mixture: a name `mixture_parameters` knows.
      n: number of points of the split, in 1..MAX_POINTS.
      seed: integer >= 0.
      labelled: the label of a point is its component; otherwise there is a single class.

    Raises:
      ValueError: on values out of range.
    """
    if not 1 <= n <= MAX_POINTS or seed < 0:
        raise ValueError(f'n={n}, seed={seed}: n must be in 1..{MAX_POINTS}, seed >= 0')
    weights, means, stds = mixture_parameters(mixture)
    rng = np.random.default_rng([seed, SPLITS[split]])
    component = rng.choice(len(weights), size=n, p=weights)
    points = means[component] + stds[component, None] * rng.standard_normal((n, means.shape[1]))
    labels = component if labelled else np.zeros(n)
    return Source(
        points.astype(np.float32),
        labels.astype(np.int32),
        len(weights) if labelled else 1,
        0,
        mixture,
    )


def tfds(
    split: str,
    dataset: str | None = None,
    data_dir: Annotated[str | None, Free] = None,
    train: str = 'train',
    held_out: str = 'test',
    size: int | None = None,
    classes: tuple[int, ...] = (),
) -> Source:
    """A TensorFlow data set that lies prepared on disk, read without TensorFlow, levels 0..255.

    Args:
      split: which of the two splits.
      dataset: TFDS name such as 'mnist' or 'cifar10:3.0.2', below `data_dir`; None if `data_dir` is
        itself the folder with the data set's dataset_info.json.
      data_dir: folder; None: TFDS' own (~/tensorflow_datasets).
      train, held_out: TFDS splits that stand for the two, e.g. 'train[:90%]' and 'train[90%:]'.
      size, classes: see `reduced`.

    The files must be ArrayRecord: `tfds build --file_format=array_record`, or
    `download_and_prepare(file_format=...)`. The images are decoded once and kept below
    $FDISTILL_CACHE. Nothing that the files name is imported: a feature is one of FEATURES.

    Raises:
      UserError: missing or unreadable data set, unknown split, no images, images of several sizes.
    """
    import tensorflow_datasets

    builder = _builder(dataset, data_dir)
    with _unreadable(dataset, data_dir):
        image_key, label_key = _keys(builder.info)
        encoded = {image_key: tensorflow_datasets.decode.SkipDecoding()} if image_key else None
        records = builder.as_data_source(
            split={'train': train, 'held_out': held_out}[split], decoders=encoded
        )
    full_name, features = builder.info.full_name, builder.info.features
    if image_key is None:
        raise UserError(
            f'data set {full_name!r} has no single image feature: it has {", ".join(features)}'
        )

    num_classes = (features[label_key].num_classes or 0) if label_key else 1
    if not 0 < num_classes <= MAX_CLASSES:
        raise UserError(
            f'data set {full_name!r} has {num_classes} classes: it must be 1 to {MAX_CLASSES}'
        )

    def read(start, stop):
        try:
            examples = records.__getitems__(range(start, stop))
        except Exception as error:  # Of damaged files its readers raise all sorts.
            raise UserError(
                f'data set {full_name!r} cannot be read ({_reason(error)}): prepare it anew'
            ) from error
        labels = [example[label_key] if label_key else 0 for example in examples]
        return [example[image_key] for example in examples], labels

    # Before the images are decoded, where their size is known.
    side = features[image_key].shape[:2]
    _check_reduced(builder.info.name, side if all(side) else None, num_classes, size, classes)
    place = pathlib.Path(builder.data_path).resolve()
    files = sorted(place.iterdir())
    identity = [full_name, str(place), train if split == 'train' else held_out]
    identity += [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    images, labels, stored = _decoded(
        full_name, identity, len(records), read, lambda i: f'example {i} of {full_name!r}'
    )
    source = Source(images, labels, num_classes, 255, builder.info.name, stored=stored)
    return reduced(source, size, classes)


def reduced(source: Source, size: int | None = None, classes: Sequence[int] = ()) -> Source:
    """Smaller images, of some classes, for experiments on a small machine.

    Args:
      source: of images with grey levels.
      size: side of the images in pixels, a divisor of theirs: each new pixel is the mean of a
        square, rounded; default: as they are.
      classes: labels that are kept, and which are 0, 1, ... in this order then; default: all.

    Returns:
      `Source`; its name says what was done, as 'cifar10-0,1,7of10-16px'; many labels by a digest.

    Raises:
      ValueError: no divisor, or labels that do not occur or occur twice.
    """
    images, labels, count, name = source.images, source.labels, source.num_classes, source.name
    _check_reduced(name, images.shape[1:3], count, size, classes)
    if classes:
        new = np.full(count, -1, np.int32)
        new[list(classes)] = np.arange(len(classes))
        kept = np.flatnonzero(new[labels] >= 0)
        images, labels = images[kept], new[labels[kept]]
        said = ','.join(map(str, classes))
        if len(said) > 30:
            said = hashlib.sha256(said.encode()).hexdigest()[:8]
        count, name = len(classes), f'{name}-{said}of{count}'
    height, _, channels = images.shape[1:]
    if size not in (None, height):
        by = height // size
        shape = (-1, size, by, size, by, channels)
        # In parts: means take eight times the memory of the images.
        parts = [
            np.rint(images[i : i + 1000].reshape(shape).mean(axis=(2, 4))).astype(np.uint8)
            for i in range(0, len(images), 1000)
        ]
        images, name = np.concatenate(parts), f'{name}-{size}px'
    return source._replace(images=images, labels=labels, num_classes=count, name=name)


def _check_reduced(name, sides, count, size, classes):
    """Raises ValueError where images of these sides, None if unknown, and so many classes cannot be
    reduced so."""
    if len(set(classes)) != len(classes) or not set(classes) <= set(range(count)):
        raise ValueError(
            f'classes={classes}: must be different labels in 0..{count - 1} of {name!r}'
        )
    if size is None or sides is None:
        return
    height, width = sides
    if size < 1 or height != width or height % size:
        raise ValueError(
            f'size={size}: must be a divisor of the side of square images, and those of '
            f'{name!r} have {height} x {width} pixels'
        )


def _known_features(features):
    """While it is open, TFDS finds the class of a feature in a closed table; else it would import
    whatever module features.json or dataset_info.json name.

    It takes the place of the one function of TFDS that turns such a name into a class, for those
    files have several forms.
    """
    known = {}
    for feature in (getattr(features, name) for name in FEATURES):
        for name in (f'{feature.__module__}.{feature.__name__}', *feature.ALIASES):
            known[name] = feature

    def find(name):
        if name not in known:
            raise UserError(
                f'tfds: a feature of the data set is {name!r:.80}, which is not read; known: '
                f'{", ".join(FEATURES)}; prepare it without that feature'
            )
        return known[name]

    return unittest.mock.patch.object(features.FeatureConnector, 'cls_from_name', find)


def tfds_outline(
    split: str,
    dataset: str | None = None,
    data_dir: Annotated[str | None, Free] = None,
    train: str = 'train',
    held_out: str = 'test',
    size: int | None = None,
    classes: tuple[int, ...] = (),
) -> Source:
    """What `tfds` would give, but for its images, without reading any: they are black, and one
    byte of memory.

    Args: as of `tfds`. Of a name that TFDS knows, nothing needs to lie on disk.

    Raises:
      UserError: an unknown data set, or one without images of one size.
    """
    builder = _builder(dataset, data_dir)
    features = builder.info.features
    image_key, label_key = _keys(builder.info)
    shape = features[image_key].shape if image_key else ()
    if len(shape) != 3 or None in shape:
        raise UserError(f'data set {builder.info.full_name!r} has no images of one size')
    images = np.broadcast_to(np.uint8(0), (1, *shape))
    num_classes = features[label_key].num_classes if label_key else 1
    labels = np.zeros(1, np.int32) + (classes[0] if classes else 0)
    return reduced(Source(images, labels, num_classes, 255, builder.info.name), size, classes)


def _builder(dataset, data_dir):
    import tensorflow_datasets
    from tensorflow_datasets.core import naming

    if dataset is None and data_dir is None:
        raise UserError('tfds: give dataset (a TFDS name), data_dir (a folder), or both')
    with _unreadable(dataset, data_dir), _known_features(tensorflow_datasets.features):
        if dataset is None:
            return tensorflow_datasets.builder_from_directory(data_dir)
        # Of another's namespace, TFDS would fetch the code and run it.
        if naming.parse_builder_name_kwargs(dataset)[0].namespace:
            raise UserError(
                f'tfds: dataset={dataset!r} has a namespace: prepare it, and give its folder as '
                'data_dir alone'
            )
        return tensorflow_datasets.builder(dataset, data_dir=data_dir, try_gcs=False)


@contextlib.contextmanager
def _unreadable(dataset, data_dir):
    """Whatever goes wrong there, as one line for the user."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        where = ' in '.join(repr(str(part)) for part in (dataset, data_dir) if part is not None)
        raise UserError(
            f'cannot read the data set {where} ({_reason(error)}): check the names, '
            "or prepare it there with file_format='array_record'"
        ) from error


def _keys(info):
    """(Key of the image, of the label) of a data set, None where there is not one of them."""
    import tensorflow_datasets

    kinds = tensorflow_datasets.features.Image, tensorflow_datasets.features.ClassLabel
    return tuple(_only(info, kind) for kind in kinds)


def _only(info, kind):
    """Key of the one feature of a kind; None if there is none, or more than one."""
    keys = [key for key, feature in info.features.items() if isinstance(feature, kind)]
    return keys[0] if len(keys) == 1 else None


def _reason(error):
    """What an error of another library says, on one line."""
    return (
        getattr(error, 'strerror', None) or str(error).strip() or type(error).__name__
    ).splitlines()[0]


def _named(read, argument, name):
    """`read(argument)`; a complaint about it begins with the name of what is read."""
    try:
        return read(argument)
    except UserError as error:
        raise UserError(f'{name} {error}') from error


def decode(data: bytes) -> np.ndarray:
    """The pixels of an encoded image; the only place that decides what is an image of a data set.

    Args:
      data: bytes of a PNG or JPEG, 8 bits or less, grey or RGB, one picture.

    Returns:
      uint8 [H, W, 1 or 3].

    Raises:
      UserError: it is no such image; the message has to follow the name of the file.
    """
    import PIL.Image

    try:
        with warnings.catch_warnings():
            # Pillow itself refuses only twice MAX_IMAGE_PIXELS.
            warnings.simplefilter('error', PIL.Image.DecompressionBombWarning)
            with PIL.Image.open(io.BytesIO(data), formats=IMAGE_FORMATS) as image:
                image.load()
                mode, array, frames = image.mode, np.asarray(image), getattr(image, 'n_frames', 1)
                clear = 'transparency' in image.info
                # Pillow cuts 16-bit RGB down to 8 bits without a word; the header (PNG, 11.2.2)
                # tells.
                deep = image.format == 'PNG' and data[24] > 8
    except PIL.UnidentifiedImageError:
        raise UserError(
            'cannot be read as a PNG or JPEG image: repair, convert or remove it'
        ) from None
    except Exception as error:  # Of damaged files Pillow raises all sorts.
        raise UserError(
            f'cannot be read as an image ({_reason(error)}): repair or remove it'
        ) from error
    if frames > 1:
        raise UserError(f'holds {frames} pictures, as an animation does: keep one of them')
    if mode not in IMAGE_MODES or clear or deep:
        kind = (
            OTHER_MODES.get(mode, 'other colours')
            if mode not in IMAGE_MODES
            else 'a transparent colour'
        )
        raise UserError(
            f'has {"16 bits" if deep else kind} (pixels of kind {mode}): convert it to 8-bit grey '
            'or RGB'
        )
    return array.reshape(array.shape[:2] + (IMAGE_MODES[mode],))


class Files(NamedTuple):
    """The images of a folder or a zip, none of them decoded yet.

    name: of the folder or zip.
    names: of the images, paths within it, sorted.
    labels: class of each image.
    classes: names of the classes, empty if there is but one.
    identity: something printable for each image, which changes when the image does.
    read: name -> bytes for `decode`, or a UserError whose message follows the name.
    problems: [(name, what is wrong)] of all other files.
    """

    name: str
    names: list[str]
    labels: list[int]
    classes: list[str]
    identity: list[Any]
    read: Callable[[str], bytes]
    problems: list[tuple[str, str]]


@contextlib.contextmanager
def opened(path: disk.Path) -> Iterator[Files]:
    """The `Files` of a folder or, read in place, of a zip: `with opened(path) as files`.

    Sub-folders are the classes, in order of their names; a folder without sub-folders is a single
    class. A file dataset.json at the top has the classes instead, {'labels': [[name, class], ...]}
    or null for a single class, as EDM's dataset_tool.py writes it (github.com/NVlabs/edm). Names
    that begin with a dot are passed over.

    Raises:
      UserError: there is no such folder or zip.
    """
    root = pathlib.Path(path)
    if root.is_dir():
        yield _sorted_out(root, *_folder(root))
    elif root.is_file():
        try:
            archive = zipfile.ZipFile(root)
        except Exception as error:  # Of damaged zips zipfile raises all sorts.
            raise UserError(
                f'{str(path)!r} is no zip that can be opened ({_reason(error)}): '
                'give a folder or a zip of PNG or JPEG files'
            ) from error
        with archive:
            yield _sorted_out(root, *_archive(archive))
    else:
        raise UserError(
            f'image folder {str(path)!r} does not exist: give a folder or a zip of PNG or JPEG '
            'files'
        )


def _folder(root):
    """({name: (bytes, stamp)} of the files, names of the folders at the top, read(name) -> bytes,
    problems)."""
    members, folders, problems = {}, [], []

    def note(error):
        name = os.path.relpath(error.filename, root)
        problems.append(
            (name, f'cannot be read ({_reason(error)}): mend its permissions or remove it')
        )

    for place, inner, files in os.walk(root, onerror=note):
        inner[:] = sorted(name for name in inner if not name.startswith('.'))
        above = pathlib.Path(place).relative_to(root)
        if not above.parts:
            folders = inner
        for name in files:
            if name.startswith('.'):
                continue
            try:
                status = os.stat(os.path.join(place, name))
            except OSError as error:
                note(error)
            else:
                name = (above / name).as_posix()
                if stat.S_ISREG(status.st_mode):
                    members[name] = status.st_size, status.st_mtime_ns
                else:  # Reading it may never end.
                    problems.append((name, 'is a pipe, a device or a link to one: remove it'))
    return members, folders, lambda name: (root / name).read_bytes(), problems


def _archive(archive):
    """The same of an open zipfile.ZipFile; whatever does not belong in a zip of images is a
    problem."""
    members, folders, problems = {}, set(), []
    for info in archive.infolist():
        name, parts = info.filename, info.filename.rstrip('/').split('/')
        kind = stat.S_IFMT(info.external_attr >> 16)
        if '..' in parts or '\\' in name or name.startswith('/') or re.match('[A-Za-z]:', name):
            problems.append((name, 'leads out of the zip: make the zip with relative paths'))
        elif any(part.startswith('.') for part in parts) or parts[0] == '__MACOSX':
            continue
        elif kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            problems.append((name, 'is a link or a device: make the zip with the files themselves'))
        elif info.flag_bits & 1:
            problems.append((name, 'is encrypted: make the zip without a password'))
        elif name in members:
            problems.append((name, 'is in the zip twice: make the zip anew'))
        else:
            if len(parts) > 1 or info.is_dir():
                folders.add(parts[0])
            if not info.is_dir():
                members[name] = info.file_size, info.CRC
    return members, sorted(folders), archive.read, problems


def _sorted_out(root, members, folders, read, problems):
    """`Files` of what lies in a folder or zip."""
    names = []
    for name, (size, _) in sorted(members.items()):
        if name != name.encode(errors='replace').decode():
            shown = name.encode(errors='backslashreplace').decode()
            problems.append((shown, 'has a name that is not UTF-8: rename it'))
        elif size > MAX_BYTES and name != LABELS:
            problems.append(
                (name, f'has {size} bytes, more than the {MAX_BYTES} of an image: remove it')
            )
        elif name.lower().endswith(IMAGE_SUFFIXES):
            names.append(name)
        elif name != LABELS:
            problems.append((name, 'is not a PNG or JPEG file: remove or convert it'))
    if LABELS in members:
        labels, classes, wrong = _edm_labels(read, members[LABELS][0], names)
    else:
        classes = folders
        numbers = {name: number for number, name in enumerate(classes)}
        labels = [numbers.get(name.split('/')[0], 0) for name in names]
        wrong = [
            (name, 'lies beside the class folders: move it into one of them')
            for name in names
            if '/' not in name
        ]
        wrong = wrong if classes else []

    def read_image(name):
        try:
            return read(name)
        except Exception as error:  # So do its decompressors.
            raise UserError(
                f'cannot be read ({_reason(error)}): mend its permissions, repair or remove it'
            ) from error

    identity = [(name, label, *members[name]) for name, label in zip(names, labels)]
    name = root.resolve().name.removesuffix('.zip')
    return Files(name, names, labels, classes, identity, read_image, problems + wrong)


def _edm_labels(read, size, names):
    """(classes of the images, names of the classes, problems) from dataset.json of that size."""
    none = [0] * len(names), []
    most = FREE_LABELS + sum(LABEL_BYTES + len(name.encode()) for name in names)
    if size > most:
        what = f'has {size} bytes, more than the {most} that classes of {len(names)} images need'
        return *none, [(LABELS, f'{what}: write it anew')]
    try:
        labels = json.loads(read(LABELS))['labels']
        if labels is not None and type(labels) is not list:
            raise TypeError(f'labels are a {type(labels).__name__}')
        pairs = [(name, label) for name, label in labels or []]
    except Exception as error:
        what = "holds no {'labels': [[name, class], ...]}"
        return *none, [(LABELS, f'{what} ({type(error).__name__}: {_reason(error)}): write it so')]
    if labels is None:
        return *none, []
    known, problems = {}, []
    for name, label in pairs:
        if not isinstance(name, str) or type(label) is not int or not 0 <= label < MAX_CLASSES:
            what = (
                f'gives {name!r} the class {label!r}: it must be an integer in 0..{MAX_CLASSES - 1}'
            )
            problems.append((LABELS, what))
        elif name in known:
            problems.append((LABELS, f'gives {name!r} a class twice: keep one'))
        else:
            known[name] = label
    if not problems:
        absent = sorted(set(known) - set(names))
        problems += [
            (name, f'has no class in {LABELS}: add one') for name in names if name not in known
        ]
        problems += [
            (LABELS, f'gives {name!r} a class, which is not there: take it out') for name in absent
        ]
    if problems:
        return *none, problems
    count = max(known.values(), default=0) + 1
    return (
        [known[name] for name in names],
        [str(number) for number in range(count)] if count > 1 else [],
        problems,
    )


def image_folder(split: str, path: Annotated[str, Place], held_out: float = 0.1) -> Source:
    """A folder or zip of PNG or JPEG images of one size, 8 bits, all grey or all RGB; levels
    0..255. Classes: `opened`.

    An image is held out if the hash of its path within the folder says so, so adding images moves
    none of the others to the other split. The images are decoded once and kept below
    $FDISTILL_CACHE.

    Args:
      split: which of the two splits.
      path: the folder, or the zip, which is read in place.
      held_out: fraction held out, in (0, 1).

    Raises:
      UserError: missing folder, no images, a file that is no image, or images of several sizes or
        kinds.
    """
    if not 0 < held_out < 1:
        raise UserError(f'held_out={held_out}: must be a fraction between 0 and 1')
    with opened(path) as files:
        if files.problems:
            (name, what), *others = files.problems
            more = f'; `fdistill check-data` lists {len(others)} more' if others else ''
            raise UserError(f'{name!r} in {str(path)!r} {what}{more}')
        chosen = [i for i, name in enumerate(files.names) if split_of(name, held_out) == split]
        if not chosen:
            raise UserError(
                f'image folder {str(path)!r} has no images for {split!r}: put more PNG or JPEG '
                'files there'
            )

        def where(i):
            return f'{files.names[chosen[i]]!r} in {str(path)!r}'

        def read(start, stop):
            images = [
                _named(files.read, files.names[chosen[i]], where(i)) for i in range(start, stop)
            ]
            return images, [files.labels[i] for i in chosen[start:stop]]

        identity = [str(pathlib.Path(path).resolve())] + [files.identity[i] for i in chosen]
        images, labels, stored = _decoded(files.name, identity, len(chosen), read, where)
        return Source(images, labels, max(len(files.classes), 1), 255, files.name, stored=stored)


def split_of(name: str, held_out: float) -> str:
    """The split that an image of a folder belongs to, by its path within the folder."""
    return 'held_out' if _unit_hash(name) < held_out else 'train'


def _unit_hash(text):
    """A number in [0, 1) that depends on the text alone, on every machine."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], 'big') / 2**64


def _decoded(name, identity, count, read, where, chunk=1000):
    """Decodes images once to a memory-mapped uint8 array in the cache.

    Args:
      name: what to call the data in messages.
      identity: printable description of the encoded files; another identity is another cache entry.
      count: number of images, >= 1.
      read: read(start, stop) -> (list of bytes for `decode`, list of int).
      where: where(i) names image i in messages.

    Returns:
      (uint8 [count, H, W, C], int32 [count], `Source.stored`).

    Raises:
      UserError: an image that cannot be decoded, or is unlike the first one.
    """
    key = hashlib.sha256(repr((CACHE_VERSION, identity)).encode()).hexdigest()[:32]

    def make(paths):
        labels, stored = np.empty(count, np.int32), hashlib.sha256()

        def save(temporary):
            shape = _named(decode, read(0, 1)[0][0], where(0)).shape
            images = disk.array(temporary, np.uint8, (count, *shape))
            # The bar shows only on a terminal, and only if it takes longer than two seconds.
            with tqdm.tqdm(
                desc=f'decoding {name}', total=count, unit='img', disable=None, delay=2, leave=False
            ) as bar:
                for start in range(0, count, chunk):
                    stop = min(start + chunk, count)
                    block, labels[start:stop] = read(start, stop)
                    for i, data in enumerate(block, start):
                        image = _named(decode, data, where(i))
                        if image.shape != shape:
                            raise UserError(
                                f'{where(i)} is {image.shape}, but the first is {shape}: make all '
                                'images the same size and kind'
                            )
                        images[i] = image
                        stored.update(hashlib.sha256(data).digest())
                    bar.update(stop - start)
            images.flush()

        disk.write(paths['images'], save)
        disk.write(paths['labels'], lambda temporary: np.save(temporary, labels))
        return stored.hexdigest()

    found, stored = cache.arrays(key, ('images', 'labels'), f'decoded images of {name!r}', make)
    return found['images'], found['labels'], stored


def latents(
    split: str,
    path: Annotated[str, Place],
    vae: Annotated[str, Place],
    sampled: bool = True,
    seed: int = 0,
    shape: tuple[int, ...] | None = None,
    num_classes: int | None = None,
) -> Source:
    """Latents that `fdistill encode` made, float32 [N, h, w, c], levels 0.

    Args:
      split: which of the two splits.
      path: the folder.
      vae: the autoencoder that they were made with, of `fdistill convert vae`: what is sampled is
        decoded by it.
      sampled: draw each latent once, z = (mean + std n - shift) scale, as diffusion models are
        trained; else z = (mean - shift) scale.
      seed: of n, integer >= 0.
      shape, num_classes: (h, w, c) and classes that the folder must have, by which a run can be
        planned where the folder is not.

    Raises:
      UserError: no such folder, not what was written, of another shape or other classes, or made
        with another autoencoder.
    """
    note, network = _encoded(path, vae, seed)
    _check_told(path, 'latents', tuple(note['latent']), note['num_classes'], shape, num_classes)
    made = encoded.drawn(path, note, split, network.latents, sampled, seed)
    labels = encoded.labels(path, note, split)
    own = repr((note['splits'][split]['moments'], sampled, seed if sampled else 0))
    stored = hashlib.sha256(own.encode()).hexdigest()
    return _of_note(note, made, labels)._replace(stored=stored)


def latents_outline(
    split: str,
    path: Annotated[str, Place],
    vae: Annotated[str, Place],
    sampled: bool = True,
    seed: int = 0,
    shape: tuple[int, ...] | None = None,
    num_classes: int | None = None,
) -> Source:
    """What `latents` would give, but for the latents, without reading any: they are 0. Where shape
    and classes are told, the folder need not be there; what decodes them is not known then."""
    if shape is not None and num_classes is not None and not pathlib.Path(path).exists():
        made = np.broadcast_to(np.float32(0), (1, *shape))
        return Source(made, np.zeros(1, np.int32), num_classes, 0, 'latents')
    note, _ = _encoded(path, vae, seed)
    made = np.broadcast_to(np.float32(0), (1, *note['latent']))
    return _of_note(note, made, np.zeros(1, np.int32))


def _encoded(path, vae, seed):
    """(`latents.Note` of a folder, the `Autoencoder` that it was made with)."""
    if seed < 0:
        raise ValueError(f'seed={seed}: must be >= 0')
    note, about = encoded.read(path), autoencoders.about(vae)
    if about['digest'] != note['autoencoder']:
        raise UserError(
            f'vae={vae}: is another autoencoder ({about["digest"][:12]}) than the one that '
            f'made the latents {str(path)!r} ({note["autoencoder"][:12]}); give that one, or '
            'encode the data again'
        )
    return note, autoencoders.make(about['model'], vae)


def _of_note(note, made, labels):
    decoded = Decoded(note['autoencoder'], tuple(note['image']))
    name = f'{note["name"]} latents'
    return Source(made, labels, note['num_classes'], 0, name, decoded=decoded)


def _check_told(path, what, held_shape, held_classes, shape, num_classes):
    """Raises UserError where a folder holds others than a config tells."""
    told_shape = held_shape if shape is None else tuple(shape)
    told_classes = held_classes if num_classes is None else num_classes
    if (told_shape, told_classes) != (held_shape, held_classes):
        raise UserError(
            f'path={path}: holds {what} of shape {held_shape} in {held_classes} classes, and not '
            f'of {told_shape} in {told_classes}; name another folder, or mend shape and num_classes'
        )


def pairs(
    split: str,
    path: Annotated[str, Place],
    vae: Annotated[str | None, Place] = None,
    shape: tuple[int, ...] | None = None,
    num_classes: int | None = None,
) -> Source:
    """What a teacher made of noise, with which noise: what `fdistill pairs` made.

    Args:
      split: 'train', for no pairs are held out.
      path: the folder.
      vae: what decodes pairs of latents; default: that of the data of their teacher.
      shape, num_classes: of a sample, and classes, that the folder must have, by which a run can be
        planned where the folder is not.

    Raises:
      UserError: no such folder, not what was written, of another shape or other classes, or of
        latents of another autoencoder.
    """
    note = _paired(split, path, vae)
    x0, *fields = note['record']
    _check_told(path, 'pairs', tuple(x0['shape']), note['num_classes'], shape, num_classes)
    arrays, stored = paired.load(path, note)
    labels = arrays.get('label', np.zeros(note['count'], np.int32))
    if labels.min() < 0 or labels.max() >= note['num_classes']:
        raise UserError(
            f'pairs {path!r}: have labels {labels.min()} to {labels.max()} in '
            f'{note["num_classes"]} classes; {paired.ANEW}'
        )
    given = {field['name']: arrays[field['name']] for field in fields if field['name'] != 'label'}
    return _of_pairs(note, arrays[x0['name']], labels, given)._replace(stored=stored)


def pairs_outline(
    split: str,
    path: Annotated[str, Place],
    vae: Annotated[str | None, Place] = None,
    shape: tuple[int, ...] | None = None,
    num_classes: int | None = None,
) -> Source:
    """What `pairs` would give, but for the samples, without reading any: they are 0. Where shape
    and classes are told, the folder need not be there; what decodes them is not known then."""
    one = np.zeros(1, np.int32)
    if shape is not None and num_classes is not None and not pathlib.Path(path).exists():
        made, number = np.broadcast_to(np.float32(0), (1, *shape)), one.astype(np.uint32)
        return Source(made, one, num_classes, 0, 'pairs', pairs=Pairs(number, number))
    note = _paired(split, path, vae)
    x0, *fields = note['record']

    def zero(field, dtype):
        return np.broadcast_to(np.zeros((), dtype), (1, *field['shape']))

    made = zero(x0, np.uint8 if note['levels'] else np.float32)
    given = {f['name']: zero(f, f['dtype']) for f in fields if f['name'] != 'label'}
    return _of_pairs(note, made, one, given)


def _paired(split, path, vae):
    """`pairs.Note` of a folder."""
    if split != 'train':
        raise UserError(
            f'pairs {path!r}: none are {split}; what is held out is of the data of their teacher'
        )
    note = paired.read(path)
    if vae is not None:
        known = note.get('decoded', {'autoencoder': 'none'})['autoencoder']
        if (digest := autoencoders.about(vae)['digest']) != known:
            raise UserError(
                f'vae={vae}: is another autoencoder ({digest[:12]}) than that of the pairs '
                f'{path!r} ({known[:12]}); give that one, or leave it out'
            )
    return note


def _of_pairs(note, made, labels, given):
    count, decoded = len(made), note.get('decoded')
    return Source(
        made,
        labels,
        note['num_classes'],
        note['levels'],
        f'{note["name"]} pairs',
        given,
        decoded=decoded and Decoded(decoded['autoencoder'], tuple(decoded['shape'])),
        pairs=Pairs(
            np.broadcast_to(np.uint32(note['seed']), count),
            np.arange(count, dtype=np.uint32),
            tuple(note['trained_on']),
        ),
    )


SOURCES = {
    'digits': digits,
    'mixture': mixture,
    'tfds': tfds,
    'image_folder': image_folder,
    'latents': latents,
    'pairs': pairs,
}
# Of those that would be read from disk, what is known without: the rows of `SOURCES` but for their
# images.
OUTLINES = SOURCES | {
    'tfds': tfds_outline,
    'latents': latents_outline,
    'pairs': pairs_outline,
}
