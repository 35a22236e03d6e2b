"""Published teachers: converted out of files as they were published, and used."""

import json
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import teachers_goldens
import weights_files as files
from ml_collections import ConfigDict

from experiments import published_fid
from fdistill import build, cli
from fdistill.build import published
from fdistill.build.models import make_denoiser
from fdistill.diffusion.noise import karras_grid
from fdistill.diffusion.samplers import SAMPLERS
from fdistill.errors import UserError
from fdistill.files import disk
from fdistill.networks.unet import edm_name
from fdistill.weights import denoisers, posthoc, store


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

    def weighed(params, x):
        out, features = network.apply(params, x, jnp.asarray(teachers_goldens.SIGMAS), given)
        return jnp.sum(out * probe), (out, features)

    # EDM finds VP's time, up to 1000, in float32, with cancellation at low levels.
    bar = 5e-5 if case == 'ddpmpp-vp' else 1e-5
    if case in DIFFERENTIATED:
        gradient = jax.jit(jax.grad(weighed, argnums=(0, 1), has_aux=True))
        (of_params, of_x), (out, features) = gradient(params, x)
        check_gradients(case, goldens, report, of_params, of_x)
    else:
        _, (out, features) = jax.jit(weighed)(params, x)
    # At 80 the output is as large as the noise and hides the others: each is judged by itself.
    for ours, theirs in zip(out, goldens[f'{case}/out']):
        close(ours, theirs, bar)
    for i, feature in enumerate(features):
        close(feature[0], goldens[f'{case}/feature{i}'], bar)


# One of each network: its gradient does not depend on what is around it.
DIFFERENTIATED = ('ncsnpp', 'adm', 'edm2')


def check_gradients(case, goldens, report, of_params, of_x):
    for ours, theirs in zip(of_x, goldens[f'{case}/image']):
        close(ours, theirs, 2e-5)
    entries = json.loads(str(goldens[f'{case}/entries']))
    theirs = json.loads(str(goldens[f'{case}/gradients']))
    sources = {row['name']: row['found_as'][0].removeprefix('ema.') for row in report['arrays']}
    gradients = {
        sources[published.name_of(path)]: np.asarray(leaf, np.float64)
        for path, leaf in jax.tree_util.tree_leaves_with_path(of_params)
    }
    assert theirs.keys() <= gradients.keys()
    largest = max(map(abs, theirs.values()))
    for name, value in theirs.items():
        array, shape = gradients[name], entries[name]
        if case != 'edm2':  # Ours are [h, w, in, out] and [in, out].
            array = array.transpose({4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}[array.ndim])
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
    'resolution': (
        dict(settings={'img_resolution': 'big'}),
        "img_resolution: 'big' is of type str",
    ),
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


@pytest.fixture(scope='module')
def converted(goldens, tmp_path_factory):
    """A tiny conditional DDPM++ of 8 x 8 images, converted."""
    folder = tmp_path_factory.mktemp('converted')
    (folder / 'teacher.pkl').write_bytes(pickled('ddpmpp', goldens))
    build.convert(folder / 'teacher.pkl', folder / 'teacher.safetensors')
    return folder / 'teacher.safetensors'


def test_weights_are_sampled_as_edm_does(converted):
    run = build.from_weights(converted)
    assert (run.nfe, run.shape, run.num_classes) == (35, (8, 8, 3), 5)
    noise, condition = run.start(jax.random.key(0), 2)
    grid = karras_grid(18)

    def denoise(x, sigma):
        return run.denoise(x, sigma, condition)

    expected = SAMPLERS['heun'].solve(denoise, grid[0] * noise, grid)
    close(run.sample(noise, condition), expected, 1e-4)
    few = build.from_weights(converted, sampler={'name': 'ghvb', 'order': 2.5}, steps=4)
    assert few.nfe == 4 and bool(jnp.isfinite(few.sample(noise, condition)).all())
    guided = build.from_weights(converted, sampler='euler', steps=2, guidance=2.0)
    assert guided.nfe == 4
    assert not np.allclose(
        guided.sample(noise, condition),
        build.from_weights(converted, sampler='euler', steps=2).sample(noise, condition),
    )


