"""Model folders of diffusers: read, refused, converted, and written so that it loads them."""

import json
import os
import re
import sys
import types

import diffusers_networks
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import weights_files as files
from diffusers_networks import CASES

from fdistill import build, cli
from fdistill.build import published
from fdistill.build.models import make_denoiser
from fdistill.config import call
from fdistill.diffusion import denoiser as denoisers_of
from fdistill.diffusion import noise, samplers
from fdistill.errors import UserError
from fdistill.networks import NETWORKS
from fdistill.networks.autoencoder import autoencoder_kl
from fdistill.weights import autoencoders, denoisers, diffusers, diffusers_config, store

STEM = diffusers.STEM
DDPM = {'_class_name': 'DDPMScheduler', 'variance_type': 'fixed_small', 'clip_sample': True}
README = '---\ntags:\n- pytorch\nlicense: apache-2.0\n---\n# A model\n'


def config_of(name='unet ddpm', **changes):
    case = CASES[name]
    config = {'_class_name': case.kind, '_diffusers_version': '0.8.0', **case.config, **changes}
    return {key: value for key, value in config.items() if value is not ...}


def arrays_of(config):
    """Random parameters of a model by its config."""
    name, options = diffusers_config.settings(config, 'config.json')
    made = call(NETWORKS.get(name, autoencoder_kl), options, 'config')
    if name == 'autoencoder_kl':
        return diffusers_networks.arrays(made.shapes())
    x = jax.ShapeDtypeStruct((1, 8, 8, options.get('channels', 3)), jnp.float32)
    label = {'label': jax.ShapeDtypeStruct((1,), jnp.int32)}
    t = jax.ShapeDtypeStruct((1,), jnp.float32)
    shapes = jax.eval_shape(made.init, jax.random.key(0), x, t, label)
    return diffusers_networks.arrays({key: value.shape for key, value in shapes.items()})


def put_json(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value))


def put(folder, config=None, arrays=None, scheduler=DDPM, part='.', name=f'{STEM}.safetensors'):
    """A folder of a model; its part and its scheduler's where there is a pipeline."""
    config = config_of() if config is None else config
    put_json(folder / part / 'config.json', config)
    if scheduler:
        beside = 'scheduler' if part != '.' else '.'
        put_json(folder / beside / 'scheduler_config.json', scheduler)
    put_json(folder / 'README.md', README)
    arrays = arrays_of(config) if arrays is None else arrays
    store.write(folder / part / name, arrays, {'format': 'pt'})
    return folder


def sharded(folder, arrays, change=lambda index: index, variant=''):
    """The same in two files and an index."""
    (folder / f'{STEM}.safetensors').unlink()
    half = {name: i % 2 for i, name in enumerate(sorted(arrays))}
    names = [f'{STEM}{variant}-0000{i + 1}-of-00002.safetensors' for i in range(2)]
    for i, name in enumerate(names):
        own = {key: value for key, value in arrays.items() if half[key] == i}
        store.write(folder / name, own, {'format': 'pt'})
    index = {'metadata': {}, 'weight_map': {key: names[i] for key, i in half.items()}}
    put_json(folder / f'{STEM}.safetensors.index{variant}.json', change(index))


def pickled(arrays):
    """torch.save's archive of {name: array}."""
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    values = {
        name: files.view(files.storage(str(i), array.size), array.shape)
        for i, (name, array) in enumerate(arrays.items())
    }
    data = {str(i): array.tobytes() for i, array in enumerate(arrays.values())}
    return files.saved(files.pairs(values), data)


@pytest.fixture(scope='module')
def arrays():
    return arrays_of(config_of())


def read(folder, **options):
    return diffusers.read(folder, diffusers.PARTS, **options)


def same(found, expected):
    assert found.keys() == expected.keys()
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name])


def test_reads_a_lone_model(tmp_path, arrays):
    folder = read(put(tmp_path, arrays=arrays))
    same(folder.arrays, arrays)
    assert (folder.scheduler, folder.licence) == (DDPM, 'apache-2.0')


