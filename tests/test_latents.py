"""Latents: images are encoded once, teacher and student are trained on latents, and what is sampled
is decoded."""

import functools
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
import toy_autoencoder
from PIL import Image
from toy_autoencoder import LOGVAR, SCALE, SHIFT, TOY

from fdistill import build, cli
from fdistill import config as configs
from fdistill.build import latents as built_latents
from fdistill.build import published, resume
from fdistill.build.check_teacher import check_teacher
from fdistill.build.measure import while_training
from fdistill.data import latents as folders
from fdistill.data import sources
from fdistill.data.pipeline import batches
from fdistill.errors import UserError
from fdistill.evaluation import features
from fdistill.files import disk
from fdistill.networks.autoencoder import autoencoder_kl
from fdistill.training import sharding
from fdistill.weights import autoencoders, denoisers, diffusers, diffusers_config


@pytest.fixture(scope='module')
def vae(tmp_path_factory):
    return toy_autoencoder.write(tmp_path_factory.mktemp('vae') / 'vae.safetensors')


@pytest.fixture(scope='module')
def encoded(tmp_path_factory, vae):
    """The folder of the digits' latents, made by the command line."""
    folder = tmp_path_factory.mktemp('latents')
    config = folder / 'digits.py'
    config.write_text(
        'from ml_collections import ConfigDict\n'
        "def get_config():\n    return ConfigDict({'data': {'name': 'digits', 'flip': False}})\n"
    )
    words = ['encode', f'--config={config}', f'--vae={vae}', f'--out={folder / "out"}', '--quiet']
    assert cli.main([*words, '--batch-size=500']) == 0
    return folder / 'out'


def section(encoded, vae, **more):
    return {'name': 'latents', 'path': str(encoded), 'vae': str(vae), **more}


def load(encoded, vae, split='train', **more):
    return sources.load(**section(encoded, vae, **more), split=split)


def test_the_toy_is_its_own_inverse(vae):
    network, params, _ = autoencoders.load(vae)
    images = np.random.RandomState(0).uniform(-1, 1, (3, 8, 8, 1)).astype(np.float32)
    z = network.latents(network.encode(params, images))
    np.testing.assert_allclose(z, (images - SHIFT) * SCALE, atol=2e-4)
    np.testing.assert_allclose(network.decode(params, z), images, atol=2e-4)


def test_encoded_latents_are_those_of_the_images(encoded, vae):
    for split, count in (('train', 1442), ('held_out', 355)):
        images = sources.load('digits', split)
        found = load(encoded, vae, split, sampled=False)
        expected = (sources.to_float(images.images, 16) - SHIFT) * SCALE
        assert found.images.shape == (count, 8, 8, 1) and found.images.dtype == np.float32
        np.testing.assert_allclose(found.images, expected, atol=5e-4)
        np.testing.assert_array_equal(found.labels, images.labels)
        assert (found.levels, found.num_classes, found.name) == (0, 10, 'digits latents')
    assert found.decoded.shape == (8, 8, 1)