def test_command_line_from_pickle_to_picture(goldens, put, tmp_path, capsys):
    source, out = put(pickled('ddpmpp', goldens)), tmp_path / 'a.safetensors'
    assert cli.main(['convert', 'teacher', str(source), str(out), '--licence=mine']) == 0
    said = capsys.readouterr().out
    assert 'ddpmpp' in said and 'licence: "mine"' in said and str(out) in said
    words = ['sample', f'--weights={out}', '--n=2', '--sampler=euler', '--steps=2', '--label=1']
    assert cli.main(words) == 0
    assert pathlib.Path(capsys.readouterr().out.strip()) == tmp_path / 'a/samples/sample-0.png'
    assert (tmp_path / 'a/samples/sample-0.png').read_bytes().startswith(b'\x89PNG')


@pytest.mark.parametrize(
    'words, said',
    [
        ('sample', 'give either --workdir=DIR, a run, or --weights=FILE'),
        ('sample --workdir={0} --weights={0}', 'give either --workdir=DIR'),
        ('sample --weights={1}/none.safetensors', 'none.safetensors: is no file'),
        ('sample --weights={0} --with={0}', '--with is for run folders'),
        ('evaluate --weights={0}', 'config.data: missing'),
        ('evaluate --weights={0} --config.evaluation.samples=3', 'give --config=FILE'),
        (
            'evaluate --weights={0} --config={3}/configs/ring.py',
            "'ring' has samples of shape (2,), and the model makes (8, 8, 3); give the config",
        ),
        ('convert inception a b --of=edm', "--of: is for teacher, not for 'inception'"),
        ('convert techer {2} {1}/b.safetensors', "KIND: unknown 'techer'; did you mean teacher?"),
        ('convert x {2} {1}/b.safetensors', 'known: teacher, average, vae, inception, dinov2'),
        ('convert average {0} {1}/b.safetensors', '--std=S: is missing'),
        ('convert average {0} {1}/b.safetensors --std=0.1', '--with: give one more snapshot'),
        (
            'convert average {0} {1}/b.safetensors --std=0.1 --with={0}',
            'does not end with -KIMG-STD',
        ),
        (
            'convert teacher {0} {1}/b.safetensors --of=edn',
            "--of: unknown 'edn'; did you mean edm?",
        ),
        ('convert teacher {2} {1}/b.safetensors --foo=1', '--foo: is unknown of a network of EDM'),
        ('convert teacher {0} {1}/b.txt', 'give the name of a .safetensors file'),
        ('convert teacher {1}/none.pkl {1}/b.safetensors', 'none.pkl: is no file'),
        ('convert teacher {1} {1}/b.safetensors', 'is a folder of another kind'),
        ('convert teacher {0} {1}/b.safetensors', 'entries'),
    ],
)
def test_wrong_commands_are_one_line(words, said, converted, tmp_path, capsys):
    root = pathlib.Path(__file__).parents[1]
    words = words.format(converted, tmp_path, converted.with_name('teacher.pkl'), root).split()
    assert cli.main(words) == 2
    message = capsys.readouterr().err
    assert said in message and message.count('\n') == 1
    assert not list(tmp_path.glob('*'))


def test_weights_of_another_format_or_damaged(converted, tmp_path):
    arrays, metadata = store.load(converted)
    other = tmp_path / 'other.safetensors'
    store.save(other, arrays, {**metadata, 'kind': 'inception'})
    with pytest.raises(UserError, match="holds 'inception', not a denoiser"):
        build.from_weights(other)
    for model in ('', '[]', '{"network": {}}', '{"network": 1, "denoiser": {}, "image": {}}'):
        store.save(other, arrays, {**metadata, 'model': model})
        with pytest.raises(UserError, match='its metadata is damaged'):
            build.from_weights(other)
    less = {name: array for name, array in arrays.items() if 'affine' not in name}
    store.save(other, less, metadata)
    with pytest.raises(UserError, match='is missing'):
        build.from_weights(other)
    damaged = bytearray(converted.read_bytes())
    damaged[-5] ^= 1
    other.write_bytes(damaged)
    with pytest.raises(UserError, match='not those that were written'):
        build.from_weights(other)