@pytest.mark.parametrize('part', ['unet', 'transformer'])
def test_reads_a_part_of_a_pipeline(part, tmp_path, arrays):
    put_json(tmp_path / 'model_index.json', {'_class_name': 'DDPMPipeline'})
    folder = read(put(tmp_path, arrays=arrays, part=part))
    same(folder.arrays, arrays)
    assert (folder.place, folder.scheduler) == (f'{part}/config.json', DDPM)


def test_reads_shards(tmp_path, arrays):
    sharded(put(tmp_path, arrays=arrays), arrays)
    same(read(tmp_path).arrays, arrays)
    half = {name: array.astype(np.float16) for name, array in arrays.items()}
    sharded(put(tmp_path / 'half', arrays=arrays), half, variant='.fp16')
    same(read(tmp_path / 'half', variant='fp16').arrays, half)


@pytest.mark.parametrize('dtype', [np.float16, ml_dtypes.bfloat16])
def test_reads_a_variant_when_it_is_named(dtype, tmp_path, arrays):
    half = {name: array.astype(dtype) for name, array in arrays.items()}
    put(tmp_path, arrays=half, name=f'{STEM}.fp16.safetensors')
    same(read(tmp_path, variant='fp16').arrays, half)
    with pytest.raises(ValueError, match=f'there is {STEM}.fp16.safetensors: name its variant'):
        read(tmp_path)
    put(tmp_path, arrays=arrays)  # Beside it those of full precision, which come first.
    same(read(tmp_path).arrays, arrays)


def test_reads_a_pickle_only_where_there_is_nothing_better(tmp_path, arrays):
    put(tmp_path, arrays=arrays)
    (tmp_path / f'{STEM}.bin').write_bytes(pickled({'other': np.ones(2, np.float32)}))
    same(read(tmp_path).arrays, arrays)
    (tmp_path / f'{STEM}.safetensors').unlink()
    (tmp_path / f'{STEM}.bin').write_bytes(pickled(arrays))
    same(read(tmp_path).arrays, arrays)


def test_attention_of_old_files_gets_its_present_names(tmp_path, arrays):
    old = {new: name for name, new in diffusers._OLD.items()}

    def aged(name):
        for new, before in old.items():
            name = name.replace(f'.{new}.', f'.{before}.')
        return name

    put(tmp_path, arrays={aged(name): array for name, array in arrays.items()})
    folder = read(tmp_path)
    same(folder.arrays, arrays)
    name = 'mid_block.attentions.0.to_out.0.weight'
    assert folder.sources[name] == ('mid_block.attentions.0.proj_attn.weight',)


def test_a_key_that_is_missing_has_the_default(tmp_path):
    bare = {'_class_name': 'UNet2DModel', 'sample_size': 32}
    assert diffusers_config.settings(bare, '') == ('unet2d', {'resolution': 32})
    scheduler = diffusers_config.denoiser_of({'_class_name': 'HeunDiscreteScheduler'}, '')
    schedule = scheduler['schedule']
    assert (schedule['beta_start'], schedule['beta_schedule']) == (0.00085, 'linear')


def change_arrays(change):
    def apply(folder, arrays):
        store.write(folder / f'{STEM}.safetensors', change(dict(arrays)), {'format': 'pt'})

    return apply


def without(name):
    return change_arrays(lambda arrays: {k: v for k, v in arrays.items() if k != name})


def with_(name, value):
    return change_arrays(lambda arrays: arrays | {name: value})


def config(**changes):
    return lambda folder, _: put_json(folder / 'config.json', config_of(**changes))


def scheduler(value):
    return lambda folder, _: put_json(folder / 'scheduler_config.json', value)


def index(change):
    return lambda folder, arrays: sharded(folder, arrays, change)


def remap(index, file):
    name = sorted(index['weight_map'])[0]
    return {'weight_map': index['weight_map'] | {name: file}}


def cut(name, size):
    def apply(folder, _):
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[:size] if size else b'\xff' * 7 + b'\x7f{')

    return apply


