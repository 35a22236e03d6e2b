"""Foreign weight files as plain Python data, without torch and without running anything that a file
brings along.

| file | known by | becomes |
|---|---|---|
| torch.save, zip | `PK`, one folder with data.pkl | its object; tensors are numpy arrays |
| TorchScript, zip | as above | its object; a module is the dict of its attributes |
| torch.save before 1.6 ("legacy") | a pickle of torch's magic number | its object |
| pickle: NVIDIA's networks, statistics | any other pickle | its object; a module is a dict |
| safetensors | length of a JSON header, `{` | {name: array} |

Of a TorchScript module, code and constants are not looked at. The dict of a pickled module has the
keys MODULE.

A pickle is a program. `pickle.Unpickler` with a closed `find_class` would still let it set
attributes of whatever that returns (BUILD on a function replaces its defaults), allocate at will
and nest without end. So the programs are interpreted here: a closed table of opcodes over
`pickletools.genops`, whose global names are rows of a closed table of pure functions of ours, and
whose every step counts against Limits. There is no other way of loading, and no fall-back to one.

References: Python's pickletools for the opcodes; torch 2.13's serialization.py and _utils.py for
  what its files hold; numpy's core/multiarray.py; NVlabs/stylegan3's torch_utils/persistence.py
  (`meta`: module_src, class_name, state).
"""

import codecs
import io
import math
import os
import pathlib
import pickletools
import re
import struct
import zipfile
import zlib
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from fdistill.errors import UserError
from fdistill.files.archive import Refused, open_archive
from fdistill.weights import store

# zipfile and pickletools look these up by name; so that they are here before the first file is.
for _codec in ('cp437', 'latin1', 'ascii', 'raw-unicode-escape'):
    codecs.lookup(_codec)

# The keys of the dict that a pickled module becomes. Its source code, which the file carries, is
# dropped.
MODULE = ('class_name', 'init_args', 'init_kwargs', 'state')

_DAMAGED = 'download it again from its publisher'
_EXPORT = (
    "take the publisher's state dict, or write one with torch.save(module.state_dict(), ...) "
    'where you trust the file'
)
_LIMITS = 'if the file is what it should be, read it with larger Limits'

# What zipfile, pickletools, struct, numpy and a call with the wrong arguments say of bytes that are
# none of a weight file.
_MALFORMED = (
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    RuntimeError,
    EOFError,
    OSError,
    MemoryError,
    struct.error,
    zlib.error,
    zipfile.BadZipFile,
)


# Bytes that any file may become, and of an entry of a list or dict that is made again, at most.
_FREE, _ENTRY = 1 << 20, 64


# Of all names that `flatten` makes; a network's are of some hundred characters each.
MAX_NAMES = 1 << 26


class Limits(NamedTuple):
    """What reading one file may cost.

    file, array, total: bytes of the file, of one array, and of all data and arrays made out of it.
    growth: times the size of the file that all data and arrays may have, each counted as often as
      it is made; whole files of every format stay below five.
    members: entries of a zip archive.
    opcodes: of all its pickles; nodes: of the tree, each counted as often as it is reached.
    depth: of the tree; nesting: of pickles in byte strings of pickles (a storage of NVIDIA's is
      one).
    """

    file: int = 8 << 30
    array: int = 8 << 30
    total: int = 32 << 30
    growth: int = 16
    members: int = 20_000
    opcodes: int = 2_000_000
    nodes: int = 2_000_000
    depth: int = 100
    nesting: int = 1


LIMITS = Limits()


class _Refused(Exception):
    """Why a file is not read, and what to do."""

    def __init__(self, what, remedy=_DAMAGED):
        super().__init__(what)
        self.remedy = remedy


class _Budget:
    """Counts against Limits, for a file of that size."""

    def __init__(self, limits, size):
        self.limits, self.opcodes, self.bytes = limits, 0, 0
        self.most = min(limits.total, limits.growth * size + _FREE)

    def step(self):
        self.opcodes += 1
        if self.opcodes > self.limits.opcodes:
            raise _Refused(f'has more than {self.limits.opcodes} pickle opcodes', _LIMITS)

    def spend(self, size):
        self.bytes += size
        if self.bytes > self.most:
            raise _Refused(f'unpacks to more than {self.most} bytes', _LIMITS)

    def count(self, nodes):
        if nodes > self.limits.nodes:
            raise _Refused(f'has more than {self.limits.nodes} entries', _LIMITS)
        return nodes


