"""The parts that methods ask for by the names of their arguments, each made from its section.

A new part needs one row of `PARTS`: that row then makes the argument of that name of any method. A
part whose weights are not trained, such as a teacher, says in `Site.frozen` how they are loaded.
"""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from fdistill import networks
from fdistill.build import encoders
from fdistill.build.models import make_denoiser, place
from fdistill.build.rewarding import load_reward, make_reward
from fdistill.build.sections import chosen, named, plain_of, section_of
from fdistill.build.starts import check_copy, start_of
from fdistill.build.teachers import TEACHERS, along, mixture_of
from fdistill.config import call, parameters
from fdistill.diffusion import denoiser as denoisers
from fdistill.diffusion import noise, samplers
from fdistill.errors import UserError, suggest
from fdistill.methods import pairing


class Site(NamedTuple):
    """Where parts are made.

    plain: the resolved config.
    options: of the section `method`; each part takes its own options out of it.
    wants: the method's parameters by name.
    microbatches: see `denoiser.accumulated`.
    frozen: {name: load}, load(mesh) -> (params, digest) of the weights that are not trained; the
      parts fill it.
    seen: of `experiment`, for a part within another.
    """

    plain: Mapping[str, Any]
    options: dict[str, Any]
    wants: Mapping[str, inspect.Parameter]
    microbatches: int
    frozen: dict[str, Callable[[Mesh | None], tuple[Any, Any]]]
    seen: Callable[[str, Any], Any]


def check_known(where: str, levels: Any, name: str, network: denoisers.Denoiser) -> None:
    """Raises UserError where a network, of that name, would be asked for a level, of those of a
    setting, that it does not know."""
    levels, (low, high) = np.asarray(levels), known_range(network)
    beyond = levels[(levels < low) | (levels > high)]
    if len(beyond):
        raise UserError(f'{where}: has the level {beyond[0]:.4g}; {known_levels(name, network)}')


def known_range(network: denoisers.Denoiser) -> tuple[float, float]:
    """The lowest and the highest level that a network may be asked for: one may be that of a table,
    written with fewer digits."""
    low, high = network.sigma_range
    return 0.999 * low, 1.001 * high


def known_levels(name: str, network: denoisers.Denoiser) -> str:
    """What levels a network, of that name, knows, in words."""
    low, high = network.sigma_range
    return f'the {name} knows the levels {low:.4g} to {high:.4g}'


def _student(site):
    plain = site.plain
    section = plain.get('denoiser', {})
    model = make_denoiser(section_of(plain, 'network'), section, plain['image'], 'config.')
    teacher = plain.get('teacher', {})
    if 'start' in plain:
        site.frozen['start'] = start_of(plain)
    elif teacher.get('network', plain['network']) != plain['network'] and _copies(site):
        check_copy(plain, 'teacher')
    return denoisers.accumulated(model, site.microbatches)


def _copies(site):
    """Whether the method has its student begin as a copy of the teacher."""
    setting = site.wants.get('from_teacher')
    return setting is not None and site.options.get('from_teacher', setting.default)


def _critic(site):
    """Whose sections `network` and `denoiser` a fake score has: its teacher's, as it begins as a
    copy of it; or the config's, where the teacher has none or the student begins as its copy too,
    whose settings of how a network is computed are then those of both."""
    teacher = site.plain.get('teacher', {})
    alike = 'start' not in site.plain and _copies(site)
    return site.plain if alike or 'network' not in teacher else teacher


def _teacher(site):
    section = section_of(site.plain, 'teacher')
    kinds = [kind for kind in TEACHERS if kind in section]
    if len(kinds) != 1:
        raise UserError(
            f'config.teacher: give one of {", ".join(TEACHERS)}: the folder of a trained teacher, '
            'the file of a published one, or the name of a mixture'
        )
    made = call(TEACHERS[kinds[0]], plain_of(section), 'config.teacher', plain=site.plain)
    if made.load:
        site.frozen['teacher'] = made.load
    elif _copies(site):
        raise UserError(
            'config.method.from_teacher: an oracle has no network to start from; set it to False'
        )
    return denoisers.accumulated(made.model, site.microbatches)


def _path(site):
    """What `teachers.along` makes of the section `path`."""
    level = site.options.get('sigma_init', site.wants['sigma_init'].default)
    given = dict(plain=site.plain, sigma_init=level)
    made = call(along, plain_of(section_of(site.plain, 'path')), 'config.path', **given)
    site.frozen['path'] = made.load
    return denoisers.accumulated(made.model, site.microbatches)


def _fake_score(site):
    plain, critic = site.plain, _critic(site)
    section = plain.get('fake_score', critic.get('denoiser', {}))
    where = 'config.' if critic is plain else 'config.teacher.'
    at = 'config.fake_score' if 'fake_score' in plain else None
    network = section_of(critic, 'network')
    model = make_denoiser(network, section, plain['image'], where, at)
    return denoisers.accumulated(model, site.microbatches)


def _sigma_data(site):
    section = site.plain.get('fake_score', _critic(site).get('denoiser', {}))
    if 'sigma_data' in site.options and 'sigma_data' not in section:
        return site.options.pop('sigma_data')  # Of a denoiser that has none itself.
    return section.get('sigma_data', 0.5)


def _discriminator(site):
    if 'discriminator' not in site.plain:
        return None
    factory, section = chosen(networks.HEADS, site.plain['discriminator'], 'config.discriminator')
    fitting = {}
    if 'num_classes' in parameters(factory):
        fitting['num_classes'] = site.plain['image']['num_classes']
    return call(factory, section, 'config.discriminator', **fitting)


