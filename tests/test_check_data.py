import hashlib
import io
import json
import os
import pathlib
import re
import struct
import tracemalloc
import warnings
import zipfile
import zlib

import numpy as np
import PIL.Image
import pytest

from fdistill import cli
from fdistill.data import check, sources
from fdistill.data.sources import Source
from fdistill.errors import UserError


def image(seed=None, size=(8, 8), mode='RGB'):
    """A smooth random picture, so that two of them do not correlate by chance and JPEG keeps
    them."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (4, 4) + ((3,) if mode == 'RGB' else ()), np.uint8)
    return PIL.Image.fromarray(coarse).resize(size[::-1], PIL.Image.Resampling.BICUBIC)


def encoded(picture, suffix='PNG', **options):
    file = io.BytesIO()
    picture.save(file, suffix, **options)
    return file.getvalue()


def png(depth, kind, rows, *, size=(8, 8), extra=b''):
    """A PNG written by hand, for what Pillow does not write."""

    def chunk(name, data):
        return (
            struct.pack('>I', len(data)) + name + data + struct.pack('>I', zlib.crc32(name + data))
        )

    header = chunk(b'IHDR', struct.pack('>IIBBBBB', *size, depth, kind, 0, 0, 0))
    return (
        b'\x89PNG\r\n\x1a\n'
        + header
        + extra
        + chunk(b'IDAT', zlib.compress(rows))
        + chunk(b'IEND', b'')
    )


def folder(root, counts, **options):
    """Different images root/<class>/<i>.png; the class '' is the folder itself."""
    for number, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            image(1000 * number + i, **options).save(root / name / f'{i}.png')
    return root


def zipped(root, target, change=lambda info: info):
    with zipfile.ZipFile(target, 'w') as archive:
        for file in sorted(root.rglob('*')):
            if file.is_file():
                info = change(zipfile.ZipInfo(file.relative_to(root).as_posix()))
                archive.writestr(info, file.read_bytes())
    return target


def looked(path, **options):
    options = {'path': str(path), **options}
    return check.check(lambda split: sources.load('image_folder', split, **options), options)


def held(name, held_out=0.1):
    return sources.split_of(name, held_out) == 'held_out'


# A file beside eight good ones: name, content, what is wrong with it.
BAD_FILES = {
    'text': ('notes.txt', b'hello', 'is not a PNG or JPEG file: remove'),
    'other format': ('x.png', encoded(image(1), 'BMP'), 'cannot be read as a PNG or JPEG image'),
    'empty': ('x.png', b'', 'cannot be read as a PNG or JPEG image'),
    'truncated PNG': (
        'x.png',
        encoded(image(1, (64, 64)))[:900],
        r'cannot be read as an image \(.*truncated',
    ),
    'truncated JPEG': (
        'x.jpg',
        encoded(image(1, (64, 64)), 'JPEG')[:-300],
        r'cannot be read as an image \(.*truncated',
    ),
    'damaged PNG': ('x.png', encoded(image(1))[:60] + bytes(30), 'cannot be read as an image'),
    'alpha': (
        'x.png',
        encoded(image(1).convert('RGBA')),
        r'has an alpha channel \(.* RGBA\): convert it to 8-bit grey or RGB',
    ),
    'grey alpha': ('x.png', encoded(image(1).convert('LA')), r'has an alpha channel \(.* LA\)'),
    'palette': ('x.png', encoded(image(1).convert('P')), 'has a palette .*convert'),
    'one bit': ('x.png', encoded(image(1).convert('1')), 'has one bit .*convert'),
    'CMYK': ('x.jpg', encoded(image(1).convert('CMYK'), 'JPEG'), 'has a printer.*CMYK.*convert'),
    '16-bit grey': ('x.png', png(16, 0, (bytes(1 + 2 * 8)) * 8), 'has 16 bits .*convert'),
    # Pillow gives 8 bits of it and says nothing.
    '16-bit RGB': ('x.png', png(16, 2, (bytes(1 + 6 * 8)) * 8), 'has 16 bits .*convert'),
    'transparent colour': (
        'x.png',
        png(
            8,
            2,
            (bytes(1 + 3 * 8)) * 8,
            extra=b'\0\0\0\6tRNS' + bytes(6) + struct.pack('>I', zlib.crc32(b'tRNS' + bytes(6))),
        ),
        'has a transparent colour',
    ),
    'animated': (
        'x.png',
        encoded(image(1), save_all=True, append_images=[image(2)]),
        'holds 2 pictures',
    ),
    'several in a JPEG': (
        'x.jpg',
        encoded(image(1), 'MPO', save_all=True, append_images=[image(2)]),
        'holds 2 pictures',
    ),
    # Between MAX_IMAGE_PIXELS and twice that, Pillow only warns.
    'bomb': ('x.png', png(8, 0, b'', size=(10000, 10000)), 'exceeds limit of .* pixels'),
    'larger bomb': ('x.png', png(8, 0, b'', size=(30000, 30000)), 'exceeds limit of .* pixels'),
}


@pytest.mark.parametrize('place', ['folder', 'zip'])
@pytest.mark.parametrize('kind', BAD_FILES)
def test_what_training_refuses_is_an_error(tmp_path, kind, place):
    name, data, message = BAD_FILES[kind]
    root = folder(tmp_path / 'data', {'cat': 8})
    (root / 'cat' / name).write_bytes(data)
    path = root if place == 'folder' else zipped(root, tmp_path / 'data.zip')
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        report, train = looked(path, held_out=0.001)
        assert train is None and len(report['errors']) == 1
        (error,) = report['errors']
        assert error.startswith(f'cat/{name}: ')
        # One rule in one place: the loader says the same of the same file.
        with pytest.raises(UserError, match=message) as refusal:
            for split in sources.SPLITS:
                sources.load('image_folder', split, path=path, held_out=0.001)
    assert str(refusal.value) == f"'cat/{name}' in {str(path)!r} " + error.removeprefix(
        f'cat/{name}: '
    )
    assert not caught
    assert set(tmp_path.iterdir()) == {root, path}  # Nothing was extracted.


@pytest.mark.parametrize(
    'depth, row, levels',
    [
        (2, b'\x1b\x1b', [0, 85, 170, 255] * 2),
        (4, b'\x01\x23\xef\x0f', [0, 17, 34, 51, 238, 255, 0, 255]),
    ],
)
def test_fewer_bits_are_scaled_to_eight(depth, row, levels):
    np.testing.assert_array_equal(
        sources.decode(png(depth, 0, (b'\0' + row) * 8))[..., 0], [levels] * 8
    )


def test_all_bad_files_are_listed_and_twenty_shown(tmp_path, capsys):
    root = folder(tmp_path / 'data', {'cat': 3, 'dog': 3})
    for i in range(22):
        (root / 'cat' / f'n{i:02}.txt').write_text('x')
    (root / 'dog' / 'clear.png').write_bytes(encoded(image(1).convert('RGBA')))
    image(2, (5, 8)).save(root / 'dog' / 'small.png')
    image(3, (5, 8)).save(root / 'dog' / 'small2.png')
    image(4, mode='L').save(root / 'dog' / 'z_grey.png')
    image(5).save(root / 'loose.png')
    assert cli.main(['check-data', str(root), f'--out={tmp_path}/out']) == 2
    out, err = capsys.readouterr()
    (line,) = err.splitlines()
    assert (
        line.startswith(f'fdistill: {root}: cannot be trained on: images of 3 sizes or kinds: ')
        and '(and 24 more)' in line
    )
    shown = [line for line in out.splitlines() if line.startswith('  ')]
    assert len(shown) == 21 and shown[-1] == '  ... and 5 more, all in check_data.json'
    assert (
        '7 of 8x8 RGB, as cat/0.png; 2 of 8x5 RGB, as dog/small.png; 1 of 8x8 grey, as '
        'dog/z_grey.png' in shown[0]
    )
    errors = json.loads((tmp_path / 'out' / 'check_data.json').read_text())['errors']
    assert len(errors) == 25 and not (tmp_path / 'out' / 'contact_sheet.png').exists()
    assert 'loose.png: lies beside the class folders: move it into one of them' in errors
    assert any(error.startswith('dog/clear.png: has an alpha channel') for error in errors)
    with pytest.raises(
        UserError, match=r"'cat/n00.txt' in .*; `fdistill check-data` lists 22 more"
    ):
        sources.load('image_folder', path=root)


def unreadable(monkeypatch, name):
    """As root may read everything, permission is refused by hand."""
    read = pathlib.Path.read_bytes

    def refuse(path):
        if path.name == name:
            raise PermissionError(13, 'Permission denied', str(path))
        return read(path)

    monkeypatch.setattr(pathlib.Path, 'read_bytes', refuse)


def test_permissions_and_links(tmp_path, monkeypatch):
    root = folder(tmp_path, {'cat': 5})
    unreadable(monkeypatch, '3.png')
    (root / 'cat' / 'dangling.png').symlink_to(root / 'nowhere.png')
    errors = looked(root)[0]['errors']
    assert errors[0].startswith('cat/dangling.png: cannot be read (No such file or directory)')
    assert errors[1].startswith(
        'cat/3.png: cannot be read (Permission denied): mend its permissions'
    )
    assert len(errors) == 2

    def walk(root, onerror):
        onerror(PermissionError(13, 'Permission denied', str(root / 'cat')))
        return iter(())

    monkeypatch.setattr('os.walk', walk)
    assert looked(root)[0]['errors'] == [
        'cat: cannot be read (Permission denied): mend its permissions or remove it'
    ]


@pytest.mark.parametrize('name', ['cat/x.png', 'dataset.json'])
@pytest.mark.parametrize('kind', ['pipe', 'device'])
def test_what_is_no_file_is_not_read(tmp_path, monkeypatch, kind, name):
    """A pipe would be waited for, and a device read without end."""
    root = folder(tmp_path / 'data', {'cat': 5})
    if kind == 'pipe':
        os.mkfifo(root / name)
    else:
        (root / name).symlink_to('/dev/zero')
    read = pathlib.Path.read_bytes
    monkeypatch.setattr(
        pathlib.Path,
        'read_bytes',
        lambda path: read(path) if path.is_file() else pytest.fail('was read'),
    )
    said = 'is a pipe, a device or a link to one: remove it'
    assert looked(root)[0]['errors'] == [f'{name}: {said}']
    with pytest.raises(UserError, match=f"'{name}' in .* {said}"):
        sources.load('image_folder', path=root)


def member(**fields):
    """Changes the zip's entry of cat/1.png."""

    def change(info):
        if info.filename == 'cat/1.png':
            for name, value in fields.items():
                setattr(info, name, value)
        return info

    return change


