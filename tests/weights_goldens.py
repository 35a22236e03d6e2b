"""Tiny files as torch and numpy really write them, and what is in them.

`python tests/weights_goldens.py` writes data/weights_goldens.zip, with one member a file; it needs
torch. Recorded with torch 2.13.0 and numpy 2.4 on a CPU.
"""

import collections
import io
import pathlib
import pickle
import sys
import types
import zipfile

import numpy as np

GOLDENS = pathlib.Path(__file__).parent / 'data' / 'weights_goldens.zip'
TYPES = (
    'float64',
    'float32',
    'float16',
    'bfloat16',
    'int64',
    'int32',
    'int16',
    'int8',
    'uint8',
    'bool',
)


def value(name):
    """The array behind each name of the files: its name's own small numbers, which every dtype of
    TYPES but bool holds."""
    shape = {
        'weight': (2, 1, 1, 3),
        'beta': (2,),
        'mean': (2,),
        'var': (2,),
        'bias': (3,),
        'scalar': (),
    }
    shape = shape.get(name.split('.')[-1], (3, 2))
    return np.asarray((np.arange(np.prod(shape)).reshape(shape) + sum(name.encode())) % 11)


def record():
    """Writes GOLDENS."""
    import torch

    def tensor(name, dtype='float32'):
        return torch.from_numpy(value(name)).to(getattr(torch, dtype))

    class Conv2dLayer(torch.nn.Module):
        """A convolution as NVIDIA's detector keeps it."""

        def __init__(self, name):
            super().__init__()
            self.padding = [0, 1]
            self.weight = torch.nn.Parameter(tensor(f'{name}.weight'))
            for entry in ('beta', 'mean', 'var'):
                self.register_buffer(entry, tensor(f'{name}.{entry}'))

        def forward(self, x):
            x = torch.nn.functional.conv2d(x, self.weight, padding=self.padding)
            return torch.nn.functional.batch_norm(x, self.mean, self.var, bias=self.beta)

    class Detector(torch.nn.Module):
        def __init__(self):
            super().__init__()
            layers = [('conv', Conv2dLayer('layers.conv')), ('pool', torch.nn.MaxPool2d(2))]
            self.layers = torch.nn.Sequential(collections.OrderedDict(layers))
            self.output = torch.nn.Linear(2, 3)
            self.output.weight = torch.nn.Parameter(tensor('output.matrix'))
            self.output.bias = torch.nn.Parameter(tensor('output.bias'))

        def forward(self, x):
            return self.output(self.layers(x).mean([2, 3]))

    # Stand-ins for NVIDIA's modules, by whose names its pickles call theirs.
    def reconstruct(meta):
        raise NotImplementedError

    class EasyDict(dict):
        pass

    for function, place in (
        (reconstruct, 'torch_utils.persistence._reconstruct_persistent_obj'),
        (EasyDict, 'dnnlib.util.EasyDict'),
    ):
        function.__module__, _, function.__qualname__ = place.rpartition('.')
        function.__name__ = function.__qualname__
        stand_in = types.SimpleNamespace(**{function.__name__: function})
        sys.modules |= {function.__module__: stand_in, function.__module__.split('.')[0]: stand_in}

    def reduce(module):
        state = dict(module.__dict__, _init_args=('conv',), _init_kwargs=EasyDict(depth=1))
        meta = dict(
            type='class',
            version=6,
            module_src='raise SystemExit',
            class_name=type(module).__name__,
            state=state,
        )
        return reconstruct, (meta,), None

    files = {}

    def keep(name, write):
        buffer = io.BytesIO()
        write(buffer)
        files[name] = buffer.getvalue()

    scripted = torch.jit.script(Detector())
    keep('script.pt', lambda file: torch.jit.save(scripted, file))
    tensors = {name: tensor(name, name) for name in TYPES} | {'scalar': tensor('scalar')}
    tensors['transposed'] = tensor('transposed.weight').transpose(0, 3)
    # Two tensors of one storage, one of them not from its start.
    tensors['rows'] = torch.arange(12.0).reshape(4, 3)
    tensors['row'] = tensors['rows'][1:3]
    tensors = collections.OrderedDict(tensors)
    keep('types.pth', lambda file: torch.save(tensors, file))
    keep(
        'types-legacy.pth',
        lambda file: torch.save(tensors, file, _use_new_zipfile_serialization=False),
    )
    keep('detector.pth', lambda file: torch.save(Detector().state_dict(), file))
    for module in (Conv2dLayer, Detector):
        module.__reduce__ = reduce
    network = {
        'ema': Detector(),
        'dataset_kwargs': EasyDict(path='x', max_size=None),
        'tags': {'a'},
        'size': torch.Size([2, 3]),
    }
    fid = {'mu': np.arange(3.0), 'sigma': np.asfortranarray(np.arange(9.0).reshape(3, 3))}
    statistics = {'num_images': np.int64(3), 'fid': fid, 'big-endian': np.arange(3, dtype='>f4')}
    for protocol in (2, 4, 5):
        files[f'nvidia-{protocol}.pkl'] = pickle.dumps(network, protocol)
        files[f'statistics-{protocol}.pkl'] = pickle.dumps(statistics, protocol)
    with zipfile.ZipFile(GOLDENS, 'w', zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED)


if __name__ == '__main__':
    record()
