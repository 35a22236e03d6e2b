"""The sections of a config, each the keyword arguments of one function.

data           a source of `data.sources.SOURCES` by name, and `flip`
network        a network of `networks.NETWORKS`; where it is left out that of `start`, or else the
               teacher's; without a name that one with other settings, as dict(width=64) or
               dict(numbers=('until',)). That of a fake score is the teacher's, as which it begins,
               whatever the student is
denoiser       a row of `models.DENOISERS`, by default EDM's preconditioning; likewise
fake_score     other settings of the same for the fake score
teacher        a row of `teachers.TEACHERS`: `workdir` of a run, `weights`, a converted file, or
               `oracle`, a named mixture
start          what the student begins as, by default the teacher: `workdir` of a run by any method,
               or `weights`; with `slice=True` a part of that, or of the teacher, as large as its
               own network (`networks.slices`)
path           where a teacher was degraded, `teachers.along`
pairs          `sampler` and `grid` by which the teacher makes pairs as they are needed, where the
               data are not pairs
method         a row of `methods.METHODS`, its laws and grid being sections with a name
discriminator  a head of `networks.HEADS`
reward         a row of `methods.rewards.REWARDS`, by which samples are preferred
features       a row of `encoders.ENCODERS`, or several: what sees the features that methods without
               a critic compare; numbers in those of a run, or of its reward, are marked
optimizer      `optim.adam` for each role
training, mesh `loop.Training`, `sharding.make_mesh`
evaluation     `evaluate.evaluate`, or with a published `protocol` `scores.evaluate`
"""

import copy
import functools
import math
import operator
import pathlib
import typing
from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict

from fdistill import config as configs
from fdistill.build.trained_on import trained_on
from fdistill.config import call
from fdistill.data import pairs, sources
from fdistill.errors import UserError, pick, suggest
from fdistill.types import misfit
from fdistill.weights import denoisers

MOST_NUMBERS = 2**31  # of a sample
SECTIONS = typing.get_type_hints(configs.Sections)


def plain_of(section: Any) -> dict[str, Any]:
    """A section as keyword arguments: what JSON made a list is a tuple again."""
    return configs.with_tuples(
        section.to_dict() if isinstance(section, ConfigDict) else dict(section)
    )


def chosen(table: Mapping[str, Any], section: Any, where: str) -> tuple[Any, dict[str, Any]]:
    """(table[section.name], rest of the section); a name alone is a section without the rest."""
    if not isinstance(section, (str, Mapping, ConfigDict)):
        raise UserError(f'{where}: {section!r:.80} is no section; give a name, or a dict with one')
    section = {'name': section} if isinstance(section, str) else plain_of(section)
    if 'name' not in section:
        raise UserError(f'{where}.name: missing{suggest("", table)}')
    return pick(table, section.pop('name'), f'{where}.name'), section


def named(table: Mapping[str, Callable[..., Any]], section: Any, where: str, **given: Any) -> Any:
    """table[section.name](**rest of the section)."""
    made, options = chosen(table, section, where)
    return call(made, options, where, **given)


def section_of(config: Mapping[str, Any], name: str) -> Any:
    """A section that a config must have."""
    if name not in config:
        raise UserError(
            f'config.{name}: missing; this section is needed, see the files in configs/'
        )
    section = config[name]
    values = section.to_dict() if isinstance(section, ConfigDict) else section
    if found := misfit(values, SECTIONS[name], f'config.{name}'):
        raise UserError(found)
    return section


def load_data(
    config: Mapping[str, Any],
    split: str,
    table: Mapping[str, Callable[..., sources.Source]] = sources.SOURCES,
) -> sources.Source:
    """The `Source` of a split; a row of `sources.OUTLINES` has black images."""
    section = plain_of(section_of(config, 'data'))
    section.pop('flip', None)
    return named(table, section, 'config.data', split=split)