@pytest.mark.parametrize(
    'fields, message',
    [
        ({'filename': '../1.png'}, '../1.png: leads out of the zip'),
        ({'filename': 'cat/../../1.png'}, 'cat/../../1.png: leads out of the zip'),
        ({'filename': '/1.png'}, '/1.png: leads out of the zip'),
        ({'filename': 'C:/1.png'}, 'C:/1.png: leads out of the zip'),
        ({'filename': 'cat\\1.png'}, 'cat\\1.png: leads out of the zip'),
        ({'external_attr': 0o120777 << 16}, 'cat/1.png: is a link or a device'),
        ({'filename': 'cat/0.png'}, 'cat/0.png: is in the zip twice'),
    ],
)
def test_members_that_do_not_belong_in_a_zip(tmp_path, fields, message):
    root = folder(tmp_path / 'data', {'cat': 3})
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # zipfile's own, of a name used twice.
        path = zipped(root, tmp_path / 'data.zip', member(**fields))
    (error,) = looked(path)[0]['errors']
    assert error.startswith(message)
    with pytest.raises(UserError, match='in the zip|of the zip|link'):
        sources.load('image_folder', path=path)


def test_a_deep_member_takes_no_more_than_its_name(tmp_path):
    with zipfile.ZipFile(tmp_path / 'deep.zip', 'w') as archive:
        archive.writestr('a/' * 5000 + 'x.png', encoded(image(1)))
    tracemalloc.start()
    with sources.opened(tmp_path / 'deep.zip') as files:
        peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert files.classes == ['a'] and peak < 5e6


