"""Every file in configs/ as it stands, at its full size: it loads, is consistent, and its steps
trace."""

import functools
import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from registered import every

from fdistill import build, config, recipe
from fdistill.build import models
from fdistill.build.plan import outline
from fdistill.build.resume import check_resumable, origin
from fdistill.data.sources import Source
from fdistill.errors import UserError
from fdistill.files import disk
from fdistill.training import checkpoint, loop, sharding
from fdistill.training.state import init_state
from fdistill.training.step import ema_decay, make_step

FOLDER = pathlib.Path(__file__).parents[1] / 'configs'
FILES = sorted(path.name for path in FOLDER.glob('*.py'))
# Of these networks, even one block at each of the resolutions takes long to trace twice and more;
# their teachers' files trace it once. Those of CIFAR-10 are like cifar10_f_distill, cifar10_sim and
# cifar10_mean_flow.
LARGE = (
    'cifar10_f_distill.py',
    'imagenet64_teacher.py',
    'imagenet256_sit_reverse_kl.py',
    'imagenet64_dmd2.py',
    'imagenet64_f_distill.py',
    'imagenet64_edm_js.py',
    'imagenet64_edm2_js.py',
    'imagenet64_scd.py',
    'mnist_f_distill.py',
    'mnist_sim.py',
    'cifar10_dmd2.py',
    'cifar10_sid.py',
    'cifar10_sida.py',
    'cifar10_uni_instruct.py',
    'cifar10_real_uid.py',
    'cifar10_edm_js.py',
    'cifar10_edm_forward_kl.py',
    'cifar10_edm_reverse_kl.py',
    'cifar10_edm_sid.py',
    'cifar10_edm_sim.py',
    'cifar10_consistency.py',
    'cifar10_ect.py',
    'cifar10_ict.py',
    'cifar10_scd.py',
    'cifar10_reflow.py',
    'cifar10_instaflow.py',
    'cifar10_slimflow.py',
)
# Their method and network are those of other files.
ALIKE = (
    'cifar10_dit_f_distill.py',
    'cifar10_dit_teacher.py',
    'imagenet256_sit_js.py',
    'mnist_dit_sid.py',
    'mnist_dit_sim.py',
    'mnist_features.py',
    'mnist_teacher.py',
    'ring_adversarial.py',
    'ring_features.py',
    'ring_pairs.py',
    'ring_real_data.py',
    'ring_taught.py',
    'ring_uni_instruct.py',
)
QUICK = set(FILES) - {*LARGE, *ALIKE}

# Parameters of EDM's networks as published, that of CIFAR-10 without the 9 x 128 of its
# augmentation labels.
SIZES = {
    'cifar10_edm': 55735299,
    'cifar10_dit': None,
    # With the 9 x 128 of its second time.
    'cifar10_mean_flow': 55735299,
    # As counted here; the paper says 27.9 M.
    'cifar10_slimflow': 27907587,
    'cifar10': 55735299 - 9 * 128,
    # Counted from EDM2's own network, less the estimate of its loss's variance, and with the
    # constants of its embedding.
    'imagenet64_edm2': 280209381 - 128 + 2 * 192,
    'imagenet64_scd': 280209381 - 128 + 2 * 192,
    'imagenet64': 295899267,
    # Less the fixed positions, which facebook counts.
    'imagenet256_sit': 675129632 - 256 * 1152,
    # Without its learned variance and with the 9 x 1152 of its second time.
    'imagenet256_mean_flow': 675129632 - 256 * 1152 - 1153 * 16 + 9 * 1152,
}


SOLVED = ('degrade', 'mapo', 'f_dpo')  # denoisers, sampled by a solver


def loaded(file):
    """(A config, the file of its teacher's, or of what its student starts as: the one named like
    that folder.)"""
    settings = config.load(str(FOLDER / file))
    named = settings.get('teacher', settings.get('start', {}))
    name = pathlib.Path(named.get('workdir', '')).name
    return settings, str(FOLDER / (name.replace('-', '_') + '.py')) if name else None