class _Stream:
    """A seekable binary file of known size, which ends with an error rather than early; what
    pickletools reads from."""

    def __init__(self, file, size):
        self._file, self.left = file, size

    def read(self, size):
        if size > self.left:
            raise _Refused('ends early')
        data = self._file.read(size)
        self.left -= len(data)
        return data

    def readline(self):
        # No text of a pickle is long but its protocol-0 strings, and those that write weights have
        # no use for these.
        line = self._file.readline(4096)
        self.left -= len(line)
        return line

    def array(self, size):
        """The next `size` bytes, uint8."""
        if size > self.left:
            raise _Refused('ends early')
        out = np.empty(size, np.uint8)
        view = memoryview(out)
        while len(view):
            got = self._file.readinto(view[: 1 << 24])
            if not got:
                raise _Refused('ends early')
            view = view[got:]
        self.left -= size
        return out


class _Memory(_Stream):
    """A file within a byte string, whose arrays are views of it."""

    def __init__(self, data):
        super().__init__(io.BytesIO(data), len(data))
        self._data = data

    def array(self, size):
        if size > self.left:
            raise _Refused('ends early')
        start = self._file.tell()
        self._file.seek(size, os.SEEK_CUR)
        self.left -= size
        return np.frombuffer(self._data, np.uint8, size, start)


class _Node:
    """Something in a pickle that plain Python does not have; `kind` is a key of _FINISH, or a word
    for the machine."""

    __slots__ = ('kind', 'value')

    def __init__(self, kind, value):
        self.kind, self.value = kind, value


class _Storage:
    """Memory that tensors look into: `count` numbers of a dtype; `data` is set once it has been
    reached."""

    __slots__ = ('dtype', 'count', 'data')

    def __init__(self, dtype, count):
        self.dtype, self.count, self.data = dtype, count, None

    @property
    def size(self):
        return self.count * self.dtype.itemsize

    def fill(self, data):
        data.flags.writeable = False  # Several arrays may be views of it.
        self.data = _typed(data, self.dtype)


def _typed(data, dtype):
    """The uint8 array as one of the dtype."""
    if dtype == np.bool_ and data.size and data.max() > 1:
        raise _Refused('holds a truth value that is neither 0 nor 1')
    return data.view(dtype)


def _show(value):
    """Something out of a file, fit for one line. Of a tuple only the type: parts that it shares
    would be written as often as they are reached."""
    return repr(str(value)[:80]) if type(value) in (str, int) else f'a {type(value).__name__}'


def _is(node, kind):
    return type(node) is _Node and node.kind == kind


def _natural(number):
    """Whether a value is a size; nothing beyond 2^48 is one, so that products of several stay
    cheap."""
    return type(number) is int and 0 <= number < 1 << 48


# Functions that a pickle may call (REDUCE), as (machine, *its arguments) -> value.


def _ordered_dict(machine, items=()):
    target = {}
    if type(items) not in (list, tuple) or not all(
        type(item) in (list, tuple) and len(item) == 2 for item in items
    ):
        raise _Refused('builds a dict of something other than pairs')
    machine.budget.spend(_ENTRY * len(items))
    _insert(target, [part for item in items for part in item])
    return target


def _sequence(machine, items):
    """Of the lists that TorchScript marks with their type."""
    if type(items) not in (list, tuple):
        raise _Refused('builds a list of something other than a list')
    return items


def _size(machine, shape):
    machine.budget.spend(_ENTRY * len(_sequence(machine, shape)))
    return tuple(shape)


def _set(machine, items=()):
    machine.budget.spend(_ENTRY * len(_sequence(machine, items)))
    return _Node('set', list(items))


def _tagged(machine, value, tag):
    return value


def _encode(machine, text, codec='latin1'):
    """Bytes, as protocol 2 writes them."""
    if type(text) is not str or codec not in ('latin1', 'latin-1'):
        raise _Refused('encodes something other than text, or otherwise than to latin1')
    machine.budget.spend(len(text))
    return text.encode('latin1')


def _device(machine, *name):
    if not all(type(part) in (str, int) for part in name):
        return 'unknown'
    parts = [str(part) for part in name]
    machine.budget.spend(sum(map(len, parts)))
    return ':'.join(parts)


def _tensor(
    machine, storage, offset, shape, stride, requires_grad=False, hooks=None, metadata=None
):
    """A view of a storage, checked to lie in it and not to overlap itself (an `expand` of one
    number has no end)."""
    if (
        not _is(storage, 'storage')
        or type(shape) is not tuple
        or type(stride) is not tuple
        or metadata
    ):
        raise _Refused('has a tensor of the wrong form')
    if type(requires_grad) is not bool or hooks not in ({}, None):
        raise _Refused('has a tensor with hooks', _EXPORT)
    if (
        len(shape) != len(stride)
        or len(shape) > 16
        or not all(map(_natural, (offset, *shape, *stride)))
    ):
        raise _Refused('has a tensor with sizes, strides or an offset that are not sizes')
    storage, count = storage.value, math.prod(shape)
    machine.room(count * storage.dtype.itemsize)
    reach = 0
    for step, size in sorted(
        (step, size) for step, size in zip(stride, shape) if size > 1 and count
    ):
        if step <= reach:
            raise _Refused('has a tensor whose elements share memory', _EXPORT)
        reach += step * (size - 1)
    if offset + (reach + 1 if count else 0) > storage.count:
        raise _Refused(
            f'has a tensor {shape} that lies outside its storage of {storage.count} numbers'
        )
    return _Node('tensor', (storage, offset, shape, stride))