def test_encrypted_and_damaged_members(tmp_path):
    root = folder(tmp_path / 'data', {'': 3})
    path = zipped(root, tmp_path / 'data.zip')
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        start = archive.start_dir
    data[start + 8] |= 1  # The flags of the first entry of the central directory (APPNOTE 4.3.12).
    path.write_bytes(data)
    assert looked(path)[0]['errors'] == ['0.png: is encrypted: make the zip without a password']
    path = zipped(root, tmp_path / 'other.zip')
    data = bytearray(path.read_bytes())
    data[data.index(b'IDAT') + 12] ^= 255
    path.write_bytes(data)
    (error,) = looked(path)[0]['errors']
    assert error.startswith("0.png: cannot be read (Bad CRC-32 for file '0.png')")
    future = bytearray(data)
    future[start + 6] = (
        90  # The version needed, 9.0, of which zipfile raises a NotImplementedError.
    )
    for damaged in (data[:-30], future):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match='is no zip that can be opened'):
            looked(path)


def test_too_many_bytes_are_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, 'MAX_BYTES', 1000)
    folder(tmp_path, {'': 3})
    (tmp_path / 'x.png').write_bytes(bytes(1001))
    (tmp_path / 'dataset.json').write_bytes(bytes(1001))
    monkeypatch.setattr(sources, 'FREE_LABELS', 0)
    errors = looked(tmp_path)[0]['errors']
    assert sorted(error.split(' bytes')[0] for error in errors) == [
        'dataset.json: has 1001',
        'x.png: has 1001',
    ]