def linked(name):
    def apply(folder, _):
        outside = folder.parent / 'outside'
        os.replace(folder / name, outside)
        (folder / name).symlink_to(outside)

    return apply


def pickle_of(data):
    def apply(folder, _):
        (folder / f'{STEM}.safetensors').unlink()
        (folder / f'{STEM}.bin').write_bytes(data)

    return apply


CODE = files.program(files.reduce(files.name('os', 'system'), files.text('true')))
SQUARE = np.ones((3, 3), np.float32)
HOSTILE = {
    'missing': (without('conv_in.bias'), "'conv_in.bias' is missing"),
    'extra': (with_('conv_on.bias', SQUARE), "'conv_on.bias' has no place"),
    'shape': (with_('conv_in.bias', SQUARE), r'conv_in.bias.*\(3, 3\), not \(16,\)'),
    'integers': (with_('conv_in.bias', np.ones(16, np.int32)), 'conv_in.bias.*int32'),
    'bools': (with_('conv_in.bias', np.ones(16, bool)), 'conv_in.bias.*bool'),
    'not finite': (with_('conv_in.bias', np.full(16, np.inf, np.float16)), 'not finite'),
    'convolutional attention': (
        with_('mid_block.attentions.0.query.weight', np.ones((32, 32, 1, 1), np.float32)),
        'is a convolution',
    ),
    'both names': (
        with_('mid_block.attentions.0.query.weight', np.ones((32, 32), np.float32)),
        'the old name of the other',
    ),
    'unknown key': (config(num_heads=3), "'num_heads' is no setting of UNet2DModel"),
    'unknown block': (
        config(down_block_types=('SkipDownBlock2D', 'DownBlock2D')),
        'SkipDownBlock2D.*is not supported',
    ),
    'unsupported': (config(time_embedding_type='fourier'), "time_embedding_type='fourier'"),
    'class embedding': (config(class_embed_type='timestep'), "class_embed_type='timestep'"),
    'another class': (config(_class_name='UNet2DConditionModel'), 'UNet2DConditionModel'),
    'no class': (config(_class_name=...), '_class_name=None'),
    'a list for a class': (config(_class_name=['a']), 'is no denoiser'),
    'an autoencoder': (
        lambda folder, _: put_json(folder / 'config.json', config_of('vae')),
        'is no denoiser that is supported',
    ),
    'inpainting': (config(in_channels=9), 'whose output is no image like its input'),
    'text for a number': (config(layers_per_block='2'), "layers_per_block.*'2'"),
    'huge': (config(block_out_channels=(2**40, 2**40)), 'block_out_channels'),
    'heads': (config(attention_head_dim=5), 'attention_head_dim=5'),
    'groups': (config(norm_num_groups=3), 'norm_num_groups=3'),
    'size': (config(sample_size=9), 'resolution=9'),
    'an enormous size': (config(sample_size=10**9), 'is no shape of a sample'),
    'classes of text': (config(num_class_embeds='a'), "num_class_embeds='a' is no number"),
    'classes of fractions': (config(num_class_embeds=3.0), 'num_class_embeds=3.0 is no number'),
    'no size': (config(sample_size=...), 'give the side with --resolution'),
    'oblong': (config(sample_size=[8, 16]), 'is no side of a square'),
    'no json': (lambda folder, _: put_json(folder / 'config.json', '{'), 'config.json is damaged'),
    'a list': (lambda folder, _: put_json(folder / 'config.json', '[]'), 'config.json is damaged'),
    'no config': (lambda folder, _: (folder / 'config.json').unlink(), 'known are'),
    'no weights': (lambda folder, _: (folder / f'{STEM}.safetensors').unlink(), 'has no diffusion'),
    'truncated': (cut(f'{STEM}.safetensors', 5000), 'no whole safetensors.*download the folder'),
    'header of 2^63': (cut(f'{STEM}.safetensors', 0), 'no whole safetensors file'),
    'code': (pickle_of(CODE), 'posix|os.system|global'),
    'a list of arrays': (
        pickle_of(files.program(files.items(files.number(1)))),
        'is no dict of arrays',
    ),
    'a link outside': (linked(f'{STEM}.safetensors'), 'link that leads out of the folder'),
    'a link of the config': (linked('config.json'), 'link that leads out of the folder'),
    'file and index': (
        lambda folder, arrays: (sharded(folder, arrays), put(folder, arrays=arrays)),
        'remove one of them',
    ),
    'index without files': (
        index(lambda index: remap(index, f'{STEM}-9.safetensors')),
        'is not there',
    ),
    'index above': (
        index(lambda index: remap(index, '../x.safetensors')),
        'no file of this folder',
    ),
    'index absolute': (index(lambda index: remap(index, '/x.safetensors')), 'no file of this'),
    'index elsewhere': (
        index(lambda index: remap(index, sorted(index['weight_map'].values())[-1])),
        'does not hold|beside what the index says',
    ),
    'index truncated': (
        index(lambda index: {'weight_map': dict(list(index['weight_map'].items())[4:])}),
        'holds, beside what the index says',
    ),
    'index empty': (index(lambda index: {'weight_map': {}}), 'names no array'),
    'index of numbers': (index(lambda index: {'weight_map': {'a': 1}}), 'index.json is damaged'),
    'index cut': (index(lambda index: '{"weight_map": '), 'index.json is damaged'),
    'no scheduler': (
        lambda folder, _: (folder / 'scheduler_config.json').unlink(),
        'has no scheduler_config.json',
    ),
    'unknown scheduler': (scheduler({'_class_name': 'ScoreSdeVeScheduler'}), 'ScoreSdeVeScheduler'),
    'unknown scheduler key': (scheduler(DDPM | {'beta_stop': 1}), "'beta_stop' is no setting"),
    'unknown betas': (scheduler(DDPM | {'beta_schedule': 'sigmoid'}), "beta_schedule='sigmoid'"),
    'betas of text': (scheduler(DDPM | {'beta_start': 'a'}), 'scheduler_config.json'),
    'too few betas': (scheduler(DDPM | {'trained_betas': [0.1, 0.2]}), 'trained_betas has 2'),
    'rising table': (
        scheduler(DDPM | {'trained_betas': [0.1, -0.2], 'num_train_timesteps': 2}),
        'strictly falling',
    ),
    'unknown prediction': (scheduler(DDPM | {'prediction_type': 'score'}), "'score'"),
    'flow under betas': (scheduler(DDPM | {'prediction_type': 'flow_prediction'}), 'is no flow'),
    'noise at its end': (scheduler(DDPM | {'rescale_betas_zero_snr': True}), 'at the last time'),
}