def test_a_place_that_is_taken(converted, goldens, put):
    again = build.convert(converted.with_name('teacher.pkl'), converted)
    assert again['content_sha256'] == store.load(converted)[1]['content_sha256']
    with pytest.raises(UserError, match='exists and holds other weights'):
        build.convert(put(pickled('edm2', goldens)), converted)
    with pytest.raises(UserError, match='the same weights with another licence'):
        build.convert(converted.with_name('teacher.pkl'), converted, licence='MIT')


def test_what_metadata_says_of_a_model_is_looked_at(tmp_path):
    """It may be a stranger's: one line, and no section that is none of a model's."""
    path = tmp_path / 'file.safetensors'
    write_mlp(path, 0)
    arrays, metadata = store.load(path)

    def said(**sections):
        store.save(path, arrays, metadata | {'model': json.dumps(MLP | sections)})
        return build.from_weights(path)

    flow = {'name': 'prediction', 'prediction': 'eps'}
    deep = {'name': 'edm2', 'num_blocks': 900, 'attn_resolutions': []}
    tiny = {'block_out_channels': [32], 'down_block_types': ['DownBlock2D']}
    tiny |= {'name': 'unet2d', 'up_block_types': ['UpBlock2D']}
    for sections, message in (
        ({'network': {'name': []}}, 'unknown'),
        ({'denoiser': flow | {'schedule': 5}}, '5 is no section'),
        ({'denoiser': flow | {'schedule': [1]}}, 'is no section'),
        ({'denoiser': {'name': 'edm', 'sigma_data': 2**62}}, 'is out of range'),
        ({'image': {'shape': [-8, 8, 1], 'num_classes': 0}}, 'is no shape of a sample'),
        ({'image': {'shape': [0], 'num_classes': 0}}, 'is no shape of a sample'),
        ({'image': {'shape': [2**20] * 3, 'num_classes': 0}}, 'is no shape of a sample'),
        ({'image': {'shape': [8, 8, 1], 'num_classes': -1}}, 'is no number of classes'),
        ({'network': tiny | {'time_embedding_dim': -3}}, 'time_embedding_dim=-3'),
        ({'network': tiny | {'freq_shift': 16}}, 'freq_shift=16'),
        ({'network': tiny | {'layers_per_block': 900}}, 'make 1803 blocks in a row'),
        ({'network': deep}, 'blocks in a row'),
    ):
        with pytest.raises(UserError, match=message) as caught:
            said(**sections)
        assert '\n' not in str(caught.value)
    assert 'data' not in said(data={'name': 'image_folder', 'path': '/'}).config
    for name in ('licence', 'derived_from'):
        store.save(path, arrays, {key: metadata[key] for key in metadata if key != name})
        with pytest.raises(UserError, match=f'it has no {name}'):
            build.from_weights(path)


def test_what_is_said_of_the_same_weights_is_not_passed_over(converted, capsys):
    words = ['convert', 'teacher', str(converted.with_name('teacher.pkl')), str(converted)]
    assert cli.main(words) == 0
    assert cli.main([*words, '--licence=mine']) == 2
    assert 'the same weights with another licence' in capsys.readouterr().err


def test_guidance_without_a_condition_is_refused(tmp_path, capsys):
    model = MLP | {'image': {'shape': [8, 8, 1], 'num_classes': 0}}
    arrays = {k: np.zeros(shape, np.float32) for k, shape in published.shapes_of(model).items()}
    denoisers.save(tmp_path / 'a.safetensors', arrays, model, licence='MIT')
    words = ['sample', f'--weights={tmp_path}/a.safetensors', '--n=1', '--guidance=2']
    assert cli.main(words) == 2
    assert 'its samples have no condition; leave it out' in capsys.readouterr().err


