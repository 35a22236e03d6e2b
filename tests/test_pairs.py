"""Pairs: what a teacher makes of noise is made once, the same on any devices and after any stop,
and trained on with the noise that it was made of."""

import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import stops
import test_conditions
import toy_autoencoder
import toy_pairs
from ml_collections import ConfigDict

from fdistill import build, cli, networks
from fdistill import config as configs
from fdistill.build.check_teacher import check_teacher
from fdistill.build.plan import outline
from fdistill.data import pairs, sources
from fdistill.data.pipeline import batches
from fdistill.diffusion import noise, oracle, samplers
from fdistill.errors import UserError
from fdistill.evaluation import features
from fdistill.files import disk, lock
from fdistill.methods import METHODS, generator, pairing
from fdistill.methods.method import Method, begin
from fdistill.report import collect
from fdistill.weights import denoisers

SHARD, COUNT, BATCH = 16, 42, 4
LAW = {'name': 'lognormal', 'mean': -0.6, 'std': 1.4}
GRID = {'name': 'karras', 'steps': 3, 'sigma_min': 0.02, 'sigma_max': 5.0}
NETWORK = {'name': 'mlp', 'width': 16, 'blocks': 1, 'embedding': 8}
FILES = ('00000-of-00003', '00001-of-00003', '00002-of-00003')


def config_of(data, **sections):
    plain = {
        'seed': 0,
        'data': data,
        'network': NETWORK,
        'method': {'name': 'pretrain', 'law': LAW, 'grid': GRID},
        'optimizer': {'student': {'learning_rate': 1e-3}},
        'training': {
            'steps': 4,
            'batch_size': 16,
            'ema_half_life': 64.0,
            'log_every': 2,
            'checkpoint_every': 0,
            'sample_every': 0,
        },
        'evaluation': {'samples': 20, 'batch_size': 20},
    }
    return ConfigDict(plain | sections)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Files of a few pairs."""
    monkeypatch.setattr(pairs, 'SHARD', SHARD)


@pytest.fixture
def quick(monkeypatch):
    """Evaluations by a classifier of a few steps, which is all that its numbers being numbers
    needs."""
    few = functools.partial(features.classifier_features, steps=10)
    monkeypatch.setitem(features.FEATURES, 'classifier', few)


@pytest.fixture(scope='module')
def teacher(tmp_path_factory):
    """Run folder of a teacher of the digits that has learned next to nothing."""
    folder = tmp_path_factory.mktemp('teacher') / 'digits'
    build.train(config_of({'name': 'digits', 'flip': True}), folder, quiet=True)
    return folder


def make(out, teacher, **more):
    given = {'count': COUNT, 'batch_size': BATCH, 'quiet': True} | more
    return build.make_pairs(out, workdir=teacher, **given)


@pytest.fixture(scope='module')
def made(tmp_path_factory, teacher):
    """A folder of pairs, made by the eight devices of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pairs, 'SHARD', SHARD)
        out = tmp_path_factory.mktemp('pairs') / 'made'
        make(out, teacher)
    return out


def section(path, **more):
    return {'name': 'pairs', 'path': str(path), **more}


def load(path, **more):
    return sources.load(**section(path, **more))


def contents(folder):
    """{name: bytes} of all that a folder holds, but for its lock."""
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.name != lock.NAME}


def noise_of(source, index=slice(None)):
    pair = {'seed': source.pairs.seed[index], 'index': source.pairs.index[index]}
    pair['mirrored'] = np.zeros(len(pair['seed']), bool)
    return jax.jit(pairing.noise_of)(pair, source.images[index])


def test_a_folder_says_what_it_holds(made, teacher):
    expected = {f'{name}.array_record' for name in FILES} | {'pairs.json', 'README.md'}
    assert contents(made).keys() == expected
    note = pairs.read(made)
    assert note['data'] == {'name': 'digits', 'flip': True} and note['name'] == 'digits'
    assert (note['count'], note['seed'], note['num_classes']) == (COUNT, 0, 10)
    assert note['sampling']['evaluations'] == 5
    assert note['sampling']['method']['grid'] == GRID
    assert note['teacher'] == build.from_workdir(teacher).digest
    card = (made / 'README.md').read_text()
    for words in (
        'of a teacher of digits',
        '| pairs | 42, in 3 files |',
        note['teacher'],
        'flip=True',
    ):
        assert words in card


@pytest.mark.parametrize('devices', [1, 3])
def test_any_number_of_devices_makes_the_same_bytes(devices, made, teacher, tmp_path, monkeypatch):
    some = jax.local_devices()[:devices]
    monkeypatch.setattr(jax, 'local_devices', lambda *given, **named: some)
    make(tmp_path / 'out', teacher)
    assert contents(tmp_path / 'out') == contents(made)


