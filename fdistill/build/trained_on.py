"""Which features a run was trained on, so that a number in the same features can say so."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from fdistill.config import parameters
from fdistill.data.sources import Source
from fdistill.evaluation import features
from fdistill.methods import METHODS
from fdistill.methods.rewards import REWARDS
from fdistill.weights import CONVERTERS

# Sections of a config that name features which a loss sees, and the seed of a classifier there.
PARTS = {'features': 0, 'reward': parameters(REWARDS['classifier'])['seed'].default}


def trained_on(
    plain: Mapping[str, Any],
    source: Callable[[], Source],
    ancestors: Iterable[Mapping[str, Any]] = (),
) -> list[str]:
    """Names, as in a protocol, of the features that a run is trained on, sorted; of a reward that
    sees the samples themselves 'reward-brightness' and the like.

    Those of its own losses; those of what it begins as or learns from, for what was trained on them
    hands on what it learned; and those that the config itself says, as of published weights.

    Args:
      plain: config of the run.
      source: () -> its data, real ones.
      ancestors: resolved configs of its `start` and its teacher, and what is said of that of pairs.
    """
    names = {name for config in (plain, *ancestors) for name in config.get('trained_on', ())}
    for part, seed in PARTS.items():
        if part == 'reward' and not _weighs(plain.get('method', {})):
            continue
        for section in _each(plain.get(part, ())):
            name = section.get('name')
            if name in features.NAMES:
                names.add(features.NAMES[name](source(), section.get('seed', seed)))
            elif name in CONVERTERS:
                names.add(name)
            elif name in REWARDS:
                names.add(f'reward-{name}')
    return sorted(names)


def _weighs(method: Mapping[str, Any]) -> bool:
    """Whether a method learns from its reward: with a weight of 0 it is only measured."""
    made = METHODS.get(method.get('name'))
    weight = parameters(made).get('reward_weight') if made else None
    return method.get('reward_weight', weight.default if weight else 1) != 0


def _each(sections: Any) -> Iterator[Mapping[str, Any]]:
    """The sections in one, or in several of a list."""
    if isinstance(sections, (list, tuple)):
        for section in sections:
            yield from _each(section)
    elif isinstance(sections, str):
        yield {'name': sections}
    elif isinstance(sections, Mapping):
        yield sections