def edm(root, labels, count=30):
    (root / '00000').mkdir(parents=True)
    for i in range(count):
        image(i).save(root / '00000' / f'img{i:08}.png')
    (root / 'dataset.json').write_text(
        labels if isinstance(labels, str) else json.dumps({'labels': labels})
    )
    return root


@pytest.mark.parametrize('place', ['folder', 'zip'])
def test_a_data_set_in_edm_layout(tmp_path, place):
    names = [f'00000/img{i:08}.png' for i in range(30)]
    root = edm(tmp_path / 'data', [[name, i % 3] for i, name in enumerate(names)][::-1])
    path = root if place == 'folder' else zipped(root, tmp_path / 'data.zip')
    report, train = looked(path)
    assert not report['errors'] and train.num_classes == 3 and train.name == 'data'
    kept = [i for i, name in enumerate(names) if not held(name)]
    np.testing.assert_array_equal(train.labels, np.array(kept) % 3)
    np.testing.assert_array_equal(train.images, [np.asarray(image(i)) for i in kept])
    # Other classes of the same files are not what the cache has.
    (root / 'dataset.json').write_text(json.dumps({'labels': None}))
    path = root if place == 'folder' else zipped(root, tmp_path / 'data.zip')
    report, train = looked(path)
    assert (
        train.num_classes == 1
        and not train.labels.any()
        and report['splits']['train']['classes'] == {'0': len(kept)}
    )


FIRST = '00000/img00000000.png'