def test_the_size_of_a_batch_changes_nothing_but_rounding(made, teacher, tmp_path):
    make(tmp_path / 'out', teacher, batch_size=5)
    one, other = load(made), load(tmp_path / 'out')
    np.testing.assert_array_equal(one.labels, other.labels)
    np.testing.assert_allclose(one.images, other.images, atol=1e-5)


@pytest.mark.parametrize('sampler', [None, {'name': 'heun', 's_churn': 8.0}])
def test_samples_are_those_of_the_noise_that_follows_from_their_numbers(
    sampler, made, teacher, tmp_path
):
    solver = {'sampler': sampler} if sampler else {}
    out = tmp_path / 'out' if sampler else made
    if sampler:
        make(out, teacher, solver=solver)
    source, run = load(out), build.from_workdir(teacher, **solver)
    assert source.images.dtype == np.float32 and source.images.shape == (COUNT, 8, 8, 1)
    for start in range(0, COUNT - BATCH, BATCH):
        part = slice(start, start + BATCH)
        again = run.sample(noise_of(source, part), source.condition(part))
        np.testing.assert_array_equal(source.images[part], again)
    # Not those of other noise.
    other = noise_of(source, part)[::-1]
    assert np.abs(source.images[part] - run.sample(other, source.condition(part))).max() > 0.1


def test_labels_are_even_and_independent_of_the_noise():
    count = 20000
    pair = {'seed': np.full(count, 5, np.uint32), 'index': np.arange(count, dtype=np.uint32)}
    pair['mirrored'] = np.zeros(count, bool)
    labels = np.asarray(jax.jit(lambda pair: pairing.drawn_of(pair, 10))(pair))
    counts = np.bincount(labels, minlength=10)
    # Nine degrees of freedom: beyond 33 once in ten thousand.
    assert np.sum((counts - count / 10) ** 2) / (count / 10) < 33
    z = np.asarray(jax.jit(pairing.noise_of)(pair, jnp.zeros((count, 4))))
    means = np.stack([z[labels == label].mean(axis=0) for label in range(10)])
    assert np.abs(means).max() * np.sqrt(count / 10) < 4.5
    one = np.asarray(jax.random.normal(jax.random.fold_in(jax.random.key(5), 7), (4,)))
    np.testing.assert_allclose(z[7], one, rtol=1e-6)
    # Nor do they depend on whether JAX computes in float64.
    with jax.enable_x64(True):
        few = {name: of[:9] for name, of in pair.items()}
        again, given = pairing.noise_of(few, jnp.zeros((9, 4))), pairing.drawn_of(few, 10)
    assert again.dtype == jnp.float64
    np.testing.assert_allclose(again, z[:9], rtol=1e-6)
    np.testing.assert_array_equal(given, labels[:9])


def test_samples_are_kept_as_asked(made, teacher, tmp_path):
    exact = load(made).images
    for dtype, tolerance in (('float16', 4e-3), ('uint8', 1 / 255)):
        make(tmp_path / dtype, teacher, dtype=dtype)
        found = load(tmp_path / dtype)
        expected = {
            'float16': exact.astype(np.float16).astype(np.float32),
            'uint8': sources.to_levels(exact, 255),
        }[dtype]
        np.testing.assert_array_equal(found.images, expected)
        assert found.levels == {'float16': 0, 'uint8': 255}[dtype]
        seen = next(batches(found, COUNT, seed=0))
        order = np.argsort(seen['pair']['index'])
        np.testing.assert_allclose(
            seen['x'][order],
            np.clip(exact, -4, 4).clip(*((-1, 1) if dtype == 'uint8' else (-4, 4))),
            atol=tolerance,
        )
        assert sources.fingerprint(found) != sources.fingerprint(load(made))


def test_a_label_may_be_that_of_all(teacher, tmp_path):
    assert make(tmp_path / 'out', teacher, label=3)['label'] == 3
    source = load(tmp_path / 'out')
    assert set(source.labels.tolist()) == {3} and source.num_classes == 10


def test_points_of_a_mixture_have_no_condition(tmp_path):
    data = {'name': 'mixture', 'labelled': False, 'n': 100}
    build.train(config_of(data), tmp_path / 'ring', quiet=True)
    make(tmp_path / 'out', tmp_path / 'ring')
    source = load(tmp_path / 'out')
    assert source.images.shape == (COUNT, 2) and not source.condition(0)
    assert source.name == 'ring pairs' if data.get('mixture') else 'mixture pairs'
    with pytest.raises(UserError, match='--dtype=uint8: is for images'):
        make(tmp_path / 'other', tmp_path / 'ring', dtype='uint8')
    with pytest.raises(UserError, match='--label=0: there are no classes'):
        make(tmp_path / 'other', tmp_path / 'ring', label=0)
    with pytest.raises(ValueError, match='has no left and right'):
        batches(source, 8, seed=0, flip=True)
    assert not (tmp_path / 'other').exists()


