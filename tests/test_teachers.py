"""Published teachers: converted out of files as they were published, and used."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import teachers_goldens
import weights_files as files

from fdistill import build
from fdistill.build import published
from fdistill.build.models import make_denoiser
from fdistill.errors import UserError
from fdistill.files import disk
from fdistill.weights import denoisers, store


@pytest.fixture(scope='module')
def goldens():
    with np.load(teachers_goldens.GOLDENS) as arrays:
        return dict(arrays)


def of_python(value):
    """A setting as a pickle writes it."""
    if value is None or isinstance(value, bool):
        return {None: files.NONE, True: files.TRUE, False: files.FALSE}[value]
    if isinstance(value, (list, tuple)):
        return files.items(*map(of_python, value))
    if isinstance(value, float):
        return b'G' + np.array(value, '>f8').tobytes()
    return files.text(value) if isinstance(value, str) else files.number(value)


def pickled(case, goldens, change=None, settings=None, dtype=np.float32, kind=None):
    """A network as NVIDIA publishes it; `change` may alter {name: array}."""
    _, kind_, own = teachers_goldens.CASES[case]
    arrays = {
        name: teachers_goldens.weight(name, shape)
        for name, shape in json.loads(str(goldens[f'{case}/entries'])).items()
    }
    arrays |= {
        key.removeprefix(f'{case}/kept/'): array
        for key, array in goldens.items()
        if key.startswith(f'{case}/kept/')
    }
    arrays = {name: np.asarray(array, dtype) for name, array in arrays.items()}
    arrays = change(arrays) if change else arrays
    arguments = {name: of_python(v) for name, v in {**own, **(settings or {})}.items()}
    module = files.module(kind or kind_, arrays, arguments)
    return files.program(files.pairs({'ema': module, 'dataset_kwargs': files.pairs({})}))


@pytest.fixture
def put(tmp_path):
    def write(data, name='teacher.pkl'):
        (tmp_path / name).write_bytes(data)
        return tmp_path / name

    return write


def loaded(path):
    """(Denoiser, params) of a converted file."""
    model = denoisers.about(path)['model']
    network = make_denoiser(model['network'], model['denoiser'], model['image'], 'config.')
    return network, published.load(network, path, model['image'])[0]


def close(ours, theirs, relative):
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    error = np.abs(ours - theirs).max() / np.abs(theirs).max()
    assert error <= relative, error


@pytest.mark.parametrize('case', teachers_goldens.CASES)
def test_agrees_with_its_own_code(case, goldens, put, tmp_path):
    source, out = put(pickled(case, goldens)), tmp_path / 'out.safetensors'
    report = build.convert(source, out)
    assert report['source_sha256'] == disk.sha256(source) and 'NVIDIA' in report['licence']
    network, params = loaded(out)
    x, label, augment, probe = teachers_goldens.inputs(case)
    given = {'label': label, 'augment': augment}
    given = {name: jnp.asarray(value) for name, value in given.items() if value is not None}

    @jax.jit
    def weighed(params, x):
        out, features = network.apply(params, x, jnp.asarray(teachers_goldens.SIGMAS), given)
        return jnp.sum(out * probe), (out, features)

    gradient = jax.jit(jax.grad(weighed, argnums=(0, 1), has_aux=True))
    (of_params, of_x), (out, features) = gradient(params, x)
    # EDM finds VP's time, up to 1000, in float32, with cancellation at low levels.
    bar = 5e-5 if case == 'ddpmpp-vp' else 1e-5
    # At 80 the output is as large as the noise and hides the others: each is judged by itself.
    for ours, theirs in zip(out, goldens[f'{case}/out']):
        close(ours, theirs, bar)
    for ours, theirs in zip(of_x, goldens[f'{case}/image']):
        close(ours, theirs, 2 * bar)
    for i, feature in enumerate(features):
        close(feature[0], goldens[f'{case}/feature{i}'], bar)

    theirs = json.loads(str(goldens[f'{case}/gradients']))
    sources = {row['name']: row['found_as'][0].removeprefix('ema.') for row in report['arrays']}
    gradients = {
        sources[published.name_of(path)]: np.asarray(leaf, np.float64)
        for path, leaf in jax.tree_util.tree_leaves_with_path(of_params)
    }
    assert theirs.keys() <= gradients.keys()
    largest = max(map(abs, theirs.values()))
    for name, value in theirs.items():
        array = gradients[name]
        shape = json.loads(str(goldens[f'{case}/entries']))[name]
        if list(array.shape) != shape:  # Ours are [h, w, in, out] and [in, out].
            array = array.transpose((3, 2, 0, 1) if array.ndim == 4 else (1, 0))
        elif array.ndim == 2 and 'edm2' not in case:
            array = array.T
        own = (array * teachers_goldens.probe_of(name, shape)).sum()
        assert abs(own - value) <= 1e-4 * abs(value) + 1e-5 * largest, name


def test_float16_stays_and_is_used_as_float32(goldens, put, tmp_path):
    source = put(pickled('edm2', goldens, dtype=np.float16))
    build.convert(source, tmp_path / 'half.safetensors')
    arrays, _ = store.load(tmp_path / 'half.safetensors')
    assert {array.dtype.name for array in arrays.values()} == {'float16'}
    _, params = loaded(tmp_path / 'half.safetensors')
    for name, array in params.items():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, arrays[name])


def test_report_names_every_array(goldens, put, tmp_path):
    source, out = put(pickled('ncsnpp-ve', goldens)), tmp_path / 'out.safetensors'
    build.convert(source, out)
    report = json.loads(out.with_suffix('.json').read_text())
    entries = json.loads(str(goldens['ncsnpp-ve/entries']))
    found = [name.removeprefix('ema.') for row in report['arrays'] for name in row['found_as']]
    left = {f'model.{name}' for name in report['left_out']}
    assert sorted([*found, *left]) == sorted(entries)
    arrays, _ = store.load(out)
    assert {row['name']: tuple(row['shape']) for row in report['arrays']} == {
        name: array.shape for name, array in arrays.items()
    }
    assert report['model']['denoiser'] == {'name': 've', 'sigma_range': [0.02, 100]}
    assert report['model']['image'] == {'shape': [8, 8, 3], 'num_classes': 5}


def test_vp_knows_its_levels(goldens, put, tmp_path):
    build.convert(put(pickled('ddpmpp-vp', goldens)), tmp_path / 'out.safetensors')
    network, _ = loaded(tmp_path / 'out.safetensors')
    ends = [math.sqrt(math.expm1(0.5 * 19.9 * t**2 + 0.1 * t)) for t in (1e-5, 1)]
    np.testing.assert_allclose(network.sigma_range, ends, rtol=1e-12)


def without(name):
    return lambda arrays: {key: array for key, array in arrays.items() if key != name}


def replaced(name, array):
    return lambda arrays: {**arrays, name: array}


FIRST = 'model.enc.8x8_conv.weight'
# What is wrong: keyword arguments of `pickled`, and what is said of it.
WRONG = {
    'missing': (dict(change=without(FIRST)), "'enc.8x8_conv.weight' is missing"),
    'left over': (
        dict(change=replaced('model.extra', np.zeros(3, np.float32))),
        "'extra' has no place",
    ),
    'shape': (
        dict(change=replaced(FIRST, np.zeros((8, 3, 3, 1), np.float32))),
        'has the shape (3, 1, 3, 8), not (3, 3, 3, 8)',
    ),
    'axes': (dict(change=replaced(FIRST, np.zeros(8, np.float32))), 'has the shape (8,)'),
    'not finite': (
        dict(change=replaced(FIRST, np.full((8, 3, 3, 3), np.nan, np.float32))),
        'is not finite',
    ),
    'integers': (
        dict(change=replaced(FIRST, np.zeros((8, 3, 3, 3), np.int64))),
        'is int64, not float32 or float16 or bfloat16',
    ),
    'filter': (
        dict(
            change=replaced(
                'model.enc.4x4_down.conv0.resample_filter', np.zeros((1, 1, 2, 2), np.float32)
            )
        ),
        'is not the filter [1, 1]',
    ),
    'unknown setting': (dict(settings={'channel_mult_extra': 2}), "'channel_mult_extra'"),
    'another width': (dict(settings={'model_channels': 16}), 'has the shape'),
    'another depth': (dict(settings={'num_blocks': 2}), 'is missing'),
    'no width': (dict(settings={'model_channels': 6}), 'channels cannot be normalised'),
    'a width of text': (dict(settings={'model_channels': 'wide'}), "'wide' is of type str"),
    'resolution': (dict(settings={'img_resolution': 'big'}), "img_resolution='big'"),
    'kind': (dict(kind='iDDPMPrecond'), 'iDDPMPrecond, which is not supported'),
    'other class': (dict(kind='StyleGAN'), "holds 2 entries ('ema', 'dataset_kwargs')"),
    'no published song': (dict(settings={'encoder_type': 'skip'}), "encoder_type='skip'"),
    'huge': (dict(settings={'model_channels': 1 << 20}), 'GiB'),
    'deep': (dict(settings={'num_blocks': 1 << 20}), 'num_blocks=1048576'),
}


@pytest.mark.parametrize('fault', WRONG)
def test_wrong_files_are_refused_by_name(fault, goldens, put, tmp_path):
    given, said = WRONG[fault]
    source, out = put(pickled('ddpmpp', goldens, **given)), tmp_path / 'out.safetensors'
    with pytest.raises(UserError) as caught:
        build.convert(source, out)
    message = str(caught.value)
    assert said in message and str(source) in message and '\n' not in message
    assert not out.exists() and not out.with_suffix('.json').exists()
