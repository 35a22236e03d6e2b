"""Diffusion transformers converted out of facebook's and diffusers' files."""

import dit_goldens
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import weights_files as files
from dit_goldens import CASES

from fdistill import build
from fdistill.build import published
from fdistill.build.models import make_denoiser
from fdistill.config import call
from fdistill.diffusion import noise
from fdistill.errors import UserError
from fdistill.networks.dit import dit, sincos
from fdistill.weights import denoisers, store
from fdistill.weights import dit as origin
from fdistill.weights.found import Refused


def weights(case):
    """Our parameters of a case."""
    network = call(dit, case.settings, 'config.network')
    x = jax.ShapeDtypeStruct((1, case.side, case.side, 4), jnp.float32)
    shapes = jax.eval_shape(network.init, jax.random.key(0), x, jnp.zeros(1), {})
    return {name: dit_goldens.weight(name, leaf.shape) for name, leaf in shapes.items()}


def state(name, dtype=np.float32):
    """A state dict as facebook publishes it."""
    case = CASES[name]
    side = case.side // case.settings['patch']
    arrays = weights(case) | {'pos_embed': sincos(16, side, side, side)}
    return {name: array.astype(dtype) for name, array in arrays.items()}


def training(args, **states):
    """A checkpoint of train.py: several state dicts, and the settings."""
    storages, entries = {}, {}
    for kind, arrays in states.items():
        views = {}
        for name, array in arrays.items():
            key = str(len(storages))
            storages[key] = array.tobytes()
            stored = files.storage(key, array.size, files.STORAGES[array.dtype.name])
            views[name] = files.view(stored, array.shape)
        entries[kind] = files.pairs(views)
    entries['opt'] = files.pairs({'param_groups': files.items()})
    given = files.pairs({key: files.text(value) for key, value in args.items()})
    entries['args'] = files.new('argparse', 'Namespace', given)
    return files.saved(files.pairs(entries), storages)


@pytest.fixture
def convert(tmp_path):
    """convert(bytes of a .pt file, **options) -> (path of ours, report)"""

    def run(data, **options):
        source, out = tmp_path / 'teacher.pt', tmp_path / 'out.safetensors'
        source.write_bytes(data)
        try:
            return out, build.convert(source, out, **options)
        except UserError as error:
            assert str(source) in str(error) and '\n' not in str(error) and not out.exists()
            raise

    return run


# Of each, how x_t is made of x and noise, and the prediction of D.
WAYS = {
    'dit': (noise.discrete(), lambda t: t, lambda x_t, x, a, s: (x_t - a * x) / s),
    'sit': (noise.flow(), lambda t: 1 - t, lambda x_t, x, a, s: (x - x_t) / s),
}


@pytest.mark.parametrize('kind', WAYS)
def test_a_published_file_answers_as_its_own_code(kind, convert):
    case, (schedule, time, predict) = CASES[kind], WAYS[kind]
    out, report = convert(files.state_dict(state(kind)), of=kind, heads=2)
    assert 'Meta' in report['licence'] and report['left_out'].keys() == {'pos_embed'}
    model = denoisers.about(out)['model']
    denoiser = make_denoiser(model['network'], model['denoiser'], model['image'], 'config.')
    params, _ = published.load(denoiser, out, model['image'])

    x_t, times, labels = dit_goldens.inputs(case)
    inner = slice(1, 3)  # At SiT's ends there is only noise, or only data.
    with np.load(dit_goldens.GOLDENS) as arrays:
        expected = arrays[kind][inner, ..., :4]
    t = time(times[inner])
    a, s = (np.asarray(of(t))[:, None, None, None] for of in (schedule.alpha, schedule.sigma))
    x_t, label = x_t[inner], {'label': jnp.asarray(labels[inner])}
    x, _ = jax.jit(denoiser.apply)(params, x_t / a, (s / a).ravel(), label)
    error = np.abs(predict(x_t, np.asarray(x), a, s) - expected).max()
    assert error < 1e-4 * np.abs(expected).max()


def test_of_a_training_the_average_is_taken(convert):
    arrays = state('sit')
    other = {name: array + 1 for name, array in arrays.items()}
    data = training({'path_type': 'Linear', 'prediction': 'velocity'}, model=other, ema=arrays)
    out, report = convert(data, heads=2)  # That it is a SiT, its settings say.
    found, _ = store.load(out)
    assert found.keys() == arrays.keys() - {'pos_embed'}
    for name, array in found.items():
        np.testing.assert_array_equal(array, arrays[name])
    assert {row['found_as'][0] for row in report['arrays']} == {f'ema.{name}' for name in found}
    assert report['model']['network'] == dict(
        name='dit', width=16, depth=3, heads=2, patch=4, learned_variance=True
    )
    assert report['model']['image'] == {'shape': [8, 8, 4], 'num_classes': 10}
    assert report['model']['denoiser']['prediction'] == 'reverse_flow'


