"""Every method through the same checks: any mesh gives the same numbers, a stop anywhere changes
nothing, a step is pinned."""

import functools
import inspect
import json
import math
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import stops
from ml_collections import ConfigDict
from registered import every, taught

from fdistill import build, divergences
from fdistill import config as configs
from fdistill.config import parameters
from fdistill.methods import METHODS, losses
from fdistill.training import sharding
from fdistill.training.state import init_state, with_metrics
from fdistill.training.step import ema_decay, make_step

BATCH = 16
# Of a layer that widens and of one that narrows, in turn: Megatron's.
RULES = ((r'dense0/kernel$', (None, 'model')), (r'dense1/kernel$', ('model', None)))
RECORDED = pathlib.Path(__file__).parent / 'data' / 'one_step.json'
LAW = dict(name='lognormal', mean=-1.0, std=1.0)
# What a method is given if it takes it.
COMMON = dict(law=LAW, student_law=LAW, critic_law=LAW, sigma_init=1.0, from_teacher=False)


@pytest.fixture
def x64(x64):
    """Functions of jax that were traced for float32's constants are else called with float64's."""
    jax.clear_caches()


def _plain(name, steps=8):
    """A tiny run of a method: points of the ring, the oracle as teacher, and what the `TINY` of the
    method's own file adds to them."""
    method, takes = METHODS[name], parameters(METHODS[name])
    own = inspect.getmodule(getattr(method, 'func', method)).TINY[name]
    config = dict(
        seed=3,
        data=dict(name='mixture', mixture='ring', labelled=False, n=100),
        network=dict(name='mlp', width=16, blocks=1, embedding=8),
        denoiser=dict(sigma_data=0.7),
        method=dict(name=name) | {key: value for key, value in COMMON.items() if key in takes},
        training=dict(
            steps=steps,
            batch_size=BATCH,
            ema_half_life=100.0,
            log_every=3,
            checkpoint_every=0,
            sample_every=0,
        ),
        mesh=dict(data=-1, fsdp=1),
        evaluation=dict(samples=200, batch_size=100),
    )
    if taught(name) or 'mixture' in takes:
        config |= dict(teacher=dict(oracle='ring'))
    for section, values in own.items():
        config[section] = config['method'] | values if section == 'method' else values
    return config


def _config(name, steps=8):
    """The same with an optimizer for each role."""
    plain = _plain(name, steps)
    losses = build.experiment(build.resolve(plain, build.load_data(plain, 'train'))).method.losses
    optimizer = {role: dict(learning_rate=1e-2) for role in losses}
    return ConfigDict(plain | dict(optimizer=optimizer)).lock()


def _built(name, microbatches=1):
    """Method, optimizers, and batches that depend on the step alone."""
    return _built_in(name, microbatches, jax.config.jax_enable_x64)


@functools.lru_cache(maxsize=None)
def _experiment(name, microbatches, x64):
    """The constants of a method have the precision in which it is built."""
    config = _config(name)
    return build.experiment(build.resolve(config, build.load_data(config, 'train')), microbatches)


@functools.lru_cache(maxsize=None)
def _built_in(name, microbatches, x64):
    config = _config(name)
    source = build.load_data(config, 'train')
    plain = build.resolve(config, source)
    method = _experiment(name, microbatches, x64).method

    def batch(step, dtype):
        rows = np.random.default_rng(step).integers(0, 100, BATCH)
        return {'x': source.images[rows].astype(dtype), 'condition': source.condition(rows)}

    return method, build.optimizers(plain, method), batch


def _cast(tree, dtype):
    return jax.tree.map(
        lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree
    )


@functools.lru_cache(maxsize=None)
def _frozen(name, dtype):
    """What a method reads and does not train, as its networks begin: of the oracle nothing."""
    built, given = _experiment(name, 1, jax.config.jax_enable_x64), _built(name)[2](0, dtype)
    key = jax.random.key(1)
    made = {
        # What sees features, and what it saw of the data, is there without a file.
        part: load(None)[0]
        if part in ('encoder', 'reference')
        else built.parts[part].init(key, *given.values())
        for part, load in built.frozen.items()
    }
    return jax.device_get(_cast(made, dtype))