@pytest.mark.parametrize('fault', HOSTILE)
def test_what_is_wrong_is_one_line_and_nothing_is_written(fault, tmp_path, arrays):
    change, message = HOSTILE[fault]
    folder, out = put(tmp_path / 'model', arrays=arrays), tmp_path / 'out' / 'teacher.safetensors'
    change(folder, arrays)
    with pytest.raises(UserError, match=message) as caught:
        build.convert(folder, out)
    assert '\n' not in str(caught.value) and str(folder) in str(caught.value)
    assert not out.parent.exists() or not list(out.parent.iterdir())


ODD = (None, True, -1, 0, 2**40, 1.5, 'x', [], [None], [[1]], {}, {'a': 1}, [2**40] * 99)


@pytest.mark.parametrize('name', ['unet', 'vae'])
def test_a_config_of_odd_values_is_one_line_or_works(name):
    config = config_of(name)
    keys = {*config, *diffusers_config.MODELS[config['_class_name']].keys}
    refused = 0
    for key in sorted(keys - {'_diffusers_version', 'sample_size'}):
        for value in ODD:
            try:
                row, options = diffusers_config.settings(config | {key: value}, 'config.json')
                if row == 'unet2d':
                    call(NETWORKS[row], options, 'config.json')
                else:
                    autoencoders.make({'name': row, **options}, 'config.json')
            except ValueError as error:
                assert '\n' not in str(error) and len(str(error)) < 900
                refused += 1
    assert refused > 100