def test_each_latent_has_noise_of_its_own(encoded, vae):
    mean = load(encoded, vae, sampled=False).images
    one, again, other = (load(encoded, vae, seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one.images, again.images)
    noise = (one.images - mean) / SCALE / np.exp(LOGVAR / 2)
    np.testing.assert_allclose([noise.mean(), noise.std()], [0, 1], atol=0.02)
    expected = jax.random.normal(jax.random.fold_in(jax.random.key(0), 7), (8, 8, 1))
    np.testing.assert_allclose(noise[7], expected, atol=0.02)
    assert len({source.stored for source in (one, again, other)}) == 2
    assert np.abs(one.images - other.images).max() > 1e-3


def test_half_precision_keeps_half_the_bytes(tmp_path, encoded, vae):
    build.encode({'data': {'name': 'digits'}}, vae, tmp_path / 'half', dtype='float16', quiet=True)
    sizes = [(f / 'train-moments.npy').stat().st_size for f in (tmp_path / 'half', encoded)]
    assert abs(sizes[1] / sizes[0] - 2) < 0.01
    one, half = (load(f, vae, sampled=False).images for f in (encoded, tmp_path / 'half'))
    np.testing.assert_allclose(half, one, atol=4e-3)


def test_mirrored_images_are_encoded_and_latents_never_mirrored(tmp_path, encoded, vae):
    data = {'name': 'digits', 'flip': True}
    note = build.encode({'data': data}, vae, tmp_path / 'both', quiet=True)
    assert (note['mirrored'], note['splits']['train']['count']) == (True, 2 * 1442)
    assert note['splits']['held_out']['count'] == 355 and note['data'] == {'name': 'digits'}
    both = load(tmp_path / 'both', vae, sampled=False)
    np.testing.assert_allclose(both.images[1442:], both.images[:1442, :, ::-1], atol=2e-4)
    np.testing.assert_array_equal(both.labels[1442:], both.labels[:1442])
    with pytest.raises(ValueError, match='encode the images with flip=True'):
        batches(load(encoded, vae), 8, seed=0, flip=True)


def test_what_is_told_of_a_folder_is_checked_and_outlines_it_before_it_is_there(encoded, vae):
    there = sources.OUTLINES['latents']('train', str(encoded), str(vae))
    told = {'shape': there.images.shape[1:], 'num_classes': there.num_classes}
    source = sources.latents('train', str(encoded), str(vae), **told)
    assert source.images.shape[1:] == told['shape']
    absent = sources.OUTLINES['latents']('train', 'nowhere', 'no.safetensors', **told)
    assert (absent.images.shape, absent.num_classes) == (there.images.shape, there.num_classes)
    for wrong in ({'shape': (9, 9, 9)}, {'num_classes': 7}):
        with pytest.raises(UserError, match='holds latents of shape .* and not of'):
            sources.latents('train', str(encoded), str(vae), **{**told, **wrong})


def test_an_outline_reads_no_latents(tmp_path, encoded, vae):
    shutil.copy(encoded / folders.NOTE, tmp_path / folders.NOTE)
    outline = sources.latents_outline('train', str(tmp_path), str(vae))
    whole = load(encoded, vae)
    assert outline.images.shape[1:] == whole.images.shape[1:]
    for field in ('num_classes', 'levels', 'name', 'decoded'):
        assert getattr(outline, field) == getattr(whole, field)


def changed_note(**changes):
    def apply(folder):
        note = json.loads((folder / folders.NOTE).read_text())
        (folder / folders.NOTE).write_text(json.dumps(note | changes))

    return apply


def overwritten(name):
    def apply(folder):
        array = np.load(folder / name)
        np.save(folder / name, array + 1)

    return apply


def replaced_by(kind, array):
    """Another array of which the note says that it was written."""

    def change(folder):
        np.save(folder / f'train-{kind}.npy', array)
        note = json.loads((folder / folders.NOTE).read_text())
        note['splits']['train'][kind] = disk.sha256(folder / f'train-{kind}.npy')
        (folder / folders.NOTE).write_text(json.dumps(note))

    return change


DAMAGE = {
    'no note': (lambda folder: (folder / folders.NOTE).unlink(), 'make the folder with'),
    'another format': (changed_note(format='2'), "its format is '2'"),
    'a note of another shape': (changed_note(latent='8'), 'is damaged'),
    'cut note': (lambda folder: (folder / folders.NOTE).write_text('{'), 'is damaged'),
    'no split': (changed_note(splits={}), "has no split 'train'"),
    'other moments': (overwritten('train-moments.npy'), 'is not what was written'),
    'other labels': (overwritten('train-labels.npy'), 'is not what was written'),
    'no moments': (lambda folder: (folder / 'train-moments.npy').unlink(), 'not what was written'),
    'another shape': (changed_note(latent=[4, 16, 1]), 'of shape .1442, 8, 8, 2., not'),
    'no shape': (changed_note(latent=[-8, 8, 1]), 'are no sizes'),
    'a huge shape': (changed_note(latent=[10**9] * 3), 'train-moments.npy: is'),
    'no classes': (changed_note(num_classes=-5), 'are no sizes'),
    'less classes': (changed_note(num_classes=3), 'has labels 0 to 9 in 3 classes'),
    'moments of no axes': (replaced_by('moments', np.float32(3)), 'is float32 of shape'),
    'moments of text': (replaced_by('moments', np.array(['a'] * 1442)), 'is str'),
    'labels of two axes': (replaced_by('labels', np.zeros((1442, 3), np.int32)), 'is int32 of'),
    'of another vae': (changed_note(autoencoder='0' * 64), 'is another autoencoder'),
}


@pytest.mark.parametrize('damage', DAMAGE)
def test_damaged_latents_are_refused(damage, tmp_path, encoded, vae, monkeypatch):
    monkeypatch.setenv('FDISTILL_CACHE', str(tmp_path / 'cache'))
    change, message = DAMAGE[damage]
    shutil.copytree(encoded, tmp_path / 'latents')
    change(tmp_path / 'latents')
    with pytest.raises(UserError, match=message) as caught:
        load(tmp_path / 'latents', vae)
    assert '\n' not in str(caught.value)


def test_a_damaged_cache_is_made_anew(encoded, vae, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('FDISTILL_CACHE', str(tmp_path))
    first = np.array(load(encoded, vae).images)
    (kept,) = (tmp_path / 'data').glob('*-latents.npy')
    np.save(kept, first + 1)
    np.testing.assert_array_equal(load(encoded, vae).images, first)
    assert 'made anew' in capsys.readouterr().err


REFUSED = {
    'type': ({'name': 'digits'}, {'dtype': 'bfloat16'}, '--dtype=bfloat16'),
    'batch': ({'name': 'digits'}, {'batch_size': 0}, '--batch-size=0'),
    'points': ({'name': 'mixture'}, {}, 'is not of images'),
}


@pytest.mark.parametrize('case', REFUSED)
def test_what_cannot_be_encoded_is_refused(case, tmp_path, vae):
    data, options, message = REFUSED[case]
    with pytest.raises(UserError, match=message):
        build.encode({'data': data}, vae, tmp_path / 'out', quiet=True, **options)
    assert not (tmp_path / 'out').exists()


def test_images_must_fit_the_autoencoder(tmp_path, encoded, vae):
    wide = {**TOY, 'channels': 3}
    shapes = autoencoder_kl(**wide).shapes()
    arrays = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    model = {'name': 'autoencoder_kl', **wide}
    autoencoders.save(tmp_path / 'rgb.safetensors', arrays, model, licence='none')
    with pytest.raises(UserError, match='8 x 8 x 1.*and 3 channels'):
        build.encode({'data': {'name': 'digits'}}, tmp_path / 'rgb.safetensors', tmp_path / 'out')
    with pytest.raises(UserError, match='holds latents already'):
        build.encode({'data': {'name': 'digits'}}, vae, encoded)


def test_latents_that_are_not_finite_are_refused(tmp_path):
    arrays = toy_autoencoder.arrays()
    arrays['encoder.conv_out.bias'][0] = 1e5  # More than float16 holds.
    model = {'name': 'autoencoder_kl', **TOY}
    autoencoders.save(tmp_path / 'vae.safetensors', arrays, model, licence='none')
    out = tmp_path / 'out'
    with pytest.raises(UserError, match='not finite in float16'):
        build.encode(
            {'data': {'name': 'digits'}}, tmp_path / 'vae.safetensors', out, dtype='float16'
        )
    assert not list(out.iterdir())


def test_a_published_autoencoder_is_converted(tmp_path, capsys):
    config = diffusers_config.config_of('AutoencoderKL', TOY)
    diffusers.write(tmp_path / 'model' / 'vae', config, toy_autoencoder.arrays())
    out = tmp_path / 'vae.safetensors'
    words = ['convert', 'vae', str(tmp_path / 'model'), str(out)]
    assert cli.main(words) == 2 and '--licence=NAME' in capsys.readouterr().err
    assert cli.main([*words, '--licence=mit']) == 0
    network, params, about = autoencoders.load(out)
    assert (about['licence'], about['source'], network.factor) == ('mit', 'model', 1)
    assert params.keys() == toy_autoencoder.arrays().keys()
    assert cli.main([*words, '--licence=mit']) == 0  # As it is there already.
    assert cli.main([*words, '--licence=mpl']) == 2
    assert "the same weights with another licence ('mit')" in capsys.readouterr().err
    (tmp_path / 'model' / 'vae' / 'config.json').write_text(json.dumps(config | {'act_fn': 'relu'}))
    for more, message in (
        ([], "act_fn='relu' is not supported"),
        (['--variant=fp16'], 'has no diffusion_pytorch_model.fp16'),
        (['--of=edm'], '--of: is for teacher'),
        (['--colour=red'], 'colour'),
    ):
        assert cli.main([*words, '--licence=mit', *more]) == 2
        assert message in capsys.readouterr().err


def test_a_vae_file_of_something_else_is_refused(tmp_path, vae):
    model = {'name': 'autoencoder_kl', **TOY}
    for changes, message in (
        ({'latent_channels': 2}, 'has the shape'),
        ({'colours': 3}, 'colours'),
        ({'name': 'vq'}, "autoencoder 'vq'"),
        ({'norm_num_groups': 3}, 'norm_num_groups=3'),
    ):
        path = tmp_path / f'{message[:4]}.safetensors'
        autoencoders.save(path, toy_autoencoder.arrays(), model | changes, licence='none')
        with pytest.raises(UserError, match=message):
            autoencoders.load(path)


def config_of(encoded, vae, **more):
    return {
        'seed': 0,
        'data': section(encoded, vae),
        'training': {
            'steps': 4,
            'batch_size': 8,
            'ema_half_life': 8,
            'log_every': 2,
            'checkpoint_every': 0,
            'sample_every': 4,
        },
        'evaluation': {'samples': 20, 'batch_size': 20},
        'optimizer': {'student': {'learning_rate': 1e-3}},
        **more,
    }


NETWORK = {'name': 'mlp', 'width': 16, 'blocks': 1, 'embedding': 8}
LAW = {'name': 'lognormal', 'mean': 0.0, 'std': 1.0}


@pytest.fixture(scope='module')
def runs(tmp_path_factory, encoded, vae):
    """Folders of a teacher and of a student, both of latents."""
    folder = tmp_path_factory.mktemp('runs')
    pretrain = {'name': 'pretrain', 'law': LAW, 'grid': {'name': 'karras', 'steps': 2}}
    teacher = config_of(encoded, vae, network=NETWORK, method=pretrain)
    build.train(teacher, folder / 'teacher', quiet=True)
    student = config_of(
        encoded,
        vae,
        teacher={'workdir': str(folder / 'teacher')},
        method={'name': 'sim', 'student_law': LAW, 'critic_law': LAW},
    )
    student['optimizer']['critic'] = {'learning_rate': 1e-3}
    build.train(student, folder / 'student', quiet=True)
    return folder


@pytest.fixture
def quick(monkeypatch):
    """Evaluations by a classifier of a few steps, which is all that its numbers being numbers
    needs."""
    few = functools.partial(features.classifier_features, steps=10)
    monkeypatch.setitem(features.FEATURES, 'classifier', few)


def test_teacher_and_student_of_latents_make_images(runs, vae, tmp_path, quick):
    network, params, _ = autoencoders.load(vae)
    for name in ('teacher', 'student'):
        workdir = runs / name
        run = build.from_workdir(workdir)
        assert run.config.image.latents.shape == (8, 8, 1)
        noise, condition = run.start(jax.random.key(0), 3)
        plain = json.loads(json.dumps(run.config.to_dict()))
        bare = build.experiment(plain).method.generator.sample(run.params, noise, condition)
        images = run.sample(noise, condition)
        np.testing.assert_allclose(images, network.decode(params, bare), rtol=1e-4, atol=1e-3)
        assert np.abs(images - bare).max() > 0.1
        with Image.open(workdir / 'samples' / '000000004.png') as picture:
            assert picture.mode == 'RGB'
    # Measured against the digits, not against their latents.
    row = build.evaluate(None, runs / 'student', quiet=True)
    assert {'fd_held_out', 'pixel_fd', 'accuracy'} <= row['protocol'].keys()
    assert np.isfinite(row['fd_held_out'])
    words = ['sample', f'--workdir={runs / "teacher"}', '--n=4', '--trajectory']
    assert cli.main([*words, f'--out={tmp_path / "few.npy"}']) == 0
    assert np.load(tmp_path / 'few.npy').shape == (4, 3, 8, 8, 1)


def test_a_check_of_a_teacher_shows_images(runs, quick):
    _, seen = check_teacher(None, runs / 'teacher', samples=100, quiet=True)
    levels = (seen['held-out data'] + 1) * 8  # Of latents from -20 on.
    np.testing.assert_allclose(levels, levels.round(), atol=0.1)
    assert levels.min() > -0.1 and levels.max() < 16.1


def test_latents_of_another_autoencoder_are_refused(runs, encoded, tmp_path, capsys):
    other = toy_autoencoder.write(tmp_path / 'other.safetensors', invert=2.0)
    words = ['sample', f'--workdir={runs / "student"}', '--n=2', f'--out={tmp_path / "x.png"}']
    assert cli.main([*words, f'--vae={other}']) == 2
    assert 'is another autoencoder' in capsys.readouterr().err
    build.encode({'data': {'name': 'digits'}}, other, tmp_path / 'latents', quiet=True)
    config = config_of(
        tmp_path / 'latents',
        other,
        teacher={'workdir': str(runs / 'teacher')},
        method={'name': 'sim', 'student_law': LAW, 'critic_law': LAW},
    )
    with pytest.raises(UserError, match='config.teacher.workdir.*was trained on'):
        build.resolve(config, build.load_data(config, 'train'))


def test_a_moved_autoencoder_is_named(runs, vae, tmp_path):
    moved = pathlib.Path(shutil.copy(vae, tmp_path / 'moved.safetensors'))
    one, other = (build.from_workdir(runs / 'student', vae=path) for path in (None, moved))
    noise, condition = one.start(jax.random.key(0), 2)
    np.testing.assert_array_equal(one.sample(noise, condition), other.sample(noise, condition))


def test_weights_of_latents_are_decoded_if_an_autoencoder_is_given(runs, vae, tmp_path, quick):
    run = build.from_workdir(runs / 'teacher')
    plain = configs.to_json(run.config)
    leaves = jax.tree_util.tree_leaves_with_path(run.params)
    arrays = {published.name_of(path): np.asarray(leaf) for path, leaf in leaves}
    file = tmp_path / 'teacher.safetensors'
    for image in (plain['image'], {k: v for k, v in plain['image'].items() if k != 'latents'}):
        model = {'network': plain['network'], 'denoiser': plain.get('denoiser', {}), 'image': image}
        denoisers.save(file, arrays, model, licence='none')
        bare, seen = (build.from_weights(file, steps=2, vae=path) for path in (None, vae))
        noise, condition = bare.start(jax.random.key(0), 2)
        network, params, _ = autoencoders.load(vae)
        expected = network.decode(params, bare.sample(noise, condition))
        np.testing.assert_allclose(seen.sample(noise, condition), expected, rtol=1e-5, atol=1e-4)
        assert bare.digest != seen.digest
        # Such a teacher may teach on latents, whether or not it says whose they are.
        config = config_of(plain['data']['path'], vae, teacher={'weights': str(file)})
        assert build.resolve(config, build.load_data(config, 'train'))['network']['name'] == 'mlp'


def test_samples_on_a_mesh_are_decoded_there(runs):
    one, many = (build.from_workdir(runs / 'student', mesh=m) for m in (None, sharding.make_mesh()))
    noise, condition = one.start(jax.random.key(0), 16)
    placed = sharding.put_batch((noise, condition), sharding.batch_sharding(sharding.make_mesh()))
    images = many.sample(*placed)
    assert len(images.sharding.device_set) == 8 and not images.sharding.is_fully_replicated
    np.testing.assert_allclose(images, one.sample(noise, condition), rtol=1e-3, atol=1e-2)


def test_a_training_measures_images(runs, tmp_path, quick):
    plain = configs.to_json(configs.read(runs / 'student'))
    source, built = build.load_data(plain, 'train'), build.experiment(plain)
    mesh = sharding.make_mesh()
    measure = while_training(plain, built, source, tmp_path, mesh)
    params = jax.device_put(build.from_workdir(runs / 'student').params, sharding.replicated(mesh))
    numbers, _ = measure(params, 4)
    assert np.isfinite(numbers['pixel_fd']) and 'accuracy' in numbers


def test_a_teacher_of_latents_is_checked_on_latents(runs, quick):
    measured, drawn = check_teacher(None, runs / 'teacher', samples=20, quiet=True)
    assert (measured['data']['name'], measured['data']['shape']) == ('digits latents', [8, 8, 1])
    assert all(made.shape[1:] == (8, 8, 1) for made in drawn.values())


def test_a_run_goes_on_where_its_latents_were_moved_to(runs, encoded, vae, tmp_path):
    shutil.copytree(encoded, tmp_path / 'latents')
    shutil.copy(vae, tmp_path / 'vae.safetensors')
    config = configs.to_json(configs.read(runs / 'teacher'))
    config = {name: config[name] for name in config if name not in ('image', 'origin')}
    config['data'] |= {'path': str(tmp_path / 'latents'), 'vae': str(tmp_path / 'vae.safetensors')}

    def check(**more):
        own = config | {'data': config['data'] | more}
        source = build.load_data(own, 'train')
        plain = build.resolve(own, source)
        plain['origin'] = resume.origin(source, {})
        return resume.check_resumable(plain, runs / 'teacher')

    assert check() == []
    with pytest.raises(UserError, match='config.data.seed=None, now 3'):
        check(seed=3)


def test_points_are_not_decoded(vae):
    image = {'shape': [2], 'num_classes': 0}
    with pytest.raises(UserError, match='--vae=.*decodes 1 channels of latents'):
        built_latents.decoder(image, vae, None, '--vae')


def test_another_scale_is_another_autoencoder(tmp_path, encoded):
    """Its arrays are the same, and its latents are not."""
    path = tmp_path / 'other.safetensors'
    model = {'name': 'autoencoder_kl', **TOY, 'scaling_factor': 2 * SCALE}
    autoencoders.save(path, toy_autoencoder.arrays(), model, licence='none')
    with pytest.raises(UserError, match='is another autoencoder'):
        load(encoded, path)


@pytest.mark.parametrize(
    'setting, value',
    [
        ('channels', 1.5),
        ('channels', True),
        ('norm_num_groups', 1.0),
        ('scaling_factor', 1e300),
        ('shift_factor', [1, 2]),
        ('layers_per_block', 900),
    ],
)
def test_settings_of_an_autoencoder_are_looked_at(setting, value):
    model = {'name': 'autoencoder_kl', **TOY, setting: value}
    with pytest.raises(UserError, match=setting):
        autoencoders.make(model, 'file')
