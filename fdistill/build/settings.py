"""What the signatures of functions say of each setting of a config."""

import inspect
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict, config_dict

from fdistill import config as configs
from fdistill import networks
from fdistill.build.encoders import ENCODERS
from fdistill.build.models import DENOISERS
from fdistill.build.parts import TABLES
from fdistill.build.teachers import TEACHERS, along
from fdistill.config import parameters
from fdistill.data import sources
from fdistill.evaluation import evaluate as evaluation
from fdistill.evaluation import protocol as protocols
from fdistill.evaluation import scores
from fdistill.files import disk
from fdistill.methods import METHODS
from fdistill.methods.rewards import REWARDS
from fdistill.training import optim, sharding
from fdistill.training.loop import Training
from fdistill.types import PLAIN, Continuous, Free, Place

# Sections that may differ between a run and its resumption; single settings say `Free` themselves.
FREE = ('mesh', 'evaluation', 'trained_on', 'origin', 'changes')
# Sections that take a row of a table by name.
NAMED = {
    'data': sources.SOURCES,
    'network': networks.NETWORKS,
    'discriminator': networks.HEADS,
    'reward': REWARDS,
    'features': ENCODERS,
    'method': METHODS,
    **{f'method.{name}': table for name, table in TABLES.items()},
}
# Arguments of these functions that are no settings.
OTHERS = {'split', 'progress', 'against', 'rewards', 'trained_on', 'name'}


def _apart(plain):
    """A config in which a section that is several, as `features` may be, is a dict of them by their
    numbers, so that each setting has a name."""

    def apart(section):
        if not isinstance(section, (list, tuple)):
            return section
        whole = ({'name': one} if isinstance(one, str) else one for one in section)
        return {str(k): one for k, one in enumerate(whole)}

    return {name: apart(section) if name in NAMED else section for name, section in plain.items()}


def _functions(plain: Mapping[str, Any]) -> Iterator[tuple[str, Callable[..., Any]]]:
    """(section, function whose arguments it holds), for the sections that a config has."""
    several = {
        f'{name}.{k}': table
        for name, table in NAMED.items()
        if isinstance(plain.get(name), (list, tuple))
        for k in range(len(plain[name]))
    }
    plain = _apart(plain)

    def at(path):
        section = plain
        for key in path.split('.'):
            section = section.get(key) if isinstance(section, Mapping) else None
        return {'name': section} if isinstance(section, str) else section

    for path, table in (NAMED | several).items():
        section = at(path)
        name = section.get('name') if isinstance(section, Mapping) else None
        if row := table.get(name) if isinstance(name, str) else None:
            yield path, row
    for path in ('denoiser', 'fake_score'):
        name = (at(path) or {}).get('name', 'edm')
        if row := DENOISERS.get(name) if isinstance(name, str) else None:
            yield path, row
    for part in ('teacher', 'start'):
        for name, row in TEACHERS.items():
            if name in plain.get(part, {}):
                yield part, row
    if 'path' in plain:
        yield 'path', along
    for role in plain.get('optimizer', {}):
        yield f'optimizer.{role}', optim.adam
    yield 'training', Training
    yield 'mesh', sharding.make_mesh
    yield 'evaluation', evaluation.evaluate
    yield 'evaluation', scores.evaluate


def settings(plain: Mapping[str, Any]) -> dict[str, inspect.Parameter]:
    """{dotted name: parameter} of what a config sets or may set; unknown names are left out."""
    return {
        f'{path}.{name}': parameter
        for path, function in _functions(plain)
        for name, parameter in parameters(function).items()
        if name not in OTHERS
    }


def _marked(parameter, marks):
    """The first of an annotation's marks that is one of these, or None."""
    annotation = parameter.annotation if parameter else None
    found = typing.get_args(annotation)[1:] if typing.get_origin(annotation) else ()
    for mark in found:
        if mark in marks or isinstance(mark, tuple(marks)):
            return mark
    return None


def comparable(plain: Mapping[str, Any], places: bool = True) -> dict[str, Any]:
    """{dotted name: value} of what makes a run what it is; `places` says whether places count."""
    known, marks = settings(plain), [Free] if places else [Free, Place]
    return {
        name: value
        for name, value in disk.flat(_apart(plain)).items()
        if name.split('.')[0] not in FREE and not _marked(known.get(name), marks)
    }


def continuous(plain: Mapping[str, Any]) -> set[str]:
    """Dotted names of the numbers in which the lanes of one program may differ."""
    found, known = set(), settings(plain)
    for name, value in disk.flat(plain).items():
        mark = _marked(known.get(name), [Continuous])
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if mark and number and value != mark.off:
            found.add(name)
    return found


def common(plain: Mapping[str, Any]) -> dict[str, Any]:
    """{dotted name: value} that must be equal for configs to be trained together by `train_lanes`;
    numbers in which lanes may differ are '*'."""
    loose = continuous(plain)
    return {
        name: '*' if name in loose else value
        for name, value in disk.flat(plain).items()
        if name != 'seed'
    }


def _defaults(config):
    """{dotted name: default} of what a config may set but need not; where the default is None, a
    placeholder of the setting's type."""
    found = {}
    # Sections with a name are found among plain dicts only.
    for name, parameter in settings(configs.to_json(config)).items():
        value = parameter.default
        if value is None:
            annotation = parameter.annotation
            if typing.get_origin(annotation) is typing.Annotated:
                annotation = typing.get_args(annotation)[0]
            kinds = [kind for kind in typing.get_args(annotation) if kind in (int, float, str)]
            value = config_dict.placeholder(kinds[0]) if kinds else parameter.empty
        plain_value = isinstance(value, PLAIN) and not hasattr(value, '_fields')
        if plain_value or isinstance(value, config_dict.FieldReference):
            found[name] = value
    # It has no default in a signature, because it decides which signature holds.
    return found | {'evaluation.protocol': protocols.OWN, 'method.sampler': 'heun'}


def complete(config: ConfigDict, names: Iterable[str]) -> None:
    """Writes the defaults of `names` (dotted) into a config that leaves them out, so that they can
    be set; in place."""
    defaults = _defaults(config)
    for name in names:
        *path, last = name.split('.')
        section = config
        for key in path:
            section = section.get(key) if isinstance(section, ConfigDict) else None
        if name in defaults and isinstance(section, ConfigDict) and last not in section:
            with config.unlocked():
                section[last] = defaults[name]


def override(config: ConfigDict, words: Sequence[str]) -> None:
    """`config.override` for settings, too, that a config leaves to their defaults, as
    --config.training.evaluate_every=100."""
    if not words:
        return
    complete(config, [word.removeprefix('--config.').partition('=')[0] for word in words])
    configs.override(config, words)
