"""Search of a sampling grid of few levels among many, by evolution (AutoDiffusion, arXiv
2309.10438, without its search of layers).

A grid is K of the n candidate levels. The best of all grids scored so far are the parents. An epoch
scores a population of mutations, crossovers and random grids, none of which was scored before.
All randomness comes from (seed, epoch), so that a search that is continued after any epoch equals
one that was never interrupted.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fdistill.diffusion import noise

# The first population is the uniform grid, and for half of the rest mutations of it, at this rate.
FIRST_RATE = 0.1
# A child that was seen before is drawn again, up to this many draws for each child wanted; random
# grids make up what is missing then.
TRIES = 10


class SearchState(NamedTuple):
    """A search between two epochs, in values that JSON holds: `_asdict()` and `restore` convert it.

    settings: what `start` was given; a search can only go on under the same.
    visited: every grid scored, in order, as a rising list of K indices into the candidates.
    scores: theirs; lower is better.
    best: the lowest score so far, after each epoch; as many entries as epochs are done.
    """

    settings: dict
    visited: list
    scores: list
    best: list


def start(
    candidates: npt.ArrayLike,
    steps: int,
    *,
    seed: int = 0,
    population: int = 50,
    parents: int = 10,
    mutations: int = 25,
    crossovers: int = 15,
    mutation_rate: float = 0.25,
) -> SearchState:
    """A search that has scored nothing yet.

    Args:
      candidates: [n] levels, strictly falling, positive and finite, n >= 2; for example
        `noise.karras_grid(201)[:-1]`. Levels, the first as well as the last, are chosen freely
        among them.
      steps: number of levels K of a grid before the final 0, 1 <= K <= n.
      seed: integer >= 0.
      population: grids scored in an epoch, >= 1.
      parents: the best so many of all scored are changed and crossed, 1 <= parents.
      mutations, crossovers: children in an epoch, >= 0, together <= population; random grids make
        up the rest.
      mutation_rate: probability that a level is replaced in a mutation, in (0, 1].

    Raises:
      ValueError: on values out of range.
    """
    levels = noise.levels_grid(candidates)[:-1]
    whole = {'steps': steps, 'seed': seed, 'population': population, 'parents': parents}
    whole |= {'mutations': mutations, 'crossovers': crossovers}
    least = {'steps': 1, 'population': 1, 'parents': 1}
    for name, value in whole.items():
        if value != int(value) or value < least.get(name, 0):
            raise ValueError(f'{name}={value}: need a whole number >= {least.get(name, 0)}')
    if steps > len(levels):
        raise ValueError(
            f'steps={steps}: need at most as many as there are candidates, {len(levels)}'
        )
    if mutations + crossovers > population:
        raise ValueError(
            f'mutations={mutations}, crossovers={crossovers}: '
            f'together at most population={population}'
        )
    if not 0 < mutation_rate <= 1:
        raise ValueError(f'mutation_rate={mutation_rate}: must lie in (0, 1]')
    settings = {name: int(value) for name, value in whole.items()}
    settings |= {'mutation_rate': float(mutation_rate), 'candidates': levels.tolist()}
    return SearchState(settings, [], [], [])


def restore(values: Mapping[str, Any]) -> SearchState:
    """The state whose `_asdict()` went through JSON, which may have made an infinite score the word
    'inf'.

    Raises:
      ValueError: if the values are not such a state.
    """
    try:
        visited = [[int(index) for index in chosen] for chosen in values['visited']]
        scores, best = ([float(score) for score in values[name]] for name in ('scores', 'best'))
        settings = dict(values['settings'])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f'not the state of a search: {type(error).__name__}: {error}') from error
    if len(visited) != len(scores):
        raise ValueError(
            f'not the state of a search: {len(visited)} grids have {len(scores)} scores'
        )
    return SearchState(settings, visited, scores, best)


def grids(state: SearchState, chosen: Sequence[Sequence[int]]) -> np.ndarray:
    """Levels of index lists [M, K]: sigmas[M, K + 1], float64, each falling to 0."""
    levels = np.asarray(state.settings['candidates'])[
        np.asarray(chosen, int).reshape(-1, state.settings['steps'])
    ]
    return np.pad(levels, ((0, 0), (0, 1)))


def best(state: SearchState) -> tuple[np.ndarray, float]:
    """(sigmas[K + 1], score) of the best grid so far; among equals, the earliest.

    Raises:
      ValueError: before the first epoch.
    """
    if not state.scores:
        raise ValueError('best of no epochs: score at least one')
    winner = int(np.argmin(state.scores))
    return grids(state, state.visited[winner])[0], state.scores[winner]


def proposals(state: SearchState) -> list[list[int]]:
    """The grids of the next epoch as rising index lists [M, K], distinct and never scored before.

    A function of the state alone. M is the population, or less when fewer grids are left.
    """
    s = state.settings
    n, steps = len(s['candidates']), s['steps']
    rng = np.random.default_rng([s['seed'], len(state.best)])
    seen = {tuple(chosen) for chosen in state.visited}
    found = []

    def add(draw, wanted, tries):
        target = min(len(found) + wanted, s['population'], math.comb(n, steps) - len(state.visited))
        while len(found) < target and tries > 0:
            tries -= 1
            child = tuple(int(index) for index in np.unique(draw()))
            # Crossing two parents can give a level twice.
            if len(child) == steps and child not in seen:
                seen.add(child)
                found.append(list(child))

    def mutation(parent, rate):
        kept = parent[rng.random(steps) >= rate]
        return np.append(
            kept, rng.choice(np.setdiff1d(np.arange(n), kept), steps - len(kept), replace=False)
        )

    if not state.visited:
        uniform = np.round(np.linspace(0, n - 1, steps)).astype(int)
        add(lambda: uniform, 1, 1)
        wanted = (s['population'] - 1) // 2
        add(lambda: mutation(uniform, FIRST_RATE), wanted, TRIES * wanted)
    else:
        parents = np.asarray(state.visited)[np.argsort(state.scores, kind='stable')[: s['parents']]]
        add(
            lambda: mutation(rng.choice(parents), s['mutation_rate']),
            s['mutations'],
            TRIES * s['mutations'],
        )

        def crossover():
            one, other = rng.choice(parents, 2)
            return np.where(rng.random(steps) < 0.5, one, other)

        add(crossover, s['crossovers'], TRIES * s['crossovers'])
    add(lambda: rng.choice(n, steps, replace=False), s['population'], math.inf)
    return found


def epoch(state: SearchState, score: Callable[[np.ndarray], npt.ArrayLike]) -> SearchState:
    """One epoch: scores `proposals(state)`.

    Args:
      state: `SearchState`.
      score: sigmas float64 [M, K + 1], each row falling to 0 -> scores [M]; lower is better, and
        inf means that a grid must not be used. It should use the same noise for all grids, or the
        scores cannot be compared. It is not called when every grid has been scored.

    Returns:
      `SearchState`.

    Raises:
      ValueError: on scores of another shape, or NaN.
    """
    chosen = proposals(state)
    scores = np.zeros(0)
    if chosen:
        scores = np.asarray(score(grids(state, chosen)), np.float64)
        if scores.shape != (len(chosen),) or np.isnan(scores).any():
            raise ValueError(
                f'score: gave shape {scores.shape}, {np.isnan(scores).sum()} NaN; '
                f'need [{len(chosen)}], none NaN'
            )
    scores = state.scores + scores.tolist()
    return SearchState(state.settings, state.visited + chosen, scores, [*state.best, min(scores)])


def search(
    score: Callable[[np.ndarray], npt.ArrayLike],
    candidates: npt.ArrayLike,
    steps: int,
    *,
    epochs: int = 10,
    state: SearchState | None = None,
    on_epoch: Callable[[SearchState], Any] | None = None,
    **options: Any,
) -> SearchState:
    """Runs epochs until `epochs` of them are done, counted from the start of the search; `best` of
    the result is the grid.

    Args:
      score: see `epoch`.
      candidates, steps, **options: see `start`.
      epochs: >= 1. A state that has done as many or more is returned as it is.
      state: where to go on, or None.
      on_epoch: called with the state after each epoch, for example to save it.

    Returns:
      `SearchState`.

    Raises:
      ValueError: on values out of range, or a state of another search.
    """
    if epochs < 1 or epochs != int(epochs):
        raise ValueError(f'epochs={epochs}: need a whole number >= 1')
    fresh = start(candidates, steps, **options)
    state = fresh if state is None else state
    for name, value in fresh.settings.items():
        if state.settings.get(name) != value:
            old, new = (
                ('other levels', 'these')
                if name == 'candidates'
                else (state.settings.get(name), value)
            )
            raise ValueError(
                f'state: is of a search with {name}={old}, now {new}; '
                'go on with the same or without the state'
            )
    while len(state.best) < epochs:
        state = epoch(state, score)
        if on_epoch is not None:
            on_epoch(state)
    return state