@pytest.mark.parametrize(
    'labels, message',
    [
        ('{', r"dataset.json: holds no {'labels': \[\[name, class\], ...\]} \(JSONDecodeError"),
        ('[1]', 'dataset.json: holds no'),
        ('{}', 'dataset.json: holds no'),
        ('[' * 100000, 'dataset.json: holds no .*RecursionError'),
        ([[FIRST]], 'dataset.json: holds no'),
        ({FIRST: 0}, 'dataset.json: holds no .*labels are a dict'),
        ('[],' * 400_000, 'has 1200000 bytes, more than the 1049130 that classes of 2 images need'),
        (
            [[FIRST, 'cat']],
            "gives '00000/img00000000.png' the class 'cat': it must be an integer in 0..65535",
        ),
        ([[FIRST, 1.0]], 'the class 1.0: it must be an integer'),
        ([[FIRST, True]], 'the class True: it must be an integer'),
        ([[FIRST, -1]], 'the class -1: it must be an integer'),
        ([[FIRST, 10**9]], 'the class 1000000000: it must be an integer'),
        ([[FIRST, [0, 1]]], r'the class \[0, 1\]: it must be an integer'),
        ([[7, 0]], 'gives 7 the class 0'),
        ([[FIRST, 0], [FIRST, 0]], 'a class twice'),
        ([[FIRST, 0]], '00000/img00000001.png: has no class in dataset.json: add one'),
        (
            [[FIRST, 0], ['00000/img00000001.png', 1], ['gone.png', 1]],
            "gives 'gone.png' a class, which is not there",
        ),
    ],
)
def test_bad_labels_of_edm(tmp_path, labels, message):
    root = edm(tmp_path / 'data', labels, count=2)
    (error,) = looked(root)[0]['errors']
    assert re.search(message, error), error
    with pytest.raises(UserError) as refusal:
        sources.load('image_folder', path=root)
    assert '\n' not in str(refusal.value)


@pytest.mark.parametrize('layout', [{'': 40}, {'ant': 20, 'bee': 25}])
def test_a_zip_is_the_folder_it_was_made_of(tmp_path, layout):
    root = folder(tmp_path / 'data', layout)
    (root / '.hidden').write_text('x')
    (root / '.git').mkdir()
    (root / '.git' / 'x').write_text('x')
    path = zipped(root, tmp_path / 'data.zip')
    with zipfile.ZipFile(path, 'a') as archive:
        archive.writestr('__MACOSX/ant/._0.png', 'x')
    one, other = looked(root)[0], looked(path)[0]
    assert one == other and one['splits']['train']['count'] + one['splits']['held_out'][
        'count'
    ] == sum(layout.values())
    assert len(one['splits']['train']['sha256']) == 64


def source(images, labels=None, num_classes=1):
    images = np.asarray(images, np.uint8)
    labels = np.zeros(len(images), np.int32) if labels is None else np.asarray(labels, np.int32)
    return Source(images, labels, num_classes, 255, 'made')


def noise(n, seed=0, shape=(8, 8, 3)):
    return np.random.default_rng(seed).integers(0, 256, (n, *shape), np.uint8)


def checked(train, held_out):
    return check.check({'train': train, 'held_out': held_out}.get)[0]


@pytest.mark.parametrize('chunk', [1, 2**24])
@pytest.mark.parametrize('channels', [1, 3])
def test_numbers(monkeypatch, chunk, channels):
    monkeypatch.setattr(check, 'CHUNK', chunk)
    images = noise(20, shape=(5, 7, channels)) // 3 + 40
    numbers = checked(source(images), source(noise(4, 1, (5, 7, channels))))['splits']['train']
    values = sources.to_float(images, 255).astype(np.float64)
    assert (numbers['count'], numbers['height'], numbers['width'], numbers['channels']) == (
        20,
        5,
        7,
        channels,
    )
    assert (numbers['min'], numbers['max']) == (images.min(), images.max())
    assert numbers['levels_used'] == len(np.unique(images))
    np.testing.assert_allclose(numbers['mean'], values.mean(axis=(0, 1, 2)), atol=1e-7)
    np.testing.assert_allclose(numbers['std'], values.std(axis=(0, 1, 2)), atol=1e-7)
    assert numbers['std_of_all'] == pytest.approx(values.std(), abs=1e-7)
    assert numbers['sha256'] == sources.fingerprint(source(images)) and numbers['constant'] == []