@pytest.mark.parametrize('done', range(6))
def test_what_was_stopped_goes_on(done, made, teacher, tmp_path, monkeypatch):
    """After each of the files that are written, a half of the next being there; what was whole is
    not written again."""
    write, paths = disk.write, []

    def stopped(path, save):
        if len(paths) == done:
            path.with_name(f'.{path.stem}.0123{path.suffix}').write_bytes(b'half')
            raise KeyboardInterrupt
        paths.append(path.name)
        write(path, save)

    monkeypatch.setattr(disk, 'write', stopped)
    out = tmp_path / 'out'
    with pytest.raises(KeyboardInterrupt):
        make(out, teacher)
    with pytest.raises(UserError, match='are not all made yet' if done else 'make the folder with'):
        load(out)
    shards = {name for name in paths if name.endswith(pairs.SUFFIX)}
    done, paths[:] = 99, []
    make(out, teacher)
    assert contents(out) == contents(made)
    assert not shards & {*paths} and len(paths) == 5 - len(shards) + ('making.json' in paths)


OTHERS = {
    'seed': ({'seed': 1}, 'seed=0, now 1'),
    'count': ({'count': COUNT + 1}, 'count=42, now 43'),
    'batch': ({'batch_size': 8}, 'batch_size=4, now 8'),
    'label': ({'label': 3}, 'label=None, now 3'),
    'type': ({'dtype': 'float16'}, 'holds pairs with levels|holds pairs with record'),
    'steps': ({'solver': {'steps': 4}}, 'sampling.evaluations=5, now 7'),
}


@pytest.mark.parametrize('finished', [True, False])
@pytest.mark.parametrize('case', OTHERS)
def test_other_settings_are_refused(case, finished, made, teacher, tmp_path):
    changes, message = OTHERS[case]
    out = shutil.copytree(made, tmp_path / 'out')
    if not finished:
        note = json.loads((out / pairs.NOTE).read_text())
        del note['shards']
        (out / pairs.MAKING).write_text(json.dumps(note))
        (out / pairs.NOTE).unlink()
    before = contents(out)
    with pytest.raises(UserError, match=message) as caught:
        make(out, teacher, **changes)
    assert '\n' not in str(caught.value) and contents(out) == before


def test_a_digest_is_of_the_pairs_and_not_of_what_made_them(made, tmp_path):
    shutil.copytree(made, tmp_path / 'out')
    note = json.loads((made / 'pairs.json').read_text())
    disk.write_json(tmp_path / 'out' / 'pairs.json', note | {'versions': {'jax': '0.0.1'}})
    assert build.digest_pairs(tmp_path / 'out') == build.digest_pairs(made)
    note['shards'][0]['sha256'] = '0' * 64
    disk.write_json(tmp_path / 'out' / 'pairs.json', note)
    assert build.digest_pairs(tmp_path / 'out') != build.digest_pairs(made)
    assert build.digest_pairs(tmp_path) is None


def test_what_is_there_is_only_looked_at(made, teacher, tmp_path, monkeypatch):
    out = shutil.copytree(made, tmp_path / 'out')
    (out / f'{FILES[1]}.array_record').write_bytes(b'')
    (out / f'{FILES[2]}.array_record').unlink()
    write, done = pairs.write_shard, []

    def noted(folder, note, k, arrays):
        done.append(k)
        write(folder, note, k, arrays)

    monkeypatch.setattr(pairs, 'write_shard', noted)
    make(out, teacher)
    assert done == [1, 2] and contents(out) == contents(made)
    make(out, teacher)
    assert done == [1, 2]
    with lock.held(out), pytest.raises(lock.Held, match='is writing there'):
        make(out, teacher)
    (out / pairs.NOTE).unlink()
    with pytest.raises(UserError, match='nothing says what it is of'):
        make(out, teacher)


def changed_note(**changes):
    def apply(folder):
        note = json.loads((folder / pairs.NOTE).read_text())
        (folder / pairs.NOTE).write_text(json.dumps(note | changes))

    return apply