def _parameter(machine, data, requires_grad, hooks):
    if not _is(data, 'tensor'):
        raise _Refused('has a parameter that is no tensor')
    return data


def _nested(machine, data):
    """A storage written as a file of the legacy format into a byte string."""
    limits = machine.budget.limits
    if type(data) is not bytes:
        raise _Refused('has a nested file that is no byte string')
    if machine.nesting >= limits.nesting:
        raise _Refused(f'has files within files, deeper than {limits.nesting}', _EXPORT)
    machine.budget.spend(len(data))
    stream = _Memory(data)
    if data[:1] != b'\x80' or _Machine(machine.budget).run(stream) != _MAGIC:
        raise _Refused("has a nested file that is not of torch's legacy format")
    return _legacy(stream, machine.budget, machine.nesting + 1)


def _persistent(machine, meta):
    """NVIDIA's module: all but the source code, which torch_utils.persistence would run."""
    if (
        type(meta) is not dict
        or meta.get('type') != 'class'
        or type(meta.get('class_name')) is not str
    ):
        raise _Refused('has a persistent object of the wrong form')
    state = meta.get('state')
    if type(state) is not dict:
        raise _Refused('has a persistent object without a state')
    machine.budget.spend(_ENTRY * len(state))
    init = state.get('_init_args', ()), state.get('_init_kwargs', {})
    state = {
        name: value for name, value in state.items() if name not in ('_init_args', '_init_kwargs')
    }
    return _Node('module', dict(zip(MODULE, (meta['class_name'], *init, state))))


def _dtype(machine, name, align=False, copy=True):
    if type(name) is not str or name not in _NUMPY_DTYPES:
        raise _Refused(
            f'has a numpy array of dtype {_show(name)}', 'its arrays must hold plain numbers'
        )
    return _Node('dtype', np.dtype(name))


def _reconstruct(machine, subtype, shape, typecode):
    if not _is(subtype, 'numpy array'):
        raise _Refused('has a numpy array of a subclass', _EXPORT)
    return _Node('array', None)  # BUILD fills it.


def _array(machine, dtype, shape, fortran, data):
    """The numpy array of raw bytes."""
    if (
        not _is(dtype, 'dtype')
        or type(shape) is not tuple
        or len(shape) > 16
        or not all(map(_natural, shape))
    ):
        raise _Refused('has a numpy array of the wrong form')
    if type(data) is str:  # Of Python 2.
        data = data.encode('latin1')
    size = math.prod(shape) * dtype.value.itemsize
    if type(data) not in (bytes, bytearray) or len(data) != size:
        raise _Refused(f'has a numpy array {shape} of {dtype.value} without its {size} bytes')
    machine.room(size)
    machine.budget.spend(size)
    array = _typed(np.frombuffer(bytes(data), np.uint8), dtype.value)
    return array.astype(dtype.value.newbyteorder('='), copy=False).reshape(
        shape, order='F' if fortran else 'C'
    )


def _frombuffer(machine, data, dtype, shape, order, *axes):
    if order not in ('C', 'F') or axes not in ((), (None,)):
        raise _Refused('has a numpy array of an unknown order')
    return _Node('array', _array(machine, dtype, shape, order == 'F', data))


def _scalar(machine, dtype, data):
    return _array(machine, dtype, (), False, data).item()


# Classes whose objects a pickle may make (NEWOBJ).


def _module(name):
    return lambda machine: _Node('module', dict(zip(MODULE, (name, (), {}, None))))


def _script(machine):
    return _Node('script', None)


def _dict(machine):
    return {}