@functools.lru_cache(maxsize=None)
def _initial(name, dtype):
    """A fresh state on the host."""
    method, optimizers, batch = _built(name)

    def init(batch, key, frozen):
        step = make_step(method, optimizers, ema_decay(100.0, BATCH))
        state = init_state(method, optimizers, key, batch, frozen)
        return _cast(with_metrics(state, step, frozen, batch, key), dtype)

    state = jax.jit(init)(batch(0, dtype), jax.random.key(0), _frozen(name, dtype))
    return jax.device_get(state)


@functools.lru_cache(maxsize=None)
def _step(name, shape, dtype, microbatches):
    """(mesh, shardings of a state, step) on a mesh of a shape (data, fsdp) or (data, fsdp,
    model)."""
    method, optimizers, _ = _built(name, microbatches)
    mesh = sharding.mesh_over(jax.devices()[: math.prod(shape)], *shape)
    # Small enough that arrays of this tiny network are split over the axis fsdp.
    rules = RULES if 'model' in mesh.shape else ()
    shardings = sharding.state_sharding(_initial(name, dtype), mesh, rules, min_size=64)
    step = jax.jit(
        make_step(method, optimizers, ema_decay(100.0, BATCH), mesh=mesh, rules=rules),
        static_argnames='roles',
        donate_argnames='state',
        out_shardings=shardings,
    )
    return mesh, shardings, step


@functools.lru_cache(maxsize=None)
def _state_after(name, shape, steps, dtype=jnp.float32, microbatches=1, cycle=False):
    """The state after some steps on a mesh of a shape (data, fsdp), of all roles, or of those whose
    turn it is in the method's cycle."""
    method, _, batch = _built(name, microbatches)
    mesh, shardings, step = _step(name, shape, dtype, microbatches)
    state, key = jax.device_put(_initial(name, dtype), shardings), jax.random.key(0)
    frozen = _frozen(name, dtype)
    everything = tuple(dict.fromkeys(role for i in range(steps) for role in method.cycle(i)))
    for i in range(steps):
        placed = sharding.put_batch(batch(i, dtype), sharding.batch_sharding(mesh))
        state = step(state, frozen, placed, key, roles=method.cycle(i) if cycle else everything)
    split = [x for x in jax.tree.leaves(state.params) if not x.sharding.is_fully_replicated]
    large = any(x.size >= 64 for x in jax.tree.leaves(state.params))
    assert bool(split) == (mesh.shape['fsdp'] > 1 and large)
    return jax.device_get(state)


def _difference(one, other):
    """Largest difference of an array of parameters, relative to the largest entry of that array."""
    ours, theirs = (jax.tree.leaves((s.params, s.averages)) for s in (one, other))
    pairs = zip(ours, theirs)
    return max(np.max(np.abs(a - b)) / max(np.max(np.abs(a)), 1e-3) for a, b in pairs)


@pytest.mark.parametrize(
    'name, shape',
    [
        *(pytest.param(*one.values, (2, 4), marks=one.marks) for one in every()),
        ('sim', (2, 2, 2)),
        *(
            pytest.param(name, shape, marks=pytest.mark.slow)
            for shape in ((8, 1), (2, 2, 2))
            for name in METHODS
        ),
    ],
)
def test_a_mesh_gives_the_same_numbers_in_float32(name, shape):
    """As one device: ten steps agree to 1e-4 relative."""
    alone = _state_after(name, (1, 1), 10)
    assert _difference(alone, _state_after(name, shape, 10)) <= 1e-4


