"""Sampling grids against their closed forms, the search of one by evolution, and its command
line."""

import importlib.util
import itertools
import json
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from fdistill import build
from fdistill import config as configs
from fdistill.diffusion import noise, samplers, search
from fdistill.diffusion.oracle import mixture
from fdistill.errors import UserError
from fdistill.files import disk

# Grids.

GRIDS = {
    'karras': [{}, {'rho': 3.0}],
    'loguniform': [{}, {'sigma_min': 0.1, 'sigma_max': 3.0}],
    'linear': [{}, {'sigma_min': 0.1, 'sigma_max': 3.0}],
    'timesteps': [
        {'schedule': name, 'power': power} for name in noise.SCHEDULES for power in (1.0, 2.0)
    ],
    'even_time': [{}, {'sigma_max': 40.0}],
    'levels': [{'sigmas': (3.0, 1.0, 0.2)}, {'sigmas': (1e-3,)}],
}
CASES = [(name, options) for name, several in GRIDS.items() for options in several]


def test_every_grid_is_here():
    assert GRIDS.keys() == noise.GRIDS.keys()


@pytest.mark.parametrize(('name', 'options'), CASES)
@pytest.mark.parametrize('steps', [1, 2, 18, 1000])
def test_grid_falls_strictly_to_zero(name, options, steps):
    options = options if name == 'levels' else {'steps': steps, **options}
    grid = noise.GRIDS[name](**options)
    assert grid.shape == (options.get('steps', len(options.get('sigmas', ()))) + 1,)
    assert type(grid) is np.ndarray and grid.dtype == np.float64
    assert np.all(np.isfinite(grid)) and np.all(np.diff(grid) < 0) and grid[-1] == 0


@pytest.mark.parametrize('name', noise.GRIDS)
def test_grid_from_a_config(name):
    """As a section: its name, and the function's signature as the schema."""
    for options in GRIDS[name]:
        np.testing.assert_array_equal(
            configs.call(noise.GRIDS[name], options, 'config.method.grid'),
            noise.GRIDS[name](**options),
        )


def test_linear_and_loguniform_levels():
    i = np.arange(8) / 7
    np.testing.assert_allclose(noise.linear_grid(8, 0.1, 3.0)[:-1], 3 - 2.9 * i, rtol=1e-12)
    np.testing.assert_allclose(noise.linear_grid(8), noise.karras_grid(8, rho=1.0), rtol=1e-12)
    grid = noise.loguniform_grid(8, 0.1, 3.0)[:-1]
    np.testing.assert_allclose(grid, 3 * (0.1 / 3) ** i, rtol=1e-12)
    np.testing.assert_allclose(np.diff(-np.log(grid)), np.log(30) / 7, rtol=1e-12)


# sigma/alpha at time t, written out.
RATIOS = {
    'vp_linear': lambda t: np.sqrt(np.expm1(0.1 * t + 0.5 * 19.9 * t**2)),
    'cosine': lambda t: np.tan(np.pi / 2 * t),
    'flow': lambda t: t / (1 - t),
    'discrete': lambda t: np.sqrt(
        1 / np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))[np.asarray(t, int)] - 1
    ),
}
RATIOS['betas'] = RATIOS['discrete']
TABLES = ('discrete', 'betas')


@pytest.mark.parametrize('name', noise.SCHEDULES)
def test_levels_of_timesteps(name):
    """In float64 though jax computes in float32; of the table at its own entries."""
    t = np.array([999.0, 666.0, 333.0, 0.0]) if name in TABLES else np.linspace(0.9, 0.03, 4)
    grid = noise.timesteps_grid(4, schedule=name, t_min=t[-1], t_max=t[0])
    np.testing.assert_allclose(grid[:-1], RATIOS[name](t), rtol=1e-10)