def test_a_training_without_a_path_is_of_a_dit(convert):
    _, report = convert(training({'model': 'DiT-S/4'}, model=state('sit')), heads=2, licence='MIT')
    assert report['model']['denoiser']['prediction'] == 'eps' and report['licence'] == 'MIT'
    assert report['arrays'][0]['found_as'][0].startswith('model.')


def test_positions_that_were_learned_stay(convert):
    arrays = state('dit')
    arrays['pos_embed'] = arrays['pos_embed'] + np.float32(0.1)
    out, report = convert(files.state_dict(arrays), of='dit', heads=2)
    assert report['model']['network']['positions'] == 'learned' and not report['left_out']
    np.testing.assert_array_equal(store.load(out)[0]['pos_embed'], arrays['pos_embed'])


def test_positions_of_half_precision_are_known(convert):
    _, report = convert(files.state_dict(state('dit', np.float16)), of='dit', heads=2)
    assert report['left_out'].keys() == {'pos_embed'}


def without(name):
    return lambda arrays: {key: array for key, array in arrays.items() if key != name}


def replaced(name, array):
    return lambda arrays: {**arrays, name: array}


ZEROS = np.zeros
BIAS = 'blocks.2.attn.proj.bias'
WRONG = {
    'of which': (None, dict(heads=2, of=None), 'may be dit or sit; say which with --of=NAME'),
    'heads': (None, dict(heads=None), 'give --heads=NUMBER'),
    'no such heads': (None, dict(heads=3), 'heads=3'),
    'no heads': (None, dict(heads=0), 'heads=0'),
    'heads of text': (None, dict(heads='many'), "heads: 'many' is of type str"),
    'missing': (without(BIAS), {}, f"'{BIAS}' is missing"),
    'a block': (
        lambda arrays: {k: v for k, v in arrays.items() if not k.startswith('blocks.1.')},
        {},
        "'blocks.1.adaLN_modulation.1.bias' is missing",
    ),
    'left over': (
        replaced('blocks.0.attn.q_norm.weight', ZEROS(8, np.float32)),
        {},
        "'blocks.0.attn.q_norm.weight' has no place",
    ),
    'shape': (replaced(BIAS, ZEROS(17, np.float32)), {}, 'has the shape (17,), not (16,)'),
    'axes': (
        replaced('x_embedder.proj.weight', ZEROS((16, 16), np.float32)),
        {},
        "'x_embedder.proj.weight' has the shape (16, 16)",
    ),
    'no square': (
        replaced('pos_embed', ZEROS((1, 15, 16), np.float32)),
        {},
        "'pos_embed' has 15 patches",
    ),
    'integers': (replaced(BIAS, ZEROS(16, np.int64)), {}, 'is int64, not float32'),
    'not finite': (replaced(BIAS, np.full(16, np.nan, np.float32)), {}, 'is not finite'),
    'classes': (
        without('y_embedder.embedding_table.weight'),
        {},
        "'y_embedder.embedding_table.weight' is missing",
    ),
}


@pytest.mark.parametrize('fault', WRONG)
def test_wrong_files_are_refused_by_name(fault, convert):
    change, options, said = WRONG[fault]
    arrays = state('dit')
    data = files.state_dict(change(arrays) if change else arrays)
    with pytest.raises(UserError) as caught:
        convert(data, **{'of': 'dit', 'heads': 2} | options)
    assert said in str(caught.value)


def test_another_path_of_sit_is_refused(convert):
    with pytest.raises(UserError, match="path_type='VP', which is not supported"):
        convert(training({'path_type': 'VP'}, ema=state('sit')), heads=2)


def test_the_same_arrays_as_another_teacher_are_not_taken_for_it(convert, tmp_path):
    out, _ = convert(files.state_dict(state('dit')), of='dit', heads=2)
    with pytest.raises(UserError, match='holds the same weights with another model'):
        build.convert(tmp_path / 'teacher.pt', out, of='sit', heads=2)


def test_what_is_no_array_is_refused(convert):
    data = {name: files.number(1) for name in state('dit')}
    with pytest.raises(UserError, match='is no array'):
        convert(files.saved(files.pairs(data)), of='dit')


CONFIG = dict(
    _class_name='DiTTransformer2DModel',
    _diffusers_version='0.42.1',
    num_attention_heads=2,
    attention_head_dim=8,
    num_layers=3,
    sample_size=8,
    out_channels=8,
    num_embeds_ada_norm=10,
)
EPS = {'name': 'prediction', 'prediction': 'eps', 'schedule': {'name': 'discrete'}}


