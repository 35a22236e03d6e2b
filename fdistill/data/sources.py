"""Data sets as arrays: scikit-learn's digits, points of named mixtures, any TFDS data set, a folder of images."""

import hashlib
import io
import pathlib
from typing import Any, NamedTuple

import numpy as np
import tqdm

from fdistill.data import cache
from fdistill.errors import UserError, suggest

SPLITS = ('train', 'held_out')
IMAGE_SUFFIXES = ('.png', '.jpg', '.jpeg')
IMAGE_MODES = {'L': 1, 'RGB': 3}
CACHE_VERSION = 1


class Source(NamedTuple):
    """A split of a data set, whole in memory or memory-mapped.

    images: uint8 [N, H, W, C] with grey levels 0..levels, or float32 [N, D] points with levels 0.
    labels: int32 [N] in 0..num_classes - 1.
    num_classes: number of classes of the data set, 1 if it has no labels.
    levels: largest grey level (255 for 8 bits), 0 for points.
    name: what the data is called in results.
    """

    images: Any
    labels: Any
    num_classes: int
    levels: int
    name: str


def to_float(images, levels):
    """Grey levels to numbers: x = 2 u / levels - 1.

    Args:
      images: uint8 [...] in 0..levels; float32 of any range if levels is 0.
      levels: largest grey level, or 0 to leave the values as they are.

    Returns:
      float32 [...] in [-1, 1], both ends exact.
    """
    return images / np.float32(levels / 2) - np.float32(1) if levels else images