def test_a_scheduler_of_odd_values_is_one_line_or_works():
    kinds = ('DDPM', 'DPMSolverMultistep', 'FlowMatchEulerDiscrete', 'EDMEuler')
    refused = 0
    for kind in [f'{kind}Scheduler' for kind in kinds]:
        for key in ('_class_name', *diffusers_config.SCHEDULERS[kind].defaults):
            for value in ODD:
                try:
                    diffusers_config.denoiser_of({'_class_name': kind} | {key: value}, 'here')
                except ValueError as error:
                    assert '\n' not in str(error) and len(str(error)) < 900
                    refused += 1
    assert refused > 100


def test_a_strange_variant_is_refused(tmp_path):
    with pytest.raises(UserError, match='variant='):
        build.convert(put(tmp_path / 'model'), tmp_path / 'x.safetensors', variant='../fp16')


SCHEDULERS = [
    (DDPM, 'eps', {'name': 'betas', 'beta_schedule': 'linear'}),
    (
        {'_class_name': 'PNDMScheduler', 'beta_schedule': 'scaled_linear', 'beta_start': 0.00085},
        'eps',
        {'beta_schedule': 'scaled_linear', 'beta_start': 0.00085, 'beta_end': 0.02},
    ),
    (
        {
            '_class_name': 'DDIMScheduler',
            'prediction_type': 'v_prediction',
            'rescale_betas_zero_snr': True,
        },
        'v',
        {'zero_terminal_snr': 'drop'},
    ),
    ({'_class_name': 'DDPMScheduler', 'prediction_type': 'sample'}, 'x0', {'name': 'betas'}),
]


@pytest.mark.parametrize('said, prediction, schedule', SCHEDULERS)
def test_what_a_scheduler_says(said, prediction, schedule):
    section = diffusers_config.denoiser_of(said, '')
    assert section['prediction'] == prediction
    assert schedule.items() <= section['schedule'].items()


def test_flow_and_edm_are_sections_too():
    flow = {'_class_name': 'FlowMatchEulerDiscreteScheduler', 'shift': 3.0}
    expected = {'name': 'prediction', 'prediction': 'flow', 'schedule': 'flow', 'time_scale': 1000}
    assert diffusers_config.denoiser_of(flow, '') == expected
    unipc = {'_class_name': 'UniPCMultistepScheduler', 'use_flow_sigmas': True}
    assert diffusers_config.denoiser_of(unipc | {'prediction_type': 'flow_prediction'}, '') == (
        expected
    )
    edm = {'_class_name': 'EDMEulerScheduler', 'sigma_data': 0.3}
    assert diffusers_config.denoiser_of(edm, '') == {'name': 'edm', 'sigma_data': 0.3}


@pytest.mark.parametrize(
    'section, said',
    [
        ({'boundary': 0.002}, 'denoiser.boundary=0.002: diffusers has no setting for it'),
        ({'name': 'edm', 'noise_input': 'angle'}, "denoiser.noise_input='angle': diffusers has no"),
        (
            {
                'name': 'prediction',
                'prediction': 'flow',
                'schedule': 'flow',
                'time_scale': 1000.0,
                'time_offset': 1.0,
            },
            'diffusers has no scheduler for it',
        ),
        (
            {'name': 'prediction', 'prediction': 'reverse_flow', 'schedule': 'discrete'},
            'diffusers has no scheduler for it',
        ),
    ],
)
def test_what_a_scheduler_would_lose_is_refused(section, said, tmp_path):
    model = {
        'network': {'name': 'unet2d'},
        'denoiser': section,
        'image': {'shape': [8, 8, 1], 'num_classes': 0},
    }
    with pytest.raises(UserError, match=f'^--to=diffusers: .*{re.escape(said)}') as caught:
        diffusers.export(tmp_path, model, {}, '--to=diffusers')
    assert '\n' not in str(caught.value) and not list(tmp_path.iterdir())