@pytest.mark.parametrize('power', [0.5, 1.0, 2.0, 7.0])
def test_power_of_timesteps(power):
    """Times are evenly spaced in t^(1/power)."""
    grid = noise.timesteps_grid(9, schedule='flow', power=power, t_min=0.02, t_max=0.98)[:-1]
    t = grid / (1 + grid)
    assert (t[0], t[-1]) == (pytest.approx(0.98, rel=1e-12), pytest.approx(0.02, rel=1e-12))
    np.testing.assert_allclose(np.diff(t ** (1 / power), 2), 0, atol=1e-12)


def test_ddim_timesteps_of_the_usual_table():
    """Quadratic: sqrt(t) is evenly spaced; the default range is the whole table."""
    grid = noise.timesteps_grid(10, schedule='discrete', power=2.0)
    assert grid[0] == pytest.approx(RATIOS['discrete'](999), rel=1e-12)
    assert grid[-2] == pytest.approx(0.01 / np.sqrt(0.9999), rel=1e-9)
    with jax.enable_x64(True):
        t = np.asarray(noise.discrete().time(grid[:-1]))
    np.testing.assert_allclose(t, np.linspace(np.sqrt(999), 0, 10) ** 2, rtol=1e-9, atol=1e-9)


def test_options_of_a_schedule_reach_it():
    grid = noise.timesteps_grid(5, beta_min=0.2, beta_max=10.0)
    t = np.linspace(1, 1e-3, 5)
    np.testing.assert_allclose(grid[:-1], np.sqrt(np.expm1(0.2 * t + 4.9 * t**2)), rtol=1e-10)
    table = (0.9, 0.5, 0.1)
    grid = noise.timesteps_grid(3, schedule='discrete', alphas_cumprod=table)
    np.testing.assert_allclose(grid[:-1], [3, 1, 1 / 3], rtol=1e-12)
    with pytest.raises(UserError, match='config.method.grid.beta: unknown'):
        configs.call(noise.timesteps_grid, {'beta': 1.0}, 'config.method.grid')


@pytest.mark.parametrize('name', noise.SCHEDULES)
def test_euler_on_timesteps_is_ddim(name, x64):
    """x_s = alpha_s D + sigma_s eps in the schedule's own coordinates."""
    chosen, p = noise.SCHEDULES[name](), mixture([0.4, 0.6], [[-1.0], [0.7]], 0.3)
    t_min, t_max = (5.0, 900.0) if name in TABLES else (0.01, 0.95)
    unit = jnp.asarray(np.random.default_rng(0).normal(size=(6, 1)))
    grid = noise.timesteps_grid(7, schedule=name, t_min=t_min, t_max=t_max)
    times = np.linspace(t_max, t_min, 7)
    x = chosen.sigma(times[0]) * unit
    for i, t in enumerate(times):
        alpha, sigma = chosen.alpha(t), chosen.sigma(t)
        d = p.denoise(x / alpha, sigma / alpha)
        eps = (x - alpha * d) / sigma
        x = (
            chosen.alpha(times[i + 1]) * d + chosen.sigma(times[i + 1]) * eps
            if i + 1 < len(times)
            else d
        )
    np.testing.assert_allclose(samplers.euler(p.denoise, grid[0] * unit, grid), x, rtol=1e-8)


