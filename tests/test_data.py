import io
import json
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import numpy as np
import PIL.Image
import pytest
import toy_autoencoder
import toy_pairs

from fdistill import build
from fdistill.data import cache, sources
from fdistill.data.pipeline import batches
from fdistill.data.sources import Source, load, quantise, to_float, to_levels
from fdistill.errors import UserError

REPOSITORY = pathlib.Path(__file__).parents[1]
DATA_DIR = pathlib.Path(os.environ.get('FDISTILL_DATA_DIR', REPOSITORY / '../shared/data/tfds'))


def write_images(folder, counts, size=(4, 4), mode='RGB', suffix='png'):
    """Random images folder/<class>/<i>.<suffix>; the class '' is the folder itself."""
    rng = np.random.default_rng(0)
    for name, count in counts.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            shape = size + ((3,) if mode == 'RGB' else ())
            PIL.Image.fromarray(rng.integers(0, 256, shape, np.uint8)).save(
                folder / name / f'{i}.{suffix}'
            )
    return folder


@pytest.fixture(scope='module')
def tfds_folder(tmp_path_factory):
    """Tiny TFDS data sets, grey images and no images at all, written as a user would and without
    TensorFlow."""
    import tensorflow_datasets as tfds

    class TinyGrey(tfds.core.GeneratorBasedBuilder):
        """Image i of a split is filled with the level i."""

        VERSION = tfds.core.Version('1.2.3')

        def _info(self):
            features = tfds.features.FeaturesDict(
                {
                    'picture': tfds.features.Image(shape=(6, 5, 1)),
                    'kind': tfds.features.ClassLabel(num_classes=3),
                }
            )
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, manager):
            return {'train': self._generate_examples(20), 'test': self._generate_examples(7)}

        def _generate_examples(self, count):
            for i in range(count):
                file = io.BytesIO()
                PIL.Image.fromarray(np.full((6, 5), i, np.uint8)).save(file, 'PNG')
                yield i, {'picture': file.getvalue(), 'kind': i % 3}

    class NoImages(TinyGrey):
        """Labels alone."""

        def _info(self):
            features = tfds.features.FeaturesDict({'kind': tfds.features.ClassLabel(num_classes=3)})
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _generate_examples(self, count):
            return ((i, {'kind': i % 3}) for i in range(count))

    folder = tmp_path_factory.mktemp('tfds')
    for builder in (TinyGrey, NoImages):
        builder(data_dir=folder, file_format='array_record').download_and_prepare()
    return folder


@pytest.fixture(scope='module')
def latents(tmp_path_factory):
    """Options of latents of the digits."""
    folder = tmp_path_factory.mktemp('latents')
    vae = toy_autoencoder.write(folder / 'vae.safetensors')
    build.encode({'data': {'name': 'digits'}}, vae, folder / 'digits', quiet=True)
    return {'path': folder / 'digits', 'vae': vae}


@pytest.fixture(scope='module')
def pairs(tmp_path_factory):
    """Options of pairs that no teacher made."""
    x0 = np.random.default_rng(0).standard_normal((30, 8, 8, 1)).astype(np.float32)
    labels = np.arange(30) % 3
    return {'path': str(toy_pairs.write(tmp_path_factory.mktemp('pairs'), x0, labels))}


@pytest.fixture
def options(tmp_path, tfds_folder, latents, pairs):
    """Options with which every registered source can be loaded."""
    return {
        'digits': {},
        'mixture': {'mixture': 'grid', 'n': 500},
        'tfds': {'dataset': 'tiny_grey', 'data_dir': tfds_folder},
        'image_folder': {'path': write_images(tmp_path, {'cat': 20, 'dog': 20}), 'held_out': 0.3},
        'latents': latents,
        'pairs': pairs,
    }


# No pairs are held out.
SPLIT = [name for name in sources.SOURCES if name != 'pairs']


@pytest.mark.parametrize(
    'name, split',
    [(name, split) for name in SPLIT for split in sources.SPLITS] + [('pairs', 'train')],
)
def test_every_source_keeps_the_type(name, split, options):
    source = load(name, split, **options[name])
    assert len(source.images) == len(source.labels) > 0
    assert (
        source.labels.dtype == np.int32
        and 0 <= source.labels.min()
        and source.labels.max() < source.num_classes
    )
    if source.levels:
        assert (
            source.images.dtype == np.uint8
            and source.images.ndim == 4
            and source.images.max() <= source.levels
        )
    else:
        assert source.images.dtype == np.float32
        assert source.images.ndim == (4 if source.decoded or source.pairs else 2)
    again = load(name, split, **options[name])
    assert sources.fingerprint(source) == sources.fingerprint(again)
    batch = next(batches(source, 8, seed=0))
    assert batch['x'].dtype == np.float32 and batch['x'].shape == (8,) + source.images.shape[1:]
    assert batch['condition']['label'].dtype == np.int32


