"""The model card of an export: README.md, with the front matter that model hubs read."""

import html
import json
import re
from collections.abc import Mapping
from typing import Any

from fdistill.config import parameters
from fdistill.diffusion.samplers import SAMPLERS
from fdistill.evaluation.protocol import MARK
from fdistill.export.model import Exportable
from fdistill.files import disk
from fdistill.methods import METHODS
from fdistill.methods.generator import Steps

# Of the names of licences that a model hub knows, those of weights; it refuses a card with another.
LICENCES = frozenset(
    'apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m openrail++ afl-3.0 bsd '
    'bsd-2-clause bsd-3-clause bsd-3-clause-clear cc cc0-1.0 cc-by-2.0 cc-by-2.5 cc-by-3.0 '
    'cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 '
    'cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 gpl gpl-2.0 '
    'gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 agpl-3.0 isc mpl-2.0 unlicense wtfpl zlib unknown'.split()
)
USE = {
    'jax': """```python
from loader import load, to_uint8  # in this folder; needs jax and numpy

sample = load()
{samples} = sample(seed=0, n=16{label})  # float32 {shape}; to_uint8 makes levels of images
```""",
    'onnx': """```python
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession('model.onnx')
given = {'noise': np.random.default_rng(0).standard_normal({noise}).astype(np.float32)}{labels}
({samples},) = session.run(None, given)  # float32 {shape}
```""",
    'page': 'Open `index.html` in a browser. It generates there and asks nothing of any network.',
    'diffusers': """```python
import json

import diffusers

with open('config.json') as file:  # in this folder
    kind = json.load(file)['_class_name']
model = getattr(diffusers, kind).from_pretrained('.')
```""",
    'safetensors': """```sh
fdistill sample --weights=model.safetensors
```{teacher}""",
}

TEACHER = """

As a teacher, in a config of fdistill: `teacher=dict(weights='model.safetensors')`."""


def text(model: Exportable, target: str, notes: str = '') -> str:
    """The card.

    Args:
      model: what is exported.
      target: key of USE.
      notes: about the form that it is exported in.
    """
    run = model.run
    parts = [_front(model, target), f'# {_cell(title(model))}', _cell(told(model))]
    use, classes = USE[target], run.num_classes
    for name, value in {
        'shape': str((16, *run.decoded)),
        'noise': str((16, *run.shape)),
        'samples': 'images' if len(run.decoded) == 3 else 'points',
        'label': ', label=3' if classes > 3 else '',
        'labels': f"\ngiven['label'] = np.arange(16, dtype=np.int32) % {classes}"
        if classes
        else '',
        # A student is no denoiser at the levels that a teacher is asked for.
        'teacher': '' if model.steps else TEACHER,
    }.items():
        use = use.replace(f'{{{name}}}', value)
    parts += ['## Use', use]
    parts += ['## Facts', _table(('what', 'value'), facts(model).items())]
    parts += ['## Measured', _measured(model)]
    if model.derived_from:
        rows = [(one['name'], one['licence'], one['sha256']) for one in model.derived_from]
        parts += ['## Made from', _table(('file', 'licence', 'SHA-256'), rows)]
    versions = ', '.join(f'{name} {version}' for name, version in disk.versions().items())
    parts += ['## Form', f'{notes}{"." if notes else ""} Written with {versions}.'.strip()]
    if model.method:
        settings = json.dumps(model.method, indent=2, sort_keys=True)
        parts += ['## Settings of the method', f'```json\n{settings}\n```']
    return '\n\n'.join(parts) + '\n'


def title(model: Exportable) -> str:
    """What the model is, in a few words."""
    steps = 'one' if model.run.nfe == 1 else model.run.nfe
    return f'A {f"{steps}-step generator" if model.steps else "denoiser"} of {_line(model.name)}'


def facts(model: Exportable) -> dict[str, Any]:
    """{what: value} of the model."""
    run, method, steps = model.run, model.method, model.steps
    first = (steps.sigma_init,) if isinstance(steps, Steps) else ()
    levels = (*first, *steps.levels) if steps else ()
    known = {
        'method': method.get('name'),
        'divergence': method.get('divergence'),
        'data': model.name,
        'sample': ' x '.join(map(str, run.decoded)),
        'latent': ' x '.join(map(str, run.shape)) if model.decoder else None,
        'classes': run.num_classes or None,
        'network': model.sections['network']['name'],
        'network evaluations a sample': run.nfe,
        'sampled by': None if model.steps else _solver(run.config.to_dict()['method']),
        'levels of noise': ', '.join(map(str, levels)) or None,
        'training steps': run.step or None,
        'weights': f'{sum(array.size for array in model.weights.values()):,} numbers',
        'digest of the weights': run.digest,
        'licence': model.licence or 'not stated',
    }
    return {what: value for what, value in known.items() if value is not None}


def _solver(method):
    if 'sampler' not in method:
        default = parameters(METHODS[method['name']])['sampler'].default
        return next(name for name, sampler in SAMPLERS.items() if sampler == default)
    given = method['sampler']
    return given if isinstance(given, str) else ', '.join(f'{k} {v}' for k, v in given.items())


def told(model: Exportable) -> str:
    """How the model was made, in a sentence."""
    method = model.method
    if not method:
        return 'Converted by fdistill.'
    by = f' under the divergence {method["divergence"]}' if 'divergence' in method else ''
    return _line(f'Trained with fdistill by `{method["name"]}`{by}.')


def _front(model, target):
    """YAML; what is not of this file is written as JSON, which is YAML too."""
    method = [model.method['name']] if model.method else []
    licence = model.licence or 'not stated'
    named = '-'.join(re.findall(r'[a-z0-9.]+', licence.lower()))
    front: dict[str, Any] = {
        'license': named if named in LICENCES else 'other',
        'library_name': target if target in ('diffusers', 'onnx') else 'fdistill',
        'tags': ['diffusion-distillation', *method, target],
    }
    if len(model.run.decoded) == 3:
        front['pipeline_tag'] = 'unconditional-image-generation'
    if named not in LICENCES:
        front['license_name'] = named
    lines = [f'{name}: {json.dumps(value)}' for name, value in front.items()]
    return '\n'.join(['---', *lines, '---'])


def _measured(model):
    rows = []
    for row in model.evaluations:
        names: Mapping[str, str] = row.get('protocol', {})
        marked = row.get('trained_on', ())
        rows += [(name, row[key], key in marked) for key, name in names.items() if key in row]
    if not rows:
        return 'Nothing was measured of these weights; `fdistill evaluate` does.'
    shown = [
        (f'`{name}`', (f'{v:.6g}' if isinstance(v, float) else str(v)) + f' ({MARK})' * seen)
        for name, v, seen in rows
    ]
    return _table(('number, with its protocol', 'value'), shown)


def _table(head, rows):
    lines = [head, ['---'] * len(head), *rows]
    return '\n'.join('| ' + ' | '.join(_cell(cell) for cell in line) + ' |' for line in lines)


def _line(value):
    return ' '.join(str(value).split())


def _cell(value):
    """A value in Markdown, where it is to be no markup of HTML and no border of a cell."""
    return html.escape(_line(value), quote=False).replace('|', '\\|')