_NUMPY_DTYPES = frozenset(
    ['b1', *(f'{kind}{size}' for kind in 'iu' for size in (1, 2, 4, 8)), 'f2', 'f4', 'f8']
)
_STORAGES = {
    'BFloat16': ml_dtypes.bfloat16,
    'Bool': np.bool_,
    'Byte': np.uint8,
    'Char': np.int8,
    'Double': np.float64,
    'Float': np.float32,
    'Half': np.float16,
    'Int': np.int32,
    'Long': np.int64,
    'Short': np.int16,
    'Untyped': np.uint8,
}
_TORCH_DTYPES = 'bfloat16 bool float16 float32 float64 int16 int32 int64 int8 uint8'.split()
# torch's own layers occur in NVIDIA's networks. Their constructors are not needed: a pickle sets
# the attributes.
_LAYERS = {
    'activation': 'GELU LeakyReLU ReLU SiLU Sigmoid Softmax Tanh',
    'batchnorm': 'BatchNorm1d BatchNorm2d',
    'container': 'ModuleDict ModuleList ParameterDict ParameterList Sequential',
    'conv': 'Conv1d Conv2d ConvTranspose2d',
    'dropout': 'Dropout',
    'flatten': 'Flatten',
    'linear': 'Identity Linear',
    'normalization': 'GroupNorm LayerNorm',
    'pooling': 'AdaptiveAvgPool2d AvgPool2d MaxPool2d',
    'sparse': 'Embedding',
    'upsampling': 'Upsample',
}
# (module, name) -> (kind, value): all that a pickle can name, but for the classes of TorchScript,
# see _find.
_GLOBALS = {
    ('collections', 'OrderedDict'): ('function', _ordered_dict),
    ('_codecs', 'encode'): ('function', _encode),
    ('builtins', 'set'): ('function', _set),
    ('__builtin__', 'set'): ('function', _set),
    ('dnnlib.util', 'EasyDict'): ('class', _dict),
    # The settings of a training, beside its weights.
    ('argparse', 'Namespace'): ('class', _script),
    ('torch_utils.persistence', '_reconstruct_persistent_obj'): ('function', _persistent),
    ('torch._utils', '_rebuild_tensor'): ('function', _tensor),  # before torch 0.4
    ('torch._utils', '_rebuild_tensor_v2'): ('function', _tensor),
    ('torch._utils', '_rebuild_parameter'): ('function', _parameter),
    ('torch.storage', '_load_from_bytes'): ('function', _nested),
    ('torch.storage', 'UntypedStorage'): ('storage type', np.dtype(np.uint8)),
    ('torch', 'Size'): ('function', _size),
    ('torch', 'device'): ('function', _device),
    ('torch.jit._pickle', 'restore_type_tag'): ('function', _tagged),
    **{
        ('torch.jit._pickle', f'build_{of}list'): ('function', _sequence)
        for of in ('int', 'double', 'bool', 'tensor')
    },
    **{
        ('torch', f'{name}Storage'): ('storage type', np.dtype(dtype))
        for name, dtype in _STORAGES.items()
    },
    **{('torch', name): ('text', f'torch.{name}') for name in _TORCH_DTYPES},
    **{
        (f'torch.nn.modules.{file}', name): ('class', _module(name))
        for file, names in _LAYERS.items()
        for name in names.split()
    },
    ('numpy', 'ndarray'): ('numpy array', None),
    ('numpy', 'dtype'): ('function', _dtype),
    # numpy 2 renamed its folder.
    **{
        (f'numpy.{core}.{file}', name): ('function', function)
        for core in ('core', '_core')
        for file, name, function in (
            ('multiarray', '_reconstruct', _reconstruct),
            ('multiarray', 'scalar', _scalar),
            ('numeric', '_frombuffer', _frombuffer),
        )
    },
}


def _find(module, name):
    """A fresh node of the global `module.name`; nothing is imported."""
    if re.fullmatch(r'__torch__(\.\w+)*', module):
        # A class of the archive's own code; it may have any name, as it is never looked up.
        return _Node('class', _script)
    if (module, name) not in _GLOBALS:
        raise _Refused(
            f'asks for {_show(f"{module}.{name}")}, which weights have no use for', _EXPORT
        )
    kind, value = _GLOBALS[module, name]
    return value if kind == 'text' else _Node(kind, value)


# What BUILD may set the state of, as (machine, node, state).


def _build_module(machine, node, state):
    if type(state) is not dict or node.value['state'] is not None:
        raise _Refused('sets the state of a module twice, or to something other than a dict')
    node.value['state'] = state


def _build_script(machine, node, state):
    if type(state) is not dict or node.value is not None:
        raise _Refused('sets the state of a module twice, or to something other than a dict')
    node.value = state


def _build_dtype(machine, node, state):
    """(version, byte order, subarray, names, fields, size, alignment, flags[, metadata])"""
    if (
        type(state) is not tuple
        or len(state) not in (8, 9)
        or any(part is not None for part in state[2:5] + state[8:])
    ):
        raise _Refused(
            'has a numpy array of a dtype with fields', 'its arrays must hold plain numbers'
        )
    if state[1] not in ('<', '>', '|', '='):
        raise _Refused('has a numpy dtype of an unknown byte order')
    node.value = node.value.newbyteorder(state[1])