def test_what_a_file_says_is_in_order(converted):
    said = store.metadata(converted)
    assert list(said) == sorted(said) == list(store.read(converted)[1])


@pytest.mark.parametrize('of', [*denoisers.ORIGINS, None])
@pytest.mark.parametrize('holds', ['edm', 'edm2', 'nothing', 'a list', 'a number', 'a folder'])
def test_a_file_of_another_origin(of, holds, goldens, put, tmp_path):
    values = {'nothing': files.pairs({}), 'a list': files.items(), 'a number': files.number(1)}
    if holds in denoisers.ORIGINS:
        source = put(pickled('ddpmpp' if holds == 'edm' else 'edm2', goldens))
    elif holds in values:
        source = put(files.program(values[holds]))
    else:
        source = tmp_path / 'folder'
        source.mkdir()
    out = tmp_path / 'out' / 'out.safetensors'
    if of in (holds, None) and holds in denoisers.ORIGINS:
        assert build.convert(source, out, of=of)['model']
        return
    said = f'as --of says; give --of={holds}' if holds in denoisers.ORIGINS else ' a'
    with pytest.raises(UserError, match=said):
        build.convert(source, out, of=of)
    assert not out.parent.exists()


# Distillation of a converted teacher.

DIGITS = dict(
    img_resolution=8,
    img_channels=1,
    label_dim=10,
    model_type='SongUNet',
    model_channels=8,
    channel_mult=[1],
    num_blocks=1,
    attn_resolutions=[],
    dropout=0.0,
)


def edm_pickle(kind, settings, seed=0):
    """A DDPM++ of other settings as NVIDIA would publish it."""
    own = {k: settings[k] for k in ('model_channels', 'channel_mult', 'num_blocks', 'dropout')}
    own |= {'name': 'ddpmpp', 'attn_resolutions': settings['attn_resolutions']}
    size, channels = settings['img_resolution'], settings['img_channels']
    image = {'shape': [size, size, channels], 'num_classes': settings['label_dim']}
    shapes = published.shapes_of({'network': own, 'denoiser': {'name': 'edm'}, 'image': image})
    random, arrays = np.random.RandomState(seed), {}
    for path, shape in shapes.items():
        name, axes = edm_name(path.split('/'))
        array = random.standard_normal(shape)
        array = array / np.sqrt(np.prod(shape[:-1])) if len(shape) > 1 else 1 + 0.1 * array
        arrays[f'model.{name}'] = np.float32(array.transpose(np.argsort(axes)))
    arguments = {name: of_python(value) for name, value in settings.items()}
    module = files.module(kind, arrays, arguments)
    return files.program(files.pairs({'ema': module}))


MLP = {
    'network': {'name': 'mlp', 'width': 32, 'blocks': 1, 'embedding': 8},
    'denoiser': {'name': 'edm', 'sigma_data': 0.75},
    'image': {'shape': [8, 8, 1], 'num_classes': 10},
}


def write_mlp(path, seed):
    """A file of ours with a perceptron, whose steps compile soon."""
    random = np.random.RandomState(seed)
    arrays = {
        name: np.float32(random.standard_normal(shape) / np.sqrt(np.prod(shape[:-1])))
        for name, shape in published.shapes_of(MLP).items()
    }
    denoisers.save(path, arrays, MLP, licence='MIT')


@pytest.fixture(scope='module')
def digits_teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp('digits')
    for seed in (0, 1):
        write_mlp(folder / f'{seed}.safetensors', seed)
    return folder


def student_config(weights, **changes):
    sections = dict(
        seed=0,
        data=dict(name='digits'),
        teacher=dict(weights=str(weights)),
        method=dict(
            name='diff_instruct',
            sigma_init=2.5,
            student_law=dict(name='lognormal'),
            critic_law=dict(name='lognormal'),
        ),
        optimizer=dict(student=dict(learning_rate=1e-3), critic=dict(learning_rate=1e-3)),
        training=dict(
            steps=3,
            batch_size=8,
            ema_half_life=1e3,
            log_every=1,
            checkpoint_every=2,
            sample_every=0,
        ),
        evaluation=dict(samples=200, batch_size=100),
    )
    return ConfigDict(sections | changes)


