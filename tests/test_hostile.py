"""Files of teachers that should not be trusted: each is refused in one line, soon and without much
memory, and nothing in them is run."""

import json
import subprocess
import sys

import numpy as np
import pytest
import weights_files as files
from test_teachers import FIRST, edm_pickle, of_python
from weights_files import (
    NONE,
    call,
    items,
    laughs,
    name,
    nested,
    number,
    pairs,
    program,
    raw,
    reduce,
    text,
)

SMALL = dict(
    img_resolution=8,
    img_channels=1,
    label_dim=0,
    model_type='SongUNet',
    model_channels=8,
    channel_mult=[1],
    num_blocks=1,
    attn_resolutions=[],
    dropout=0.0,
)
SYSTEM = reduce(name('os', 'system'), text('false'))
GETATTR = reduce(name('builtins', 'getattr'), name('os', 'path'), text('join'))
EVAL = reduce(name('builtins', 'eval'), text('__import__("antigravity")'))


def module(*, kind='EDMPrecond', arrays=None, **arguments):
    """A module with pieces of a pickle among what it was built with."""
    arrays = {FIRST: np.zeros((8, 1, 3, 3), np.float32)} if arrays is None else arrays
    own = {key: of_python(value) for key, value in SMALL.items()} | arguments
    return files.module(kind, arrays, own)


def teacher(value):
    return program(pairs({'ema': value}))


def stored(piece):
    """A teacher one of whose storages is this byte string."""
    load = reduce(name('torch.storage', '_load_from_bytes'), raw(piece))
    tensor = files.view(load, (8, 1, 3, 3))
    state = {
        '_init_args': files.EMPTY,
        '_init_kwargs': pairs({}),
        '_parameters': pairs({'w': tensor}),
    }
    return teacher(files.persistent('EDMPrecond', pairs(state)))


def deep(levels):
    value = pairs({})
    for _ in range(levels):
        value = files.persistent('Layer', pairs({'_modules': pairs({'a': value})}))
    return teacher(value)


def strided():
    """A storage of 24 bytes seen as a tensor of many gigabytes."""
    storage = files.storage('0', 6)
    return files.saved(pairs({'ema': files.view(storage, (1 << 20, 1 << 14), (0, 0))}))


def truncated(share):
    data = edm_pickle('EDMPrecond', SMALL)
    return data[: int(len(data) * share)]


def header(**changes):
    one = {'dtype': 'F32', 'shape': [2], 'data_offsets': [0, 8]} | changes
    return files.safetensors({'a': one}, bytes(8))