def _build_array(machine, node, state):
    if type(state) is not tuple or len(state) != 5 or node.value is not None:
        raise _Refused('has a numpy array of the wrong form')
    _, shape, dtype, fortran, data = state
    node.value = _array(machine, dtype, shape, fortran, data)


_BUILD = {
    'module': _build_module,
    'script': _build_script,
    'dtype': _build_dtype,
    'array': _build_array,
}


def _insert(target, items):
    """target[key] = value of [key, value, key, value, ...]."""
    if type(target) is not dict or len(items) % 2:
        raise _Refused('sets items of something other than a dict')
    for key, value in zip(items[::2], items[1::2]):
        # Keys of other types could be made to collide, and their comparisons to take for ever.
        if type(key) is not str and not (type(key) is int and _natural(abs(key))):
            raise _Refused('has a dict key that is neither text nor a small integer', _EXPORT)
        if key in target:
            raise _Refused(f'has the name {_show(key)} twice')
        target[key] = value


class _Machine:
    """Runs one pickle. An opcode is a row of _OPCODES, and there is no other way in.

    Args:
      budget: _Budget, shared by all pickles of a file.
      persistent: persistent id -> node; None refuses such ids.
      nesting: files that this one lies in.
    """

    def __init__(self, budget, persistent=None, nesting=0):
        self.budget, self.persistent, self.nesting = budget, persistent, nesting
        self.stack, self.marked, self.memo = [], [], {}

    def run(self, stream):
        """The object of the pickle at the stream's position; the stream is left behind it."""
        for opcode, argument, _ in pickletools.genops(stream):
            self.budget.step()
            if opcode.name == 'STOP':
                break
            if opcode.name not in _OPCODES:
                raise _Refused(
                    f'uses the pickle opcode {opcode.name}, which weights have no use for', _EXPORT
                )
            _OPCODES[opcode.name](self, argument)
        value = self.pop()
        if self.stack or self.marked:
            raise _Refused('is a pickle that leaves something on its stack')
        return value

    def room(self, size):
        if size > self.budget.limits.array:
            raise _Refused(
                f'has an array of {size} bytes, more than {self.budget.limits.array}', _LIMITS
            )

    def pop(self):
        if not self.stack:
            raise _Refused('is a pickle that takes from an empty stack')
        return self.stack.pop()

    def top(self):
        if not self.stack:
            raise _Refused('is a pickle that takes from an empty stack')
        return self.stack[-1]

    def push(self, value):
        self.stack.append(value)

    def mark(self):
        self.marked.append(self.stack)
        self.stack = []

    def pop_mark(self):
        if not self.marked:
            raise _Refused('is a pickle that takes more than it put')
        items, self.stack = self.stack, self.marked.pop()
        return items

    def pop_many(self, count):
        return tuple(reversed([self.pop() for _ in range(count)]))

    def put(self, index):
        if not _natural(index):
            raise _Refused('has a memo index that is none')
        self.memo[index] = self.top()

    def get(self, index):
        if index not in self.memo:
            raise _Refused('takes what it never put into its memo')
        self.push(self.memo[index])

    def find(self, module, name):
        if type(module) is not str or type(name) is not str:
            raise _Refused('has a global name that is no text')
        self.budget.spend(len(module) + len(name))
        self.push(_find(module, name))

    def extend(self, items):
        target = self.top()
        if _is(target, 'set'):
            target = target.value
        if type(target) is not list:
            raise _Refused('appends to something other than a list')
        target.extend(items)

    def insert(self, items):
        _insert(self.top(), items)

    def call(self, kind):
        """REDUCE ('function') and NEWOBJ ('class')."""
        function, arguments = self.pop_many(2)
        if not _is(function, kind) or type(arguments) is not tuple:
            raise _Refused('calls something that cannot be called', _EXPORT)
        self.budget.spend(_ENTRY * len(arguments))
        self.push(function.value(self, *arguments))

    def build(self):
        state, target = self.pop(), self.top()
        if type(target) is dict and type(state) is dict:
            return  # torch hangs `_metadata` on a state dict, which is about versions of modules.
        if type(target) is not _Node or target.kind not in _BUILD:
            raise _Refused('sets the state of something that has none', _EXPORT)
        _BUILD[target.kind](self, target, state)

    def load_persistent(self):
        if self.persistent is None:
            raise _Refused('has a persistent id where none belongs')
        self.push(self.persistent(self.pop()))


def _constant(machine, argument):
    machine.push(argument)