def from_diffusers(config=CONFIG, change=None):
    arrays = dit_goldens.to_diffusers(weights(CASES['diffusers']))
    arrays = change(arrays) if change else arrays
    return origin.from_diffusers(config, arrays, EPS, published.shapes_of, 'cc-by-nc-4.0')


@pytest.mark.parametrize('old', [False, True])
def test_a_folder_of_diffusers_there_and_back(old):
    config = CONFIG
    if old:  # It wrote all of its settings, other defaults being those of other networks.
        more = dict(attention_bias=True, activation_fn='gelu-approximate', norm_eps=1e-5)
        more |= dict(norm_type='ada_norm_zero', norm_elementwise_affine=False, in_channels=4)
        more |= dict(patch_size=2, cross_attention_dim=None, _class_name='Transformer2DModel')
        config = CONFIG | more
    found = from_diffusers(config)
    ours = weights(CASES['diffusers'])
    assert found.arrays.keys() == ours.keys() == found.sources.keys()
    for name, array in found.arrays.items():
        np.testing.assert_array_equal(array, ours[name])
    assert found.licence == 'cc-by-nc-4.0'
    network, image = found.model['network'], found.model['image']
    assert call(dit, {k: v for k, v in network.items() if k != 'name'}, '', resolution=8)
    config, arrays = origin.to_diffusers(network, image, found.arrays)
    assert {key: config[key] for key in CONFIG.keys() & config.keys()} == {
        key: value for key, value in CONFIG.items() if key in config
    }
    expected = dit_goldens.to_diffusers(ours)
    assert arrays.keys() == expected.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, expected[name])


def test_the_installed_diffusers_loads_what_is_written():
    for package in ('torch', 'diffusers'):
        pytest.importorskip(package, reason=f'pip install -e .[diffusers] torch: no {package}')
    import diffusers
    import torch

    found = from_diffusers()
    config, arrays = origin.to_diffusers(found.model['network'], found.model['image'], found.arrays)
    made = diffusers.DiTTransformer2DModel.from_config(config)
    made.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()})
    assert {key: made.config[key] for key in config if key[0] != '_'} == {
        key: value for key, value in config.items() if key[0] != '_'
    }


KEY = 'transformer_blocks.1.attn1.to_k.weight'


@pytest.mark.parametrize(
    'settings, change, said',
    [
        (dict(norm_eps=1e-6), None, 'norm_eps=1e-06 is not supported'),
        (dict(activation_fn='geglu'), None, "activation_fn='geglu' is not supported"),
        (dict(qk_norm='rms'), None, "'qk_norm'"),
        (dict(out_channels=6), None, 'out_channels=6'),
        (dict(num_layers='many'), None, "num_layers: 'many' is of type str"),
        (dict(num_layers=2.5), None, 'num_layers=2.5: is no size'),
        (dict(_class_name='Transformer2DModel'), None, 'attention_bias=False'),
        (dict(num_layers=2), None, "'transformer_blocks.2.attn1.to_k.bias' has no place"),
        ({}, without(KEY), f"'{KEY}' is missing"),
        ({}, replaced(KEY, ZEROS((17, 16), np.float32)), 'have the shapes'),
    ],
)
def test_wrong_folders_are_refused_by_name(settings, change, said):
    with pytest.raises(Refused) as caught:
        from_diffusers(CONFIG | settings, change)
    assert said in str(caught.value) and '\n' not in str(caught.value)


def test_a_size_by_name_goes_back():
    network = {'name': 'dit', 'size': 'S/4', 'depth': 1, 'variant': 'diffusers'}
    image = {'shape': [8, 8, 3], 'num_classes': 5}
    shapes = published.shapes_of({'network': network, 'denoiser': EPS, 'image': image})
    arrays = {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}
    config, parted = origin.to_diffusers(network, image, arrays)
    back = origin.from_diffusers(config, parted, EPS, published.shapes_of)
    assert {name: array.shape for name, array in back.arrays.items()} == shapes
    assert back.model['image'] == image
    assert back.model['network'] == dict(
        name='dit',
        variant='diffusers',
        width=384,
        depth=1,
        heads=6,
        patch=4,
        learned_variance=False,
    )


def test_only_the_variant_of_diffusers_goes_back():
    with pytest.raises(Refused, match="variant='diffusers'"):
        origin.to_diffusers({'variant': 'facebook'}, {}, {})


def test_the_same_arrays_as_another_model(convert):
    """That a file is there already is no reason to keep what it predicts."""
    data = files.state_dict(state('dit'))
    out, _ = convert(data, of='dit', heads=2)
    with pytest.raises(UserError, match='the same weights with another model'):
        build.convert(out.with_name('teacher.pt'), out, of='sit', heads=2)
