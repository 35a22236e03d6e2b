"""What a data set holds and what is wrong with it, before time is spent on training: `fdistill
check-data`."""

import hashlib
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tqdm

from fdistill.data import sources
from fdistill.errors import UserError
from fdistill.files import disk, pictures
from fdistill.files.text import table

SPLITS = tuple(sources.SPLITS)
CHUNK = 2**24  # bytes of images looked at together
BLOCKS = 4  # a side: the blocks of an image by which near duplicates are looked for
NEIGHBOURS = 4  # images nearest by their blocks, which an image is compared with pixel by pixel
NEAR = 0.99  # near duplicates have pixels of a higher correlation
IMBALANCE = (
    10  # times the samples of the smallest class that the largest may have without a warning
)
SHOWN = 20  # errors and classes in the table
EXAMPLES = 3  # in a warning
ROWS, COLUMNS = 10, 10  # of the contact sheet
TILE = (48, 128)  # pixels of an image in it, at least and at most


def check(
    load: Callable[[str], sources.Source],
    folder: Mapping[str, Any] | None = None,
    those: Sequence[str] = SPLITS,
) -> tuple[dict[str, Any], sources.Source | None]:
    """Looks at both splits of a data set.

    Exact duplicates have the same decoded pixels. Near duplicates are pairs of images whose pixels
    correlate by more than NEAR, whatever their brightness and contrast; see `_near` for which pairs
    are compared.

    Args:
      load: load(split) -> Source, raising a UserError.
      folder: keyword arguments of `sources.image_folder` where that is the source: then all files
        that cannot be used are errors, not the first alone, and images are called by their files.
      those: splits that there are, 'train' among them.

    Returns:
      ({'name', 'splits': {split: numbers}, 'duplicates', 'warnings': [line], 'errors': [line]}, the
      train split). With errors, at which training would stop, the report may have nothing else, and
      None takes the place of the split.

    Raises:
      UserError: there is no data to look at.
    """
    names, classes = {}, []
    try:
        loaded = {'train': load('train')}
        if folder:
            with sources.opened(folder['path']) as files:
                classes, chosen = (
                    files.classes,
                    [sources.split_of(n, folder.get('held_out', 0.1)) for n in files.names],
                )
                names = {
                    split: [n for n, s in zip(files.names, chosen) if s == split]
                    for split in sources.SPLITS
                }
        # A few images may all fall into the train split, which training does not mind.
        if 'held_out' in those and (not folder or names['held_out']):
            loaded['held_out'] = load('held_out')
    except UserError:
        errors = unusable(folder['path']) if folder else []
        if not errors:
            raise
        return {
            'name': str(folder['path']),
            'splits': {},
            'duplicates': {},
            'warnings': [],
            'errors': errors,
        }, None
    train = loaded['train']
    names = {
        split: names.get(split) or [f'{split}[{i}]' for i in range(len(loaded[split].labels))]
        for split in loaded
    }
    splits, digests, blocks = {}, {}, {}
    for split, source in loaded.items():
        look = _images if source.levels else _points
        with _bar(f'looking at {split}', len(source.images)) as bar:
            splits[split], digests[split], blocks[split] = look(source, names[split], bar)
        counts = np.bincount(source.labels, minlength=source.num_classes).tolist()
        splits[split]['classes'] = dict(zip(classes or map(str, range(len(counts))), counts))
        splits[split]['sha256'] = sources.fingerprint(source)
    errors = _errors(loaded, splits)
    if errors and folder:
        errors = unusable(folder['path'])
    report = {
        'name': train.name,
        'splits': splits,
        'duplicates': {},
        'warnings': [],
        'errors': errors,
    }
    if errors:
        return report, None
    report['duplicates'] = _duplicates(loaded, names, digests, blocks)
    report['warnings'] = _warnings(report, those)
    return report, train


def unusable(path: disk.Path) -> list[str]:
    """Every reason why a folder or zip of images cannot be trained on: [line], empty if there is
    none."""
    shapes = {}
    with sources.opened(path) as files, _bar('reading images', len(files.names)) as bar:
        errors = [f'{_shown(name)}: {what}' for name, what in files.problems]
        for name in files.names:
            try:
                shapes.setdefault(sources.decode(files.read(name)).shape, []).append(name)
            except UserError as error:
                errors.append(f'{_shown(name)}: {error}')
            bar.update()
    if len(shapes) > 1:
        kinds = sorted(shapes.items(), key=lambda kind: -len(kind[1]))
        listed = '; '.join(
            f'{len(alike)} of {_size(shape)}, as {_shown(alike[0])}' for shape, alike in kinds
        )
        errors.insert(0, f'images of {len(shapes)} sizes or kinds: {listed}: make all the same')
    return errors