def to_levels(images, levels):
    """Numbers to grey levels, rounding half up: u = clip(floor((x + 1) levels / 2 + 1/2), 0, levels).

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


def quantise(images, levels):
    """What remains of samples stored as images: `to_float(to_levels(x))`, the nearest of levels + 1 values in [-1, 1].

    Args:
      images: float [...], clipped to [-1, 1].
      levels: largest grey level, or 0 to leave the values as they are.

    Returns:
      float32 [...] of the same shape.
    """
    return to_float(to_levels(images, levels), levels) if levels else np.asarray(images, np.float32)


def load(name, split='train', **options):
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
    return SOURCES[known(name, SOURCES, 'data set')](known(split, SPLITS, 'split'), **options)


def known(name, names, what):
    """Returns `name` if it is among `names`; else raises a UserError that says what it may have been."""
    if name not in names:
        raise UserError(f'unknown {what} {name!r}{suggest(name, names)}')
    return name


def fingerprint(source):
    """Hex SHA-256 of images, labels and grey levels: equal exactly if the data is."""
    header = (source.images.shape, str(source.images.dtype), source.num_classes, source.levels)
    digest = hashlib.sha256(repr(header).encode())
    digest.update(np.ascontiguousarray(source.images))
    digest.update(np.ascontiguousarray(source.labels))
    return digest.hexdigest()


def digits(split):
    """The 1797 handwritten digits that come with scikit-learn, uint8 [N, 8, 8, 1] with levels 0..16, ten classes.

    A fixed fifth of each class, rounded down, is held out: 1442 for training, 355 held out.

    Reference: Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, UCI 1998 (its test part).
    """
    from sklearn.datasets import load_digits

    data = load_digits()
    # RandomState and not default_rng: its stream is frozen, so the split is the same with every numpy.
    order = np.random.RandomState(0).permutation(len(data.target))
    members = [order[data.target[order] == label] for label in range(10)]
    parts = {'held_out': [m[:len(m) // 5] for m in members], 'train': [m[len(m) // 5:] for m in members]}
    chosen = np.sort(np.concatenate(parts[split]))
    images, labels = data.images[chosen, ..., None].astype(np.uint8), data.target[chosen].astype(np.int32)
    return Source(images, labels, 10, 16, 'digits')


def _ring():
    angles = 2 * np.pi * np.arange(8) / 8
    return np.full(8, 1 / 8), np.stack([np.cos(angles), np.sin(angles)], axis=1), np.full(8, 0.1)


def _grid():
    axis = 0.5 * np.arange(-2, 3)
    return np.full(25, 1 / 25), np.stack(np.meshgrid(axis, axis), axis=-1).reshape(25, 2), np.full(25, 0.08)


def _two_modes():
    return np.array([0.4, 0.6]), np.array([[-1.0, 0.0], [1.0, 0.0]]), np.full(2, 0.2)


def _pair():
    return np.array([0.4, 0.6]), np.array([[-1.0], [1.0]]), np.full(2, 0.25)


def _triangle():
    angles = np.pi / 2 + 2 * np.pi * np.arange(3) / 3
    return np.array([0.2, 0.3, 0.5]), np.stack([np.cos(angles), np.sin(angles)], 1), np.full(3, 0.25)


MIXTURES = {'ring': _ring, 'grid': _grid, 'two_modes': _two_modes, 'pair': _pair, 'triangle': _triangle}


def mixture_parameters(name):
    """Weights, means and standard deviations of a named mixture of round Gaussians, in the plane where not said otherwise.

    'ring': 8 equal modes on the unit circle, std 0.1. 'grid': 5 x 5 equal modes 0.5 apart, std 0.08. 'two_modes':
    weight 0.4 at (-1, 0) and 0.6 at (1, 0), std 0.2. On the line, 'pair': weight 0.4 at -1 and 0.6 at 1, std 0.25. 'triangle':
    weights 0.2, 0.3, 0.5 at the corners of a triangle on the unit circle, std 0.25.

    Returns:
      (weights [K], means [K, D], stds [K]), float64; weights sum to 1.

    Raises:
      UserError: unknown name.
    """
    return MIXTURES[known(name, MIXTURES, 'mixture')]()


def mixture(split, mixture='ring', n=50000, seed=0, labelled=True):
    """Points of a named mixture, drawn once: float32 [n, D], levels 0.

    Args:
      split: the two splits are independent draws.
      mixture: a name `mixture_parameters` knows.
      n: number of points of the split.
      seed: integer >= 0.
      labelled: the label of a point is its component; otherwise there is a single class.
    """
    weights, means, stds = mixture_parameters(mixture)
    rng = np.random.default_rng([seed, SPLITS.index(split)])
    component = rng.choice(len(weights), size=n, p=weights)
    points = means[component] + stds[component, None] * rng.standard_normal((n, means.shape[1]))
    labels = component if labelled else np.zeros(n)
    return Source(points.astype(np.float32), labels.astype(np.int32), len(weights) if labelled else 1, 0, mixture)


def tfds(split, dataset=None, data_dir=None, train='train', held_out='test'):
    """A TensorFlow data set that lies prepared on disk, read without TensorFlow, levels 0..255.

    Args:
      split: which of the two splits.
      dataset: TFDS name such as 'mnist' or 'cifar10:3.0.2', below `data_dir`; None if `data_dir` is itself the folder
        with the data set's dataset_info.json.
      data_dir: folder; None: TFDS' own (~/tensorflow_datasets).
      train, held_out: TFDS splits that stand for the two, e.g. 'train[:90%]' and 'train[90%:]'.

    The files must be ArrayRecord: `tfds build --file_format=array_record`, or `download_and_prepare(file_format=...)`.
    The images are decoded once and kept below $FDISTILL_CACHE.

    Raises:
      UserError: missing or unreadable data set, unknown split, no images, images of several sizes.
    """
    import tensorflow_datasets

    if dataset is None and data_dir is None:
        raise UserError('tfds: give dataset (a TFDS name), data_dir (a folder), or both')
    try:
        if dataset is None:
            builder = tensorflow_datasets.builder_from_directory(data_dir)
        else:
            builder = tensorflow_datasets.builder(dataset, data_dir=data_dir, try_gcs=False)
        image_key = _only(builder.info, tensorflow_datasets.features.Image)
        label_key = _only(builder.info, tensorflow_datasets.features.ClassLabel)
        encoded = {image_key: tensorflow_datasets.decode.SkipDecoding()} if image_key else None
        records = builder.as_data_source(split={'train': train, 'held_out': held_out}[split], decoders=encoded)
    except Exception as error:
        where = ' in '.join(repr(str(part)) for part in (dataset, data_dir) if part is not None)
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f'cannot read the data set {where} ({reason}): check the names, or prepare it there with '
                        "file_format='array_record'") from error
    full_name, features = builder.info.full_name, builder.info.features
    if image_key is None:
        raise UserError(f'data set {full_name!r} has no single image feature: it has {", ".join(features)}')

    def read(start, stop):
        examples = records.__getitems__(range(start, stop))
        labels = [example[label_key] if label_key else 0 for example in examples]
        return [_pixels(io.BytesIO(example[image_key]), f'an image of {full_name!r}') for example in examples], labels

    files = sorted(pathlib.Path(builder.data_path).iterdir())
    identity = [full_name, train if split == 'train' else held_out]
    identity += [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    images, labels = _decoded(full_name, identity, len(records), read, lambda i: f'example {i}')
    num_classes = features[label_key].num_classes if label_key else 1
    return Source(images, labels, num_classes, 255, builder.info.name)


def _only(info, kind):
    """Key of the one feature of a kind; None if there is none or a choice."""
    keys = [key for key, feature in info.features.items() if isinstance(feature, kind)]
    return keys[0] if len(keys) == 1 else None


def _pixels(file, name):
    """Decodes a PNG or JPEG (path or file object) -> uint8 [H, W, 1 or 3]."""
    import PIL.Image

    try:
        with PIL.Image.open(file) as image:
            mode, array = image.mode, np.asarray(image)
    except OSError as error:
        raise UserError(f'{name} cannot be read as an image: remove or repair it') from error
    if mode not in IMAGE_MODES:
        raise UserError(f'{name} has pixels of kind {mode}: convert it to 8-bit grey or RGB')
    return array.reshape(array.shape[:2] + (IMAGE_MODES[mode],))


def image_folder(split, path, held_out=0.1):
    """A folder of PNG or JPEG images of one size, 8 bits, all grey or all RGB; levels 0..255.

    Sub-folders are the classes, in order of their names; a folder without sub-folders is a single class. An image is
    held out if the hash of its path within the folder says so, so adding images moves none of the others to the other
    split. The images are decoded once and kept below $FDISTILL_CACHE.

    Args:
      split: which of the two splits.
      path: the folder.
      held_out: fraction held out, in (0, 1).

    Raises:
      UserError: missing folder, no images, a file that is no image, or images of several sizes or kinds.
    """
    root = pathlib.Path(path)
    if not root.is_dir():
        raise UserError(f'image folder {str(path)!r} does not exist: give a folder of PNG or JPEG files')
    if not 0 < held_out < 1:
        raise UserError(f'held_out={held_out}: must be a fraction between 0 and 1')
    visible = [entry for entry in root.iterdir() if not entry.name.startswith('.')]
    classes = sorted(entry.name for entry in visible if entry.is_dir())
    if classes and len(classes) < len(visible):
        loose = next(entry.name for entry in visible if not entry.is_dir())
        raise UserError(f'{loose!r} lies beside the class folders of {str(path)!r}: move it into one of them')
    names = sorted(file.relative_to(root).as_posix() for file in root.rglob('*') if file.is_file())
    names = [name for name in names if not any(part.startswith('.') for part in name.split('/'))]
    for name in names:
        if not name.lower().endswith(IMAGE_SUFFIXES):
            raise UserError(f'{name!r} in {str(path)!r} is not a PNG or JPEG file: remove or convert it')
    names = [name for name in names if (_unit_hash(name) < held_out) == (split == 'held_out')]
    if not names:
        raise UserError(f'image folder {str(path)!r} has no images for {split!r}: put more PNG or JPEG files there')

    def read(start, stop):
        labels = [classes.index(name.split('/')[0]) if classes else 0 for name in names[start:stop]]
        return [_pixels(root / name, f'{name!r} in {str(path)!r}') for name in names[start:stop]], labels

    stats = {name: (root / name).stat() for name in names}
    identity = [str(root.resolve())] + [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats.items()]
    images, labels = _decoded(root.resolve().name, identity, len(names), read, lambda i: repr(names[i]))
    return Source(images, labels, max(len(classes), 1), 255, root.resolve().name)


def _unit_hash(text):
    """A number in [0, 1) that depends on the text alone, on every machine."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], 'big') / 2**64