@pytest.mark.parametrize(
    ('name', 'options', 'match'),
    [
        ('linear', {'steps': 0}, 'steps=0'),
        ('linear', {'sigma_min': 3.0, 'sigma_max': 2.0}, 'sigma_min=3.0, sigma_max=2.0'),
        ('linear', {'sigma_min': 0.0}, 'sigma_min=0.0'),
        ('timesteps', {'steps': 2.5}, 'steps=2.5'),
        (
            'timesteps',
            {'schedule': 'vp'},
            "schedule='vp': known are vp_linear, cosine, flow, discrete, betas",
        ),
        ('timesteps', {'power': 0.0}, 'power=0.0'),
        ('timesteps', {'t_min': 0.5, 't_max': 0.5}, 't_min=0.5, t_max=0.5'),
        ('timesteps', {'t_min': -0.1}, 't_min=-0.1'),
        ('timesteps', {'t_min': np.nan}, 't_min=nan'),
        ('timesteps', {'t_max': np.inf}, 't_max=inf'),
        ('timesteps', {'t_min': 0.0}, 't_min=0.0'),
        ('timesteps', {'schedule': 'flow', 't_max': 1.0}, 't_max=1.0.*0.001 to 0.999'),
        ('timesteps', {'schedule': 'cosine', 't_max': 1.5}, 't_max=1.5'),
        ('timesteps', {'schedule': 'discrete', 't_max': 1000.0}, 't_max=1000.0.*0.0 to 999.0'),
        ('levels', {'sigmas': ()}, 'sigmas='),
        ('levels', {'sigmas': (1.0, 0.0)}, 'the last 0 is left out'),
        ('levels', {'sigmas': (1.0, 2.0)}, 'strictly falling'),
        ('levels', {'sigmas': (2.0, 2.0)}, 'strictly falling'),
        ('levels', {'sigmas': (np.inf, 2.0)}, 'finite'),
        ('levels', {'sigmas': (2.0, np.nan)}, 'sigmas='),
        ('levels', {'sigmas': (-1.0,)}, '> 0'),
        ('levels', {'sigmas': ((1.0,), (0.5,))}, 'sigmas='),
    ],
)
def test_grid_refuses(name, options, match):
    with pytest.raises(ValueError, match=match):
        noise.GRIDS[name](**options)


# The search.

CANDIDATES = noise.karras_grid(30)[:-1]


def toy(sigmas):
    """Squared distance in ln sigma from a geometric grid with another range; one wants the levels,
    not the noise."""
    wanted = np.log(np.geomspace(5, 0.05, sigmas.shape[1] - 1))
    return np.sum((np.log(sigmas[:, :-1]) - wanted) ** 2, axis=1)


SMALL = {'population': 12, 'parents': 4, 'mutations': 6, 'crossovers': 4}


def through_json(state):
    return search.restore(json.loads(json.dumps(disk.plain(state._asdict()))))


@pytest.mark.parametrize('steps', [1, 2, 5])
def test_best_never_rises(steps):
    """T-AD1."""
    state = search.search(toy, CANDIDATES, steps, epochs=8, **SMALL)
    assert len(state.best) == 8 and np.all(np.diff(state.best) <= 0)
    scores = np.minimum.accumulate(state.scores)
    assert state.best[-1] == scores[-1] == search.best(state)[1]
    assert state.best[0] == scores[11]
    if steps > 2:
        assert state.best[-1] < state.best[0]


@pytest.mark.parametrize('seed', range(3))
@pytest.mark.parametrize('steps', [1, 3, 6])
def test_candidates_are_sorted_distinct_and_new(steps, seed):
    """T-AD2; and exactly a population in each epoch, until there is none left."""
    asked = []

    def score(sigmas):
        asked.append(sigmas)
        return toy(sigmas)

    state = search.search(score, CANDIDATES[:8], steps, epochs=7, seed=seed, **SMALL)
    total = math.comb(8, steps)
    sizes = [len(sigmas) for sigmas in asked]
    assert sizes == [min(12, total - done) for done in range(0, min(total, 7 * 12), 12)]
    sigmas = np.concatenate(asked)
    assert sigmas.shape[1] == steps + 1 and sigmas.dtype == np.float64
    assert np.all(np.diff(sigmas, axis=1) < 0) and np.all(sigmas[:, -1] == 0)
    assert np.all(np.isin(sigmas[:, :-1], CANDIDATES[:8]))
    assert len(np.unique(sigmas, axis=0)) == len(sigmas)
    chosen = np.asarray(state.visited)
    assert np.all(np.diff(chosen, axis=1) > 0) and chosen.min() >= 0 and chosen.max() < 8
    np.testing.assert_array_equal(search.grids(state, state.visited), sigmas)
    assert len(state.best) == 7
    if len(sigmas) == total:
        every = search.grids(state, list(itertools.combinations(range(8), steps)))
        assert search.best(state)[1] == toy(every).min()


