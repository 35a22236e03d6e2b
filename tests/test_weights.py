"""Foreign weight files: whole ones are read as they were written, all others are refused, and
nothing in them is run."""

import copy
import functools
import json
import os
import pathlib
import subprocess
import sys
import zipfile

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import weights_files as files
import weights_goldens as goldens

from fdistill import cli, weights
from fdistill.errors import UserError
from fdistill.files import disk
from fdistill.networks import inception as network
from fdistill.networks import vit
from fdistill.weights import inception, reader, store

HERE = pathlib.Path(__file__).parent
MODULE = {'class_name': 'Detector', 'init_args': ('conv',), 'init_kwargs': {'depth': 1}}


def refused(call, path):
    """The message of the UserError that `call` ends in: one line that begins with the file and has
    a remedy."""
    with pytest.raises(UserError) as caught:
        call()
    message = str(caught.value)
    assert (
        message.startswith(f'{path}: ')
        and '; ' in message
        and message.isprintable()
        and len(message) < 500
    ), message
    return message


def unreadable(path, **limits):
    """The message with which `read` refuses a file."""
    return refused(lambda: reader.read(path, reader.Limits(**limits)), path)


@pytest.fixture
def put(tmp_path):
    """put(bytes, name) -> path."""

    def put(data, name='file'):
        path = tmp_path / name
        path.write_bytes(data)
        return path

    return put


@pytest.fixture
def golden(put):
    """golden(name) -> what `read` returns of the file that torch or numpy wrote."""
    with zipfile.ZipFile(goldens.GOLDENS) as archive:
        yield lambda name: reader.read(put(archive.read(name), name))


DETECTOR = (
    'layers.conv.weight',
    'layers.conv.beta',
    'layers.conv.mean',
    'layers.conv.var',
    'output.bias',
)


@pytest.mark.parametrize(
    'name, prefix',
    [('script.pt', ''), ('detector.pth', '')] + [(f'nvidia-{p}.pkl', 'ema.') for p in (2, 4, 5)],
)
def test_modules_of_every_format_hold_the_same_arrays(golden, name, prefix):
    expected = {f'{prefix}{entry}': goldens.value(entry) for entry in DETECTOR}
    expected[f'{prefix}output.weight'] = goldens.value('output.matrix')
    found = reader.flatten(golden(name))
    assert {entry: array.tolist() for entry, array in found.items()} == {
        entry: array.tolist() for entry, array in expected.items()
    }
    assert {array.dtype for array in found.values()} == {np.dtype(np.float32)}


@pytest.mark.parametrize('name', ['types.pth', 'types-legacy.pth'])
def test_tensors_have_their_types_and_strides(golden, name):
    found = golden(name)
    assert list(found) == [*goldens.TYPES, 'scalar', 'transposed', 'rows', 'row']
    for entry in goldens.TYPES:
        dtype = np.dtype(ml_dtypes.bfloat16 if entry == 'bfloat16' else entry)
        assert found[entry].dtype == dtype and np.array_equal(
            found[entry], goldens.value(entry).astype(dtype)
        )
    assert found['scalar'].shape == () and found['scalar'] == goldens.value('scalar')
    assert np.array_equal(
        found['transposed'], goldens.value('transposed.weight').transpose(3, 1, 2, 0)
    )
    assert found['transposed'].flags.c_contiguous
    assert np.array_equal(found['row'], np.arange(12).reshape(4, 3)[1:3])


@pytest.mark.parametrize('protocol', [2, 4, 5])
def test_pickles_hold_more_than_arrays(golden, protocol):
    found = golden(f'statistics-{protocol}.pkl')
    assert found['num_images'] == 3 and type(found['num_images']) is int
    assert np.array_equal(found['fid']['mu'], np.arange(3.0))
    assert np.array_equal(found['fid']['sigma'], np.arange(9.0).reshape(3, 3))
    assert found['big-endian'].dtype.isnative and np.array_equal(found['big-endian'], np.arange(3))
    network = golden(f'nvidia-{protocol}.pkl')
    assert (network['dataset_kwargs'], network['tags'], network['size']) == (
        {'path': 'x', 'max_size': None},
        ('a',),
        (2, 3),
    )
    module = network['ema']
    assert {key: module[key] for key in MODULE} == MODULE
    assert 'SystemExit' not in repr(network)
    layers = module['state']['_modules']['layers']
    assert (layers['class_name'], layers['init_args']) == ('Sequential', ())
    assert layers['state']['_modules']['pool']['state']['kernel_size'] == 2


def test_script_attributes_are_kept(golden):
    conv = golden('script.pt')['layers']['conv']
    assert conv['padding'] == [0, 1] and conv['training'] is True