def _decoded(name, identity, count, read, where, chunk=1000):
    """Decodes images once to a memory-mapped uint8 array in the cache.

    Args:
      name: what to call the data in messages.
      identity: printable description of the encoded files; another identity is another cache entry.
      count: number of images, >= 1.
      read: read(start, stop) -> (list of uint8 [H, W, C], list of int).
      where: where(i) names image i in messages.

    Returns:
      (uint8 [count, H, W, C], int32 [count]).

    Raises:
      UserError: an image unlike the first one.
    """
    key = hashlib.sha256(repr((CACHE_VERSION, identity)).encode()).hexdigest()[:32]
    images_path, labels_path = (cache.folder('data') / f'{key}-{kind}.npy' for kind in ('images', 'labels'))
    if not (images_path.exists() and labels_path.exists()):
        labels = np.empty(count, np.int32)

        def save(temporary):
            shape = read(0, 1)[0][0].shape
            images = np.lib.format.open_memmap(temporary, mode='w+', dtype=np.uint8, shape=(count,) + shape)
            # The bar shows only on a terminal, and only if it takes longer than two seconds.
            with tqdm.tqdm(desc=f'decoding {name}', total=count, unit='img', disable=None, delay=2, leave=False) as bar:
                for start in range(0, count, chunk):
                    stop = min(start + chunk, count)
                    block, labels[start:stop] = read(start, stop)
                    for i, image in enumerate(block, start):
                        if image.shape != shape or image.dtype != np.uint8:
                            raise UserError(f'{where(i)} of {name!r} is {image.dtype} {image.shape}, but the first is '
                                            f'uint8 {shape}: make all images the same size and kind')
                        images[i] = image
                    bar.update(stop - start)
            images.flush()

        cache.write(images_path, save)
        cache.write(labels_path, lambda temporary: np.save(temporary, labels))
    # asarray, because indexing a memmap object gives memmap objects, which are slow.
    return np.asarray(np.load(images_path, mmap_mode='r')), np.load(labels_path)


SOURCES = {'digits': digits, 'mixture': mixture, 'tfds': tfds, 'image_folder': image_folder}