def test_what_is_as_diffusers_has_it_may_be_said():
    section = {'name': 'edm', 'sigma_data': 0.4, 'boundary': 0.0, 'noise_input': 'log'}
    back = diffusers_config.denoiser_of(diffusers_config.scheduler_of(section), '')
    assert back == {'name': 'edm', 'sigma_data': 0.4}


WAYS = [
    {'name': 'edm', 'sigma_data': 0.4},
    {'name': 'prediction', 'prediction': 'flow', 'schedule': 'flow', 'time_scale': 1000.0},
    {'name': 'prediction', 'prediction': 'eps', 'schedule': 'discrete'},
    {
        'name': 'prediction',
        'prediction': 'x0',
        'schedule': {'name': 'discrete', 'alphas_cumprod': (0.9, 0.5, 0.1)},
    },
    {
        'name': 'prediction',
        'prediction': 'v',
        'schedule': {'name': 'betas', 'beta_end': 0.012, 'zero_terminal_snr': 'drop'},
    },
]


@pytest.mark.parametrize('section', WAYS)
def test_a_scheduler_says_what_a_section_does(section, x64):
    back = diffusers_config.denoiser_of(diffusers_config.scheduler_of(section), '')
    for name in ('name', 'prediction', 'sigma_data', 'time_scale'):
        assert back.get(name) == section.get(name)

    def ratio(section):
        schedule = section['schedule']
        schedule = {'name': schedule} if isinstance(schedule, str) else dict(schedule)
        chosen = noise.SCHEDULES[schedule.pop('name')](**schedule)
        t = np.linspace(*chosen.span, 7)
        return chosen.sigma(t) / chosen.alpha(t)

    if 'schedule' in section:
        np.testing.assert_allclose(ratio(back), ratio(section), rtol=1e-9)


@pytest.mark.parametrize(
    'section',
    [
        {'name': 'prediction', 'prediction': 'eps', 'schedule': 'cosine'},
        {'name': 'prediction', 'prediction': 'eps', 'schedule': 'flow'},
        {'name': 'prediction', 'prediction': 'eps', 'schedule': 'betas', 'time_scale': 0.1},
        {'name': 've'},
    ],
)
def test_a_section_without_a_scheduler_is_refused(section, tmp_path):
    model = {
        'network': {'name': 'unet2d'},
        'denoiser': section,
        'image': {'shape': [8, 8, 3], 'num_classes': 0},
    }
    with pytest.raises(UserError, match='diffusers has no scheduler for it'):
        diffusers.export(tmp_path / 'out', model, {}, '--out')
    with pytest.raises(UserError, match="diffusers has no network like 'adm'"):
        diffusers.export(tmp_path / 'out', model | {'network': {'name': 'adm'}}, {}, '--out')
    assert not (tmp_path / 'out').exists()


def converted(tmp_path, name, scheduler=DDPM):
    """(file, Denoiser, params, arrays) of a case's folder."""
    arrays = arrays_of(config_of(name))
    put(tmp_path / 'model', config_of(name), arrays, scheduler)
    build.convert(tmp_path / 'model', tmp_path / 'teacher.safetensors')
    model = denoisers.about(tmp_path / 'teacher.safetensors')['model']
    denoiser = make_denoiser(model['network'], model['denoiser'], model['image'], 'config.')
    params = published.load(denoiser, tmp_path / 'teacher.safetensors', model['image'])[0]
    return model, denoiser, params, arrays