_OPCODES = {
    **dict.fromkeys(('PROTO', 'FRAME'), lambda machine, _: None),
    **dict.fromkeys('BININT BININT1 BININT2 LONG1 BINFLOAT'.split(), _constant),
    **dict.fromkeys(
        'BINSTRING SHORT_BINSTRING BINUNICODE SHORT_BINUNICODE BINUNICODE8'.split(), _constant
    ),
    **dict.fromkeys('BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8'.split(), _constant),
    'NONE': lambda machine, _: machine.push(None),
    'NEWTRUE': lambda machine, _: machine.push(True),
    'NEWFALSE': lambda machine, _: machine.push(False),
    'MARK': lambda machine, _: machine.mark(),
    'POP': lambda machine, _: machine.pop(),
    'POP_MARK': lambda machine, _: machine.pop_mark(),
    'EMPTY_LIST': lambda machine, _: machine.push([]),
    'APPEND': lambda machine, _: machine.extend([machine.pop()]),
    'APPENDS': lambda machine, _: machine.extend(machine.pop_mark()),
    'EMPTY_TUPLE': lambda machine, _: machine.push(()),
    'TUPLE': lambda machine, _: machine.push(tuple(machine.pop_mark())),
    'TUPLE1': lambda machine, _: machine.push(machine.pop_many(1)),
    'TUPLE2': lambda machine, _: machine.push(machine.pop_many(2)),
    'TUPLE3': lambda machine, _: machine.push(machine.pop_many(3)),
    'EMPTY_DICT': lambda machine, _: machine.push({}),
    'SETITEM': lambda machine, _: machine.insert(machine.pop_many(2)),
    'SETITEMS': lambda machine, _: machine.insert(machine.pop_mark()),
    'EMPTY_SET': lambda machine, _: machine.push(_Node('set', [])),
    'ADDITEMS': lambda machine, _: machine.extend(machine.pop_mark()),
    'MEMOIZE': lambda machine, _: machine.put(len(machine.memo)),
    'BINPUT': lambda machine, index: machine.put(index),
    'LONG_BINPUT': lambda machine, index: machine.put(index),
    'BINGET': lambda machine, index: machine.get(index),
    'LONG_BINGET': lambda machine, index: machine.get(index),
    'GLOBAL': lambda machine, names: machine.find(*names.split(' ', 1)),
    'STACK_GLOBAL': lambda machine, _: machine.find(*machine.pop_many(2)),
    'REDUCE': lambda machine, _: machine.call('function'),
    'NEWOBJ': lambda machine, _: machine.call('class'),
    'BUILD': lambda machine, _: machine.build(),
    'BINPERSID': lambda machine, _: machine.load_persistent(),
}


class _Finish:
    """Turns what a machine made into plain Python: dict, list, tuple, text, bytes, numbers, None
    and numpy arrays.

    What is reached twice stays one object, yet is counted twice: whoever walks the tree walks it in
    full.
    """

    def __init__(self, budget):
        self.budget, self.memo = budget, {}

    def __call__(self, node, depth=0):
        """Returns (plain value, entries, levels)."""
        if node is None or type(node) in (bool, int, float, str, bytes):
            return node, 1, 0
        self.check(depth)
        # By identity, which is safe as the machine's tree keeps all nodes alive.
        if id(node) not in self.memo:
            self.memo[id(node)] = None
            kind = node.kind if type(node) is _Node else type(node)
            if kind not in _FINISH:
                raise _Refused(
                    f'holds a {getattr(kind, "__name__", kind)} where data belongs', _EXPORT
                )
            self.memo[id(node)] = _FINISH[kind](self, node, depth + 1)
        if self.memo[id(node)] is None:
            raise _Refused('contains itself', _EXPORT)
        return self.memo[id(node)]

    def check(self, depth):
        if depth > self.budget.limits.depth:
            raise _Refused(f'is nested deeper than {self.budget.limits.depth}', _LIMITS)

    def all(self, nodes, depth):
        """([plain values], entries, levels) of a container's nodes."""
        done, entries, levels = [], 1, 0
        for node in nodes:
            value, more, below = self(node, depth)
            done.append(value)
            entries, levels = self.budget.count(entries + more), max(levels, below)
        self.check(levels + 1)
        return done, entries, levels + 1


def _finish_tuple(finish, node, depth):
    values, *counts = finish.all(node, depth)
    return tuple(values), *counts


def _finish_dict(finish, node, depth):
    values, *counts = finish.all(node.values(), depth)
    return dict(zip(node, values)), *counts


def _finish_module(finish, node, depth):
    if node.value['state'] is None:
        node.value['state'] = {}
    return _finish_dict(finish, node.value, depth)


def _finish_array(finish, node, depth):
    if node.value is None:
        raise _Refused('has a numpy array without its data')
    return node.value, 1, 0