def test_first_population():
    """The uniform grid, which of Karras candidates is a Karras grid, changes of it, and others."""
    state = search.start(noise.karras_grid(201)[:-1], 5)
    first = search.proposals(state)
    assert len(first) == 50 and first[0] == [0, 50, 100, 150, 200]
    np.testing.assert_allclose(search.grids(state, first)[0], noise.karras_grid(5), rtol=1e-12)
    shared = np.array([len(set(chosen) & set(first[0])) for chosen in first])
    assert np.all(shared[1:25] >= 2) and np.mean(shared[1:25]) > 3.5 and np.mean(shared[25:]) < 1


def test_children_come_from_the_best():
    """Parents around one corner: mutations keep 3/4 of a parent, a crossover has nothing that no
    parent has."""
    settings = {'population': 40, 'parents': 6, 'mutations': 20, 'crossovers': 12}
    state = search.start(noise.karras_grid(201)[:-1], 6, **settings)
    parents = [list(range(6 * i, 6 * i + 6)) for i in range(6)]
    others = [list(range(100 + 6 * i, 106 + 6 * i)) for i in range(6)]
    state = state._replace(visited=others + parents, scores=[2.0] * 6 + [1.0] * 6, best=[1.0])
    children = search.proposals(state)
    kept = np.array(
        [max(len(set(child) & set(parent)) for parent in parents) for child in children]
    )
    # Of 6 levels each is kept with probability 3/4; a child with all of them is none. The mean is
    # (4.5 - 6 * .178)/.822.
    assert (
        np.mean(kept[:20]) == pytest.approx(4.18, abs=4 * 0.9 / np.sqrt(20))
        and kept[:20].max() == 5
    )
    assert all(max(child) < 36 for child in children[20:32])
    crossed = [{index // 6 for index in child} for child in children[20:32]]
    assert all(len(of) == 2 for of in crossed)
    assert np.mean(kept[32:]) < 1.5


@pytest.mark.parametrize('steps', [2, 5])
def test_search_is_a_function_of_its_seed(steps):
    one, again, other = (
        search.search(toy, CANDIDATES, steps, epochs=3, seed=seed, **SMALL) for seed in (3, 3, 4)
    )
    assert one == again
    assert one.visited != other.visited


@pytest.mark.parametrize('interrupted', [1, 2, 3, 4])
def test_resumed_search_equals_an_unbroken_one(interrupted):
    """Through JSON, with a score that is infinite now and then."""

    def score(sigmas):
        return np.where(sigmas[:, 0] > 50, np.inf, toy(sigmas))

    saved = []
    unbroken = search.search(score, CANDIDATES, 4, epochs=5, on_epoch=saved.append, **SMALL)
    assert [len(state.best) for state in saved] == [1, 2, 3, 4, 5] and saved[-1] == unbroken
    assert np.isinf(unbroken.scores).any()
    state = through_json(saved[interrupted - 1])
    assert state == saved[interrupted - 1]
    assert search.search(score, CANDIDATES, 4, epochs=5, state=state, **SMALL) == unbroken
    for _ in range(5 - interrupted):
        state = search.epoch(state, score)
    assert state == unbroken


def test_a_finished_search_is_returned_as_it_is():
    state = search.search(toy, CANDIDATES, 3, epochs=2, **SMALL)
    assert search.search(None, CANDIDATES, 3, epochs=2, state=state, **SMALL) is state
    longer = search.search(toy, CANDIDATES, 3, epochs=3, state=state, **SMALL)
    assert longer.visited[:24] == state.visited and len(longer.best) == 3


@pytest.mark.parametrize(
    'changed',
    [
        {'seed': 1},
        {'population': 13},
        {'parents': 3},
        {'mutations': 5},
        {'crossovers': 3},
        {'mutation_rate': 0.3},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_another_setting_is_refused(changed):
    state = search.search(toy, CANDIDATES, 3, epochs=1, **SMALL)
    with pytest.raises(
        ValueError, match=f'{next(iter(changed))}=.*now {next(iter(changed.values()))}'
    ):
        search.search(toy, CANDIDATES, 3, state=state, **{**SMALL, **changed})


def test_other_candidates_and_steps_are_refused():
    state = search.search(toy, CANDIDATES, 3, epochs=1, **SMALL)
    for candidates, steps, name in ((CANDIDATES[1:], 3, 'candidates'), (CANDIDATES, 4, 'steps')):
        with pytest.raises(ValueError, match=f'state: is of a search with {name}'):
            search.search(toy, candidates, steps, state=state, **SMALL)


@pytest.mark.parametrize(
    'options',
    [
        {'candidates': [1.0, 2.0]},
        {'candidates': [2.0, 1.0, 0.0]},
        {'candidates': [2.0, np.nan]},
        {'steps': 0},
        {'steps': 31},
        {'steps': 2.5},
        {'seed': -1},
        {'population': 0},
        {'parents': 0},
        {'mutations': -1},
        {'crossovers': 26},
        {'mutation_rate': 0.0},
        {'mutation_rate': 1.5},
        {'epochs': 0},
    ],
    ids=str,
)
def test_search_refuses(options):
    name = next(iter(options)).replace('candidates', 'sigmas')
    with pytest.raises(ValueError, match=f'{name}='):
        search.search(toy, **{'candidates': CANDIDATES, 'steps': 3, **options})


@pytest.mark.parametrize(
    'scores', [lambda n: [0.0], lambda n: [[0.0]] * n, lambda n: [np.nan] * n, lambda n: 0.0]
)
def test_scores_of_a_wrong_kind_are_refused(scores):
    with pytest.raises(ValueError, match='score'):
        search.search(lambda sigmas: scores(len(sigmas)), CANDIDATES, 3, **SMALL)


@pytest.mark.parametrize(
    'values', [{}, [], {'visited': [[0]], 'scores': [], 'best': [], 'settings': {}}, {'visited': 3}]
)
def test_what_is_no_state_is_refused(values):
    with pytest.raises(ValueError, match='not the state of a search'):
        search.restore(values)
    with pytest.raises(ValueError, match='at least one'):
        search.best(search.start(CANDIDATES, 3))


def test_search_beats_the_uniform_grid(x64):
    """T-AD3: Euler with four steps on three Gaussians, against a fine solution from the same
    noise."""
    p = mixture([0.3, 0.4, 0.3], [[-2.0], [0.5], [2.0]], [0.3, 0.5, 0.2])
    unit, held_out = np.random.default_rng(0).normal(size=(2, 200, 1))

    def scored(unit):
        fine = jax.jit(lambda x, grid: samplers.heun(p.denoise, x, grid))(
            80 * unit, noise.karras_grid(1000)
        )

        def error(grid):
            return jnp.sqrt(jnp.mean((samplers.euler(p.denoise, grid[0] * unit, grid) - fine) ** 2))

        return jax.jit(jax.vmap(error))

    score = scored(unit)
    candidates = noise.karras_grid(201)[:-1]
    state = search.search(score, candidates, 4)
    grid, found = search.best(state)
    # Uniform with both ends, and uniform with the final 0 in place of the last.
    uniform = score(np.stack([noise.karras_grid(4), np.append(candidates[[0, 50, 100, 150]], 0)]))
    assert state.best[0] <= uniform[0] * 1.01
    assert found < 0.7 * min(uniform)
    # Not by heart: from other noise it gains as much.
    other = scored(held_out)(np.stack([grid, np.append(candidates[[0, 50, 100, 150]], 0)]))
    assert other[0] < 0.7 * other[1]


# The command line.

spec = importlib.util.spec_from_file_location(
    'search_grid', pathlib.Path(__file__).parents[1] / 'experiments' / 'search_grid.py'
)
search_grid = importlib.util.module_from_spec(spec)
spec.loader.exec_module(search_grid)


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
    """A teacher of points, hardly trained."""
    folder = tmp_path_factory.mktemp('points')
    config = ConfigDict(
        dict(
            seed=0,
            data=dict(name='mixture', mixture='two_modes', n=500),
            network=dict(name='mlp', width=16, blocks=1, embedding=8),
            denoiser=dict(sigma_data=1.0),
            method=dict(
                name='pretrain',
                law=dict(name='lognormal'),
                sampler='heun',
                grid=dict(name='karras', steps=6, sigma_max=20.0),
            ),
            optimizer=dict(student=dict(learning_rate=1e-2)),
            training=dict(
                steps=20, batch_size=64, ema_half_life=100.0, log_every=10, checkpoint_every=20
            ),
        )
    )
    build.train(config, str(folder), quiet=True)
    return folder


def command(folder, out, **changed):
    options = {
        'workdir': folder,
        'steps': 3,
        'sampler': 'euler',
        'samples': 60,
        'batch': 25,
        'candidates': 9,
    }
    options |= {'population': 6, 'out': out, **changed}
    return [f'--{name}={value}' for name, value in options.items()]


def test_command_searches_and_resumes(workdir, tmp_path, capsys):
    whole, broken = tmp_path / 'whole.json', tmp_path / 'broken.json'
    assert search_grid.main(command(workdir, whole, epochs=3)) == 0
    printed = capsys.readouterr().out
    assert search_grid.main(command(workdir, broken, epochs=1)) == 0
    assert search_grid.main(command(workdir, broken, epochs=3)) == 0
    result = json.loads(whole.read_text())
    assert result == json.loads(broken.read_text())

    state = search.restore(result['search'])
    assert len(state.visited) == 18 and len(state.best) == 3
    grid, score = search.best(state)
    # The line is a config's, and the score is the evaluation's own number under its own protocol.
    section = eval(printed.splitlines()[-1].removeprefix('grid='))
    assert section.pop('name') == 'levels'
    np.testing.assert_array_equal(noise.levels_grid(**section), grid)
    rows = {(row['grid'], row['noise']): row for row in result['rows']}
    assert list(rows) == [
        (grid, of) for grid in ('searched', 'karras') for of in ('searched', 'other')
    ]
    assert rows['searched', 'searched']['pixel_fd'] == pytest.approx(score, rel=1e-9)
    assert rows['searched', 'other']['pixel_fd'] != pytest.approx(score, rel=1e-3)
    assert rows['karras', 'other']['protocol'] == rows['searched', 'other']['protocol']
    assert str(whole) in printed

    for changed, name in (
        ({'samples': 61}, 'samples=60'),
        ({'steps': 4}, 'steps=3'),
        ({'seed': 2}, 'seed=1'),
    ):
        with pytest.raises(UserError, match=f'--out=.*holds a search with {name}, now'):
            search_grid.main(command(workdir, whole, **changed))
    with pytest.raises(UserError, match='sampler=euler, now heun'):
        search_grid.main(command(workdir, whole, sampler='heun'))
    whole.write_text('{')
    with pytest.raises(UserError, match='holds no search that can go on'):
        search_grid.main(command(workdir, whole))


@pytest.mark.parametrize(
    ('changed', 'match'),
    [
        ({'steps': 0}, '--steps=0: need at least 1'),
        ({'steps': 10}, '--candidates=9: need --steps=10 to 10000'),
        ({'candidates': 10001}, '--candidates=10001'),
        ({'samples': 1}, '--samples=1: need at least 2'),
        ({'seed': -1}, '--seed=-1: need at least 0'),
        ({'sampler': 'eulre'}, "sampler.name: unknown 'eulre'; did you mean euler"),
        ({'workdir': 'nowhere'}, '--workdir=nowhere: has no config.json'),
        ({'sampler': 'heun', 'rate': 1}, 'rate'),
    ],
)
def test_command_refuses(workdir, tmp_path, changed, match):
    with pytest.raises(UserError, match=match):
        search_grid.main(command(workdir, tmp_path / 'out.json', **changed))
    assert not (tmp_path / 'out.json').exists()