@pytest.mark.parametrize('name', ['unet ddpm', 'unet resnet'])
def test_a_converted_folder_is_a_denoiser_and_goes_back(name, tmp_path):
    model, denoiser, params, arrays = converted(tmp_path, name)
    images, t, labels, _ = diffusers_networks.inputs(CASES[name])
    with np.load(diffusers_networks.GOLDENS) as goldens:
        eps = goldens[f'{name}/out']
    # As a network of diffusers is used: x_t = alpha x0 + sqrt(1 - alpha^2) eps.
    alpha = np.sqrt(np.cumprod(1 - np.linspace(1e-4, 0.02, 1000)))[t.astype(int)]
    alpha = alpha[:, None, None, None]
    sigma = np.sqrt(1 - alpha**2) / alpha
    given = {'label': labels} if denoiser.takes else {}
    x0, _ = denoiser.apply(
        params, jnp.asarray(images / alpha), jnp.asarray(sigma.ravel(), jnp.float32), given
    )
    np.testing.assert_allclose(x0, images / alpha - sigma * eps, atol=2e-5 * sigma.max())

    diffusers.export(tmp_path / 'back', model, arrays, '--out')
    again = read(tmp_path / 'back')
    same(again.arrays, arrays)
    row, options = diffusers_config.settings(config_of(name), '')
    options = {'channels': 3, 'num_classes': 0} | options
    assert diffusers_config.settings(again.config, '') == (row, options)
    assert diffusers_config.denoiser_of(again.scheduler, '') == model['denoiser'] | {
        'schedule': dict(model['denoiser']['schedule'])
    }
    with pytest.raises(UserError, match='is not empty'):
        diffusers.export(tmp_path / 'back', model, arrays, '--out')


def test_a_dit_is_read_and_goes_back(tmp_path):
    network = {'name': 'dit', 'variant': 'diffusers', 'width': 16, 'depth': 2, 'heads': 2}
    model = {
        'network': network | {'patch': 2, 'learned_variance': True},
        'denoiser': {'name': 'prediction', 'prediction': 'eps', 'schedule': {'name': 'betas'}},
        'image': {'shape': [8, 8, 4], 'num_classes': 10},
    }
    arrays = diffusers_networks.arrays(published.shapes_of(model))
    diffusers.export(tmp_path / 'dit', model, arrays, '--out')
    report = build.convert(tmp_path / 'dit', tmp_path / 'dit.safetensors', licence='none')
    assert report['model']['network'] == model['network']
    assert report['model']['image'] == model['image']
    same(store.load(tmp_path / 'dit.safetensors')[0], arrays)
    rows = {row['name']: row['found_as'] for row in report['arrays']}
    parts = [f'transformer_blocks.0.attn1.to_{part}.weight' for part in 'qkv']
    assert rows['blocks.0.attn.qkv.weight'] == parts
    with pytest.raises(UserError, match="--out: diffusers' DiT embeds time in each block"):
        own = model | {'network': {**model['network'], 'variant': 'facebook'}}
        diffusers.export(tmp_path / 'other', own, arrays, '--out')
    assert not (tmp_path / 'other').exists()


@pytest.fixture
def theirs():
    for package in ('torch', 'diffusers'):
        pytest.importorskip(package, reason=f'{package} is not installed')
    import diffusers

    return diffusers


@pytest.mark.parametrize('name', [*CASES])
def test_the_installed_library_loads_what_is_written(name, tmp_path, theirs):
    case, config = CASES[name], config_of(name)
    arrays = arrays_of(config)
    row, options = diffusers_config.settings(config, '')
    written = diffusers_config.config_of(case.kind, options)
    diffusers.write(tmp_path / 'model', written, arrays)
    loaded, info = getattr(theirs, case.kind).from_pretrained(
        tmp_path / 'model', output_loading_info=True
    )
    assert not any(info.values())
    expected = diffusers_networks.answers(case, diffusers_networks.model(case, arrays))
    for part, value in diffusers_networks.answers(case, loaded.eval()).items():
        np.testing.assert_array_equal(value, expected[part])
    # And reads what it writes: whole, and in pieces.
    for folder, options in (('whole', {}), ('pieces', {'max_shard_size': '50KB'})):
        loaded.save_pretrained(tmp_path / folder, **options)
        same(diffusers.read(tmp_path / folder, ()).arrays, arrays)