# What a stranger may send in place of a teacher.
HOSTILE = {
    # Calls where data belongs.
    'os.system as the average': teacher(SYSTEM),
    'os.system as a setting': teacher(module(dropout=SYSTEM)),
    'os.system beside the average': program(pairs({'ema': module(), 'loss_fn': SYSTEM})),
    'os.system as a class name': teacher(
        reduce(
            name('torch_utils.persistence', '_reconstruct_persistent_obj'),
            pairs({'type': text('class'), 'class_name': SYSTEM, 'state': pairs({})}),
        )
    ),
    'a chain of getattr': teacher(module(model_type=GETATTR)),
    'eval': teacher(module(channel_mult=EVAL)),
    'exec of its own source': call(
        'torch_utils.persistence', '_src_to_module', text('raise SystemExit')
    ),
    'a storage that calls': stored(program(SYSTEM)),
    'a storage that is a module': stored(teacher(module())),
    'a storage in a storage': stored(
        program(reduce(name('torch.storage', '_load_from_bytes'), raw(program(SYSTEM))))
    ),
    'a global of another module': teacher(name('antigravity', 'fly')),
    'a state set twice': teacher(module() + pairs({'a': SYSTEM}) + b'b'),
    # What becomes large, or never ends.
    'a long byte string that is not there': teacher(b'\x8e' + (1 << 40).to_bytes(8, 'little')),
    'lists of lists of lists': teacher(module(channel_mult=laughs(9)[2:-1])),
    'modules within modules': deep(5000),
    'a tensor of strides 0': strided(),
    'a storage larger than the file': teacher(
        files.view(files.storage('0', 1 << 40, 'FloatStorage', NONE), (1 << 40,))
    ),
    'a million settings': teacher(module(channel_mult=items(*[number(1)] * 200_000))),
    'an average that holds itself': program(b'}q\x00' + text('ema') + b'h\x00s'),
    'a memo that is not there': teacher(b'h\x07'),
    # Settings that would cost too much, or mean nothing.
    'a width of 10^30': teacher(module(model_channels=number(10**30))),
    'a width of 2^20': teacher(module(model_channels=number(1 << 20))),
    'a negative width': teacher(module(model_channels=number(-8))),
    'a depth of 10^18': teacher(module(num_blocks=number(10**18))),
    'a resolution of 2^40': teacher(module(img_resolution=number(1 << 40))),
    'a negative resolution': teacher(module(img_resolution=number(-8))),
    '2^40 classes': teacher(module(label_dim=number(1 << 40))),
    '2^40 augmentation labels': teacher(module(augment_dim=number(1 << 40))),
    'a thousand levels': teacher(module(channel_mult=items(*[number(1)] * 1000))),
    'a sigma_data that is no number': teacher(module(sigma_data=of_python(float('nan')))),
    'a sigma_data of 0': teacher(module(sigma_data=of_python(0.0))),
    'an infinite beta': teacher(module(kind='VPPrecond', beta_d=of_python(float('inf')))),
    'a negative beta': teacher(module(kind='VPPrecond', beta_min=of_python(-3.0))),
    'levels upside down': teacher(
        module(kind='VEPrecond', sigma_min=number(9), sigma_max=number(1))
    ),
    'betas of text': teacher(module(kind='VPPrecond', beta_d=text('large'))),
    'levels of text': teacher(module(kind='VEPrecond', sigma_max=text('large'))),
    'a setting without a name': teacher(
        files.persistent(
            'EDMPrecond', pairs({'_init_args': items(number(8)), '_init_kwargs': NONE})
        )
    ),
    'settings that are no dict': teacher(
        files.persistent(
            'EDMPrecond', pairs({'_init_args': files.EMPTY, '_init_kwargs': number(3)})
        )
    ),
    'a network that is a list': teacher(module(model_type=items(text('SongUNet')))),
    'a filter of text': teacher(module(resample_filter=text('wide'))),
    'a width that is a module': teacher(module(model_channels=module())),
    'an array among the settings': teacher(module(dropout=nested(np.zeros(3, np.float32)))),
    'an average of a list': teacher(items(module())),
    # Files cut off, and headers that lie.
    'nothing': b'',
    'a quarter of it': truncated(0.25),
    'nearly all of it': truncated(0.999),
    'a header of 2^60 bytes': files.safetensors({}, b'', 1 << 60),
    'a header longer than the file': files.safetensors(b'{"a"', b'', 4000),
    'an array beyond the end': header(data_offsets=[0, 1 << 40], shape=[1 << 38]),
    'an array before the start': header(data_offsets=[8, 0]),
    'more numbers than bytes': header(shape=[1 << 40]),
    'an unknown type': header(dtype='F9'),
    'a safetensors file of something else': header(),
}

# Converts every file of a folder with 1 GiB to spare, and prints of each the message and the
# seconds that it took; and every event of the interpreter that runs or reaches something.
WATCH = """
import json, pathlib, resource, sys, time
from fdistill import build
from fdistill.errors import UserError
folder = pathlib.Path(sys.argv[1])
build.convert(folder / 'good.pkl', folder / 'good.safetensors')
paths, events, said = sorted(folder.glob('*.hostile')), [], {}
used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30),) * 2)
bad = ('exec', 'compile', 'import', 'subprocess', 'socket', 'os.', 'ctypes', 'pickle', 'shutil')
own = ('os.listdir', 'os.scandir', 'os.putenv')
def watch(event, arguments):
    if event.startswith(bad) and event not in own:
        events.append([event, str(arguments)[:200]])
for path in paths:
    sys.addaudithook(watch) if path == paths[0] else None
    began = time.process_time()
    try:
        build.convert(path, folder / 'out.safetensors')
        message = None
    except UserError as error:
        message = str(error)
    said[path.stem] = [message, time.process_time() - began]
left = [path.name for path in folder.iterdir() if path.suffix in ('.json', '.safetensors')]
print(json.dumps([said, events, left, [m for m in ('torch', 'antigravity') if m in sys.modules]]))
"""


@pytest.fixture(scope='module')
def watched(tmp_path_factory):
    folder = tmp_path_factory.mktemp('hostile')
    (folder / 'good.pkl').write_bytes(edm_pickle('EDMPrecond', SMALL))
    for key, data in HOSTILE.items():
        (folder / f'{key}.hostile').write_bytes(data)
    run = subprocess.run([sys.executable, '-c', WATCH, str(folder)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def test_nothing_is_run_and_nothing_is_left(watched):
    said, events, left, imported = watched
    assert said.keys() == HOSTILE.keys() and len(HOSTILE) >= 40
    assert events == [] and imported == []
    assert sorted(left) == ['good.json', 'good.safetensors']


@pytest.mark.parametrize('key', HOSTILE)
def test_is_refused_in_one_line_and_soon(key, watched):
    message, seconds = watched[0][key]
    assert message is not None and '\n' not in message and len(message) < 700, message
    assert f'{key}.hostile' in message
    assert seconds < 2