WRITERS = {
    'zip': files.state_dict,
    'legacy': files.state_dict_legacy,
    'script': files.script,
    'nvidia': files.nvidia,
}


@pytest.mark.parametrize('writer', WRITERS)
def test_own_files_are_read(put, writer):
    draw = np.random.RandomState(0)
    arrays = {
        'layers.a.weight': draw.randn(2, 3, 1),
        'layers.a.mean': draw.randn(2),
        'output.bias': draw.randn(0),
    }
    arrays = {entry: np.float32(array) for entry, array in arrays.items()}
    found = reader.flatten(reader.read(put(WRITERS[writer](arrays))))
    assert found.keys() == arrays.keys()
    assert all(
        np.array_equal(found[entry], arrays[entry]) and found[entry].shape == arrays[entry].shape
        for entry in arrays
    )
    assert not any(array.flags.writeable and not array.flags.owndata for array in found.values())


def test_tensors_of_torch_before_0_4_are_read(put):
    """As torchvision's vgg16-397923af.pth holds them: by a call of four arguments."""
    old = files.name('torch._utils', '_rebuild_tensor')
    place = files.storage('0', 6, 'FloatStorage', files.NONE)
    shape, stride = (files.many(*map(files.number, of)) for of in ((2, 2), (3, 1)))
    value = files.pairs({'a': files.reduce(old, place, files.number(1), shape, stride)})
    data = np.arange(6, dtype=np.float32).tobytes()
    found = reader.read(put(files.legacy(value, [('0', 6, data)])))
    assert found['a'].tolist() == [[1, 2], [4, 5]]


def test_safetensors_are_read(put):
    arrays = {
        'a': np.arange(6, dtype=np.float16).reshape(2, 3),
        'b': np.ones(2, ml_dtypes.bfloat16),
    }
    found = reader.read(put(safetensors.numpy.save(arrays)))
    assert {k: (x.dtype, x.tolist()) for k, x in found.items()} == {
        k: (x.dtype, x.tolist()) for k, x in arrays.items()
    }


@pytest.mark.parametrize('name', files.BAD)
def test_bad_files_are_refused(put, name):
    unreadable(put(files.BAD[name]))


# Pieces of messages that say what is wrong, so that a case is not refused for a slip in how it was
# written.
SAID = {
    'os-system': "'os.system'",
    'stack-global': "'os.system'",
    'dotted-name': "'collections.OrderedDict.update'",
    'in-archive': "'os.system'",
    'in-legacy': "'os.system'",
    'in-legacy-keys': "'os.system'",
    'in-nested': "'os.system'",
    'in-module-state': "'os.system'",
    'in-script': "'os.system'",
    'inst': 'opcode INST',
    'obj': 'opcode OBJ',
    'ext': 'opcode EXT1',
    'newobj-ex': 'opcode NEWOBJ_EX',
    'persid-as-text': 'opcode PERSID',
    'build-function': 'state of something that has none',
    'build-class': 'state of something that has none',
    'build-slots': 'other than a dict',
    'build-twice': 'twice',
    'build-script-twice': 'twice',
    'call-class': 'cannot be called',
    'call-tensor': 'cannot be called',
    'new-function': 'cannot be called',
    'giant-bytes': 'ends early',
    'giant-text': 'ends early',
    'trailing': 'behind its end',
    'html': 'no weight file',
    'lfs-pointer': 'pointer',
    'contains-itself': 'contains itself',
    'deep': 'deeper than 100',
    'deep-tuples': 'deeper than 100',
    'laughs': 'more than 2000000 entries',
    'numpy-objects': 'dtype',
    'numpy-objects-real': "'O8'",
    'numpy-dtype-state': 'fields',
    'numpy-subclass-allowed-name': 'subclass',
    'numpy-giant': 'without its',
    'numpy-never-filled': 'without its data',
    'offset-negative': 'not sizes',
    'offset-outside': 'outside its storage',
    'offset-giant': 'not sizes',
    'shape-outside': 'outside its storage',
    'shape-giant': 'more than',
    'shape-overflow': 'more than',
    'shape-truth': 'not sizes',
    'stride-negative': 'not sizes',
    'stride-zero': 'share memory',
    'stride-overlapping': 'share memory',
    'storage-of-two-types': 'two types',
    'storage-giant': 'bytes, more than',
    'storage-key-elsewhere': 'is a zip archive without',
    'storage-short': 'another size',
    'storage-truth': 'neither 0 nor 1',
    'persistent-id-module': 'persistent id',
    'legacy-big-endian': 'byte order',
    'legacy-view': 'persistent id',
    'legacy-key-missing': 'other storages',
    'legacy-count': 'another size',
    'legacy-count-giant': 'more than',
    'legacy-truncated': 'ends early',
    'legacy-trailing': 'behind its end',
    'nested-archive': 'legacy',
    'nested-deeper': 'deeper than 1',
    'zip-parent': 'member of the name',
    'zip-absolute': 'member of the name',
    'zip-backslash': 'member of the name',
    'zip-drive': 'member of the name',
    'zip-zero-byte': 'member of the name',
    'zip-new-line': 'member of the name',
    'zip-twice': 'two members',
    'zip-link': 'a link',
    'zip-of-numpy': 'no torch file',
    'zip-bomb': 'compressed',
    'zip-encrypted': 'encrypted',
    'zip-overlap': 'overlap',
    'zip-crc': 'BadZipFile',
    'zip-crc-pickle': 'BadZipFile',
    'zip-trailing': 'behind its end',
    'zip-comment': 'behind its end',
    'zip-leading': 'before',
    'zip-directory-size': 'before',
    'zip-big-endian': 'byte order',
    'safetensors-outside': 'no whole safetensors file',
    'safetensors-float8': 'no whole safetensors file',
}