def _finish_tensor(finish, node, depth):
    storage, offset, shape, stride = node.value
    if storage.data is None:
        raise _Refused('has a tensor whose storage is missing')
    # _tensor has checked that this lies in the storage.
    strides = [step * storage.dtype.itemsize for step in stride]
    view = np.lib.stride_tricks.as_strided(storage.data[offset:], shape, strides, writeable=False)
    finish.budget.spend(view.nbytes)
    return view if view.flags.c_contiguous else view.copy(order='C'), 1, 0


def _finish_storage(finish, node, depth):
    return _finish_tensor(
        finish, _Node('tensor', (node.value, 0, (node.value.count,), (1,))), depth
    )


_FINISH = {
    list: lambda finish, node, depth: finish.all(node, depth),
    tuple: _finish_tuple,
    dict: _finish_dict,
    'set': lambda finish, node, depth: _finish_tuple(finish, node.value, depth),
    'module': _finish_module,
    'script': lambda finish, node, depth: _finish_dict(finish, node.value or {}, depth),
    'array': _finish_array,
    'tensor': _finish_tensor,
    'storage': _finish_storage,
}

_PART = r'(?!\.\.?(?:/|\Z))[^\x00-\x1f\\:/]+'
_MEMBER = f'{_PART}(?:/{_PART})*'  # Of an archive: a path that stays in the folder.

_MAGIC = 0x1950A86A20F9469CFC6C  # Of torch's legacy format, as are the next two.
_PROTOCOL = 1001


def _storages(limits, length):
    """(persistent id -> node, {key: _Storage} of those that were asked for).

    A persistent id is ('storage', type, key, device, count). In the legacy format the numbers of a
    view may follow, which no torch since 0.4 has written.
    """
    found = {}

    def persistent(name):
        if (
            type(name) is not tuple
            or len(name) != length
            or name[0] != 'storage'
            or any(x is not None for x in name[5:])
        ):
            raise _Refused('has a persistent id that is not of a storage', _EXPORT)
        _, kind, key, device, count = name[:5]
        if (
            not _is(kind, 'storage type')
            or type(key) is not str
            or type(device) is not str
            or not _natural(count)
        ):
            raise _Refused('has a persistent id of the wrong form')
        storage = found.setdefault(key, _Storage(kind.value, count))
        if (storage.dtype, storage.count) != (kind.value, count):
            raise _Refused(f'gives its storage {_show(key)} two types or sizes')
        if storage.size > limits.array:
            raise _Refused(
                f'has a storage of {storage.size} bytes, more than {limits.array}', _LIMITS
            )
        return _Node('storage', storage)

    return persistent, found


def _legacy(stream, budget, nesting=0):
    """The rest of a file of torch's format before 1.6, behind the magic number; nothing may follow
    it.

    protocol version, {little_endian, ...}, object, [keys], then of each key in turn an int64 count
    and the raw numbers.
    """
    if _Machine(budget).run(stream) != _PROTOCOL:
        raise _Refused("is of an unknown version of torch's legacy format", _EXPORT)
    system = _Machine(budget).run(stream)
    if type(system) is not dict or system.get('little_endian') is not True:
        raise _Refused('was written on a machine of another byte order', _EXPORT)
    persistent, storages = _storages(budget.limits, 6)
    tree = _Machine(budget, persistent, nesting).run(stream)
    keys = _Machine(budget).run(stream)
    if (
        type(keys) is not list
        or not all(type(key) is str for key in keys)
        or sorted(keys) != sorted(storages)
    ):
        raise _Refused('lists other storages than its tensors use')
    for key in keys:
        storage = storages[key]
        if struct.unpack('<q', stream.read(8)) != (storage.count,):
            raise _Refused(f'has a storage {_show(key)} of another size than its tensors say')
        budget.spend(storage.size)
        storage.fill(stream.array(storage.size))
    if stream.left:
        raise _Refused(f'has {stream.left} bytes behind its end')
    return tree


def _pickle(file, size, budget):
    stream = _Stream(file, size)
    tree = _Machine(budget).run(stream)
    if tree == _MAGIC:
        return _legacy(stream, budget)
    if stream.left:
        raise _Refused(f'has {stream.left} bytes behind its end')
    return tree