def test_a_file_is_distilled_resumed_and_measured(digits_teacher, tmp_path, capsys):
    folder, weights = tmp_path / 'run', digits_teacher / '0.safetensors'
    build.train(student_config(weights), folder, quiet=True, stop_at=2)
    kept = json.loads((folder / 'config.json').read_text())
    assert kept['network'] == MLP['network'] and kept['denoiser'] == MLP['denoiser']
    # The teacher may lie elsewhere, but must be the same.
    (tmp_path / 'moved').mkdir()
    moved = tmp_path / 'moved' / 'teacher.safetensors'
    moved.write_bytes(weights.read_bytes())
    with pytest.raises(UserError, match='began with other weights of its teacher'):
        build.train(student_config(digits_teacher / '1.safetensors'), folder, quiet=True)
    build.train(student_config(moved), folder, quiet=True)
    run, whole = build.from_workdir(folder), tmp_path / 'whole'
    assert run.step == 3
    build.train(student_config(weights), whole, quiet=True)
    for a, b in zip(*(jax.tree.leaves(build.from_workdir(f).params) for f in (folder, whole))):
        np.testing.assert_array_equal(a, b)
    # The student began as its teacher, which is not far away yet.
    teacher = build.from_weights(weights)
    near = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), teacher.params, run.params)
    assert 0 < max(jax.tree.leaves(near)) < 0.02

    config = tmp_path / 'data.py'
    config.write_text(
        'from ml_collections import ConfigDict\n'
        'def get_config():\n'
        "    return ConfigDict(dict(data=dict(name='digits'), evaluation=dict(samples=200)))\n"
    )
    words = [f'--weights={moved}', f'--config={config}', '--sampler=euler', '--steps=2', '--quiet']
    assert cli.main(['evaluate', *words]) == 0
    row = json.loads(capsys.readouterr().out)
    assert row['nfe'] == 2 and row['details']['solver']['sampler'] == 'euler'
    assert len(list((tmp_path / 'moved/teacher/eval').glob('*.json'))) == 1


@pytest.mark.parametrize(
    'changes, said',
    [
        (dict(data=dict(name='mixture', mixture='ring')), 'was trained on'),
        (dict(teacher=dict(weights='none.safetensors')), 'config.teacher.weights=none.safetensors'),
        (dict(teacher=dict(oracle='ring', weights='{}')), 'give one of workdir, weights, oracle'),
    ],
)
def test_a_file_that_does_not_fit(changes, said, digits_teacher, tmp_path):
    weights = digits_teacher / '0.safetensors'
    config = student_config(weights, **changes)
    if 'oracle' in config.teacher:
        config.teacher.weights = str(weights)
    with pytest.raises(UserError, match=said):
        build.train(config, tmp_path / 'run', quiet=True)
    assert not (tmp_path / 'run').exists()


def test_a_student_is_no_teacher(digits_teacher, tmp_path):
    arrays, metadata = store.load(digits_teacher / '0.safetensors')
    student = tmp_path / 'student.safetensors'
    store.save(student, arrays, {**metadata, 'generator': '{"sigma_init": 2.5}'})
    assert build.from_weights(student).nfe == 1
    with pytest.raises(UserError, match='holds a student, .* name the file of its teacher'):
        build.train(student_config(student), tmp_path / 'run', quiet=True)
    assert not (tmp_path / 'run').exists()


# Levels that a network knows.


@pytest.fixture(scope='module')
def vp_teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp('vp')
    settings = {name: v for name, v in DIGITS.items()}
    (folder / 'vp.pkl').write_bytes(edm_pickle('VPPrecond', settings))
    build.convert(folder / 'vp.pkl', folder / 'vp.safetensors')
    return folder / 'vp.safetensors'