@pytest.mark.parametrize('name', SAID)
def test_bad_files_are_refused_for_what_is_wrong(put, name):
    assert SAID[name] in unreadable(put(files.BAD[name]))


def test_what_bad_files_are_made_of_is_good(put):
    """The same files without their fault are read, so that it is the fault which is refused."""
    for data in (files.GOOD, files.GOOD_LEGACY):
        assert np.array_equal(reader.read(put(data)), np.zeros((2, 3)))
    assert np.array_equal(
        reader.read(put(files.program(files.numpy_array('f4', (1,), files.raw(bytes(4)))))), [0]
    )
    assert reader.read(put(files.safetensors(files.GOOD_HEADER, bytes(4)))) == {'a': [0]}
    assert reader.read(
        put(files.program(files.new('torch.nn.modules.linear', 'Linear', files.pairs({}))))
    ) == {
        'class_name': 'Linear',
        'init_args': (),
        'init_kwargs': {},
        'state': {},
    }
    assert reader.read(put(files.laughs(3)))[3][0][0] == [[] for _ in range(10)]


@pytest.mark.parametrize(
    'limits, data, said',
    [
        (dict(file=100), files.GOOD, 'more than 100'),
        (dict(array=23), files.GOOD, 'more than 23'),
        (dict(array=23), files.GOOD_LEGACY, 'more than 23'),
        (
            dict(array=3),
            files.program(files.numpy_array('f4', (1,), files.raw(bytes(4)))),
            'more than 3',
        ),
        (dict(total=100), files.GOOD, 'more than 100'),
        (dict(total=23), files.GOOD_LEGACY, 'more than 23'),
        (dict(members=2), files.GOOD, 'more than 2 members'),
        (dict(members=0), files.GOOD, 'more than 0 members'),
        (dict(opcodes=10), files.GOOD, 'more than 10 pickle opcodes'),
        (
            dict(opcodes=40),
            files.program(files.nested(np.zeros(3, np.float32))),
            'more than 40 pickle opcodes',
        ),
        (dict(nodes=5), files.program(files.items(*[files.NONE] * 5)), 'more than 5 entries'),
        (dict(depth=2), files.program(files.items(files.items(files.items()))), 'deeper than 2'),
        (dict(nesting=0), files.program(files.nested(np.zeros(3, np.float32))), 'deeper than 0'),
    ],
)
def test_limits(put, limits, data, said):
    path = put(data)
    reader.read(path)
    assert said in unreadable(path, **limits)


def test_limits_count_what_is_made_again_and_again(put):
    """One text in the memo, encoded a hundred times; one storage of 4 MB, unpacked as often; views
    are counted as if copied."""
    encode = files.name('_codecs', 'encode') + files.MARK + b'h\x01' + b'tR'
    texts = put(files.program(files.items(files.text('a' * 100_000) + b'q\x01', *[encode] * 100)))
    loads = files.LOAD + files.MARK + b'h\x01' + b'tR'
    storage = files.legacy(
        files.storage('0', 1 << 20, 'FloatStorage', files.NONE), [('0', 1 << 20, bytes(1 << 22))]
    )
    storages = put(
        files.program(files.items(files.raw(storage) + b'q\x01', *[loads] * 100)), 'storages'
    )
    views = put(
        files.saved(
            files.items(*[files.view(files.storage('0', 1 << 20), (1 << 20,))] * 100),
            {'0': bytes(1 << 22)},
        ),
        'views',
    )
    nested = files.legacy(files.text('a' * 100_000))
    nested = put(files.program(files.items(files.raw(nested) + b'q\x01', *[loads] * 100)), 'nested')
    for path, total in (
        (texts, 5_000_000),
        (storages, 50_000_000),
        (views, 100_000_000),
        (nested, 5_000_000),
    ):
        assert 'unpacks to more' in unreadable(path, total=total)