@pytest.mark.parametrize('name', SPLIT)
def test_splits_have_no_sample_in_common(name, options):
    train, held_out = (
        {row.tobytes() for row in load(name, split, **options[name]).images}
        for split in sources.SPLITS
    )
    if name == 'tfds':  # Its test split is filled with the first levels of its train split.
        assert len(held_out & train) == len(held_out) == 7
    else:
        assert not held_out & train


def test_digits_split_is_pinned():
    train, held_out = load('digits'), load('digits', 'held_out')
    assert len(train.images) == 1442 and len(held_out.images) == 355
    np.testing.assert_array_equal(
        np.bincount(held_out.labels), [35, 36, 35, 36, 36, 36, 36, 35, 34, 36]
    )
    assert sources.fingerprint(train)[:8] == '734795de'
    assert sources.fingerprint(held_out)[:8] == '12449a31'


@pytest.mark.parametrize('name', sources.MIXTURES)
def test_mixture_has_its_parameters(name):
    weights, means, stds = sources.mixture_parameters(name)
    assert weights.sum() == pytest.approx(1, abs=1e-12)
    source = load('mixture', mixture=name)
    for k in range(len(weights)):
        points = source.images[source.labels == k]
        # Six standard errors.
        assert abs(len(points) / 50000 - weights[k]) < 6 * np.sqrt(weights[k] / 50000)
        assert np.abs(points.mean(axis=0) - means[k]).max() < 6 * stds[k] / np.sqrt(len(points))
        assert np.abs(points.std(axis=0) / stds[k] - 1).max() < 6 / np.sqrt(2 * len(points))
    unlabelled = load('mixture', mixture=name, labelled=False)
    np.testing.assert_array_equal(unlabelled.images, source.images)
    assert unlabelled.num_classes == 1 and not unlabelled.labels.any()


def test_tfds_reads_every_image_once_and_keeps_it(tfds_folder, monkeypatch):
    source = load('tfds', dataset='tiny_grey', data_dir=tfds_folder)
    assert (
        source.images.shape == (20, 6, 5, 1)
        and source.num_classes == 3
        and source.name == 'tiny_grey'
    )
    np.testing.assert_array_equal(np.sort(source.images[:, 0, 0, 0]), np.arange(20))
    np.testing.assert_array_equal(source.labels, source.images[:, 0, 0, 0] % 3)
    monkeypatch.setattr(PIL.Image, 'open', lambda file: pytest.fail('decoded again'))
    by_folder = load('tfds', data_dir=tfds_folder / 'tiny_grey' / '1.2.3')
    np.testing.assert_array_equal(by_folder.images, source.images)
    monkeypatch.undo()
    part = load(
        'tfds', 'held_out', dataset='tiny_grey', data_dir=tfds_folder, held_out='train[15:]'
    )
    assert len(part.images) == 5


def test_fewer_classes_and_smaller_images(tfds_folder):
    part = load('tfds', dataset='tiny_grey', data_dir=tfds_folder, classes=(2, 0))
    whole = load('tfds', dataset='tiny_grey', data_dir=tfds_folder)
    kept = whole.labels != 1
    np.testing.assert_array_equal(part.images, whole.images[kept])
    np.testing.assert_array_equal(part.labels, np.where(whole.labels[kept] == 2, 0, 1))
    assert (part.num_classes, part.name) == (2, 'tiny_grey-2,0of3')

    images = np.random.default_rng(0).integers(0, 256, (3, 6, 6, 2)).astype(np.uint8)
    source = whole._replace(images=images, labels=np.zeros(3, np.int32))
    small = sources.reduced(source, 3)
    assert small.images.shape == (3, 3, 3, 2) and small.images.dtype == np.uint8
    mean = images[1, 2:4, 4:6, 0].mean()
    assert small.images[1, 1, 2, 0] == np.rint(mean) and small.name == 'tiny_grey-3px'
    assert sources.reduced(source, 6).name == 'tiny_grey'
    for wrong, message in (
        (dict(size=4), 'size=4: must be a divisor .* have 6 x 6 pixels'),
        (dict(size=0), 'size=0'),
        (dict(classes=(0, 3)), r'classes=\(0, 3\): must be different labels in 0..2'),
        (dict(classes=(1, 1)), 'must be different labels'),
    ):
        with pytest.raises(ValueError, match=message):
            sources.reduced(source, **wrong)