def test_the_installed_library_loads_a_dit_and_a_scheduler(tmp_path, theirs):
    network = {'name': 'dit', 'variant': 'diffusers', 'width': 16, 'depth': 1, 'heads': 2}
    model = {
        'network': network | {'patch': 2},
        'denoiser': {'name': 'prediction', 'prediction': 'v', 'schedule': {'name': 'betas'}},
        'image': {'shape': [8, 8, 4], 'num_classes': 10},
    }
    arrays = diffusers_networks.arrays(published.shapes_of(model))
    diffusers.export(tmp_path / 'dit', model, arrays, '--out')
    _, info = theirs.DiTTransformer2DModel.from_pretrained(
        tmp_path / 'dit', output_loading_info=True
    )
    assert not any(info.values())
    scheduler = theirs.DDPMScheduler.from_pretrained(tmp_path / 'dit')
    assert scheduler.config.prediction_type == 'v_prediction'
    expected = noise.betas().alpha(np.arange(1000.0)) ** 2
    np.testing.assert_allclose(scheduler.alphas_cumprod.numpy(), expected, rtol=1e-4)


def test_ten_steps_end_where_the_installed_library_does(tmp_path, theirs):
    import torch

    _, denoiser, params, arrays = converted(tmp_path, 'unet ddpm')
    case = CASES['unet ddpm']
    network = diffusers_networks.model(case, arrays)
    scheduler = theirs.DDIMScheduler(clip_sample=False)
    scheduler.set_timesteps(10)
    unit = np.random.RandomState(2).standard_normal((2, 8, 8, 3)).astype(np.float32)
    x = torch.from_numpy(unit).permute(0, 3, 1, 2)
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(network(x, t).sample, t, x).prev_sample
    chosen = noise.betas()
    times = scheduler.timesteps.numpy().astype(np.float64)
    sigmas = np.append(chosen.sigma(times) / chosen.alpha(times), 0)
    start = jnp.asarray(unit / chosen.alpha(times[0]), jnp.float32)
    out = samplers.euler(denoisers_of.bind(denoiser, params, {}), start, sigmas)
    expected = x.permute(0, 2, 3, 1).numpy()
    assert np.abs(out - expected).max() < 1e-4 * np.abs(expected).max()


# By name, at a model hub.


def test_a_model_by_its_name(tmp_path, monkeypatch, capsys):
    asked = []

    def download(name, *, revision, allow_patterns, local_dir):
        asked.append((name, revision))
        assert '*.bin' not in allow_patterns and not any('py' in one for one in allow_patterns)
        put(local_dir)

    client = types.SimpleNamespace(snapshot_download=download)
    monkeypatch.setitem(sys.modules, 'huggingface_hub', client)
    monkeypatch.chdir(tmp_path)
    words = ['convert', 'teacher', 'someone/ddpm@v1', 'a.safetensors', '--licence=MIT']
    assert cli.main(words) == 0
    assert asked == [('someone/ddpm', 'v1')] and 'unet2d' in capsys.readouterr().out
    assert denoisers.about('a.safetensors')['source'] == 'someone--ddpm@v1'


def test_a_name_that_leads_nowhere(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def fails(*_, **__):
        raise ConnectionError('no network\nat all')

    client = types.SimpleNamespace(snapshot_download=fails)
    for module, said in ((client, 'does not give it (no network)'), (None, "'fdistill[hub]'")):
        monkeypatch.setitem(sys.modules, 'huggingface_hub', module)
        for kind in ('teacher', 'vae'):
            assert cli.main(['convert', kind, 'someone/ddpm', 'a.safetensors']) == 2
            message = capsys.readouterr().err
            assert said in message and 'someone/ddpm: is no file or folder here' in message
    # The name of a file is none of a model.
    assert cli.main(['convert', 'teacher', 'weights/none.pkl', 'a.safetensors']) == 2
    assert 'weights/none.pkl: is no file' in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_variant_is_a_name(tmp_path, arrays):
    folder = put(tmp_path / 'model', arrays=arrays)
    with pytest.raises(UserError, match='variant=3: give a name'):
        build.convert(folder, tmp_path / 'out.safetensors', variant=3)