LIST = files.items(*[files.NONE] * 1000) + b'q\x01'
STATE = files.pairs({str(i): files.NONE for i in range(1000)})
LONG = files.text('a' * 10_000) + b'q\x01'
OBJECT = files.pairs({'type': files.text('class'), 'class_name': files.text('A'), 'state': STATE})
WIDE = files.view(files.storage('0', 10_000), (100, 100), (1, 100))
PAIR = files.items(*[files.items(files.text(str(i)), files.NONE) for i in range(1000)]) + b'q\x01'
# {what is made out of one thing again and again: (the thing, what makes it, how often)}
AGAIN = {
    'device': (LONG, files.name('torch', 'device') + files.MARK + 100 * b'h\x01' + b'tR', 50),
    'set': (LIST, files.name('builtins', 'set') + b'h\x01\x85R', 1000),
    'size': (LIST, files.name('torch', 'Size') + b'h\x01\x85R', 1000),
    'dict': (PAIR, files.ORDERED + b'h\x01\x85R', 1000),
    'object': (
        OBJECT + b'q\x01',
        files.name('torch_utils.persistence', '_reconstruct_persistent_obj') + b'h\x01\x85R',
        1000,
    ),
    'arguments': (
        LIST + files.name('torch', 'Size') + b'h\x01\x85Rq\x01',
        files.name('torch', 'device') + b'h\x01R',
        1000,
    ),
    'class': (files.text('__torch__.' + 'a' * 10_000) + b'q\x01', b'h\x01h\x01\x930', 1000),
    'encode': (LONG, files.reduce(files.name('_codecs', 'encode'), b'h\x01'), 1000),
    'array': (
        files.raw(bytes(40_000)) + b'q\x01',
        files.numpy_array('f4', (10_000,), b'h\x01'),
        100,
    ),
    'nested': (
        files.raw(files.legacy(files.text('a' * 10_000))) + b'q\x01',
        files.LOAD + b'h\x01\x85R',
        200,
    ),
}


@pytest.mark.parametrize('name', AGAIN)
def test_a_small_file_does_not_become_large(put, name):
    once, again, times = AGAIN[name]
    data = files.program(once + b'0' + files.items(*[again] * times))
    assert 'unpacks to more' in unreadable(put(data))


def test_copies_of_one_storage_are_counted(put):
    data = files.saved(files.items(*[WIDE] * 100), {'0': bytes(40_000)})
    assert 'unpacks to more' in unreadable(put(data))


def test_a_tuple_that_shares_its_parts_is_not_written(put):
    """As text it has 2^20 entries; with a few levels more it would never end."""
    levels = b''.join(b'h%ch%c\x86q%c0' % (i, i, i + 1) for i in range(20))
    dtype = files.reduce(files.name('numpy', 'dtype'), b'h\x14')
    data = files.program(files.EMPTY + b'q\x000' + levels + dtype)
    assert 'dtype a tuple' in unreadable(put(data))


def test_names_of_arrays_are_bounded(put, monkeypatch, tmp_path):
    monkeypatch.setattr(reader, 'MAX_NAMES', 100)
    value = files.pairs({f'{i:099}': files.nested(np.zeros(1, np.float32)) for i in range(2)})
    path = put(files.program(value))
    call = functools.partial(weights.convert, 'inception', path, tmp_path / 'out.safetensors')
    assert 'more than 100 characters' in refused(call, path)


def test_arrays_of_one_name_are_refused(put, tmp_path):
    array = files.nested(np.zeros(1, np.float32))
    path = put(files.program(files.pairs({'a.b': array, 'a': files.pairs({'b': array})})))
    call = functools.partial(weights.convert, 'inception', path, tmp_path / 'out.safetensors')
    assert "two arrays have the name 'a.b'" in refused(call, path)


def test_levels_of_shared_lists_add_up(put):
    """Each list wraps the list before sixty times: no walk from above meets more than sixty new
    levels."""
    value, top = b']q\x00', 0
    for index in range(1, 30):
        value += b']' * 60 + b'h' + bytes([top]) + b'a' * 60 + b'q' + bytes([index])
        top = index
    assert 'deeper than 100' in unreadable(put(files.program(files.items(value))))