def real(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """A config whose `data` are real: of pairs those of their teacher, as nothing is measured
    against what a teacher made.

    Raises:
      UserError: the pairs are not there, or do not say.
    """
    section = plain_of(section_of(config, 'data'))
    if section.get('name') != 'pairs':
        return config
    note = pairs.read(str(section.get('path', '')))
    if 'data' not in note:
        raise UserError(
            f'config.data.path={section["path"]}: these pairs do not say which data they stand for '
            'and are measured against; make them with --config=FILE'
        )
    return with_data(config, note['data'])


def with_data(config: Mapping[str, Any], section: Mapping[str, Any]) -> dict[str, Any]:
    """A config with another section `data`."""
    return {name: config[name] for name in config} | {'data': section}


def of_file(path: str | pathlib.Path, where: str) -> dict[str, Any]:
    """`weights.denoisers.about` of a file, whose model may be used as sections of a config.

    Raises:
      UserError: the file is missing, damaged, or of something else.
    """
    try:
        about = denoisers.about(path)
    except UserError as error:
        raise UserError(f'{where}={error}') from error
    if found := image_misfit(about['model']['image']):
        raise UserError(f'{where}={path}: its metadata is damaged ({found}); convert it again')
    return about


def image_misfit(image: Any) -> str:
    """Why something is no section `image`, or ''."""
    if found := misfit(image, configs.Image, 'image'):
        return found
    shape, classes = image['shape'], image['num_classes']
    if not shape or min(shape) < 1 or math.prod(shape) >= MOST_NUMBERS:
        return f'image.shape={shape!r:.80}: is no shape of a sample'
    return '' if 0 <= classes < 2**31 else f'image.num_classes={classes}: is no number of classes'


def _of_teacher(path, where):
    about = of_file(path, where)
    if 'generator' in about:
        raise UserError(
            f'{where}={path}: holds a student, which makes samples and denoises no more; name the '
            'file of its teacher'
        )
    return published_config(about)


def published_config(about: Mapping[str, Any]) -> dict[str, Any]:
    """The sections of a config that a file of weights, of which `about` is said, has."""
    return about['model'] | {name: about[name] for name in ('trained_on',) if name in about}


# What says of a teacher which network it is: (its place, what that is called) -> config.
KNOWN = {
    'workdir': lambda place, where: configs.to_json(configs.read(place, where)),
    'weights': _of_teacher,
}


def image_of(source: sources.Source) -> dict[str, Any]:
    """What a sample of the data is, the section `image`."""
    image = {
        'shape': list(source.images.shape[1:]),
        'num_classes': source.num_classes if source.num_classes > 1 else 0,
    }
    given = {name: list(values.shape[1:]) for name, values in source.given.items()}
    image |= {'given': given} if given else {}
    if source.decoded:
        autoencoder, shape = source.decoded
        image['latents'] = {'autoencoder': autoencoder, 'shape': list(shape)}
    return image


def resolve(
    config: Mapping[str, Any],
    source: sources.Source,
    known: Mapping[str, Mapping[str, Any]] = {},
) -> dict[str, Any]:
    """The config that a run keeps: plain values, complete without the teacher's folder or the data.

    A network or denoiser that is left out is that of `start`, or else the teacher's; a network that
    has no name is that one but for the settings that are given. `image` notes what a sample is,
    `trained_on` which features it is trained on, if any.

    Args:
      config: sections.
      source: its data.
      known: resolved configs of 'start' and 'teacher'; of each that is not here, the one kept in
        its folder.
    """
    plain = configs.to_json(config)
    for name in plain:
        if name not in SECTIONS:
            raise UserError(
                f'config.{name}: unknown section{suggest(name, SECTIONS, prefix="config.")}'
            )
    if found := misfit(plain, configs.Sections, 'config'):
        raise UserError(found)
    configs.check_range(plain.get('seed', 0), 'config.seed')
    # A name alone is a section without the rest.
    for name in ('network', 'denoiser', 'fake_score', 'discriminator', 'reward', 'features'):
        if isinstance(plain.get(name), str):
            plain[name] = {'name': plain[name]}
    plain['image'], ancestors = image_of(source), []
    if plain.get('start', {}).get('slice') and not KNOWN.keys() & plain['start'].keys():
        teacher = plain.get('teacher', {})
        plain['start'] |= {kind: teacher[kind] for kind in KNOWN if kind in teacher}
        known = {'start': known['teacher'], **known} if 'teacher' in known else known
    for part in ('start', 'teacher'):
        section, told = plain.get(part, {}), known.get(part)
        for kind in (kind for kind in KNOWN if kind in section):
            at = f'config.{part}.{kind}'
            if not isinstance(section[kind], str):
                raise UserError(f'{at}={section[kind]!r}: must be a path, in quotes')
            about = KNOWN[kind](section[kind], at) if told is None else told
            ancestors.append(about)
            image = dict(about['image'])
            if kind == 'weights' and 'latents' in plain['image']:
                # What was published does not say whose latents it makes.
                image.setdefault('latents', plain['image']['latents'])
            if image != plain['image']:
                raise UserError(
                    f'{at}={section[kind]}: was trained on {about["image"]}, not {plain["image"]}'
                )
            for name in ('network', 'denoiser'):
                section[name] = about.get(name, {})
                plain.setdefault(name, section[name])
            if 'name' not in plain['network']:
                plain['network'] = section['network'] | plain['network']
    if source.pairs:
        ancestors.append({'trained_on': source.pairs.trained_on})

    def seen():
        return load_data(real(plain), 'train') if source.pairs else source

    if names := trained_on(plain, seen, ancestors):
        plain['trained_on'] = names
    return plain


def replaced(plain: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of nested dicts with other values in the places of {dotted name: value}."""
    plain = copy.deepcopy(plain)
    for name, value in values.items():
        *path, last = name.split('.')
        functools.reduce(operator.getitem, path, plain)[last] = value
    return plain