def flipped(folder):
    file = folder / f'{FILES[1]}.array_record'
    content = bytearray(file.read_bytes())
    content[len(content) // 3] ^= 1
    file.write_bytes(content)


def rewritten(change):
    """The second file with other pairs, of which the note says that they were written."""

    def apply(folder):
        note = json.loads((folder / pairs.NOTE).read_text())
        arrays = pairs.read_shard(folder, note, 1)
        change(arrays)
        pairs.write_shard(folder, note, 1, arrays)
        note['shards'][1]['sha256'] = disk.sha256(pairs.place(folder, note, 1))
        (folder / pairs.NOTE).write_text(json.dumps(note))

    return apply


def strange(array):
    return lambda folder: (folder / f'{FILES[1]}.array_record').write_bytes(array)


X0 = {'name': 'x0', 'dtype': 'float32', 'shape': [8, 8, 1]}
LABEL = {'name': 'label', 'dtype': 'int32', 'shape': []}
DAMAGE = {
    'no note': (lambda folder: (folder / pairs.NOTE).unlink(), 'make the folder with'),
    'another format': (changed_note(format='2'), "its format is '2'"),
    'cut note': (lambda folder: (folder / pairs.NOTE).write_text('{'), 'is damaged'),
    'a note of another shape': (changed_note(count='many'), 'is damaged'),
    'a flipped bit': (flipped, '00001-of-00003.array_record: is not what was written'),
    'junk': (strange(b'x' * 70000), '00001-of-00003.array_record: is not what was written'),
    'an empty file': (strange(b''), '00001-of-00003.array_record: is not what was written'),
    'a missing file': (
        lambda folder: (folder / f'{FILES[1]}.array_record').unlink(),
        '00001-of-00003.array_record: is missing; give the command',
    ),
    'a file too many': (
        lambda folder: (folder / '00003-of-00004.array_record').touch(),
        '00003-of-00004.array_record: is not of these pairs; remove it',
    ),
    'less pairs': (changed_note(count=41), 'files are not those of 41 pairs'),
    'no pairs': (changed_note(count=0), 'are no sizes'),
    'a huge shape': (changed_note(record=[X0 | {'shape': [2**20] * 3}, LABEL]), 'out of range'),
    'another shape': (changed_note(record=[X0 | {'shape': [8, 4, 1]}, LABEL]), 'not what was'),
    'no shape': (changed_note(record=[X0 | {'shape': []}, LABEL]), 'are no sizes'),
    'no record': (changed_note(record=[]), 'are no sizes'),
    'a type': (changed_note(record=[X0 | {'dtype': 'object'}, LABEL]), 'is no part of a record'),
    'no type': (changed_note(record=[X0 | {'dtype': 'float33'}, LABEL]), 'is no part of'),
    'twice': (changed_note(record=[X0, LABEL, LABEL]), 'its records have'),
    'no labels': (changed_note(record=[X0]), 'its records have'),
    'levels': (changed_note(levels=255), "x0 is of 'float32' with levels 255"),
    'a seed': (changed_note(seed=2**40), 'out of range'),
    'less classes': (changed_note(num_classes=3), 'have labels 0 to 9 in 3 classes'),
    'no label': (rewritten(lambda arrays: arrays['label'].fill(-1)), 'have labels -1 to 9'),
}


@pytest.mark.parametrize('damage', DAMAGE)
def test_damaged_pairs_are_refused(damage, made, tmp_path, monkeypatch):
    monkeypatch.setenv('FDISTILL_CACHE', str(tmp_path / 'cache'))
    change, message = DAMAGE[damage]
    folder = shutil.copytree(made, tmp_path / 'pairs')
    change(folder)
    with pytest.raises(UserError, match=message) as caught:
        load(folder)
    assert '\n' not in str(caught.value)
    # Labels alone are looked at in what is decoded.
    kept = (tmp_path / 'cache').glob('data/*.json')
    assert 'labels' in message or not list(kept)


def test_a_damaged_cache_is_made_anew(made, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('FDISTILL_CACHE', str(tmp_path))
    first = np.array(load(made).images)
    kept = next((tmp_path / 'data').glob('*-pairs0.npy'))
    np.save(kept, first + 1)
    np.testing.assert_array_equal(load(made).images, first)
    assert 'made anew' in capsys.readouterr().err


@pytest.mark.parametrize('name', ['README.md', 'config.json'])
def test_what_is_of_something_else_is_left(name, teacher, tmp_path):
    (tmp_path / name).write_text('mine')
    with pytest.raises(UserError, match=f'{name}: is of something else; give another folder'):
        make(tmp_path, teacher)
    assert contents(tmp_path) == {name: b'mine'}


def test_samples_that_are_not_finite_are_refused(teacher, tmp_path, monkeypatch):
    solve = generator.Generator

    def broken(params, z, condition):
        return jnp.where(z > 3, jnp.nan, z)

    def opened(*given, **named):
        run = build.from_workdir(given[0], **named)
        return run._replace(generator=solve(None, broken, 1))

    monkeypatch.setattr('fdistill.build.pairs.opened', lambda w, _, **named: opened(w, **named))
    with pytest.raises(UserError, match=r'pair \d+ is not finite in float32; keep them'):
        make(tmp_path / 'out', teacher)
    assert not (tmp_path / 'out' / pairs.NOTE).exists()


def test_flips_turn_sample_and_noise_together(made):
    """Of an even distribution the teacher's map commutes with the turn (T-RF6), exactly."""
    source = load(made)
    batch = next(batches(source, COUNT, seed=0, flip=True))
    turned = batch['pair']['mirrored']
    assert 0 < turned.sum() < COUNT
    index = batch['pair']['index']
    as_is = {**batch['pair'], 'mirrored': np.zeros(COUNT, bool)}
    z, plain = (np.asarray(pairing.noise_of(of, batch['x'])) for of in (batch['pair'], as_is))
    for name, found, original in (('x', batch['x'], source.images[index]), ('z', z, plain)):
        expected = np.where(turned[:, None, None, None], original[:, :, ::-1], original)
        np.testing.assert_array_equal(found, expected, err_msg=name)
    assert np.abs(z - plain).max() > 1
    # A teacher of even images: what it makes of turned noise are the turned images.
    mean = np.random.default_rng(0).standard_normal((2, 8, 4, 1))
    even = np.concatenate([mean, mean[:, :, ::-1]], axis=2).reshape(2, 64)
    exact = oracle.mixture(np.array([0.5, 0.5]), even, np.array([0.3, 0.3]))

    def sample(z):
        def denoise(x, sigma):
            return exact.denoise(x.reshape(len(x), -1), sigma).reshape(x.shape)

        grid = noise.karras_grid(6, 0.02, 10.0)
        return samplers.SAMPLERS['heun'].solve(denoise, grid[0] * z, grid)

    x0 = np.asarray(sample(plain))
    expected = np.where(turned[:, None, None, None], x0[:, :, ::-1], x0)
    np.testing.assert_allclose(np.asarray(sample(z)), expected, atol=2e-5)


def test_batches_of_processes_are_those_of_one(made):
    source = load(made)
    whole = next(batches(source, 8, seed=1, start_step=3, flip=True))
    parts = [
        next(batches(source, 8, 1, 3, True, process_index=k, process_count=2)) for k in range(2)
    ]
    for one, *halves in zip(*map(jax.tree.leaves, (whole, *parts)), strict=True):
        np.testing.assert_array_equal(one, np.concatenate(halves))
    assert whole['pair']['seed'].dtype == whole['pair']['index'].dtype == np.uint32


def learned(student, *, pairs, sigma_init=5.0):
    """|D(sigma_init z, sigma_init) - x0|^2 of pairs: the simplest of what learns from them."""
    one = generator.one_step(student, sigma_init)

    def loss(params, context, batch, key):
        z, x0 = pairs.draw(key, context.frozen, batch)
        value = jnp.mean((one.sample(params['student'], z, batch['condition']) - x0) ** 2)
        return value, ({'regression': value}, context.aux)

    return Method(begin(student), {'student': loss}, lambda step: ('student',), one)


@pytest.fixture
def regression(monkeypatch):
    monkeypatch.setitem(METHODS, 'learned', learned)


def student_of(path, **sections):
    training = config_of({}).training.to_dict() | sections.pop('training', {})
    data = section(path, **sections.pop('data', {}))
    return config_of(data, method={'name': 'learned'}, training=training, **sections)


def losses_of(folder):
    lines = (folder / 'metrics.jsonl').read_text().splitlines()
    return [json.loads(line)['student/regression'] for line in lines]


def test_a_student_learns_the_map_from_the_noise_of_its_own_pairs(tmp_path, regression):
    """x0 = -z/2: of other noise there is nothing to be learned but the mean, 0."""
    count = 512
    own = {'seed': np.full(count, 3, np.uint32), 'index': np.arange(count, dtype=np.uint32)}
    own['mirrored'] = np.zeros(count, bool)
    z = jax.jit(pairing.noise_of)(own, jnp.zeros((count, 2)))
    training = {'steps': 120, 'log_every': 20, 'batch_size': 64}
    found = {}
    for seed in (3, 4):
        folder = toy_pairs.write(tmp_path / f'pairs{seed}', np.asarray(-z / 2), seed=seed)
        config = student_of(folder, training=training)
        config.optimizer.student.learning_rate = 1e-2
        build.train(config, tmp_path / f'run{seed}', quiet=True)
        found[seed] = losses_of(tmp_path / f'run{seed}')[-1]
    assert found[3] < 0.02 and found[4] > 0.2


def test_stops_meshes_and_parts_leave_a_run_as_it_is(made, tmp_path, regression):
    training = {'steps': 10, 'log_every': 3, 'batch_size': 16}
    config = student_of(made, data={'flip': True}, training=training)
    build.train(config, tmp_path / 'unbroken', quiet=True)
    stops.check(config, tmp_path / 'unbroken', tmp_path / 'broken')
    for name, sections in {
        'mesh': {'mesh': {'data': 2, 'fsdp': 4}},
        'parts': {'training': training | {'microbatches': 2}, 'mesh': {'data': 8}},
    }.items():
        other = ConfigDict({**config.to_dict(), **sections})
        if name == 'parts':
            other.training = ConfigDict({**config.training.to_dict(), 'microbatches': 2})
        build.train(other, tmp_path / name, quiet=True)
        np.testing.assert_allclose(
            losses_of(tmp_path / name), losses_of(tmp_path / 'unbroken'), rtol=1e-4
        )


def test_lanes_train_on_pairs(made, tmp_path, regression):
    trials = []
    for seed in range(2):
        config = student_of(made)
        config.seed = seed
        trials.append((config, tmp_path / f'lane{seed}'))
        build.train(config, tmp_path / f'alone{seed}', quiet=True)
    assert build.train_lanes(trials, quiet=True) == [None, None]
    for seed in range(2):
        found = [losses_of(tmp_path / f'{kind}{seed}') for kind in ('lane', 'alone')]
        np.testing.assert_allclose(*found, rtol=1e-4)


def test_any_method_takes_pairs_as_data_and_is_measured_against_real_ones(
    made, teacher, tmp_path, quick
):
    training = {**config_of({}).training.to_dict(), 'sample_every': 4, 'evaluate_every': 4}
    config = config_of(section(made), training=training)
    build.train(config, tmp_path / 'run', quiet=True)
    kept = json.loads((tmp_path / 'run' / 'config.json').read_text())
    assert kept['origin'].keys() == {'pairs'}
    assert kept['image'] == json.loads((teacher / 'config.json').read_text())['image']
    ours = build.evaluate(None, tmp_path / 'run', quiet=True)
    theirs = build.evaluate(None, teacher, quiet=True)
    # Names of numbers hold what they are compared with.
    assert ours['protocol'] == theirs['protocol'] and np.isfinite(ours['fd_held_out'])
    named = [{**collect._run(folder).data} for folder in (tmp_path / 'run', teacher)]
    assert named[0] == named[1] == {'data.name': 'digits'}
    found, _ = check_teacher(None, tmp_path / 'run', samples=50, quiet=True)
    assert (found['data']['name'], found['data']['count']) == ('digits', 1442)
    train, held_out = build.evaluators.splits(config)
    assert (train.name, len(held_out.labels)) == ('digits', 355)


def test_other_pairs_are_another_run(made, tmp_path, regression):
    build.train(student_of(made), tmp_path / 'run', quiet=True, stop_at=2)
    moved = shutil.copytree(made, tmp_path / 'moved')
    build.train(student_of(moved), tmp_path / 'run', quiet=True, stop_at=3)
    changed_note(seed=1)(moved)
    with pytest.raises(UserError, match='its run began with other pairs; go on with the same'):
        build.train(student_of(moved), tmp_path / 'run', quiet=True)


def test_pairs_hand_on_what_their_teacher_was_trained_on(made, tmp_path):
    folder = shutil.copytree(made, tmp_path / 'pairs')
    changed_note(trained_on=['dinov2'])(folder)
    config = config_of(section(folder))
    plain = build.resolve(config, build.load_data(config, 'train'))
    assert plain['trained_on'] == ['dinov2']
    plain = build.resolve({**config, 'features': 'classifier'}, build.load_data(config, 'train'))
    real = {**config_of({'name': 'digits'}), 'features': 'classifier'}
    ours = build.resolve(real, build.load_data(real, 'train'))['trained_on']
    assert plain['trained_on'] == sorted([*ours, 'dinov2'])


def test_pairs_of_a_student_of_pairs_stand_for_the_real_data(made, tmp_path, regression):
    build.train(student_of(made), tmp_path / 'run', quiet=True)
    note = make(tmp_path / 'out', tmp_path / 'run')
    assert note['data'] == {'name': 'digits', 'flip': True}
    assert note['sampling']['evaluations'] == 1 and 'grid' not in note['sampling']['method']


def test_a_run_is_planned_before_its_pairs_are_there(made, tmp_path, regression, capsys):
    told = {'shape': (8, 8, 1), 'num_classes': 10}
    there = sources.pairs_outline('train', str(made), **told)
    absent = sources.pairs_outline('train', 'nowhere', **told)
    whole = load(made, **told)
    for source in (there, absent):
        assert source.images.shape[1:] == whole.images.shape[1:] and source.pairs
        assert (source.num_classes, source.levels) == (10, 0)
    assert next(batches(there, 1, seed=0)).keys() == next(batches(whole, 1, seed=0)).keys()
    for wrong in ({'shape': (9, 9, 9)}, {'num_classes': 7}):
        with pytest.raises(UserError, match='holds pairs of shape .* and not of'):
            load(made, **{**told, **wrong})
    plain = student_of('nowhere', data=told).to_dict()
    text = (
        'from ml_collections import ConfigDict\n'
        f'def get_config():\n    return ConfigDict({plain!r})\n'
    )
    (tmp_path / 'config.py').write_text(text)
    words = [f'--config={tmp_path}/config.py', '--topology=cpu:4', f'--out={tmp_path}/plan']
    assert cli.main(['plan', *words]) == 0, capsys.readouterr().err
    plain = outline(configs.load(str(tmp_path / 'config.py')))
    assert plain['image'] == {'shape': [8, 8, 1], 'num_classes': 10}


def test_weights_make_pairs_that_stand_for_what_a_config_says(teacher, tmp_path, quick):
    run = build.from_workdir(teacher)
    plain = configs.to_json(run.config)
    model = {name: plain.get(name, {}) for name in ('network', 'denoiser', 'image')}
    file = tmp_path / 'model.safetensors'
    denoisers.save(file, build.with_names(run.params), model, licence='none')
    given = {'weights': file, 'count': 20, 'batch_size': 4, 'quiet': True, 'solver': {'steps': 2}}
    note = build.make_pairs(tmp_path / 'bare', **given)
    assert 'data' not in note and note['name'] == 'model'
    config = config_of(section(tmp_path / 'bare'))
    build.train(config, tmp_path / 'run', quiet=True)
    with pytest.raises(UserError, match='do not say which data .* make them with --config'):
        build.evaluate(None, tmp_path / 'run', quiet=True)
    told = config_of({'name': 'digits'})
    note = build.make_pairs(tmp_path / 'told', config=told, **given)
    assert note['data'] == {'name': 'digits'} and note['name'] == 'digits'
    other = config_of({'name': 'mixture', 'n': 10})
    with pytest.raises(UserError, match='config.data: .* was trained on'):
        build.make_pairs(tmp_path / 'other', config=other, **given)
    assert not (tmp_path / 'other').exists()


@pytest.mark.slow
def test_conditions_other_than_labels_are_those_of_the_data(tmp_path, monkeypatch):
    for name in ('worded', 'shrunken'):
        monkeypatch.setitem(sources.SOURCES, name, getattr(test_conditions, name))
        monkeypatch.setitem(sources.OUTLINES, name, getattr(test_conditions, name))
    monkeypatch.setitem(networks.NETWORKS, 'toy', test_conditions.toy)
    for name in ('worded', 'shrunken'):
        config = test_conditions.teacher_config(name, 4)
        build.train(config, tmp_path / name, quiet=True)
        make(tmp_path / f'{name}-pairs', tmp_path / name)
        source, real = load(tmp_path / f'{name}-pairs'), sources.load(name)
        assert source.given.keys() == real.given.keys()
        pair = {'seed': source.pairs.seed, 'index': source.pairs.index}
        rows = np.asarray(pairing.drawn_of(pair, len(real.labels)))
        assert len(set(rows.tolist())) > 20
        for key, values in real.condition(rows).items():
            np.testing.assert_array_equal(source.condition(slice(None))[key], values)
        run = build.from_workdir(tmp_path / name)
        again = run.sample(noise_of(source), source.condition(slice(None)))
        np.testing.assert_allclose(source.images, again, atol=1e-5)
        config = ConfigDict({**config.to_dict(), 'data': section(tmp_path / f'{name}-pairs')})
        build.train(config, tmp_path / f'{name}-student', quiet=True)


@pytest.fixture
def latent_teacher(tmp_path):
    vae = toy_autoencoder.write(tmp_path / 'vae.safetensors')
    build.encode({'data': {'name': 'digits'}}, vae, tmp_path / 'latents', quiet=True)
    data = {'name': 'latents', 'path': str(tmp_path / 'latents'), 'vae': str(vae)}
    build.train(config_of(data), tmp_path / 'teacher', quiet=True)
    return tmp_path / 'teacher'


@pytest.mark.slow
def test_pairs_of_latents_are_decoded(latent_teacher, tmp_path, quick):
    note = make(tmp_path / 'pairs', latent_teacher)
    assert note['data']['name'] == 'latents' and note['decoded']['shape'] == [8, 8, 1]
    with pytest.raises(UserError, match='--dtype=uint8: is for images'):
        make(tmp_path / 'other', latent_teacher, dtype='uint8')
    source, run = load(tmp_path / 'pairs'), build.from_workdir(latent_teacher)
    seen = run.sample(noise_of(source), source.condition(slice(None)))
    np.testing.assert_allclose(run.decode(jnp.asarray(source.images)), seen, rtol=1e-4, atol=1e-3)
    training = {**config_of({}).training.to_dict(), 'sample_every': 4}
    build.train(
        config_of(section(tmp_path / 'pairs'), training=training), tmp_path / 'run', quiet=True
    )
    ours = build.evaluate(None, tmp_path / 'run', quiet=True)
    assert ours['protocol'] == build.evaluate(None, latent_teacher, quiet=True)['protocol']
    student = build.from_workdir(tmp_path / 'run')
    assert student.decoded == (8, 8, 1)
    other = toy_autoencoder.write(tmp_path / 'other.safetensors', invert=2.0)
    with pytest.raises(UserError, match='is another autoencoder'):
        load(tmp_path / 'pairs', vae=str(other))
    with pytest.raises(ValueError, match='encode the images with flip=True'):
        batches(source, 8, seed=0, flip=True)


def test_a_check_of_the_data_looks_at_the_pairs(made, tmp_path, capsys):
    (tmp_path / 'config.py').write_text(
        'from ml_collections import ConfigDict\n'
        f'def get_config():\n    return ConfigDict({{"data": {section(made)!r}}})\n'
    )
    words = ['check-data', f'--config={tmp_path}/config.py', f'--out={tmp_path}/out', '--json']
    assert cli.main(words) == 0
    report = json.loads(capsys.readouterr().out)
    assert report['name'] == 'digits pairs' and report['splits'].keys() == {'train'}
    numbers = report['splits']['train']
    assert (numbers['count'], numbers['dimensions']) == (COUNT, 64)
    assert sum(numbers['classes'].values()) == COUNT
    assert not any('held_out' in line for line in report['warnings'])
    assert (tmp_path / 'out' / 'contact_sheet.png').exists()
    with pytest.raises(UserError, match='none are held_out; what is held out is of the data'):
        load(made, split='held_out')


MISTAKES = {
    'no out': ([], '--out is missing'),
    'no count': (['--out=x'], '--count is missing'),
    'no teacher': (['--out=x', '--count=5'], 'give either --workdir=DIR'),
    'count': (['--out=x', '--count=-3'], '--count=-3'),
    'much': (['--out=x', '--count=3000000000'], 'is out of range'),
    'batch': (['--out=x', '--count=5', '--batch-size=0'], '--batch-size=0'),
    'much at once': (['--out=x', '--count=5', '--batch-size=1025'], 'at most 1024'),
    'type': (
        ['--out=x', '--count=5', '--dtype=int8'],
        "--dtype: unknown 'int8'; did you mean uint8",
    ),
    'label': (['--out=x', '--count=5', '--label=10'], '--label=10: give 0 to 9'),
    'sampler': (['--out=x', '--count=5', '--sampler=hen'], 'did you mean heun'),
    'override': (['--out=x', '--count=5', '--config.seed=1'], 'give --config=FILE'),
    'file': (['--out=x/file', '--count=5'], 'is no folder'),
}


@pytest.mark.parametrize('case', MISTAKES)
def test_a_mistake_is_one_line(case, teacher, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words, message = MISTAKES[case]
    if case == 'file':
        (tmp_path / 'x').touch()
    words = words if case == 'no teacher' else [f'--workdir={teacher}', *words]
    assert cli.main(['pairs', *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith('fdistill: ') and message in line
    assert case == 'file' or not (tmp_path / 'x').exists()


def test_the_command_makes_what_the_function_makes(made, teacher, tmp_path, capsys):
    words = [f'--workdir={teacher}', f'--out={tmp_path}/out', f'--count={COUNT}', '--quiet']
    assert cli.main(['pairs', *words, f'--batch-size={BATCH}']) == 0
    assert capsys.readouterr().out == f'42 pairs of 8 x 8 x 1 in {tmp_path}/out\n'
    assert contents(tmp_path / 'out') == contents(made)