@pytest.mark.parametrize('name', every())
def test_a_program_traced_again_is_the_same_program(name):
    """Else a training that goes on in the same process, as those of a sweep, compiles anew."""
    _, _, batch = _built(name)

    def text():
        _, _, step = _step.__wrapped__(name, (1, 1), jnp.float32, 1)
        state, frozen = (made(name, jnp.float32) for made in (_initial, _frozen))
        given = state, frozen, batch(0, jnp.float32), jax.random.key(0)
        return step.lower(*given, roles=('student',)).as_text()

    assert text() == text()


@pytest.mark.slow
@pytest.mark.parametrize('name', METHODS)
def test_any_mesh_gives_the_same_numbers_in_float64(name, x64):
    """The same to 1e-9, also on 8 x 1: what remains in float32 is rounding."""
    alone = _state_after(name, (1, 1), 10, jnp.float64)
    for shape in ((8, 1), (2, 4)):
        assert _difference(alone, _state_after(name, shape, 10, jnp.float64)) <= 1e-9


def _relative(one, other):
    """Largest difference |a - b| / |a| of all parameters of a role, or of an average."""

    def flat(tree):
        return np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])

    ours, theirs = ({**s.params, **s.averages} for s in (one, other))
    lengths = {k: np.linalg.norm(flat(tree)) for k, tree in ours.items()}
    return max(np.linalg.norm(flat(ours[k]) - flat(theirs[k])) / lengths[k] for k in ours)


def _compare_parts(name, microbatches):
    """Parameters agree to 1e-5, and each entry as well as on a mesh. Not better, as Adam divides an
    entry's gradient by its own size, also where that is rounding: one program compiled in two ways
    differs by 1.3e-4 of an array's largest entry after five steps of f-distill."""
    whole = _state_after(name, (1, 1), 10)
    parts = _state_after(name, (1, 1), 10, microbatches=microbatches)
    assert _relative(whole, parts) <= 1e-5
    assert _difference(whole, parts) <= 1e-4


@pytest.mark.parametrize('name', every())
def test_a_batch_in_parts_is_the_whole_batch_in_float32(name):
    """Whatever a method computes from the whole batch, as the normalisations of f-distill."""
    _compare_parts(name, 4)


@pytest.mark.slow
@pytest.mark.parametrize('name', METHODS)
def test_a_batch_in_two_parts_is_the_whole_batch_in_float32(name):
    _compare_parts(name, 2)


@pytest.mark.slow
@pytest.mark.parametrize('name', METHODS)
def test_a_batch_in_parts_is_the_whole_batch_in_float64(name, x64):
    whole = _state_after(name, (1, 1), 6, jnp.float64)
    for parts in (2, 4):
        after = _state_after(name, (1, 1), 6, jnp.float64, microbatches=parts)
        assert _difference(whole, after) <= 1e-10


@pytest.mark.parametrize('name', every([name for name in METHODS if not taught(name)]))
def test_a_stop_changes_nothing(name, tmp_path):
    """Those with a teacher are stopped in test_end_to_end.py, where they are students of a
    network."""
    config = _config(name)
    build.train(config, tmp_path / 'unbroken', quiet=True)
    stops.check(config, tmp_path / 'unbroken', tmp_path / 'broken')


@pytest.mark.parametrize(
    'name',
    every(METHODS if os.environ.get('FDISTILL_RECORD') else json.loads(RECORDED.read_text())),
)
def test_real_steps_are_pinned(name):
    """The sum of squares of each role's parameters after ten steps, against
    tests/data/one_step.json.

    A change here means that training changed. If that is meant, record again: FDISTILL_RECORD=1
    pytest tests/test_methods.py -k pinned, and say in the commit why the numbers moved.
    """
    state = _state_after(name, (1, 1), 10, cycle=True)
    found = {
        role: float(sum(np.sum(np.square(x, dtype=np.float64)) for x in jax.tree.leaves(params)))
        for role, params in {**state.params, 'ema': state.averages['ema'], 'aux': state.aux}.items()
    }
    recorded = json.loads(RECORDED.read_text()) if RECORDED.exists() else {}
    if os.environ.get('FDISTILL_RECORD'):
        RECORDED.write_text(json.dumps(recorded | {name: found}, indent=1, sort_keys=True) + '\n')
        return
    assert found.keys() == recorded[name].keys()
    for role, value in found.items():
        assert value == pytest.approx(recorded[name][role], rel=1e-4), role