@pytest.mark.parametrize(
    'method, said',
    [
        (
            dict(student_law=dict(name='lognormal'), sigma_init=200.0),
            'sigma_init: has the level 200',
        ),
        (
            dict(student_law=dict(name='loguniform', sigma_min=1e-4)),
            'student_law: 17% of its levels lie elsewhere',
        ),
        (
            dict(student_law=dict(name='loguniform', sigma_max=1e4)),
            'student_law: 27% of its levels lie elsewhere',
        ),
    ],
)
def test_levels_beyond_those_of_the_teacher(method, said, vp_teacher, tmp_path):
    config = student_config(
        vp_teacher, method=dict(name='diff_instruct', critic_law=dict(name='lognormal'), **method)
    )
    with pytest.raises(UserError, match=said):
        build.train(config, tmp_path / 'run', quiet=True)
    assert not (tmp_path / 'run').exists()


def test_levels_beyond_those_of_a_solver(vp_teacher):
    plain = dict(build.from_weights(vp_teacher).config.to_dict())
    assert plain['method']['grid']['sigma_max'] == 80
    method = dict(plain['method'], grid=dict(name='karras', steps=4, sigma_max=300.0))
    with pytest.raises(UserError, match='grid: has the level 300; the student knows the levels'):
        build.experiment(dict(plain, method=method))


# Averages made after training.


def test_coefficients_are_those_of_edm2():
    # training/phema.py at 4bf8162, solve_posthoc_coefficients([100, 100, 60], [.05, .1, .05],
    # [100, 80], [.075, .13]), and std_to_exp and power_function_beta.
    at = [100, 100, 60], [0.05, 0.1, 0.05]
    for wanted, expected in (
        ((100, 0.075), [0.34304954, 0.66173955, -0.0047891]),
        ((80, 0.13), [-1.27160323, 2.089814, 0.18178923]),
    ):
        np.testing.assert_allclose(posthoc.coefficients(*at, *wanted), expected, rtol=1e-6)
    np.testing.assert_allclose(posthoc.power(0.2), 1.82621378, rtol=1e-8)
    np.testing.assert_allclose(posthoc.decay(0.05, 1000, 10), 0.8347469683432545, rtol=1e-12)
    # What is there already is found.
    np.testing.assert_allclose(posthoc.coefficients(*at, 100, 0.1), [0, 1, 0], atol=1e-9)


def test_an_average_that_was_not_kept(tmp_path):
    """Weights that move; two averages of them are kept, and a third is made of these."""
    shapes = published.shapes_of(MLP)
    random, stds, wanted = np.random.RandomState(0), (0.05, 0.1), 0.07
    speeds = {name: random.standard_normal(shape) for name, shape in shapes.items()}
    averages = {std: dict.fromkeys(shapes, 0.0) for std in (*stds, wanted)}
    paths = []
    for step in range(1, 401):
        for std, own in averages.items():
            d = posthoc.decay(std, step, 1)
            for name, speed in speeds.items():
                own[name] = d * own[name] + (1 - d) * np.sin(step / 100 + speed)
        for std in stds if step % 25 == 0 else ():
            source = tmp_path / f'snapshot-{step:07d}-{std:.3f}.pkl'
            source.write_bytes(f'{step} {std}'.encode())
            paths.append(tmp_path / f'{step}-{std}.safetensors')
            arrays = {name: np.float32(value) for name, value in averages[std].items()}
            denoisers.save(paths[-1], arrays, MLP, licence='MIT', source=source)
    row = posthoc.reconstruct(paths, tmp_path / 'out.safetensors', std=wanted)
    made, _ = store.load(tmp_path / 'out.safetensors')
    for name, expected in averages[wanted].items():
        np.testing.assert_allclose(made[name], expected, atol=2e-3)
    # Neither of those that were kept is as near.
    name = next(iter(shapes))
    kept = [np.abs(averages[std][name] - averages[wanted][name]).max() for std in stds]
    assert min(kept) > 0.02
    assert [one['sha256'] for one in row['derived_from']] == [
        disk.sha256(tmp_path / one['name']) for one in row['derived_from']
    ]
    build.from_weights(tmp_path / 'out.safetensors', steps=1)
    with pytest.raises(UserError, match='two are the same snapshot'):
        posthoc.reconstruct(paths[:1] * 2, tmp_path / 'again.safetensors', std=0.1)
    with pytest.raises(UserError, match='--std=0.5: must lie in'):
        posthoc.reconstruct(paths, tmp_path / 'again.safetensors', std=0.5)


