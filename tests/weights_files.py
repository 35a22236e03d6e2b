"""Weight files written byte by byte, whole ones and such as should be refused; torch takes no part.

A value is given as the piece of a pickle that makes it: `text('a')`, `pairs({'a': tensor(...)})`,
`reduce(name(...), ...)`.
"""

import io
import json
import pickle
import stat
import struct
import zipfile

import numpy as np

MAGIC = 0x1950A86A20F9469CFC6C
STORAGES = {
    'float32': 'FloatStorage',
    'float16': 'HalfStorage',
    'int64': 'LongStorage',
    'bool': 'BoolStorage',
}
NONE, TRUE, FALSE, EMPTY, MARK = b'N', b'\x88', b'\x89', b')', b'('


def text(value):
    data = value.encode()
    return b'X' + struct.pack('<I', len(data)) + data


def number(value):
    if -(1 << 31) <= value < 1 << 31:
        return b'J' + struct.pack('<i', value)
    data = value.to_bytes(value.bit_length() // 8 + 1, 'little', signed=True)
    return b'\x8a' + bytes([len(data)]) + data


def raw(data):
    return b'B' + struct.pack('<I', len(data)) + data


def name(module, attribute):
    return f'c{module}\n{attribute}\n'.encode()


def many(*parts):
    return MARK + b''.join(parts) + b't'


def items(*parts):
    return b'](' + b''.join(parts) + b'e'


def pairs(entries):
    return b'}(' + b''.join(text(key) + value for key, value in entries.items()) + b'u'


def reduce(function, *arguments):
    return function + many(*arguments) + b'R'


def new(module, attribute, state):
    """An object of a class, with its state."""
    return name(module, attribute) + EMPTY + b'\x81' + state + b'b'


def program(value):
    return b'\x80\x02' + value + b'.'


HOOKS = name('collections', 'OrderedDict') + EMPTY + b'R'
REBUILD = name('torch._utils', '_rebuild_tensor_v2')


def storage(key, count, kind='FloatStorage', *more):
    """A persistent id; the legacy format has NONE as `more`."""
    return (
        many(text('storage'), name('torch', kind), text(key), text('cpu'), number(count), *more)
        + b'Q'
    )


def view(storage, shape, stride=None, offset=0, hooks=HOOKS):
    """A tensor; by default contiguous."""
    stride = [int(np.prod(shape[i + 1 :])) for i in range(len(shape))] if stride is None else stride
    shape, stride = (many(*map(number, sizes)) for sizes in (shape, stride))
    return reduce(REBUILD, storage, number(offset), shape, stride, FALSE, hooks)


def archive(members, folder='weights', **options):
    """A zip archive of {name: bytes or (ZipInfo, bytes)}; names without a folder get one."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, 'w', **options) as file:
        for member, data in members.items():
            file.writestr(*data) if isinstance(data, tuple) else file.writestr(
                f'{folder}/{member}', data
            )
    return buffer.getvalue()


def saved(value, storages=None, **members):
    """torch.save's archive of a value over {key: bytes}."""
    data = {
        f'data/{key}': data
        for key, data in ({'0': bytes(24)} if storages is None else storages).items()
    }
    return archive(
        {'data.pkl': program(value), **data, 'byteorder': b'little', 'version': b'3', **members}
    )


def legacy(value, storages=(), keys=None, magic=MAGIC, version=1001, little=TRUE, tail=b''):
    """torch.save before 1.6, of a value over ((key, count, bytes), ...)."""
    keys = [key for key, _, _ in storages] if keys is None else keys
    head = (
        program(number(magic))
        + program(number(version))
        + program(pairs({'little_endian': little}))
    )
    data = b''.join(struct.pack('<q', count) + data for _, count, data in storages)
    return head + program(value) + program(items(*map(text, keys))) + data + tail


def nested(array, key='7'):
    """A tensor as plain pickles hold it: the storage is a legacy file in a byte string."""
    kind, count = STORAGES[array.dtype.name], array.size
    data = legacy(storage(key, count, kind, NONE), [(key, count, array.tobytes())])
    return view(reduce(name('torch.storage', '_load_from_bytes'), raw(data)), array.shape)


def persistent(class_name, state):
    """NVIDIA's module; its source code does what none should."""
    source = text('import os\nos.system("false")\nraise SystemExit(1)\n')
    meta = {
        'type': text('class'),
        'version': number(6),
        'module_src': source,
        'class_name': text(class_name),
        'state': state,
    }
    return reduce(name('torch_utils.persistence', '_reconstruct_persistent_obj'), pairs(meta))


def tree(arrays):
    """{'a.b': x} -> {'a': {'b': x}}."""
    root = {}
    for path, array in arrays.items():
        *groups, last = path.split('.')
        node = root
        for group in groups:
            node = node.setdefault(group, {})
        node[last] = array
    return root


def state_dict(arrays):
    """{name: array} as torch.save of a state dict writes it."""
    value = pairs(
        {
            n: view(storage(str(i), a.size, STORAGES[a.dtype.name]), a.shape)
            for i, (n, a) in enumerate(arrays.items())
        }
    )
    return saved(
        HOOKS + value[1:], {str(i): array.tobytes() for i, array in enumerate(arrays.values())}
    )


def state_dict_legacy(arrays):
    """{name: array} as torch before 1.6 wrote it."""
    values = {
        n: view(storage(n, a.size, STORAGES[a.dtype.name], NONE), a.shape)
        for n, a in arrays.items()
    }
    return legacy(
        pairs(values), [(key, array.size, array.tobytes()) for key, array in arrays.items()]
    )


def script(arrays):
    """{dotted name: array} as TorchScript's modules within modules."""
    keys = {id(array): str(i) for i, array in enumerate(arrays.values())}

    def module(node):
        if isinstance(node, np.ndarray):
            return view(storage(keys[id(node)], node.size, STORAGES[node.dtype.name]), node.shape)
        padding = reduce(name('torch.jit._pickle', 'build_intlist'), items(number(0), number(3)))
        entries = {key: module(child) for key, child in node.items()}
        return new(
            '__torch__.___torch_mangle_3',
            'Block',
            pairs({'training': FALSE, 'padding': padding, **entries}),
        )

    storages = {keys[id(array)]: array.tobytes() for array in arrays.values()}
    return saved(
        module(tree(arrays)),
        storages,
        **{'code/__torch__.py': b'raise SystemExit(1)\n', 'constants.pkl': program(EMPTY)},
    )


def nvidia(arrays):
    """{dotted name: array} as a pickle of NVIDIA's: its own modules are persistent, torch's
    containers among them are not."""

    def module(key, node):
        leaves = {k: child for k, child in node.items() if isinstance(child, np.ndarray)}
        weights = {k: nested(child) for k, child in leaves.items() if k in ('weight', 'bias')}
        parameter = name('torch._utils', '_rebuild_parameter')
        state = {
            '_init_args': EMPTY,
            'training': FALSE,
            '_parameters': pairs(
                {k: reduce(parameter, value, TRUE, HOOKS) for k, value in weights.items()}
            ),
            '_buffers': pairs(
                {k: nested(child) for k, child in leaves.items() if k not in weights}
            ),
            '_modules': pairs(
                {k: module(k, child) for k, child in node.items() if k not in leaves}
            ),
        }
        layer = {'layers': ('container', 'Sequential'), 'output': ('linear', 'Linear')}.get(key)
        if layer:
            return new(f'torch.nn.modules.{layer[0]}', layer[1], pairs(state))
        return persistent('Conv2dLayer' if leaves else 'InceptionV3', pairs(state))

    return program(module('', tree(arrays)))


def module(class_name, arrays, arguments):
    """{dotted name: array} as a persistent module of NVIDIA's that was built with `arguments`
    ({name: piece of a pickle}), within it others."""

    def of(kind, node, own):
        leaves = {k: nested(child) for k, child in node.items() if isinstance(child, np.ndarray)}
        constants = {k for k in leaves if k in ('resample_filter', 'freqs', 'phases')}
        parameter = name('torch._utils', '_rebuild_parameter')
        state = {
            '_init_args': EMPTY,
            '_init_kwargs': pairs(own),
            'training': FALSE,
            '_parameters': pairs(
                {
                    k: reduce(parameter, leaf, TRUE, HOOKS)
                    for k, leaf in leaves.items()
                    if k not in constants
                }
            ),
            '_buffers': pairs({k: leaves[k] for k in constants}),
            '_modules': pairs(
                {k: of('Layer', child, {}) for k, child in node.items() if k not in leaves}
            ),
        }
        return persistent(kind, pairs(state))

    return of(class_name, tree(arrays), arguments)


def safetensors(header, data=b'', length=None):
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack('<Q', len(header) if length is None else length) + header + data


def numpy_array(dtype, shape, data, subtype=('numpy', 'ndarray'), dtype_state=None):
    """An array as numpy pickles it."""
    dtype_state = (
        many(number(3), text('<'), NONE, NONE, NONE, number(-1), number(-1), number(0))
        if dtype_state is None
        else dtype_state
    )
    empty = reduce(
        name('numpy.core.multiarray', '_reconstruct'), name(*subtype), many(number(0)), raw(b'b')
    )
    dtype = reduce(name('numpy', 'dtype'), text(dtype), FALSE, TRUE) + dtype_state + b'b'
    return empty + many(number(1), many(*map(number, shape)), dtype, FALSE, data) + b'b'


def call(module, attribute, *arguments):
    return program(reduce(name(module, attribute), *arguments))


class _Evil:
    def __reduce__(self):
        return eval, ('__import__("os").system("false")',)


def _patched(data, old, new):
    assert data.count(old) >= 1
    return data.replace(old, new)


def _link():
    info = zipfile.ZipInfo('weights/data/0')
    info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    return info, b'/etc/passwd'


def _flagged(data, flag):
    """The archive with a flag set in all its headers."""
    data = bytearray(data)
    for signature, place in ((b'PK\x03\x04', 6), (b'PK\x01\x02', 8)):
        at = data.find(signature)
        while at >= 0:
            data[at + place] |= flag
            at = data.find(signature, at + 1)
    return bytes(data)


def _overlapping():
    """An archive whose directory gives one stretch of the file to many members, each as long as the
    file."""
    data = archive({'data.pkl': program(NONE), 'data/0': bytes(4096)})
    at = data.rindex(b'PK\x01\x02')
    *_, length, offset, _ = struct.unpack('<4s4H2LH', data[-22:])
    entry = data[at:-22]
    more = b''.join(_patched(entry, b'data/0', f'data/{i}'.encode()) for i in range(1, 10))
    end = struct.pack('<4s4H2LH', b'PK\x05\x06', 0, 0, 11, 11, length + len(more), offset, 0)
    return data[:-22] + more + end


def laughs(levels):
    """Lists of ten times the list before, over and over."""
    value = b']q\x00'
    for level in range(levels):
        value += b']q' + bytes([level + 1]) + MARK + 10 * (b'h' + bytes([level])) + b'e'
    return program(items(value))


FLOATS = storage('0', 6)
FLOATS_LEGACY = storage('0', 6, 'FloatStorage', NONE)
SIX = [('0', 6, bytes(24))]
GOOD = saved(view(FLOATS, (2, 3)))
GOOD_LEGACY = legacy(view(FLOATS_LEGACY, (2, 3)), SIX)
GOOD_HEADER = {'a': {'dtype': 'F32', 'shape': [1], 'data_offsets': [0, 4]}}
ORDERED = name('collections', 'OrderedDict')
LOAD = name('torch.storage', '_load_from_bytes')


def _member(member, data=b''):
    """GOOD with one member more, of any name."""
    return archive({'data.pkl': program(NONE), 'other': (zipfile.ZipInfo(member), data)})


# {name: bytes} of files that are refused.
BAD = {
    # A pickle calls what it should not.
    'os-system': call('os', 'system', text('false')),
    'posix-system': call('posix', 'system', text('false')),
    'eval': call('builtins', 'eval', text('1')),
    'eval-python2': call('__builtin__', 'eval', text('1')),
    'eval-protocol-5': pickle.dumps(_Evil(), 5),
    'exec': call('builtins', 'exec', text('1')),
    'getattr-chain': program(reduce(name('builtins', 'getattr'), name('os', 'path'), text('join'))),
    'popen': call('subprocess', 'Popen', items(text('false'))),
    'import-module': call('importlib', 'import_module', text('antigravity')),
    'run-path': call('runpy', 'run_path', text('x.py')),
    'socket': call('socket', 'create_connection', many(text('localhost'), number(1))),
    'open-file': call('io', 'open', text('/etc/passwd')),
    'pickle-loads': call('pickle', 'loads', raw(b'N.')),
    'torch-load': call('torch.serialization', 'load', text('x')),
    'torch-jit-load': call('torch.jit', 'load', text('x')),
    'numpy-load': call('numpy', 'load', text('x')),
    'dotted-name': program(reduce(b'\x8c\x0bcollections\x8c\x12OrderedDict.update\x93', text('1'))),
    'global-behind-allowed': program(name('collections', 'OrderedDict.fromkeys')),
    'relative-module': call('__torch__/../os', 'system', text('false')),
    'stack-global': program(b'\x8c\x02os\x8c\x06system\x93' + many(text('false')) + b'R'),
    'stack-global-of-numbers': program(number(1) + number(2) + b'\x93'),
    'inst': program(MARK + text('false') + b'ios\nsystem\n'),
    'obj': program(MARK + name('dnnlib.util', 'EasyDict') + b'o'),
    'ext': program(b'\x82\x01'),
    'newobj-ex': program(name('dnnlib.util', 'EasyDict') + EMPTY + b'}' + b'\x92'),
    'persid-as-text': b'\x80\x02Pfalse\n.',
    'in-archive': saved(reduce(name('os', 'system'), text('false'))),
    'in-legacy': legacy(reduce(name('os', 'system'), text('false'))),
    'in-legacy-header': program(number(MAGIC)) + call('os', 'system', text('false')),
    'in-legacy-keys': _patched(
        GOOD_LEGACY, program(items(text('0'))), call('os', 'system', text('false'))
    ),
    'in-nested': program(reduce(LOAD, raw(legacy(reduce(name('os', 'system'), text('false')))))),
    'in-module-state': program(
        persistent('Net', pairs({'x': reduce(name('os', 'system'), text('false'))}))
    ),
    'in-script': saved(
        new('__torch__', 'Net', pairs({'x': reduce(name('os', 'system'), text('false'))}))
    ),
    # It sets, builds or calls things of the reader.
    'build-function': program(REBUILD + many(NONE, pairs({'__defaults__': EMPTY})) + b'b'),
    'build-class': program(
        name('torch.nn.modules.linear', 'Linear') + pairs({'__reduce__': NONE}) + b'b'
    ),
    'build-list': program(b']' + many(NONE, pairs({'append': NONE})) + b'b'),
    'build-slots': program(
        new('torch.nn.modules.linear', 'Linear', many(NONE, pairs({'__class__': NONE})))
    ),
    'build-twice': program(
        new('torch.nn.modules.linear', 'Linear', pairs({'a': NONE})) + pairs({'b': NONE}) + b'b'
    ),
    'build-script-twice': saved(
        new('__torch__', 'Net', pairs({'a': NONE})) + pairs({'b': NONE}) + b'b'
    ),
    'build-dict-with-list': program(HOOKS + items(NONE) + b'b'),
    'build-tensor': saved(view(FLOATS, (2, 3)) + pairs({'a': NONE}) + b'b'),
    'call-class': program(reduce(name('torch.nn.modules.linear', 'Linear'))),
    'call-script-class': saved(reduce(name('__torch__', 'Net'), text('x'))),
    'call-tensor': saved(reduce(view(FLOATS, (2, 3)))),
    'call-text': program(reduce(text('os.system'), text('false'))),
    'call-without-tuple': program(ORDERED + b']' + b'R'),
    'call-with-too-much': call('torch._utils', '_rebuild_tensor_v2', *[NONE] * 20),
    'new-function': program(ORDERED + EMPTY + b'\x81'),
    'new-with-arguments': program(name('__torch__', 'Net') + many(number(1)) + b'\x81'),
    'name-as-data': program(ORDERED),
    'class-as-data': program(items(name('torch.nn.modules.linear', 'Linear'))),
    'persistent-without-state': program(
        reduce(
            name('torch_utils.persistence', '_reconstruct_persistent_obj'),
            pairs({'type': text('class'), 'class_name': text('A')}),
        )
    ),
    'persistent-of-text': call('torch_utils.persistence', '_reconstruct_persistent_obj', text('A')),
    'encode-to-rot13': call('_codecs', 'encode', text('a'), text('rot13')),
    'encode-number': call('_codecs', 'encode', number(1), text('latin1')),
    # It is no proper pickle.
    'empty': b'',
    'html': b'<!DOCTYPE html><html><body>Not found</body></html>',
    'lfs-pointer': b'version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 95628359\n',
    'protocol-0': pickle.dumps({'a': 1}, 0),
    'protocol-9': b'\x80\x09N.',
    'unknown-opcode': program(b'\xff'),
    'truncated': program(pairs({'a': number(1)}))[:-3],
    'truncated-text': program(b'X' + struct.pack('<I', 100) + b'abc'),
    'giant-bytes': program(b'\x8e' + struct.pack('<Q', 1 << 62)),
    'giant-text': program(b'\x8d' + struct.pack('<Q', 1 << 40)),
    'negative-length': program(b'T' + struct.pack('<i', -1)),
    'endless-line': b'\x80\x02c' + b'a' * 10000,
    'not-utf8': program(b'X' + struct.pack('<I', 2) + b'\xff\xfe'),
    'trailing': program(NONE) + b'x',
    'stack-left': program(NONE + NONE),
    'mark-left': program(MARK + NONE),
    'stack-empty': program(b''),
    'stack-underflow': program(b'00'),
    'mark-missing': program(b'e'),
    'memo-missing': program(b'h\x05'),
    'dict-odd': program(b'}(' + text('a') + b'u'),
    'dict-of-list': program(b']' + MARK + text('a') + NONE + b'u'),
    'append-to-dict': program(b'}' + NONE + b'a'),
    'name-twice': program(b'}(' + 2 * (text('a') + NONE) + b'u'),
    'tuple-as-name': program(b'}(' + EMPTY + NONE + b'u'),
    'giant-number-as-name': program(b'}(' + number(1 << 61) + NONE + b'u'),
    'persistent-id': program(storage('0', 6)),
    'contains-itself': program(b']q\x00h\x00a'),
    'deep': program(b']' * 5000 + b'a' * 4999),
    'deep-tuples': program(EMPTY + b'\x85' * 5000),
    'laughs': laughs(12),
    # numpy.
    'numpy-objects': program(numpy_array('O8', (1,), items(NONE))),
    'numpy-objects-real': pickle.dumps(np.array([{}, None], object), 4),
    'numpy-fields': pickle.dumps(np.zeros(2, [('a', 'f4'), ('b', 'i4')]), 4),
    'numpy-dates': pickle.dumps(np.zeros(2, 'M8[s]'), 4),
    'numpy-text': pickle.dumps(np.array(['a']), 4),
    'numpy-long-double': program(numpy_array('f16', (1,), raw(bytes(16)))),
    'numpy-dtype-state': program(
        numpy_array(
            'f4',
            (1,),
            raw(bytes(4)),
            dtype_state=many(
                number(3),
                text('|'),
                NONE,
                many(text('a')),
                pairs({}),
                number(4),
                number(1),
                number(0),
            ),
        )
    ),
    'numpy-subclass': program(numpy_array('f4', (1,), raw(bytes(4)), ('numpy', 'matrix'))),
    'numpy-subclass-allowed-name': program(
        numpy_array('f4', (1,), raw(bytes(4)), ('collections', 'OrderedDict'))
    ),
    'numpy-short': program(numpy_array('f4', (2,), raw(bytes(4)))),
    'numpy-long': program(numpy_array('f4', (2,), raw(bytes(12)))),
    'numpy-giant': program(numpy_array('f4', (1 << 40, 1 << 40), raw(bytes(4)))),
    'numpy-negative': program(numpy_array('f4', (-1,), raw(bytes(4)))),
    'numpy-list-data': program(numpy_array('f4', (1,), items(number(1)))),
    'numpy-never-filled': program(
        reduce(
            name('numpy.core.multiarray', '_reconstruct'),
            name('numpy', 'ndarray'),
            many(number(0)),
            raw(b'b'),
        )
    ),
    'numpy-filled-twice': program(numpy_array('f4', (1,), raw(bytes(4))) + NONE + b'b'),
    'numpy-truth': program(numpy_array('b1', (1,), raw(b'\x02'))),
    'numpy-scalar-of-text': call('numpy.core.multiarray', 'scalar', text('f8'), raw(bytes(8))),
    # Tensors.
    'offset-negative': saved(view(FLOATS, (2, 3), offset=-1)),
    'offset-outside': saved(view(FLOATS, (2, 3), offset=1)),
    'offset-giant': saved(view(FLOATS, (2, 3), offset=1 << 63)),
    'shape-outside': saved(view(FLOATS, (3, 3))),
    'shape-negative': saved(view(FLOATS, (-1, 3))),
    'shape-giant': saved(view(FLOATS, (1 << 40, 1 << 40))),
    'shape-overflow': saved(view(FLOATS, (1 << 32, 1 << 32), (0, 0))),
    'shape-many': saved(view(FLOATS, (1,) * 100)),
    'shape-truth': saved(
        reduce(REBUILD, FLOATS, number(0), many(TRUE), many(number(1)), FALSE, HOOKS)
    ),
    'shape-list': saved(
        reduce(REBUILD, FLOATS, number(0), items(number(1)), items(number(1)), FALSE, HOOKS)
    ),
    'stride-negative': saved(view(FLOATS, (2, 3), (-3, 1), offset=3)),
    'stride-giant': saved(view(FLOATS, (2, 3), (1 << 62, 1))),
    'stride-zero': saved(view(FLOATS, (1 << 30,), (0,))),
    'stride-overlapping': saved(view(FLOATS, (2, 3), (1, 1))),
    'stride-missing': saved(view(FLOATS, (2, 3), (1,))),
    'hooks': saved(view(FLOATS, (2, 3), hooks=pairs({'a': NONE}))),
    'storage-of-text': saved(view(text('0'), (2, 3))),
    'parameter-of-text': saved(
        reduce(name('torch._utils', '_rebuild_parameter'), text('a'), TRUE, HOOKS)
    ),
    'storage-of-two-types': saved(
        items(view(FLOATS, (2, 3)), view(storage('0', 6, 'IntStorage'), (2, 3)))
    ),
    'storage-of-two-sizes': saved(items(view(FLOATS, (2, 3)), view(storage('0', 5), (2,)))),
    'storage-negative': saved(view(storage('0', -6), (0,))),
    'storage-giant': saved(view(storage('0', 1 << 47), (1,))),
    'storage-unknown': saved(view(storage('0', 6, 'QInt8Storage'), (2, 3))),
    'storage-of-os': saved(
        many(text('storage'), name('os', 'system'), text('0'), text('cpu'), number(6)) + b'Q'
    ),
    'storage-key-number': saved(
        many(text('storage'), name('torch', 'FloatStorage'), number(0), text('cpu'), number(6))
        + b'Q'
    ),
    'storage-key-elsewhere': saved(view(storage('../data.pkl', 6), (2, 3))),
    'storage-missing': saved(view(storage('1', 6), (2, 3))),
    'storage-short': saved(view(FLOATS, (2, 3)), {'0': bytes(20)}),
    'storage-long': saved(view(FLOATS, (2, 3)), {'0': bytes(28)}),
    'storage-truth': saved(view(storage('0', 6, 'BoolStorage'), (6,)), {'0': b'\0\1\2\0\0\0'}),
    'persistent-id-text': saved(text('0') + b'Q'),
    'persistent-id-module': saved(
        many(text('module'), name('__torch__', 'Net'), text('x.py'), text('exec')) + b'Q'
    ),
    'persistent-id-long': saved(storage('0', 6, 'FloatStorage', number(1))),
    # The format before 1.6, and storages in byte strings.
    'legacy-version': legacy(NONE, version=1002),
    'legacy-big-endian': legacy(NONE, little=FALSE),
    'legacy-only-magic': program(number(MAGIC)),
    'legacy-view': legacy(
        view(storage('0', 6, 'FloatStorage', many(text('1'), number(0), number(3))), (2, 3)), SIX
    ),
    'legacy-key-missing': legacy(view(FLOATS_LEGACY, (2, 3)), SIX, keys=[]),
    'legacy-key-unknown': legacy(view(FLOATS_LEGACY, (2, 3)), SIX, keys=['1']),
    'legacy-key-twice': legacy(view(FLOATS_LEGACY, (2, 3)), 2 * SIX, keys=['0', '0']),
    'legacy-count': legacy(view(FLOATS_LEGACY, (2, 3)), [('0', 7, bytes(28))]),
    'legacy-count-negative': legacy(view(FLOATS_LEGACY, (2, 3)), [('0', -1, bytes(24))]),
    'legacy-count-giant': legacy(
        view(storage('0', 1 << 40, 'FloatStorage', NONE), (1,)), [('0', 1 << 40, bytes(24))]
    ),
    'legacy-truncated': GOOD_LEGACY[:-1],
    'legacy-trailing': GOOD_LEGACY + b'\0',
    'nested-no-file': program(reduce(LOAD, raw(b'abc'))),
    'nested-text': program(reduce(LOAD, text('abc'))),
    'nested-plain-pickle': program(reduce(LOAD, raw(program(NONE)))),
    'nested-archive': program(reduce(LOAD, raw(GOOD))),
    'nested-deeper': program(reduce(LOAD, raw(legacy(reduce(LOAD, raw(legacy(NONE))))))),
    'nested-truncated': program(reduce(LOAD, raw(GOOD_LEGACY[:-8]))),
    # Archives.
    'zip-parent': _member('weights/../../evil'),
    'zip-absolute': _member('/etc/evil'),
    'zip-backslash': _patched(_member('weights/aXb'), b'weights/aXb', b'weights\\a\\b'),
    'zip-drive': _member('C:/evil'),
    'zip-zero-byte': _patched(_member('weights/aXb'), b'weights/aXb', b'weights/a\0b'),
    'zip-new-line': _member('weights/a\nb'),
    'zip-folder': _member('weights/a/'),
    'zip-twice': _patched(_member('weights/data.pkX'), b'weights/data.pkX', b'weights/data.pkl'),
    'zip-link': archive({'data.pkl': program(view(FLOATS, (2, 3))), 'data/0': _link()}),
    'zip-two-folders': archive({'data.pkl': program(NONE), 'b': ('other/data.pkl', program(NONE))}),
    'zip-no-folder': archive({'data.pkl': (zipfile.ZipInfo('data.pkl'), program(NONE))}),
    'zip-of-numpy': archive({'mu.npy': b''}),
    'zip-empty': archive({}),
    'zip-bomb': archive(
        {'data.pkl': program(text('a' * (1 << 20)))}, compression=zipfile.ZIP_DEFLATED
    ),
    'zip-lzma': archive({'data.pkl': program(NONE)}, compression=zipfile.ZIP_LZMA),
    'zip-encrypted': _flagged(GOOD, 1),
    'zip-overlap': _overlapping(),
    'zip-big-endian': saved(view(FLOATS, (2, 3)), byteorder=b'big'),
    'zip-crc': _patched(
        saved(view(FLOATS, (2, 3)), {'0': b'abcdefgh' * 3}),
        b'abcdefgh' * 3,
        b'abcdefgh' * 2 + b'abcdefgH',
    ),
    'zip-crc-pickle': _patched(saved(pairs({'abcd': NONE})), b'abcd', b'abce'),
    'zip-truncated': GOOD[:-1],
    'zip-half': GOOD[: len(GOOD) // 2],
    'zip-trailing': GOOD + b'\0',
    'zip-comment': GOOD[:-2] + b'\x01\0x',
    'zip-leading': GOOD[:4] + GOOD,
    'zip-directory-size': GOOD[:-10] + struct.pack('<I', 1 << 31) + GOOD[-6:],
    'zip-directory-offset': GOOD[:-6] + struct.pack('<I', 5) + GOOD[-2:],
    'zip-pickle-trailing': archive({'data.pkl': program(NONE) + b'x'}),
    # safetensors.
    'safetensors-outside': safetensors(
        {'a': {'dtype': 'F32', 'shape': [2], 'data_offsets': [0, 8]}}, bytes(4)
    ),
    'safetensors-shape': safetensors(
        {'a': {'dtype': 'F32', 'shape': [2], 'data_offsets': [0, 4]}}, bytes(4)
    ),
    'safetensors-gap': safetensors(GOOD_HEADER, bytes(8)),
    'safetensors-overlap': safetensors({'a': GOOD_HEADER['a'], 'b': GOOD_HEADER['a']}, bytes(4)),
    'safetensors-overflow': safetensors(
        {'a': {'dtype': 'F32', 'shape': [1 << 62, 4], 'data_offsets': [0, 0]}}
    ),
    'safetensors-negative': safetensors(
        {'a': {'dtype': 'F32', 'shape': [-1], 'data_offsets': [0, 4]}}, bytes(4)
    ),
    'safetensors-dtype': safetensors(
        {'a': {'dtype': 'OBJECT', 'shape': [1], 'data_offsets': [0, 4]}}, bytes(4)
    ),
    'safetensors-float8': safetensors(
        {'a': {'dtype': 'F8_E4M3', 'shape': [4], 'data_offsets': [0, 4]}}, bytes(4)
    ),
    'safetensors-json': safetensors(b'{"a": ', bytes(4)),
    'safetensors-not-utf8': safetensors(b'{"\xff": 1}'),
    'safetensors-length': safetensors(GOOD_HEADER, bytes(4), length=1 << 62),
    'safetensors-truncated': safetensors(GOOD_HEADER, bytes(4))[:-1],
}