# A teacher has no samples of its own.
@pytest.mark.parametrize(
    'name', every([name for name in METHODS if name not in ('pretrain', 'degrade')])
)
def test_health_is_measured(name):
    """What students' losses say of their samples, and of h where there is one."""
    measured = _state_after(name, (1, 1), 10, cycle=True).metrics['student']
    found = {key: value.total / value.count for key, value in measured.items()}
    _, _, batch = _built(name)
    student = [step for step in range(10) if 'student' in _built(name)[0].cycle(step)]
    variances = [np.var(batch(step, np.float32)['x'], axis=0).mean() for step in student]
    assert found['data_std'] == pytest.approx(np.mean(np.sqrt(variances)), rel=1e-5)
    assert found['sample_std'] > 0 and np.isfinite(found['sample_mean'])
    # A fake score that learns of real data is not the student's.
    fake = 'fake_score' in _initial(name, jnp.float32).params.get('critic', {})
    assert ('kl' in found) == (fake and name not in ('real_uid', 'data_forcing'))
    if 'kl' in found:
        # Of a run of ten steps next to nothing is known but that there is noise.
        assert found['kl'][1] > 0 and np.isfinite(found['kl'][0]) and found['kl_seen'] >= 0
    if 'h' in found:
        assert found['h_min'] <= found['h'] <= found['h_max']
        # The others with an h have that of reverse KL here, which is constant.
        varies = name in ('f_distill', 'uni_instruct', 'diff_ratio')
        assert (found['h_min'] < found['h_max']) == varies


def test_the_teacher_is_not_saved_and_the_config_is_complete(tmp_path):
    """What a run keeps is enough to sample from it, without data or teacher."""
    config = _config('exact', steps=3)
    build.train(config, tmp_path, quiet=True)
    assert configs.read(tmp_path)['image']['shape'] == (2,)
    run = build.from_workdir(tmp_path)
    assert run.generate(jax.random.key(0), 5).shape == (5, 2)
    assert run.denoise(jnp.ones((4, 2)), 0.5).shape == (4, 2)
    assert run.nfe == 1 and run.step == 3


def test_another_config_in_the_same_folder_is_refused(tmp_path):
    build.train(_config('exact', steps=3), tmp_path, quiet=True)
    with pytest.raises(ValueError, match='steps=3, now 4'):
        build.train(_config('exact', steps=4), tmp_path, quiet=True)


def test_a_histogram_is_traced_anew_in_another_precision():
    values = np.array([-1.0, 0.3, 2.0])
    counts = jax.jit(lambda x: losses.histogram(x, jnp.full_like(x, 0.5)))
    with jax.enable_x64(True):
        wide = np.asarray(counts(jnp.asarray(values)))
    np.testing.assert_array_equal(wide, counts(jnp.asarray(values, jnp.float32)))


def test_histogram_counts_every_sample_once():
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(0, 5, 995), [-np.inf, -10, 10, 99, 0]]).astype(np.float32)
    position = rng.uniform(0, 1, 1000).astype(np.float32)
    position[:2] = 0, 1
    counts = np.asarray(losses.histogram(values, position))
    edges = divergences.EDGES
    for level in range(losses.LEVELS):
        inside = np.minimum(np.floor(position * losses.LEVELS), losses.LEVELS - 1) == level
        wanted, _ = np.histogram(np.clip(values[inside], edges[0], edges[-1] - 1e-4), edges)
        np.testing.assert_array_equal(counts[level], wanted)
    assert counts.sum() == 1000