def test_a_directory_is_weighed_before_it_is_read(put, monkeypatch):
    monkeypatch.delattr(zipfile, 'ZipFile')
    assert 'more than 0 members' in unreadable(put(files.GOOD), members=0)


@pytest.mark.parametrize(
    'name', [info.filename for info in zipfile.ZipFile(goldens.GOLDENS).infolist()]
)
def test_damage_is_refused_or_harmless(put, name):
    """A file of torch's with bytes changed, or cut off, or doubled, ends in data or in a
    UserError."""
    with zipfile.ZipFile(goldens.GOLDENS) as archive:
        whole = archive.read(name)
    draw = np.random.RandomState(0)
    refusals = 0
    for _ in range(100):
        data = bytearray(whole)
        for at in draw.randint(len(data), size=draw.randint(1, 4)):
            data[at] = draw.randint(256)
        start, end = np.sort(draw.randint(len(data), size=2))
        damages = (data, data[:start], data[:start] + data[end:], data[:end] + data[start:])
        try:
            reader.read(put(bytes(damages[draw.randint(4)])))
        except UserError:
            refusals += 1
    assert refusals > 50


def test_places_that_are_no_files(tmp_path):
    os.mkfifo(tmp_path / 'pipe')
    for name in ('pipe', '.', 'missing'):
        assert 'is no file' in unreadable(tmp_path / name)


# Reads every file of a folder with 512 MB to spare, and prints what happened while it did: {name:
# message or None}, and every event of the interpreter but opening the file and asking for an
# object's id.
WATCH = """
import json, pathlib, resource, sys
from fdistill.weights import reader
from fdistill.errors import UserError
from fdistill.files import disk
folder = pathlib.Path(sys.argv[1])
paths, events, said = sorted(folder.iterdir()), [], {}
used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (512 << 20),) * 2)
on = False
def watch(event, arguments):
    opens = event == 'open' and str(arguments[0]).startswith(str(folder))
    opens = opens and arguments[1] in ('rb', 'r', None)
    if on and not opens and event != 'builtins.id':
        events.append([event, str(arguments)[:200]])
sys.addaudithook(watch)
on = True
for path in paths:
    try:
        reader.read(path)
        said[path.name] = None
    except UserError as error:
        said[path.name] = str(error)
on = False
imported = [name for name in ('torch', 'antigravity') if name in sys.modules]
print(json.dumps([said, events, imported]))
"""