@pytest.mark.parametrize('name, shape', [('mnist', (28, 28, 1)), ('cifar10_jpeg', (32, 32, 3))])
def test_tfds_example_data(name, shape):
    if not (DATA_DIR / name).is_dir():
        pytest.skip(f'{name} is not in FDISTILL_DATA_DIR')
    source = load('tfds', 'held_out', dataset=name, data_dir=DATA_DIR, held_out='test[:500]')
    assert source.images.shape == (500,) + shape and source.num_classes == 10
    assert len(np.unique(source.labels)) == 10 and 20 < source.images.mean() < 150


@pytest.mark.parametrize('mode, channels', [('L', 1), ('RGB', 3)])
@pytest.mark.parametrize('suffix', ['png', 'jpg'])
def test_image_folder_reads_the_pixels(tmp_path, mode, channels, suffix):
    write_images(tmp_path, {'b': 3, 'a': 2}, size=(4, 7), mode=mode, suffix=suffix)
    (tmp_path / '.DS_Store').write_text('')
    parts = [load('image_folder', split, path=tmp_path, held_out=0.5) for split in sources.SPLITS]
    assert all(part.num_classes == 2 and part.levels == 255 for part in parts)
    found = {
        (image.tobytes(), label)
        for part in parts
        for image, label in zip(part.images, part.labels, strict=True)
    }
    files = [
        (file, label) for label, name in enumerate('ab') for file in (tmp_path / name).iterdir()
    ]
    assert found == {(np.asarray(PIL.Image.open(file)).tobytes(), label) for file, label in files}
    assert parts[0].images.shape[1:] == (4, 7, channels)


def test_image_folder_without_classes_and_growing(tmp_path):
    write_images(tmp_path, {'': 30})
    before = load('image_folder', 'held_out', path=tmp_path)
    assert before.num_classes == 1 and not before.labels.any()
    PIL.Image.new('RGB', (4, 4)).save(tmp_path / 'later.png')
    train, held_out = (load('image_folder', split, path=tmp_path) for split in sources.SPLITS)
    assert len(train.images) + len(held_out.images) == 31
    assert {image.tobytes() for image in before.images} <= {
        image.tobytes() for image in held_out.images
    }


def test_image_folder_sees_a_changed_file(tmp_path):
    write_images(tmp_path, {'': 30})
    load('image_folder', path=tmp_path)
    for file in tmp_path.iterdir():
        PIL.Image.new('RGB', (4, 4), 'white').save(file)
    assert load('image_folder', path=tmp_path).images.min() == 255


def changed(data):
    """The bytes with one bit of the last changed."""
    return data[:-1] + bytes([data[-1] ^ 1])


@pytest.mark.parametrize(
    'suffix, damage',
    [
        ('-images.npy', changed),
        ('-images.npy', lambda data: data[:-1]),
        ('-labels.npy', changed),
        ('-labels.npy', None),
        ('.json', changed),
        ('.json', lambda data: b'[]'),
        ('.json', lambda data: data.replace(b'stored', b'told')),
    ],
)
def test_a_damaged_cache_is_made_anew(tmp_path, monkeypatch, capsys, suffix, damage):
    monkeypatch.setenv('FDISTILL_CACHE', str(tmp_path / 'cache'))
    path = write_images(tmp_path / 'data', {'a': 6, 'b': 6})
    first = load('image_folder', path=path, held_out=0.1)
    pixels = sources.fingerprint(first)  # Before the file below them changes.
    (file,) = cache.folder('data').glob(f'*{suffix}')
    if damage:
        file.write_bytes(damage(file.read_bytes()))
    else:
        file.unlink()
    assert capsys.readouterr().err == ''
    again = load('image_folder', path=path, held_out=0.1)
    (line,) = capsys.readouterr().err.splitlines()
    assert "decoded images of 'data' in" in line and 'made anew' in line
    assert sources.fingerprint(again) == pixels and again.stored == first.stored
    load('image_folder', path=path, held_out=0.1)
    assert capsys.readouterr().err == ''


