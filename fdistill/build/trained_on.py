"""Which features a run was trained on, so that a number in the same features can say so."""

from collections.abc import Iterable, Mapping
from typing import Any

from fdistill.data.sources import Source
from fdistill.evaluation import features
from fdistill.weights.detectors import DETECTORS

# Sections of a config that name features which a loss sees, and the seed of a classifier that is
# given none: the evaluation's own, and another.
PARTS = {'features': 0, 'reward': 1}


def trained_on(
    plain: Mapping[str, Any], source: Source, ancestors: Iterable[Mapping[str, Any]] = ()
) -> list[str]:
    """Names, as in a protocol, of the features that a run is trained on, sorted.

    Those of its own losses; those of what it begins as or learns from, for what was trained on them
    hands on what it learned; and those that the config itself says, as of published weights.

    Args:
      plain: config of the run.
      source: its data.
      ancestors: resolved configs of its `start` and its teacher.
    """
    names = {name for config in (plain, *ancestors) for name in config.get('trained_on', ())}
    for part, seed in PARTS.items():
        for section in _each(plain.get(part, ())):
            name = section.get('name')
            if name in features.NAMES:
                names.add(features.NAMES[name](source, section.get('seed', seed)))
            elif name in DETECTORS:
                names.add(name)
    return sorted(names)


def _each(sections):
    """The sections in one, in several of a list, or in the setting `of` of one."""
    if isinstance(sections, (list, tuple)):
        return [one for section in sections for one in _each(section)]
    section = {'name': sections} if isinstance(sections, str) else sections
    return [section, *_each(section.get('of', ()))]