def _zip(file, size, budget):
    """torch.save's archive or TorchScript's: <folder>/data.pkl, and <folder>/data/<key> of each
    storage."""
    try:
        archive, members = open_archive(file, _MEMBER, budget.limits.members)
    except Refused as error:
        raise _Refused(str(error), _LIMITS if error.large else _DAMAGED) from error
    with archive:

        def content(name):
            """Uncompressed, as torch writes it; so no member is larger than the file. zipfile
            compares the CRC."""
            if name not in members:
                raise _Refused(f'is a zip archive without {_show(name)}')
            info = members[name]
            if (
                info.compress_type != zipfile.ZIP_STORED
                or info.compress_size != info.file_size
                or info.flag_bits & 1
            ):
                raise _Refused(
                    f'is a zip archive whose {_show(name)} is compressed or encrypted', _EXPORT
                )
            budget.spend(info.file_size)
            with archive.open(info) as member:
                return _Stream(member, info.file_size).array(info.file_size)

        folders = [
            name[:-8] for name in members if name.count('/') == 1 and name.endswith('/data.pkl')
        ]
        if len(folders) != 1:
            raise _Refused(
                'is a zip archive, but of no torch file: it lacks the one data.pkl',
                'name a .pth, .pt or .pkl file',
            )
        (folder,) = folders
        if f'{folder}byteorder' in members and bytes(content(f'{folder}byteorder')) != b'little':
            raise _Refused('was written on a machine of another byte order', _EXPORT)
        persistent, storages = _storages(budget.limits, 5)
        program = bytes(content(f'{folder}data.pkl'))
        stream = _Stream(io.BytesIO(program), len(program))
        tree = _Machine(budget, persistent).run(stream)
        if stream.left:
            raise _Refused(f'has {stream.left} bytes behind the end of its data.pkl')
        for key, storage in storages.items():
            data = content(f'{folder}data/{key}')
            if data.size != storage.size:
                raise _Refused(f'has a storage {_show(key)} of another size than its tensors say')
            storage.fill(data)
    return tree


def _format(head):
    """The reader of a file that begins with these 16 bytes, as (binary file, size, budget) ->
    tree."""
    if head[:4] == b'PK\3\4':
        return _zip
    if head[:1] == b'\x80' and head[1:2] in (b'\2', b'\3', b'\4', b'\5'):
        return _pickle
    raise _Refused(
        "is no weight file: neither torch's, nor a pickle of protocol 2 to 5, nor safetensors",
        'if it was downloaded, see whether it is a page or a pointer in place of the file',
    )


def read(path: str | os.PathLike, limits: Limits = LIMITS) -> Any:
    """Reads a weight file of any format of the table above; the format is seen from its content.

    Args:
      path: of the file.
      limits: Limits.

    Returns:
      Nested dict, list, tuple, str, bytes, number, bool, None and numpy arrays (read-only; bfloat16
      is ml_dtypes'). Of a pickled module {'class_name', 'init_args', 'init_kwargs', 'state'}, of a
      TorchScript module its attributes.

    Raises:
      UserError: the file is missing, damaged, of another format, or asks for more than weights
        need.
    """
    path = pathlib.Path(path)
    try:
        if not path.is_file():
            raise _Refused('is no file', 'name a weight file')
        with path.open('rb') as file:
            size = os.fstat(file.fileno()).st_size
            if size > limits.file:
                raise _Refused(f'has {size} bytes, more than {limits.file}', _LIMITS)
            head = file.read(16)
            if head[8:9] == b'{' and int.from_bytes(head[:8], 'little') <= size - 8:
                return store.read(path)[0]
            file.seek(0)
            budget = _Budget(limits, size)
            return _Finish(budget)(_format(head)(file, size, budget))[0]
    except _Refused as error:
        raise UserError(f'{path}: {error}; {error.remedy}') from error
    except UserError:
        raise
    except PermissionError as error:
        raise UserError(f'{path}: may not be read; mend its permissions') from error
    except _MALFORMED as error:
        raise UserError(f'{path}: is damaged ({type(error).__name__}); {_DAMAGED}') from error


def flatten(tree: Any) -> dict[str, np.ndarray]:
    """{dotted name: array} of what `read` returned: the names that torch's state_dict() has.

    The three groups of a module's state add nothing to a name, nor do the fields that `read` gives
    a module; all but arrays is left out.

    Raises:
      ValueError: two arrays of one name, or names of more than MAX_NAMES characters together.
    """
    found, left = {}, MAX_NAMES

    def visit(node, *path):
        nonlocal left
        if isinstance(node, np.ndarray):
            left -= sum(map(len, path))
            if left < 0:
                raise ValueError(f'names of arrays have more than {MAX_NAMES} characters')
            name = '.'.join(path)
            if name in found:
                raise ValueError(f'two arrays have the name {_show(name)}')
            found[name] = node
        elif isinstance(node, dict):
            if tuple(node) == MODULE:
                node = node['state']
            for key, child in node.items():
                visit(
                    child,
                    *path,
                    *([] if key in ('_parameters', '_buffers', '_modules') else [str(key)]),
                )
        elif isinstance(node, (list, tuple)):
            for index, child in enumerate(node):
                visit(child, *path, str(index))

    visit(tree)
    return found