def test_duplicates_are_found_where_they_are():
    train, held_out, rng = noise(50), noise(30, 1), np.random.default_rng(2)
    train[7] = train[3]
    train[9] = train[3]
    held_out[4] = held_out[2]
    held_out[5] = train[20]
    train[30] = np.clip(
        train[31].astype(int) + rng.integers(-3, 4, train[31].shape), 0, 255
    )  # r = 0.9997
    held_out[6] = train[40] // 2 + 30  # Half the contrast of the same picture.
    train[41] = np.clip(
        train[42].astype(int) + rng.normal(0, 30, train[42].shape), 0, 255
    )  # r = 0.93: another one
    labels = np.zeros(50)
    labels[9] = 1
    report = checked(source(train, labels, 2), source(held_out, num_classes=2))
    found = report['duplicates']
    assert found['exact'] == {
        'train': [['train[3]', 'train[7]', 'train[9]']],
        'held_out': [['held_out[2]', 'held_out[4]']],
        'between': [['train[20]', 'held_out[5]']],
    }
    assert found['near'] == {
        'train': [['train[30]', 'train[31]']],
        'held_out': [],
        'between': [['train[40]', 'held_out[6]']],
    }
    assert found['labels_differ'] == [['train[3]', 'train[7]', 'train[9]']]
    assert (
        'between train and held_out: 1 groups of equal samples: train[20] = held_out[5]'
        in report['warnings']
    )


def test_a_group_over_both_splits_is_in_all_places():
    train, held_out = noise(5), noise(5, 1)
    train[1] = train[0]
    held_out[2] = held_out[3] = train[0]
    exact = checked(source(train), source(held_out))['duplicates']['exact']
    assert exact['train'] == [['train[0]', 'train[1]']] and exact['held_out'] == [
        ['held_out[2]', 'held_out[3]']
    ]
    assert exact['between'] == [['train[0]', 'train[1]', 'held_out[2]', 'held_out[3]']]


@pytest.mark.parametrize('shape', [(8, 8, 3), (9, 7, 1), (3, 2, 3), (1, 5, 1)])
def test_blocks_are_no_further_apart_than_images(shape):
    images = noise(40, shape=shape)
    blocks, standard = check._blocks(images), check._standard(images)
    apart = np.sqrt(((standard[:, None] - standard) ** 2).mean(axis=(2, 3, 4)))
    assert (np.linalg.norm(blocks[:, None] - blocks, axis=-1) <= apart + 1e-4).all()
    correlation = np.corrcoef(images.reshape(len(images), -1))
    np.testing.assert_allclose(apart**2, 2 * (1 - correlation), atol=1e-4)


def test_near_is_what_comparing_all_pairs_finds():
    images = np.stack([np.asarray(image(seed, (12, 12))) for seed in range(60)])
    noisy = np.clip(
        images[:30]
        + np.random.default_rng(1).normal(0, np.arange(30)[:, None, None, None], images[:30].shape),
        0,
        255,
    )
    images = np.concatenate([images, noisy]).astype(np.uint8)
    correlation = np.corrcoef(images.reshape(len(images), -1))
    wanted = [(i, j) for i, j in zip(*np.where(np.triu(correlation, 1) > check.NEAR))]
    assert 5 < len(wanted) < 30
    assert check._near(check._blocks(images), images.__getitem__) == wanted