def _bar(what, total):
    # It shows only on a terminal, and only if it takes longer than two seconds.
    return tqdm.tqdm(desc=what, total=total, unit='sample', disable=None, delay=2, leave=False)


def _shown(name):
    """A file's name on one line, without the codes that colour a terminal."""
    return name if name.isprintable() else repr(name)


def _size(shape):
    height, width, channels = shape
    return f'{width}x{height} {"RGB" if channels == 3 else "grey"}'


def _digests(samples):
    # numpy takes trailing zero bytes off a string, which leaves different digests different.
    return np.array(
        [
            hashlib.blake2b(sample, digest_size=16).digest()
            for sample in np.ascontiguousarray(samples)
        ],
        'S16',
    )


def _images(source, names, bar):
    """(numbers of a split, digests [N], blocks [N, D]) of images."""
    count, height, width, channels = source.images.shape
    histogram = np.zeros((channels, source.levels + 1), np.int64)
    digests, blocks, constant, equal = [], [], [], channels > 1
    step = max(1, CHUNK // (height * width * channels))
    for start in range(0, count, step):
        chunk = source.images[start : start + step]
        for c in range(channels):
            histogram[c] += np.bincount(chunk[..., c].ravel(), minlength=source.levels + 1)
        digests.append(_digests(chunk))
        blocks.append(_blocks(chunk))
        constant += [
            names[start + i]
            for i in np.flatnonzero((chunk == chunk[:, :1, :1]).all(axis=(1, 2, 3)))
        ]
        equal = equal and bool((chunk == chunk[..., :1]).all())
        bar.update(len(chunk))
    used = np.flatnonzero(histogram.sum(axis=0))
    values = sources.to_float(np.arange(source.levels + 1), source.levels).astype(np.float64)
    mean, square = (histogram @ values**power / histogram.sum(axis=1) for power in (1, 2))
    numbers = {
        'count': count,
        'height': height,
        'width': width,
        'channels': channels,
        'levels': source.levels,
        'min': int(used[0]),
        'max': int(used[-1]),
        'levels_used': len(used),
        'mean': mean.tolist(),
        'std': np.sqrt(np.maximum(square - mean**2, 0)).tolist(),
        'std_of_all': float(np.sqrt(max(square.mean() - mean.mean() ** 2, 0))),
        'constant': constant,
        'channels_equal': equal,
    }
    return numbers, np.concatenate(digests), np.concatenate(blocks)


def _points(source, names, bar):
    """The same of points, which have no blocks."""
    points = np.asarray(source.images.reshape(len(source.images), -1), np.float64)
    finite = np.isfinite(points).all(axis=1)
    bar.update(len(points))
    shown = points[finite] if finite.any() else np.zeros((1, points.shape[1]))
    numbers = {
        'count': len(points),
        'dimensions': points.shape[1],
        'min': float(shown.min()),
        'max': float(shown.max()),
        'mean': shown.mean(axis=0).tolist(),
        'std': shown.std(axis=0).tolist(),
        'std_of_all': float(shown.std()),
        'not_finite': [name for name, good in zip(names, finite) if not good],
    }
    return numbers, _digests(source.images), None


def _standard(images):
    """Images of mean 0 and standard deviation 1 each, float32; of one grey: zeros.

    Of two such images x and y the mean of (x - y)^2 is 2 (1 - r), r being their correlation.
    """
    x = images.astype(np.float32)
    x -= x.mean(axis=(-3, -2, -1), keepdims=True)
    return x / np.maximum(x.std(axis=(-3, -2, -1), keepdims=True), 1e-6)


def _blocks(images):
    """Means of BLOCKS x BLOCKS blocks of standard images, so scaled that they are no further apart
    than the images.

    sqrt(n_b / n) mean(x_b) of each block b of n_b of the n pixels: sum_b (n_b / n) (mean(x_b) -
    mean(y_b))^2 is at most the mean of (x - y)^2, by Jensen's inequality in each block.

    Args:
      images: uint8 [N, H, W, C].

    Returns:
      float32 [N, D], D <= BLOCKS^2.
    """
    sums, counts = _standard(images).mean(axis=3), []
    for axis in (1, 2):
        length = images.shape[axis]
        edges = np.arange(min(BLOCKS, length)) * length // min(BLOCKS, length)
        sums = np.add.reduceat(sums, edges, axis=axis)
        counts.append(np.diff(edges, append=length))
    counts = np.multiply.outer(*counts)
    return (sums / np.sqrt(counts * counts.sum())).astype(np.float32).reshape(len(images), -1)


def _errors(loaded, splits):
    """What training or evaluation would stop at: [line]."""
    shapes = {source.images.shape[1:] for source in loaded.values()}
    lines = []
    if len(shapes) > 1:
        lines.append(
            'the splits differ in the shape of a sample, '
            f'{" and ".join(map(str, sorted(shapes)))}: make all the same'
        )
    for split, numbers in splits.items():
        bad = numbers.get('not_finite')
        lines += (
            [f'{split}: {len(bad)} points are not finite, as {bad[0]}: remove them'] if bad else []
        )
    return lines


def _duplicates(loaded, names, digests, blocks):
    """Which samples there are more than once.

    Returns:
      {'exact': {where: [[name, ...]]}, 'near': {where: [[name, name]]},
      'labels_differ': [[name, ...]]}.
      where: a split, or 'between' for what is in both. An exact group that is in both splits is in
        'between' with all its members and, if a split has several of them, there too. In 'near' its
        first member stands for it.
      labels_differ: exact groups of several labels.
    """
    splits = list(loaded)
    split = np.repeat(np.arange(len(splits)), [len(names[s]) for s in splits])
    every = [name for s in splits for name in names[s]]
    labels = np.concatenate([source.labels for source in loaded.values()])
    _, first, group = np.unique(
        np.concatenate([digests[s] for s in splits]), return_index=True, return_inverse=True
    )
    order = np.argsort(group, kind='stable')
    groups = [
        members
        for members in np.split(order, np.flatnonzero(np.diff(group[order])) + 1)
        if len(members) > 1
    ]
    groups.sort(key=lambda members: members[0])
    found = {
        kind: {where: [] for where in (*splits, 'between')[: 2 * len(splits) - 1]}
        for kind in ('exact', 'near')
    }
    found['labels_differ'] = []
    for members in groups:
        for number, where in enumerate(splits):
            part = members[split[members] == number]
            if len(part) > 1:
                found['exact'][where].append([every[i] for i in part])
        for listed, values in (
            (found['exact'].get('between'), split),
            (found['labels_differ'], labels),
        ):
            if len(set(values[members])) > 1:
                listed.append([every[i] for i in members])
    if loaded['train'].levels:
        first = np.sort(first)
        starts = np.searchsorted(split, np.arange(len(splits)))

        def image(i):
            return loaded[splits[split[first[i]]]].images[first[i] - starts[split[first[i]]]]

        for pair in _near(np.concatenate([blocks[s] for s in splits])[first], image):
            i, j = first[list(pair)]
            where = splits[split[i]] if split[i] == split[j] else 'between'
            found['near'][where].append([every[i], every[j]])
    return found


def _near(blocks, image):
    """Pairs of images whose pixels correlate by more than NEAR.

    Images so near have blocks as near, see `_blocks`, so each is compared with the NEIGHBOURS
    nearest by their blocks, found in a k-d tree: about N log N in time. One of a crowd of like
    images may lack some of its pairs.

    Args:
      blocks: float32 [N, D].
      image: image(i) -> uint8 [H, W, C].

    Returns:
      [(i, j)], i < j, in order.
    """
    from scipy.spatial import cKDTree

    tree, pairs, bound = cKDTree(blocks), set(), np.sqrt(2 * (1 - NEAR))
    nearest = np.arange(1, NEIGHBOURS + 2)  # Among them the image itself.
    with _bar('comparing images', len(blocks)) as bar:
        for start in range(0, len(blocks), 1000):
            part = blocks[start : start + 1000]
            # A little more, for the rounding of the blocks.
            _, others = tree.query(part, nearest, distance_upper_bound=1.001 * bound)
            candidates = {
                (min(i, j), max(i, j))
                for i, row in enumerate(others.tolist(), start)
                for j in row
                if j < len(blocks)
            }
            pairs |= {
                (i, j)
                for i, j in candidates
                if i != j and np.mean((_standard(image(i)) - _standard(image(j))) ** 2) < bound**2
            }
            bar.update(len(part))
    return sorted(pairs)


def _warnings(report, those):
    """What does not stop training, but should be known: [line]."""
    lines, splits = [], report['splits']
    if 'held_out' in those and 'held_out' not in splits:
        lines.append(
            'held_out is empty, so that nothing can be evaluated: add images, or hold out a larger '
            'part'
        )
    for split, numbers in splits.items():
        counts = numbers['classes']
        missing = [name for name, count in counts.items() if not count]
        if missing:
            lines.append(
                f'{split}: {len(missing)} of {len(counts)} classes have no sample: {_some(missing)}'
            )
        least, most = (
            choose((n for n in counts if counts[n]), key=counts.get) for choose in (min, max)
        )
        if counts[most] > IMBALANCE * counts[least]:
            lines.append(
                f'{split}: classes are imbalanced: {counts[most]} samples of {most}, '
                f'{counts[least]} of {least}'
            )
        if numbers.get('constant'):
            lines.append(
                f'{split}: {len(numbers["constant"])} images have one colour alone: '
                f'{_some(numbers["constant"])}'
            )
    train = splits['train']
    if 'levels' in train:
        if train['max'] <= train['levels'] // 2:
            lines.append(
                f'train: the largest grey level is {train["max"]} of {train["levels"]}: were the '
                'images scaled to it?'
            )
        if train['channels_equal']:
            lines.append(
                'train: the channels of every image are equal: convert the images to grey, which '
                'is cheaper'
            )
        if train['height'] != train['width']:
            lines.append(
                f'images of {train["width"]}x{train["height"]} are not square, as the '
                'convolutional networks need them'
            )
    for kind, what, sign in (
        ('exact', 'groups of equal samples', ' = '),
        ('near', 'pairs of nearly equal samples', ' ~ '),
    ):
        for where, groups in report['duplicates'][kind].items():
            place = 'between train and held_out' if where == 'between' else where
            if groups:
                lines.append(f'{place}: {len(groups)} {what}: {_pairs(groups, sign)}')
    differ = report['duplicates']['labels_differ']
    if differ:
        lines.append(
            f'{len(differ)} groups of equal samples with several labels: {_pairs(differ, " = ")}'
        )
    return lines


def _pairs(groups, sign):
    return _some(
        (
            sign.join(group[:EXAMPLES]) + (f'{sign}...' if len(group) > EXAMPLES else '')
            for group in groups
        ),
        '; ',
    )


def _some(names, between=', '):
    names = list(names)
    return between.join(map(_shown, names[:EXAMPLES])) + (
        f'{between}...' if len(names) > EXAMPLES else ''
    )


def _list(values):
    return ' '.join(f'{value:.3f}' for value in values[:4]) + (' ...' if len(values) > 4 else '')


# Rows of the table: name, value in words.
IMAGE_ROWS = {
    'images': lambda n: n['count'],
    'size': lambda n: _size((n['height'], n['width'], n['channels'])),
    'grey levels': lambda n: f'{n["min"]}..{n["max"]} of 0..{n["levels"]}',
    'levels used': lambda n: n['levels_used'],
    'mean, of -1..1': lambda n: _list(n['mean']),
    'std, of -1..1': lambda n: _list(n['std']),
    'std of all values': lambda n: f'{n["std_of_all"]:.3f}',
    'of one colour': lambda n: len(n['constant']),
    'sha256': lambda n: n['sha256'][:16],
}
POINT_ROWS = {
    'points': lambda n: n['count'],
    'dimensions': lambda n: n['dimensions'],
    'values': lambda n: f'{n["min"]:.3f}..{n["max"]:.3f}',
    'mean': lambda n: _list(n['mean']),
    'std': lambda n: _list(n['std']),
    'std of all values': lambda n: f'{n["std_of_all"]:.3f}',
    'sha256': lambda n: n['sha256'][:16],
}


def text(report: Mapping[str, Any]) -> str:
    """A report of `check` in words: a table, and what was found."""
    splits, duplicates = report['splits'], report['duplicates']
    parts = [[report['name']]]
    if splits:
        words = IMAGE_ROWS if 'levels' in splits['train'] else POINT_ROWS
        parts.append(
            table(
                [['', *splits]]
                + [[name, *map(word, splits.values())] for name, word in words.items()]
            )
        )
        classes = list(splits['train']['classes'])
        if len(classes) > 1:
            rows = [
                [_shown(name), *(numbers['classes'][name] for numbers in splits.values())]
                for name in classes[:SHOWN]
            ]
            parts.append(table([['class', *splits], *rows]) + _more(len(classes)))
    if duplicates:
        words = {'exact': 'groups of equal', 'near': 'pairs of nearly equal'}
        rows = [[word, *map(len, duplicates[kind].values())] for kind, word in words.items()]
        parts.append(table([['duplicates', *duplicates['exact']], *rows]))
    for kind in ('errors', 'warnings'):
        lines = report[kind]
        parts.append(
            [
                f'{kind}:' if lines else f'{kind}: none',
                *(f'  {line}' for line in lines[:SHOWN]),
                *_more(len(lines)),
            ]
        )
    return '\n\n'.join('\n'.join(part) for part in parts)


def _more(count):
    return [f'  ... and {count - SHOWN} more, all in check_data.json'] if count > SHOWN else []


def sheet(source: sources.Source, classes: Mapping[str, int]) -> np.ndarray | None:
    """A picture of a few samples, always the same ones of the same data: a row a class; of points a
    scatter plot.

    Args:
      source: Source.
      classes: {name: number of samples}, in the order of the labels.

    Returns:
      uint8 [height, width, 3], or None for points out of the plane.
    """
    if source.images.ndim != 4:
        return pictures.scatter(source.images) if source.images.shape[1] == 2 else None
    import PIL.Image
    import PIL.ImageDraw
    import PIL.ImageFont

    order = np.argsort(np.random.PCG64(0).random_raw(len(source.labels)), kind='stable')
    labels = source.labels[order]
    present, places = np.unique(labels, return_index=True)
    shown = np.sort(present[np.argsort(places)][:ROWS])  # A random choice, as the order is.
    rows = [order[labels == label][:COLUMNS] for label in shown]
    captions = [list(classes.items())[label] for label in shown]
    if len(classes) == 1:
        rows = [
            order[start : start + COLUMNS]
            for start in range(0, min(len(order), ROWS * COLUMNS), COLUMNS)
        ]
        captions = []
    grid = np.concatenate(
        [pictures.image_grid(_small(source, row), COLUMNS, TILE[0]) for row in rows]
    )
    font = PIL.ImageFont.load_default(14)
    captions = [
        f'{name if len(name) <= 20 else name[:19] + "…"}\n{count}' for name, count in captions
    ]
    probe = PIL.ImageDraw.Draw(PIL.Image.new('RGB', (1, 1)))
    margin = max(
        (int(probe.multiline_textbbox((0, 0), caption, font)[2]) + 16 for caption in captions),
        default=0,
    )
    picture = PIL.Image.fromarray(np.pad(grid, [(0, 0), (margin, 0), (0, 0)]))
    drawing, height = PIL.ImageDraw.Draw(picture), len(grid) // len(rows)
    for i, caption in enumerate(captions):
        drawing.multiline_text((8, (i + 0.5) * height), caption, 'white', font, anchor='lm')
    return np.asarray(picture)


def _small(source, indices):
    """Some images as float32 [n, h, w, C] in [-1, 1]; large ones become means of squares of
    pixels."""
    images = sources.to_float(source.images[indices], source.levels)
    n, height, width, channels = images.shape
    factor = min(-(-max(height, width) // TILE[1]), height, width)
    h, w = height // factor, width // factor
    return (
        images[:, : h * factor, : w * factor]
        .reshape(n, h, factor, w, factor, channels)
        .mean(axis=(2, 4))
    )


def within(out: disk.Path, path: disk.Path) -> bool:
    """Whether a folder to write to is part of a folder of images, which would then hold more than
    images."""
    return pathlib.Path(out).resolve().is_relative_to(pathlib.Path(path).resolve())


def write(
    out: disk.Path, report: Mapping[str, Any], train: sources.Source | None
) -> list[pathlib.Path]:
    """Writes check_data.json, a report of `check`, and contact_sheet.png, some of the train split
    -> their paths.

    Args:
      out: folder, made when missing.
      report, train: of `check`.
    """
    paths = [pathlib.Path(out) / 'check_data.json']
    picture = sheet(train, report['splits']['train']['classes']) if train else None
    disk.write_json(paths[0], report)
    if picture is not None:
        paths.append(pathlib.Path(out) / 'contact_sheet.png')
        pictures.write_png(paths[1], picture)
    return paths
