"""What a student begins as: a copy of its teacher, a run or converted weights, or a slice of one of
these; by itself, from weights of its own."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from fdistill.build.models import conditions, first_device, make_denoiser
from fdistill.build.sections import KNOWN, plain_of, section_of
from fdistill.build.teachers import TEACHERS
from fdistill.config import told
from fdistill.errors import UserError
from fdistill.networks.slices import sliced
from fdistill.training import sharding
from fdistill.types import misfit

SCRATCH = 'or set config.method.from_teacher to False, for weights of its own'


def _shapes(network, section, image, where):
    model = make_denoiser(network, section.get('denoiser', {}), image, where)
    sample = jnp.zeros((1, *image['shape'])), conditions(image, 1)
    return jax.eval_shape(model.init, jax.random.key(0), *sample)


def _check_told(plain, part, other=''):
    """Raises UserError where a network would see the level of noise in another way than the one
    whose weights it begins with."""
    seen = [
        section.get('denoiser', {}).get('noise_input', 'log') for section in (plain, plain[part])
    ]
    if seen[0] != seen[1]:
        raise UserError(
            f'config.denoiser.noise_input={seen[0]!r}: the weights of config.{part} were trained '
            f'with {seen[1]!r}{other}'
        )


def check_copy(plain: Mapping[str, Any], part: str) -> None:
    """Raises UserError where a student has other parameters than the network that it begins as, but
    for those of numbers that it embeds besides.

    Args:
      plain: the resolved config.
      part: 'teacher' or 'start', the section of that network.
    """
    base, image = plain[part], plain['image']
    numbers = base['network'].get('numbers', ())
    own = {name: value for name, value in plain['network'].items() if name != 'numbers'}
    own |= {'numbers': numbers} if numbers else {}
    shapes = [
        _shapes(own, plain, image, 'config.'),
        _shapes(base['network'], base, image, f'config.{part}.'),
    ]
    other = f'; {SCRATCH}' if part == 'teacher' else ''
    if shapes[0] != shapes[1] or set(numbers) - set(plain['network'].get('numbers', ())):
        raise UserError(
            f'config.network: has other parameters than that of config.{part}; leave it out, or '
            'change only how it is computed and which numbers it embeds; or begin with a slice: '
            f'config.start=dict(slice=True){other}'
        )
    _check_told(plain, part, other)


def start_of(plain: Mapping[str, Any]) -> Callable[[Mesh | None], Any]:
    """What loads the weights that a student begins with, `load` of a `teachers.Teacher`.

    Args:
      plain: the resolved config, with a section `start`.

    Raises:
      UserError: on weights that the student cannot begin with.
    """
    section = plain_of(section_of(plain, 'start'))
    said, cut = repr(section), section.pop('slice', False)
    if found := misfit(cut, bool, 'config.start.slice'):
        raise UserError(found)
    kinds = [kind for kind in KNOWN if kind in section]
    if len(kinds) != 1 or section.keys() - {kinds[0], 'network', 'denoiser'}:
        raise UserError(
            f'config.start={said:.80}: give one of {", ".join(KNOWN)}, the folder of a run or '
            'the file of a published denoiser, or slice=True for a part of the teacher, or of '
            'those, and nothing else'
        )
    load = TEACHERS[kinds[0]](plain, **section).load
    if not cut:
        check_copy(plain, 'start')
        return load
    _check_told(plain, 'start')
    ours, theirs = (part['network']['name'] for part in (plain, section))
    if ours != theirs:
        raise UserError(
            f'config.network.name={ours!r}: no slice of config.start, which is {theirs!r}; give '
            f'another size of that, {SCRATCH}'
        )
    image = plain['image']
    like = _shapes(plain['network'], plain, image, 'config.')
    cutting = functools.partial(sliced, like=like)
    with told('config.network'):
        shapes = jax.eval_shape(
            cutting, _shapes(section['network'], section, image, 'config.start.')
        )

    def part(mesh):
        whole, known = load(mesh)
        placed = sharding.state_sharding(shapes, mesh) if mesh else first_device()
        return jax.jit(cutting, out_shardings=placed)(whole), known

    return part