def test_stored_images_are_known_wherever_and_however_they_are_read(tmp_path, monkeypatch):
    one = write_images(tmp_path / 'one', {'a': 9, 'b': 9}, suffix='jpg')
    kept = load('image_folder', path=one)
    shutil.make_archive(str(tmp_path / 'packed'), 'zip', one)
    shutil.copytree(one, tmp_path / 'two')
    monkeypatch.setattr(sources, 'CACHE_VERSION', 'another')
    decode = sources.decode
    monkeypatch.setattr(sources, 'decode', lambda data: decode(data) ^ 1)  # Another library.
    for path in (one, tmp_path / 'two', tmp_path / 'packed.zip'):
        assert load('image_folder', path=path).stored == kept.stored
    assert load('image_folder', 'held_out', path=one).stored != kept.stored
    shutil.copy(one / 'a' / '0.jpg', tmp_path / 'two' / 'a' / '1.jpg')
    assert load('image_folder', path=tmp_path / 'two').stored != kept.stored


def test_only_what_is_computed_is_not_stored(options):
    found = {name: load(name, **given).stored for name, given in options.items()}
    assert {name for name, digest in found.items() if len(digest) == 64} == options.keys() - {
        'mixture'
    }


def broken_folder(tmp_path, kind):
    write_images(tmp_path, {'cat': 12})
    if kind == 'mixed sizes':
        PIL.Image.new('RGB', (5, 4)).save(tmp_path / 'cat' / 'large.png')
    if kind == 'grey among colour':
        PIL.Image.new('L', (4, 4)).save(tmp_path / 'cat' / 'grey.png')
    if kind == 'transparent':
        PIL.Image.new('RGBA', (4, 4)).save(tmp_path / 'cat' / 'clear.png')
    if kind == 'a text':
        (tmp_path / 'cat' / 'notes.txt').write_text('no image')
    if kind == 'damaged':
        (tmp_path / 'cat' / '0.png').write_bytes(b'no image')
    if kind == 'loose file':
        PIL.Image.new('RGB', (4, 4)).save(tmp_path / 'loose.png')
    return tmp_path


@pytest.mark.parametrize(
    'kind, message',
    [
        ('mixed sizes', 'same size'),
        ('grey among colour', 'same size and kind'),
        ('transparent', r'clear.png.*RGBA.*convert'),
        ('a text', r'notes.txt.*not a PNG'),
        ('damaged', r'0.png.*cannot be read'),
        ('loose file', r'loose.png.*beside the class folders'),
    ],
)
def test_broken_image_folders_are_named(tmp_path, kind, message):
    broken_folder(tmp_path, kind)
    with pytest.raises(UserError, match=message) as error:
        for split in sources.SPLITS:
            load('image_folder', split, path=tmp_path, held_out=0.01)
    assert '\n' not in str(error.value)
    assert not [file for file in cache.folder('data').iterdir() if file.stat().st_size == 0]


@pytest.mark.parametrize(
    'call, message',
    [
        (lambda tmp: load('digit'), r"'digit'.*did you mean digits"),
        (lambda tmp: load('digits', 'test'), r"split: unknown 'test'"),
        (lambda tmp: load('mixture', mixture='rings'), r"'rings'.*did you mean ring"),
        (lambda tmp: load('image_folder', path=tmp / 'none'), r'none.*does not exist'),
        (lambda tmp: load('image_folder', path=tmp), r'no images'),
        (lambda tmp: load('image_folder', path=tmp, held_out=2), r'held_out=2'),
        (lambda tmp: load('tfds'), r'give dataset'),
        (lambda tmp: load('tfds', dataset='none', data_dir=tmp), r"'none' in .*array_record"),
        (lambda tmp: load('tfds', data_dir=tmp), r'cannot read .*array_record'),
    ],
)
def test_user_errors_are_one_line(tmp_path, call, message):
    with pytest.raises(UserError, match=message) as error:
        call(tmp_path)
    assert '\n' not in str(error.value)


def test_tfds_errors(tfds_folder):
    with pytest.raises(UserError, match='trian'):
        load('tfds', dataset='tiny_grey', data_dir=tfds_folder, train='trian')
    with pytest.raises(UserError, match='tiny_grey'):
        load('tfds', dataset='tiny_grey', data_dir=tfds_folder, train='train[:0]')
    with pytest.raises(UserError, match='no_images.*no single image feature: it has kind'):
        load('tfds', dataset='no_images', data_dir=tfds_folder)