def resolved(file):
    """The resolved config of a file, of which neither data nor teacher are there."""
    return outline(*loaded(file))


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec('libtpu') is None, reason="needs pip install 'fdistill[plan]'"
)
@pytest.mark.parametrize('file', FILES)
def test_config_compiles_for_a_pod_and_fits(file, tmp_path):
    settings, teacher = loaded(file)
    pod = 'v5e:16x16' if file.startswith('imagenet') else 'v5e:4x4'
    result = build.plan(settings, pod, tmp_path, teacher=teacher)
    assert result['fits'] and 0 < result['memory']['needed'] < 16 * 2**30
    assert all(one['flops'] > 0 for name, one in result['programs'].items() if name != 'init')


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@functools.cache
def shapes(file, blocks=None):
    """(The resolved config of a file, method, optimizers, what a step is given: state, frozen,
    batch, key), of shapes alone; of U-Nets with that many blocks at each resolution."""
    plain = resolved(file)
    if blocks and 'num_blocks' in plain['network']:
        other = plain['network'] | {'num_blocks': blocks}
        plain = plain | {'network': other}
        for part in ('teacher', 'start'):
            if 'network' in plain.get(part, {}):
                plain[part] = plain[part] | {'network': other}
    elif blocks:
        return shapes(file)
    # Weights do not depend on the batch; a small one traces as well as a large one.
    small = {'batch_size': 8, 'microbatches': 1}
    made = build.shapes.shapes(plain | {'training': plain['training'] | small})
    method, optimizers, batch = made.built.method, made.optimizers, made.batch
    key = jax.eval_shape(lambda: jax.random.key(0))
    frozen = {name: of for name, of in made.frozen.items() if name not in method.begins}
    state = jax.eval_shape(
        lambda b, f, k: init_state(method, optimizers, k, b, f), batch, frozen, key
    )
    return plain, method, optimizers, (state, frozen, batch, key)


@pytest.mark.parametrize(
    'file, full',
    [
        pytest.param(file, full, marks=() if file in QUICK and not full else pytest.mark.slow)
        for file in FILES
        for full in (False, True)
    ],
)
def test_step_traces(file, full):
    """Of U-Nets with one block at each resolution, or with all."""
    plain, method, optimizers, given = shapes(file, None if full else 1)
    state = given[0]
    training = plain['training']
    step = make_step(
        method, optimizers, ema_decay(training['ema_half_life'], training['batch_size'])
    )
    roles = sorted(set().union(*(method.cycle(i) for i in range(1000))))
    assert roles == sorted(method.losses)
    # What each set of roles in the cycle does is in this one, and each network is traced once only.
    after = jax.eval_shape(lambda s, f, b, k: step(s, f, b, k, roles), *given)
    assert sorted(after.metrics) == roles
    after = after._replace(metrics=state.metrics)
    assert checkpoint.abstract(after) == checkpoint.abstract(state)


@pytest.mark.parametrize('file', every(FILES, QUICK))
def test_config_has_the_published_size(file):
    plain, _, _, (state, frozen, *_) = shapes(file)
    assert jax.tree.structure(state.averages['ema']) == jax.tree.structure(state.params['student'])
    size = count(state.params['student'])
    published = next((size for name, size in SIZES.items() if file.startswith(name)), None)
    smallest = 2 if plain['network']['name'] == 'gaussian' else 1e3
    assert size == published if published else smallest <= size < 1e7
    if 'teacher' in frozen and 'pairs' not in plain:  # That of pairs may be any.
        # Further numbers are embedded by arrays that the teacher has not.
        numbers, theirs = plain['network'].get('numbers'), count(frozen['teacher'])
        assert 0 < size - theirs < 0.1 * size if numbers else theirs == size
    if 'teacher' in frozen and 'critic' in state.params:
        critic = dict(state.params['critic'])
        has = 'discriminator' in critic
        head = count(critic.pop('discriminator', ()))
        # Of the teacher's network where the student starts as another; a game has no fake score.
        assert count(critic) in (0, theirs if 'start' in plain else size)
        # Counted once: 0.2 of the student with three heads on CIFAR-10. An adversary alone is more.
        assert head < (0.3 if count(critic) else 0.6) * size and has == has_head(plain)
    if 'path' in frozen:
        assert count(frozen['path']) == len(plain['path']['steps']) * size


