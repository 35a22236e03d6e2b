"""From a resolved config to a method and what it is trained with; reads no file."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import optax

from fdistill.build.levels import check_levels
from fdistill.build.parts import PARTS, Site
from fdistill.build.sections import chosen, section_of
from fdistill.config import call, parameters
from fdistill.diffusion.denoiser import EVERYWHERE, Denoiser
from fdistill.errors import UserError, suggest
from fdistill.methods import METHODS, Method
from fdistill.training import optim


class Experiment(NamedTuple):
    """A config turned into functions.

    method: `Method`.
    parts: {name: part} that it was made of, the network `student` among them.
    frozen: {name: load} of the weights that are not trained, load(mesh) -> (params, digest).
    image: what the data is, see `sections.resolve`.
    """

    method: Method
    parts: Mapping[str, Any]
    frozen: Mapping[str, Callable[..., Any]]
    image: Mapping[str, Any]

    @property
    def student(self) -> Denoiser:
        return self.parts['student']

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.image['shape'])

    @property
    def num_classes(self) -> int:
        return self.image['num_classes']


def experiment(
    plain: Mapping[str, Any],
    microbatches: int = 1,
    seen: Callable[[str, Any], Any] = lambda name, part: part,
) -> Experiment:
    """An `Experiment` from a resolved config.

    Args:
      plain: of `sections.resolve`.
      microbatches: parts in which each network sees a batch, for training; 1 to sample.
      seen: (name, part) -> the part that the method is made of in its place.

    Raises:
      UserError: on whatever the user can mend.
    """
    where = 'config.method'
    make, options = chosen(METHODS, section_of(plain, 'method'), where)
    site = Site(plain, options, parameters(make), microbatches, {}, seen)
    parts = {name: seen(name, PARTS[name](site)) for name in site.wants if name in PARTS}
    for name in ('student', 'teacher'):
        if name in parts and parts[name].sigma_range != EVERYWHERE:
            check_levels(name, parts, site)
    method = call(make, site.options, where, **parts)
    # What makes pairs is a part too, though the method does not ask for it.
    if (maker := getattr(parts.get('pairs'), 'teacher', None)) is not None:
        parts.setdefault('teacher', maker)
    # That is there for the student to begin with, and for nothing else.
    method = method._replace(begins=tuple(name for name in site.frozen if name == 'start'))
    return Experiment(method, parts, site.frozen, plain['image'])


def check_wanted(plain: Mapping[str, Any], built: Experiment) -> None:
    """Raises UserError where a config has a section that its method has no use for."""
    # The mixture of a method of closed forms is made from the section of the teacher.
    wanted = {'teacher', *built.parts} if 'mixture' in built.parts else set(built.parts)
    wanted |= {'features'} if 'encoder' in built.parts else set()
    for name in ('teacher', 'fake_score', 'discriminator', 'reward', 'path', 'features', 'pairs'):
        if name in plain and name not in wanted:
            raise UserError(
                f'config.{name}: the method {plain["method"]["name"]!r} has none; leave it out'
            )


def optimizers(plain: Mapping[str, Any], method: Method) -> dict[str, optax.GradientTransformation]:
    """{role: optimizer}, each told how often its role is trained."""
    section = dict(section_of(plain, 'optimizer'))
    steps = section_of(plain, 'training').get('steps', 0)
    counts = call(optim.role_updates, {'steps': steps}, 'config.training', cycle=method.cycle)
    for role in section:
        if role not in method.losses:
            raise UserError(f'config.optimizer.{role}: no such role{suggest(role, method.losses)}')
    for role in method.losses:
        if role not in section:
            raise UserError(
                f'config.optimizer.{role}: missing; this method trains {", ".join(method.losses)}'
            )
    return {
        role: call(optim.adam, section[role], f'config.optimizer.{role}', steps=counts.get(role, 0))
        for role in method.losses
    }