# The published FIDs, once files are at hand.


@pytest.mark.parametrize('fid, code', [(1.83, 0), (1.90, 1)])
def test_published_fid(fid, code, monkeypatch, capsys):
    asked = {}

    def evaluate(config, **given):
        asked.update(given, config=config)
        return {'step': 0, 'nfe': 35, 'fid50k': fid, 'details': {}}

    monkeypatch.setattr(published_fid.build, 'evaluate', evaluate)
    files_given = ['--weights=w', '--detector=d', '--statistics=s', '--ranges=1']
    assert published_fid.main(['cifar10-cond', *files_given]) == code
    said = 'fid50k: %.4f, published 1.79 (arXiv 2206.00364, table 2)' % fid
    assert said in capsys.readouterr().out
    assert asked['solver'] == {'sampler': 'heun', 'steps': 18} and asked['protocol'] == 'edm'
    assert published_fid.main(['cifar10', *files_given]) == 2
    assert "unknown 'cifar10'; did you mean cifar10-cond?" in capsys.readouterr().err


def test_published_solvers_are_solvers(converted):
    for row in published_fid.PUBLISHED.values():
        run = build.from_weights(converted, **row.solver)
        assert run.nfe == {18: 35, 40: 79, 256: 511}[row.solver['steps']]


def test_an_average_is_of_weights_that_belong_together(tmp_path):
    """One line for whatever the names and arrays of the snapshots are; and no file is lost."""
    names = iter('abcdefghijklmnop')

    def snapshot(place, std='0.050', arrays=None):
        path = tmp_path / f'{next(names)}.safetensors'
        shapes = published.shapes_of(MLP)
        arrays = arrays or {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
        metadata = {'kind': 'denoiser', 'licence': 'MIT', 'derived_from': '[]'}
        metadata |= {'source': f'x-{place}-{std}.pkl', 'model': json.dumps(MLP)}
        store.save(path, arrays, metadata)
        return path

    good = snapshot(1000, '0.100')
    for other, message in (
        (snapshot('0000000'), 'does not end with -KIMG-STD'),
        (snapshot('9' * 5000), 'does not end with -KIMG-STD'),
        (snapshot('9' * 400), 'does not end with -KIMG-STD'),
        (snapshot(1000, arrays={'x': np.zeros(3, np.float32)}), 'is missing'),
    ):
        with pytest.raises(UserError, match=message):
            posthoc.reconstruct((good, other), tmp_path / 'out.safetensors', std=0.1)
        assert not (tmp_path / 'out.safetensors').exists()
    weights = {name: np.ones(shape, np.float32) for name, shape in published.shapes_of(MLP).items()}
    other = snapshot(1000, arrays=weights)
    for taken in (good, other):
        before = taken.read_bytes()
        with pytest.raises(UserError, match='exists and holds other weights'):
            posthoc.reconstruct((good, other), taken, std=0.07)
        assert taken.read_bytes() == before


def test_weights_that_are_float32_are_in_memory_once(tmp_path, monkeypatch):
    write_mlp(tmp_path / 'file.safetensors', 0)
    held, metadata = store.load(tmp_path / 'file.safetensors')
    monkeypatch.setattr(store, 'load', lambda *_: (held, metadata))
    found, _ = denoisers.load(tmp_path / 'file.safetensors', {})
    assert all(np.shares_memory(found[name], held[name]) for name in held)