@pytest.mark.parametrize(
    'change, warning',
    [
        (lambda s: s, None),
        (lambda s: s._replace(labels=s.labels * 0), 'train: 2 of 3 classes have no sample: 1, 2'),
        (
            lambda s: s._replace(labels=np.minimum(np.arange(99), 2).astype(np.int32)[::-1].copy()),
            'train: classes are imbalanced: 97 samples of 2, 1 of 0',
        ),
        (
            lambda s: s._replace(images=s.images // 2),
            'train: the largest grey level is 127 of 255: were the images scaled to it?',
        ),
        (
            lambda s: s._replace(images=np.repeat(s.images[..., :1], 3, axis=-1)),
            'train: the channels of every image are equal: convert the images to grey, '
            'which is cheaper',
        ),
        (
            lambda s: s._replace(
                images=np.where(np.arange(99)[:, None, None, None] == 5, np.uint8(7), s.images)
            ),
            'train: 1 images have one colour alone: train[5]',
        ),
    ],
)
def test_warnings(change, warning):
    train = source(noise(99), np.arange(99) % 3, 3)
    report = checked(change(train), source(noise(9, 1), np.arange(9) % 3, 3))
    assert report['warnings'] == ([warning] if warning else [])
    assert (warning or 'warnings: none') in check.text(report)


def test_shape_and_few_images(tmp_path):
    root = folder(tmp_path, {'': 12}, size=(8, 6))
    for file in list(root.iterdir()):
        if held(file.name):
            file.unlink()
    report, train = looked(root)
    assert not report['errors'] and list(report['splits']) == ['train'] and len(train.labels) > 5
    empty, square = report['warnings']
    assert empty.startswith('held_out is empty') and square.startswith(
        'images of 6x8 are not square'
    )
    assert list(report['duplicates']['exact']) == ['train']


def test_splits_of_different_shapes_are_an_error(tmp_path):
    for i in range(30):
        image(i, (8, 6) if held(f'{i}.png', 0.3) else (8, 8)).save(tmp_path / f'{i}.png')
    counts = [sum(held(f'{i}.png', 0.3) == split for i in range(30)) for split in (False, True)]
    (error,) = looked(tmp_path, held_out=0.3)[0]['errors']
    assert f'{counts[0]} of 8x8 RGB' in error and f'{counts[1]} of 6x8 RGB' in error
    report = checked(source(noise(5)), source(noise(5, 1, (8, 6, 3))))
    assert report['errors'] == [
        'the splits differ in the shape of a sample, (8, 6, 3) and (8, 8, 3): make all the same'
    ]


def test_points():
    options = {'mixture': 'triangle', 'n': 500}
    train, held_out = (sources.load('mixture', split, **options) for split in sources.SPLITS)
    train.images[3] = train.images[8]
    report = checked(train, held_out)
    numbers = report['splits']['train']
    assert (numbers['count'], numbers['dimensions'], report['errors']) == (500, 2, [])
    np.testing.assert_allclose(numbers['std'], train.images.std(axis=0), rtol=1e-5)
    assert report['duplicates']['exact'] == {
        'train': [['train[3]', 'train[8]']],
        'held_out': [],
        'between': [],
    }
    assert check.sheet(train, numbers['classes']).shape == (384, 384, 3)
    assert check.sheet(sources.load('mixture', mixture='pair', n=9), {}) is None
    train.images[6, 1] = np.nan
    report = checked(train, held_out)
    assert report['errors'] == ['train: 1 points are not finite, as train[6]: remove them']
    assert np.isfinite(report['splits']['train']['std']).all()


def test_contact_sheet_shows_each_class_in_its_row():
    # Class k is filled with the level 20 k + 30.
    labels = np.repeat(np.arange(4), 15)
    images = np.broadcast_to((20 * labels + 30)[:, None, None, None], (60, 6, 6, 1))
    made = source(images, labels, 4)
    names = {'ant': 15, 'bee': 15, 'an extraordinarily long name': 15, 'dog': 15}
    sheet = check.sheet(made, names)
    np.testing.assert_array_equal(sheet, check.sheet(made, names))
    rows = sheet.reshape(4, 50, sheet.shape[1], 3)
    margin = sheet.shape[1] - 500
    for k in range(4):
        assert set(np.unique(rows[k][:, margin:])) == {0, 20 * k + 30}
        assert (rows[k][:, :margin] > 128).any()
        assert not rows[k][:, margin - 8 : margin].any() and not rows[k][:4, :margin].any()


def test_contact_sheet_chooses_among_many_and_shrinks_the_large():
    many = source(noise(60, shape=(5, 5, 3)), np.arange(60) % 30, 30)
    assert check.sheet(many, {str(k): 2 for k in range(30)}).shape[0] == 10 * 52
    assert check.sheet(source(noise(23)), {'0': 23}).shape == (3 * 50, 10 * 50, 3)
    large = np.zeros((2, 400, 300, 3))
    large[:, :, 152:] = 200
    sheet = check.sheet(source(large), {'0': 2})
    assert sheet.shape == (102, 770, 3) and {0, 200} == set(np.unique(sheet))


def test_command_of_a_config(tmp_path, capsys):
    path = tmp_path / 'x.py'
    path.write_text(
        'from ml_collections import ConfigDict\n'
        'def get_config():\n'
        '    return ConfigDict(dict(data=dict(name="digits", flip=False)))\n'
    )
    assert cli.main(['check-data', f'--config={path}', f'--out={tmp_path}/out']) == 0
    out, err = capsys.readouterr()
    assert err == '' and '1442' in out and '734795de973b17bc' in out and 'errors: none' in out
    assert out.splitlines()[-2:] == [
        f'{tmp_path}/out/check_data.json',
        f'{tmp_path}/out/contact_sheet.png',
    ]
    with PIL.Image.open(tmp_path / 'out' / 'contact_sheet.png') as sheet:
        assert sheet.size[1] == 10 * 50 and sheet.mode == 'RGB'
    kept = json.loads((tmp_path / 'out' / 'check_data.json').read_text())
    source = sources.load('digits')
    assert kept['splits']['train']['sha256'] == sources.fingerprint(source)
    assert kept['splits']['train']['classes'] == {
        str(k): int((source.labels == k).sum()) for k in range(10)
    }
    assert cli.main(['check-data', f'--config={path}', f'--out={tmp_path}/out', '--json']) == 0
    assert json.loads(capsys.readouterr().out) == kept
    assert sorted(file.name for file in (tmp_path / 'out').iterdir()) == [
        'check_data.json',
        'contact_sheet.png',
    ]


@pytest.mark.parametrize(
    'words, message',
    [
        ([], 'give either PATH'),
        (['{}/data', '--config=x.py'], 'give either PATH'),
        (
            ['{}/data', '--config.data.path=x'],
            '--config.data.path=x: is for --config, not for PATH',
        ),
        (['{}/none'], "none' does not exist: give a folder or a zip"),
        (['{}/empty'], 'has no images for'),
        (['{}/text.zip'], 'is no zip that can be opened'),
        (['{}/data', '--out={}/data'], 'lies within the data'),
        (['{}/data', '--out={}/data/x'], 'lies within the data'),
        (['{}/data', '--out={}/text.zip'], 'text.zip is no folder'),
        (['{}/data', '--oot=x'], 'did you mean --out?'),
    ],
)
def test_mistakes_are_one_line(tmp_path, capsys, words, message):
    folder(tmp_path / 'data', {'': 30})
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'text.zip').write_text('x')
    before = {file: hashlib.sha256(file.read_bytes()).digest() for file in tmp_path.rglob('*.*')}
    assert cli.main(['check-data', *(word.format(tmp_path) for word in words)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith('fdistill: ') and message in line
    assert before == {
        file: hashlib.sha256(file.read_bytes()).digest() for file in tmp_path.rglob('*.*')
    }