def has_head(plain):
    """Reverse KL without a GAN has no use for its discriminator."""
    method = plain['method']
    return 'discriminator' in plain and (
        method.get('gan_weight', 1) > 0 or method.get('divergence') != 'reverse_kl'
    )


@pytest.mark.parametrize('width, share', [('128', 1 / 4), ('56', 1 / 16)])
def test_students_of_a_part_of_the_parameters(width, share):
    settings = config.load(f'{FOLDER}/sweeps/digits_small.py:{width}')
    built = build.experiment(outline(settings, str(FOLDER / 'digits_teacher.py')))
    assert built.frozen.keys() == {'teacher', 'start'} and built.method.begins == ('start',)
    given = jnp.zeros((1, *built.shape)), models.conditions(built.image, 1)
    sizes = {
        name: count(jax.eval_shape(built.parts[name].init, jax.random.key(0), *given))
        for name in ('student', 'teacher', 'fake_score')
    }
    assert sizes['fake_score'] == sizes['teacher'] == 528960
    assert sizes['student'] == pytest.approx(share * sizes['teacher'], rel=0.1)


RELATIVES = config.module(str(FOLDER / 'sweeps' / 'ring_relatives.py')).FILES


@pytest.mark.parametrize('file', [*RELATIVES.values(), 'ring_taught.py:degrade'])
def test_relatives_of_the_ring(file):
    plain = resolved(file)
    built = build.experiment(plain)
    assert built.method.generator.nfe == (35 if plain['method']['name'] in SOLVED else 1)
    assert build.optimizers(plain, built.method).keys() == built.method.losses.keys()


RING = config.module(str(FOLDER / 'ring_flow_map.py'))


@pytest.mark.parametrize('method', (*RING.ORACLE, *RING.DATA))
def test_flow_maps_of_the_ring(method):
    plain = outline(config.load(f'{FOLDER}/ring_flow_map.py:{method}'))
    built = build.experiment(plain)
    assert built.method.generator.nfe == 1
    assert build.optimizers(plain, built.method).keys() == built.method.losses.keys()


@pytest.mark.parametrize('file', FILES)
def test_config_is_complete(file):
    """What only `train` would look at: the settings of the loop, the batch on eight devices; and
    the docstring."""
    settings = config.load(str(FOLDER / file))
    training = settings.training.to_dict()
    assert set(training) <= set(loop.Training._fields)
    loop.check(loop.Training(**training), sharding.make_mesh(**settings.mesh.to_dict()))
    text = (FOLDER / file).read_text()
    assert f'fdistill train --config=configs/{file}' in text
    assert len(text.splitlines()) <= 75, 'a config fits on one screen'
    # A value None could not be set on the command line.
    if 'data_dir' in settings.data:
        config.override(settings, ['--config.data.data_dir=/somewhere'])
        assert settings.data.data_dir == '/somewhere'


RECIPES = sorted(path.name for path in (FOLDER / 'recipes').glob('*.py'))