def nested(name):
    """A feature of that class as TFDS before 4.5 wrote it."""
    return {'type': name, 'content': {}, 'proto_cls': ''}


DICT = 'tensorflow_datasets.core.features.features_dict.FeaturesDict'


@pytest.mark.parametrize(
    'file, features',
    [
        ('features.json', nested('intruder.Feature')),
        ('features.json', {'pythonClassName': 'intruder.Feature', 'jsonFeature': {'json': '{}'}}),
        ('features.json', {'type': DICT, 'content': {'image': nested('intruder.Feature')}}),
        (
            'features.json',
            {
                'pythonClassName': DICT,
                'jsonFeature': {'json': json.dumps({'image': nested('intruder.Feature')})},
            },
        ),
        ('dataset_info.json', {'pythonClassName': 'intruder.Feature', 'text': {}}),
    ],
)
@pytest.mark.parametrize('by_name', [False, True])
def test_tfds_imports_nothing_that_its_files_name(
    tmp_path, tfds_folder, monkeypatch, file, features, by_name
):
    shutil.copytree(tfds_folder / 'tiny_grey', tmp_path / 'set')
    place = tmp_path / 'set' / '1.2.3'
    if file == 'dataset_info.json':
        features = {**json.loads((place / file).read_text()), 'features': features}
    (place / file).write_text(json.dumps(features))
    (tmp_path / 'intruder.py').write_text('raise SystemExit("ran")')
    monkeypatch.syspath_prepend(tmp_path)
    given = {'dataset': 'set', 'data_dir': tmp_path} if by_name else {'data_dir': place}
    with pytest.raises(UserError, match="'intruder.Feature', which is not read.*Image") as error:
        load('tfds', **given)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize(
    'name, damage, message',
    [
        ('features.json', lambda data: data.replace(b'"3"', b'"70000"'), 'has 70000 classes'),
        ('features.json', lambda data: data.replace(b'"numClasses": "3"', b''), 'has 0 classes'),
        ('*-train.*', lambda data: data[:240] + bytes(160) + data[400:], 'cannot be read .*anew'),
        ('*-train.*', lambda data: b'', 'cannot be read .*anew'),
    ],
)
def test_damaged_tfds_files_are_one_line(tmp_path, tfds_folder, name, damage, message):
    place = shutil.copytree(tfds_folder / 'tiny_grey' / '1.2.3', tmp_path / 'set')
    (file,) = place.glob(name)
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(UserError, match=f"data set 'tiny_grey/1.2.3' {message}") as error:
        load('tfds', data_dir=place)
    assert '\n' not in str(error.value)