def _reward(site):
    if 'reward' not in site.plain:
        return None
    reward = make_reward(site.plain['reward'], site.plain['image'], 'config.reward')
    if reward.trained is not None:
        site.frozen['reward'] = functools.partial(load_reward, reward, site.plain)
    return reward


def _encoder(site):
    if 'features' not in site.plain and site.wants['encoder'].default is None:
        return None
    made = encoders.encoder(site.plain)
    if made.load:
        site.frozen['encoder'] = lambda mesh: place(made.load(), mesh)
    return encoders.accumulated(made.encoder, site.microbatches)


def _reference(site):
    """Moments of the data under the section `features`."""
    scale = site.options.get('label_scale', site.wants['label_scale'].default)
    made = encoders.reference(site.plain, encoders.encoder(site.plain), scale)
    site.frozen['reference'] = lambda mesh: place(made.load(), mesh, made.known())
    return made


def _mixture(site):
    """The mixture for a method of closed forms, which hold for one kind of student only."""
    plain = site.plain
    if plain['network']['name'] != 'gaussian':
        raise UserError(
            f'config.network.name={plain["network"]["name"]!r}: the formulas of this method hold '
            'for the network gaussian alone'
        )
    section = section_of(plain, 'teacher')
    if set(section) != {'oracle'}:
        raise UserError(
            'config.teacher: this method needs oracle, a named mixture, and nothing else'
        )
    mixture = mixture_of(section['oracle'])
    ours, theirs = mixture.means.shape[1:], tuple(plain['image']['shape'])
    if ours != theirs:
        raise UserError(
            f'config.teacher.oracle={section["oracle"]}: has {ours[0]} dimensions, but the data '
            f'has {"x".join(map(str, theirs))}'
        )
    return mixture


# Sections within the section `method`, and the tables of which each names a row.
TABLES = {
    'law': noise.LAWS,
    'student_law': noise.LAWS,
    'critic_law': noise.LAWS,
    'until_law': noise.LAWS,
    'grid': noise.GRIDS,
    'sampler': {name: sampler.solve for name, sampler in samplers.SAMPLERS.items()},
}


def _of_method(name, key=None):
    """A part that is a section of the section `method`: a row of one of `TABLES`."""
    key = key or name
    table = TABLES[key]

    def make(site):
        if key not in site.options:
            if site.wants[name].default is not inspect.Parameter.empty:
                return site.wants[name].default
            raise UserError(
                f'config.method.{key}: missing; give one of {", ".join(table)} with its settings, '
                f'as dict(name={next(iter(table))!r})'
            )
        return named(table, site.options.pop(key), f'config.method.{key}')

    return make


def _sampler(site):
    if 'sampler' not in site.options:
        return site.wants['sampler'].default
    return _sampler_of(site.options.pop('sampler'), 'config.method.sampler')


def _sampler_of(section, where):
    """A `samplers.Sampler` with its options, which are checked by tracing it on a toy."""
    sampler, options = chosen(samplers.SAMPLERS, section, where)
    toy = {
        'denoise': lambda x, sigma: x,
        'x': jnp.ones((1, 1)),
        'sigmas': np.arange(5.0, -1.0, -1.0),
        'key': jax.random.key(0),
    }
    jax.eval_shape(lambda: call(sampler.solve, options, where, trajectory=False, **toy))
    return sampler._replace(solve=functools.partial(sampler.solve, **options))


def _pairs(site):
    """Pairs of the data, or what makes them by the teacher."""
    where = 'config.pairs'
    if 'pairs' not in site.plain:
        if site.plain['data'].get('name') != 'pairs':
            raise UserError(
                f"{where}: missing; this method learns from pairs. Set data=dict(name='pairs', "
                'path=...), a folder of `fdistill pairs`, or let the teacher make them: '
                "pairs=dict(sampler='heun', grid=dict(name='karras', steps=18))"
            )
        return pairing.recorded()
    if site.plain['data'].get('name') == 'pairs':
        raise UserError(f'{where}: the data are pairs already; leave it out')
    section = plain_of(site.plain['pairs'])
    for name in ('sampler', 'grid'):
        if name not in section:
            raise UserError(f'{where}.{name}: missing; give the solver and the levels of the pairs')
    for name in section.keys() - {'sampler', 'grid'}:
        raise UserError(f'{where}.{name}: unknown setting{suggest(name, ("sampler", "grid"))}')
    teacher = site.seen('teacher', _teacher(site))
    sigmas = named(noise.GRIDS, section['grid'], f'{where}.grid')
    check_known(f'{where}.grid', sigmas[:-1], 'teacher', teacher)
    return pairing.online(teacher, _sampler_of(section['sampler'], f'{where}.sampler'), sigmas)


# Name of an argument of a method -> what makes it at a site.
PARTS = {
    'student': _student,
    'teacher': _teacher,
    'fake_score': _fake_score,
    'path': _path,
    'sigma_data': _sigma_data,
    'discriminator': _discriminator,
    'encoder': _encoder,
    'reference': _reference,
    'mixture': _mixture,
    'pairs': _pairs,
    'reward': _reward,
    'law': _of_method('law'),
    'student_law': _of_method('student_law'),
    'critic_law': _of_method('critic_law'),
    'until_law': _of_method('until_law'),
    'sigmas': _of_method('sigmas', 'grid'),
    'sampler': _sampler,
}