def test_nothing_in_a_file_is_run(tmp_path):
    good = {
        f'good-{i}': data
        for i, data in enumerate(
            [files.GOOD, files.GOOD_LEGACY, *(w(_arrays()) for w in WRITERS.values())]
        )
    }
    with zipfile.ZipFile(goldens.GOLDENS) as archive:
        good |= {f'good-{name}': archive.read(name) for name in archive.namelist()}
    for name, data in {**good, **files.BAD}.items():
        (tmp_path / name).write_bytes(data)
    run = subprocess.run(
        [sys.executable, '-c', WATCH, str(tmp_path)], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    said, events, imported = json.loads(run.stdout)
    assert [name for name, message in said.items() if message is None] == sorted(good)
    assert said.keys() == {*good, *files.BAD}
    assert events == [] and imported == []


def test_the_watch_sees_what_is_run(tmp_path):
    (tmp_path / 'eval').write_bytes(
        files.call('builtins', 'eval', files.text('__import__("this")'))
    )
    watch = WATCH.replace('reader.read(path)', '__import__("pickle").loads(path.read_bytes())')
    run = subprocess.run(
        [sys.executable, '-c', watch, str(tmp_path)], capture_output=True, text=True
    )
    events = [event for event, _ in json.loads(run.stdout.splitlines()[-1])[1]]
    assert {'pickle.find_class', 'compile', 'exec', 'import'} <= set(events)


# Conversion. Channels are an eighth, which no name depends on; kernels stay.


def _thin(shape):
    return tuple(size if size < 8 else size // 8 for size in shape)


def _arrays(shapes=None):
    draw = np.random.RandomState(0)
    shapes = {'layers.a.weight': (3, 2), 'output.bias': (3,)} if shapes is None else shapes
    return {name: draw.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.fixture
def thin(monkeypatch):
    """The FID Inception with an eighth of its channels: {our name: array}, its norms without a
    scale."""
    shapes = {name: _thin(shape) for name, shape in network.shapes().items()}
    converters = dict(
        weights.CONVERTERS,
        inception=weights.CONVERTERS['inception']._replace(shapes=lambda: shapes),
    )
    monkeypatch.setattr(weights, 'CONVERTERS', converters)
    return {
        name: np.ones_like(x) if name.endswith('bn.weight') else x
        for name, x in _arrays(shapes).items()
    }


def _pytorch_fid(arrays):
    """As pytorch-fid's file has it: with counters, and the auxiliary classifier that FID does not
    use."""
    counters = {
        name.replace('running_var', 'num_batches_tracked'): np.array(0)
        for name in arrays
        if name.endswith('running_var')
    }
    return {**arrays, **counters, 'AuxLogits.fc.weight': np.zeros((3, 2), np.float32)}


def _nvidia(arrays):
    return {theirs: arrays[ours] for theirs, ours in inception.NVIDIA.items()}


SOURCES = {
    'pytorch-fid.pth': lambda arrays: files.state_dict(_pytorch_fid(arrays)),
    'legacy.pth': lambda arrays: files.state_dict_legacy(_pytorch_fid(arrays)),
    'script.pt': lambda arrays: files.script(_nvidia(arrays)),
    'nvidia.pkl': lambda arrays: files.nvidia(_nvidia(arrays)),
}


def test_conversions_agree_bit_for_bit(thin, put, tmp_path):
    contents = {}
    for name, write in SOURCES.items():
        out = tmp_path / f'{name}.safetensors'
        metadata = weights.convert('inception', put(write(thin), name), out)
        arrays, again = store.load(out)
        assert again == metadata
        assert arrays.keys() == thin.keys() and all(
            arrays[key].tobytes() == thin[key].tobytes() for key in thin
        )
        assert (metadata['source'], metadata['source_sha256']) == (
            name,
            disk.sha256(tmp_path / name),
        )
        contents[name] = metadata['content_sha256']
    assert len(set(contents.values())) == 1


def test_inception_names_are_one_to_one():
    scales = {name for name in network.shapes() if name.endswith('.bn.weight')}
    assert sorted([*inception.NVIDIA.values(), *scales]) == sorted(network.shapes())


def _nvidia_shapes():
    """NVIDIA's graph as openai/consistency_models (3d86141) rebuilds it: {convolution: (in, out,
    height, width)}."""
    shapes = {
        'conv': (3, 32, 3, 3),
        'conv_1': (32, 32, 3, 3),
        'conv_2': (32, 64, 3, 3),
        'conv_3': (64, 80, 1, 1),
    }
    shapes['conv_4'] = (80, 192, 3, 3)

    def block(name, channels, **towers):
        for tower, convolutions in towers.items():
            inside = channels
            for index, (out, height, width) in enumerate(convolutions):
                suffix = f'_{index}' if index else ''
                shapes[f'{name}.{tower}.conv{suffix}' if tower != 'conv' else f'{name}.conv'] = (
                    inside,
                    out,
                    height,
                    width,
                )
                inside = out

    for name, channels, pool in (('mixed', 192, 32), ('mixed_1', 256, 64), ('mixed_2', 288, 64)):
        tower_1 = [(64, 1, 1), (96, 3, 3), (96, 3, 3)]
        block(
            name,
            channels,
            conv=[(64, 1, 1)],
            tower=[(48, 1, 1), (64, 5, 5)],
            tower_1=tower_1,
            tower_2=[(pool, 1, 1)],
        )
    block('mixed_3', 288, conv=[(384, 3, 3)], tower=[(64, 1, 1), (96, 3, 3), (96, 3, 3)])
    for name, c in (('mixed_4', 128), ('mixed_5', 160), ('mixed_6', 160), ('mixed_7', 192)):
        tower_1 = [(c, 1, 1), (c, 7, 1), (c, 1, 7), (c, 7, 1), (192, 1, 7)]
        tower = [(c, 1, 1), (c, 1, 7), (192, 7, 1)]
        block(name, 768, conv=[(192, 1, 1)], tower=tower, tower_1=tower_1, tower_2=[(192, 1, 1)])
    block(
        'mixed_8',
        768,
        tower=[(192, 1, 1), (320, 3, 3)],
        tower_1=[(192, 1, 1), (192, 1, 7), (192, 7, 1), (192, 3, 3)],
    )
    for name, channels in (('mixed_9', 1280), ('mixed_10', 2048)):
        shapes |= {
            f'{name}.conv': (channels, 320, 1, 1),
            f'{name}.tower_conv': (channels, 384, 1, 1),
            f'{name}.tower_mixed_conv': (384, 384, 1, 3),
            f'{name}.tower_mixed_conv_1': (384, 384, 3, 1),
            f'{name}.tower_1_conv': (channels, 448, 1, 1),
            f'{name}.tower_1_conv_1': (448, 384, 3, 3),
            f'{name}.tower_1_mixed_conv': (384, 384, 1, 3),
            f'{name}.tower_1_mixed_conv_1': (384, 384, 3, 1),
            f'{name}.tower_2_conv': (channels, 192, 1, 1),
        }
    return shapes


def test_inception_shapes_are_those_of_nvidias_graph():
    shapes = _nvidia_shapes()
    theirs = {
        f'layers.{name}.weight': (out, inside, height, width)
        for name, (inside, out, height, width) in shapes.items()
    }
    theirs |= {
        f'layers.{name}.{entry}': (shape[1],)
        for name, shape in shapes.items()
        for entry in ('beta', 'mean', 'var')
    }
    theirs |= {'output.weight': (1008, 2048), 'output.bias': (1008,)}
    assert theirs == {name: network.shapes()[ours] for name, ours in inception.NVIDIA.items()}


def _changed(arrays, name, change):
    """The arrays with one of them changed, or left out where `change` returns None."""
    arrays = {**arrays, name: change(arrays[name])}
    return {key: array for key, array in arrays.items() if array is not None}


FAULTS = {
    'missing': (lambda x: None, "'fc.bias' is missing"),
    'shape': (lambda x: x[:-1], "'fc.bias' has the shape (125,), not (126,)"),
    'transposed': (lambda x: x[None], "'fc.bias' has the shape (1, 126), not (126,)"),
    'half': (lambda x: x.astype(np.float16), "'fc.bias' is float16, not float32"),
    'nan': (
        lambda x: np.where(np.arange(126) == 3, np.nan, x).astype(np.float32),
        "'fc.bias' is not finite",
    ),
    'infinite': (
        lambda x: np.where(np.arange(126) == 3, np.inf, x).astype(np.float32),
        "'fc.bias' is not finite",
    ),
}


@pytest.mark.parametrize('fault', FAULTS)
@pytest.mark.parametrize('source', ['pytorch-fid.pth', 'nvidia.pkl'])
def test_wrong_weights_are_refused_by_name(thin, put, tmp_path, fault, source):
    change, said = FAULTS[fault]
    changed = _changed(thin, 'fc.bias', change)
    if fault == 'missing' and source == 'nvidia.pkl':
        data = files.nvidia(
            {theirs: changed[ours] for theirs, ours in inception.NVIDIA.items() if ours in changed}
        )
    else:
        data = SOURCES[source](changed)
    path, out = put(data, source), tmp_path / 'out.safetensors'
    assert said in refused(lambda: weights.convert('inception', path, out), path)
    assert not out.exists()


def test_mismatches_are_told_by_name_the_first_few(thin, put, tmp_path):
    arrays = {name: x for name, x in thin.items() if not name.startswith('fc.')} | {
        f'extra{i}': np.zeros(1, np.float32) for i in range(3)
    }
    path = put(files.state_dict(arrays))
    message = refused(lambda: weights.convert('inception', path, tmp_path / 'out'), path)
    assert (
        "'fc.weight' is missing; 'fc.bias' is missing; 'extra0' is unknown; and 2 more" in message
    )
    # NVIDIA's VGG16, say.
    path = put(files.script({'layers.conv1.weight': np.zeros((2, 2), np.float32)}))
    assert 'and ' in refused(lambda: weights.convert('inception', path, tmp_path / 'out'), path)


def test_out_is_not_overwritten(thin, put, tmp_path):
    out = tmp_path / 'out.safetensors'
    first = weights.convert('inception', put(SOURCES['script.pt'](thin), 'a.pt'), out)
    stamp = out.stat().st_mtime_ns
    assert (
        weights.convert('inception', put(SOURCES['nvidia.pkl'](thin), 'b.pkl'), out) == first
    )  # It is of the same content.
    other = put(SOURCES['nvidia.pkl'](_changed(thin, 'fc.bias', lambda x: x + 1)), 'c.pkl')
    assert 'holds other weights' in refused(lambda: weights.convert('inception', other, out), out)
    assert out.stat().st_mtime_ns == stamp


def test_dinov2_converts(monkeypatch, put, tmp_path):
    small = vit.vit(dim=8, depth=2, heads=2, patch=2, grid=3)
    monkeypatch.setitem(
        weights.CONVERTERS, 'dinov2', weights.CONVERTERS['dinov2']._replace(shapes=small.shapes)
    )
    arrays = _arrays(small.shapes())
    metadata = weights.convert('dinov2', put(files.state_dict(arrays)), tmp_path / 'out')
    assert metadata['kind'] == 'dinov2' and 'Apache-2.0' in metadata['licence']
    found, _ = store.load(tmp_path / 'out', small.shapes())
    assert all(np.array_equal(found[name], array) for name, array in arrays.items())


@pytest.mark.parametrize('kind', weights.CONVERTERS)
def test_converters_have_names_and_a_licence(kind):
    converter = weights.CONVERTERS[kind]
    sizes = [np.prod(shape) for shape in converter.shapes().values()]
    # pytorch-fid's network has 23.9 million numbers with its 1008 classes, facebook's ViT-L/14 304
    # million, torchvision's convolutions of VGG16 14,714,688 and of AlexNet 2,469,696, of which
    # LPIPS weighs 1472 and 1152 channels.
    count, licence = {
        'inception': (23_885_392, 'Apache-2.0'),
        'dinov2': (304_368_640, 'Apache-2.0'),
        'lpips-vgg': (14_716_160, 'BSD-2-Clause'),
        'lpips-alex': (2_470_848, 'BSD-2-Clause'),
    }[kind]
    assert sum(sizes) == count and licence in converter.licence
    # The command line takes a second file where one is needed.
    assert bool(converter.beside) == ('beside' in cli.CONVERT.get(kind, ()))


def test_convert_needs_a_place(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(UserError, match='OUT=.*file is no folder'):
        weights.convert('inception', tmp_path / 'source', tmp_path / 'file' / 'out')


def test_unknown_kind(tmp_path):
    with pytest.raises(UserError, match='did you mean inception?'):
        weights.convert('inceptoin', tmp_path / 'a', tmp_path / 'b')


# Our own files.


def test_stored_weights_come_back(tmp_path):
    arrays = {
        **_arrays(),
        'scalar': np.float32(3).reshape(()),
        'transposed': np.arange(6.0).reshape(2, 3).T,
        'big': np.arange(3, dtype='>f4'),
    }
    store.save(tmp_path / 'a', arrays, {'kind': 'x'})
    found, metadata = store.load(tmp_path / 'a')
    assert found.keys() == arrays.keys()
    assert all(np.array_equal(found[k], x) and found[k].shape == x.shape for k, x in arrays.items())
    assert (metadata['kind'], metadata['format'], metadata['content_sha256']) == (
        'x',
        store.FORMAT,
        store.digest(found),
    )
    assert [path.name for path in tmp_path.iterdir()] == ['a']


def test_digest_is_of_names_types_shapes_and_bytes():
    arrays = {'a': np.arange(6, dtype=np.float32), 'b': np.zeros(2, np.float32)}
    changed = [
        {'a': arrays['a'], 'c': arrays['b']},
        {'a': arrays['a'].reshape(2, 3), 'b': arrays['b']},
        {'a': arrays['a'].view(np.int32), 'b': arrays['b']},
        {'a': arrays['a'], 'b': -arrays['b']},
        {'a': arrays['b'], 'b': arrays['a']},
    ]
    assert len({store.digest(x) for x in [arrays, *changed]}) == 6
    assert store.digest(dict(reversed(arrays.items()))) == store.digest(copy.deepcopy(arrays))


def test_stored_weights_are_checked(tmp_path, put):
    shapes = {name: array.shape for name, array in _arrays().items()}
    path = tmp_path / 'a'
    store.save(path, _arrays(), {})
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert 'not those that were written' in refused(lambda: store.load(path), path)
    path.write_bytes(data[:-1])
    refused(lambda: store.load(path), path)
    path.write_bytes(data)
    assert "'output.bias' has the shape (3,), not (4,)" in refused(
        lambda: store.load(path, {**shapes, 'output.bias': (4,)}), path
    )
    foreign = put(safetensors.numpy.save(_arrays()), 'b')
    assert 'its format is None' in refused(lambda: store.load(foreign), foreign)
    missing = tmp_path / 'missing'
    assert 'is no file' in refused(lambda: store.load(missing), missing)


@pytest.mark.parametrize(
    'bad',
    [
        np.array([1, np.nan]),
        np.array([np.inf], ml_dtypes.bfloat16),
        np.array(['a']),
        np.array([None]),
    ],
)
def test_what_cannot_be_stored(tmp_path, bad):
    with pytest.raises(ValueError, match="'x' is"):
        store.save(tmp_path / 'a', {'x': bad}, {})
    assert not list(tmp_path.iterdir())


def test_flatten_refuses_two_of_a_name():
    with pytest.raises(ValueError, match="'a.b'"):
        reader.flatten({'a.b': np.zeros(1), 'a': {'b': np.zeros(1)}})