def test_a_copied_data_set_is_not_taken_for_the_other(tmp_path, tfds_folder):
    """Its files have the names, sizes and times of the other's."""
    place = shutil.copytree(tfds_folder / 'tiny_grey' / '1.2.3', tmp_path / 'set')
    load('tfds', data_dir=tfds_folder / 'tiny_grey' / '1.2.3')
    (train,) = place.glob('*-train.*')
    status = train.stat()
    data = train.read_bytes()
    train.write_bytes(data[:240] + bytes(160) + data[400:])
    os.utime(train, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(UserError, match='cannot be read'):
        load('tfds', data_dir=place)


def test_tfds_fetches_no_code():
    with pytest.raises(UserError, match="'huggingface:mnist' has a namespace.*data_dir"):
        load('tfds', dataset='huggingface:mnist')


@pytest.mark.parametrize('levels', [1, 16, 255])
def test_grey_levels_survive(levels):
    grey = np.arange(levels + 1, dtype=np.uint8)
    values = to_float(grey, levels)
    assert values.dtype == np.float32 and values[0] == -1 and values[-1] == 1
    np.testing.assert_array_equal(to_levels(values, levels), grey)
    np.testing.assert_array_equal(quantise(values, levels), values)


@pytest.mark.parametrize('levels', [1, 16, 255])
def test_rounding_is_half_up_on_every_edge(levels):
    edges = (2 * np.arange(levels) + 1) / levels - 1  # between u and u + 1
    above = to_levels(edges + 1e-12, levels)
    np.testing.assert_array_equal(above, np.arange(levels) + 1)
    np.testing.assert_array_equal(to_levels(edges - 1e-12, levels), np.arange(levels))
    exact = to_levels(np.array([0.0]), 255)
    assert exact == 128
    np.testing.assert_array_equal(to_levels([-9.0, -1.0, 1.0, 9.0], levels), [0, 0, levels, levels])


def test_points_are_not_quantised():
    points = np.array([[-3.3, 0.123]], np.float32)
    np.testing.assert_array_equal(quantise(points, 0), points)
    np.testing.assert_array_equal(to_float(points, 0), points)


def numbered(n, shape=(2, 2, 1)):
    """A source whose label is the index of the sample."""
    images = np.arange(n * np.prod(shape)).reshape((n,) + shape) % 256
    return Source(images.astype(np.uint8), np.arange(n, dtype=np.int32), n, 255, 'numbered')


def take(iterator, count):
    return [next(iterator) for _ in range(count)]


@pytest.mark.parametrize('batch_size', [1, 7, 10, 64])
def test_each_sample_once_per_epoch(batch_size):
    n, epochs = 30, 7
    stream = batches(numbered(n), batch_size, seed=3)
    labels = np.concatenate(
        [batch['condition']['label'] for batch in take(stream, -(-n * epochs // batch_size))]
    )
    orders = labels[: n * epochs].reshape(epochs, n)
    np.testing.assert_array_equal(np.sort(orders), np.tile(np.arange(n), (epochs, 1)))
    assert len({tuple(order) for order in orders}) == epochs


def test_order_is_pinned():
    # Another order would silently change every run that is resumed.
    labels = next(batches(numbered(1000), 8, seed=0))['condition']['label']
    np.testing.assert_array_equal(labels, [855, 921, 269, 11, 850, 403, 600, 196])


def test_seeds_differ():
    first, second = (
        next(batches(numbered(1000), 100, seed=seed))['condition']['label'] for seed in (0, 1)
    )
    assert not np.array_equal(first, second)


@pytest.mark.parametrize('threads', [0, 2])
def test_resumes_in_mid_epoch(threads):
    source = numbered(30)
    whole = take(batches(source, 8, seed=1, flip=True), 12)
    resumed = take(batches(source, 8, seed=1, flip=True, start_step=5, threads=threads), 7)
    for one, other in zip(whole[5:], resumed, strict=True):
        np.testing.assert_array_equal(one['x'], other['x'])
        np.testing.assert_array_equal(one['condition']['label'], other['condition']['label'])


@pytest.mark.parametrize('processes', [1, 2, 4])
def test_processes_share_the_global_batch(processes):
    source = numbered(30)
    whole = take(batches(source, 8, seed=1, flip=True), 9)
    parts = [
        take(batches(source, 8, seed=1, flip=True, process_index=p, process_count=processes), 9)
        for p in range(processes)
    ]
    for step in range(9):
        joined = jax.tree.map(lambda *rows: np.concatenate(rows), *(part[step] for part in parts))
        jax.tree.map(np.testing.assert_array_equal, joined, whole[step])


def test_flips_half_of_the_images_left_to_right():
    source = numbered(400, shape=(3, 4, 2))
    batch = next(batches(source, 400, seed=0, flip=True))
    straight = to_float(source.images[batch['condition']['label']], 255)
    same = (batch['x'] == straight).all(axis=(1, 2, 3))
    mirrored = (batch['x'] == straight[:, :, ::-1]).all(axis=(1, 2, 3))
    assert (same ^ mirrored).all() and 140 < mirrored.sum() < 260


@pytest.mark.parametrize(
    'bad, message',
    [
        ({'batch_size': 0}, 'batch_size=0'),
        ({'batch_size': 9, 'process_count': 2}, 'batch_size=9'),
        ({'process_index': 2, 'process_count': 2}, 'process_index=2'),
        ({'seed': -1}, 'seed=-1'),
        ({'start_step': -1}, 'start_step=-1'),
        (
            {
                'flip': True,
                'source': Source(np.zeros((4, 2), np.float32), np.zeros(4, np.int32), 1, 0, 'ring'),
            },
            'flip',
        ),
        ({'source': numbered(4)._replace(images=np.zeros((0, 2, 2, 1), np.uint8))}, 'empty'),
    ],
)
def test_pipeline_errors(bad, message):
    with pytest.raises(ValueError, match=message):
        batches(**{'source': numbered(4), 'batch_size': 2, 'seed': 0, **bad})


def test_import_is_light():
    code = (
        "import sys, fdistill.data.pipeline; print([m for m in ('tensorflow', 'torch', 'sklearn', "
        "'tensorflow_datasets') if m in sys.modules])"
    )
    run = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, cwd=REPOSITORY
    )
    assert run.stdout.strip() == '[]', run.stdout + run.stderr