@pytest.mark.parametrize('length', [pytest.param('full', marks=pytest.mark.slow), 'short'])
@pytest.mark.parametrize('file', RECIPES)
def test_recipe_is_complete(file, length, tmp_path):
    """All of its stages can be foreseen; the short one is so in each; and the docstring."""
    stages = recipe.load(f'{FOLDER}/recipes/{file}:{length}', tmp_path)
    seen = recipe.ahead(stages)
    text = (FOLDER / 'recipes' / file).read_text()
    assert len(stages) > 1 and all(seen[stage.name].samples > 0 for stage in stages)
    assert length == 'full' or max(one.samples for one in seen.values()) <= 10_000
    assert f'fdistill run --recipe=configs/recipes/{file}' in text
    assert len(text.splitlines()) <= 75, 'a recipe fits on one screen'
    assert not any(tmp_path.iterdir())


def test_what_may_differ_when_a_run_goes_on(tmp_path):
    """Where data and teacher lie and how often is logged, but nothing that the numbers depend
    on."""

    def plain(place, log_every, **others):
        data = {'name': 'image_folder', 'path': place}
        sections = {
            'data': data,
            'teacher': {'workdir': place},
            'training': {'log_every': log_every, 'steps': 5},
        }
        digests = {'data': 'ab', 'images': 'ef', 'teacher': 'cd'}
        return {'seed': 0, **sections, 'origin': digests, **others}

    (tmp_path / 'checkpoints').mkdir()
    disk.write_json(tmp_path / 'config.json', plain('here', 10))
    check_resumable(plain('there', 20), tmp_path)
    for other, message in (
        ({'seed': 1}, 'holds a run with config.seed=0, now 1'),
        (
            {'training': {'log_every': 10, 'steps': 6}},
            'holds a run with config.training.steps=5, now 6',
        ),
        ({'origin': {'data': 'ba', 'images': 'ef', 'teacher': 'cd'}}, 'began with other data'),
        ({'origin': {'data': 'ab', 'images': 'fe', 'teacher': 'cd'}}, 'began with other images'),
        (
            {'origin': {'data': 'ab', 'images': 'ef', 'teacher': 'dc'}},
            'began with other weights of its teacher',
        ),
    ):
        with pytest.raises(UserError, match=message):
            check_resumable(plain('there', 20, **other), tmp_path)
    # A run of before noted the labels alone.
    known = plain('here', 10)
    del known['origin']['images']
    disk.write_json(tmp_path / 'config.json', known)
    check_resumable(plain('there', 10), tmp_path)
    # Nothing says what lay there when a run of 0.1 began.
    del known['origin']
    disk.write_json(tmp_path / 'config.json', known)
    check_resumable(plain('here', 10), tmp_path)
    with pytest.raises(UserError, match="config.data.path='here', now 'there'"):
        check_resumable(plain('there', 10), tmp_path)


@pytest.mark.parametrize('several', [False, True])
def test_weights_of_features_may_move(several, tmp_path):
    """Of one network as of several; other settings are of another run."""

    def plain(place, seed=0):
        published = {'name': 'inception', 'weights': place}
        waves = {'name': 'fourier', 'seed': seed}
        features = [published, waves, 'pixels'] if several else published | {'seed': seed}
        return {'seed': 0, 'features': features, 'origin': {'data': 'ab', 'encoder': 'cd'}}

    (tmp_path / 'checkpoints').mkdir()
    disk.write_json(tmp_path / 'config.json', plain('here'))
    check_resumable(plain('there'), tmp_path)
    setting = 'features.1.seed' if several else 'features.seed'
    with pytest.raises(UserError, match=f'config.{setting}=0, now 1'):
        check_resumable(plain('here', seed=1), tmp_path)


def test_a_run_begins_with_its_images_as_they_are_stored():
    source = Source(np.zeros((2, 1, 1, 1), np.uint8), np.zeros(2, np.int32), 1, 255, 'grey')
    known = origin(source, {'teacher': 'weights'})
    assert known.keys() == {'data', 'teacher'}
    one, other = (origin(source._replace(stored=digest), {}) for digest in ('ab', 'cd'))
    assert one.keys() == {'data', 'images'} and one['images'] != other['images']
    assert one['data'] == other['data'] == known['data']
