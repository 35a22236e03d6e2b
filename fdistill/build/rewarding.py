"""Rewards as functions of samples, with their parameters."""

import ast
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from fdistill.build.models import conditions, place
from fdistill.build.sections import chosen, image_of, load_data, plain_of, real
from fdistill.config import call, parameters, told
from fdistill.data.sources import Source
from fdistill.errors import UserError
from fdistill.evaluation.evaluate import Judge
from fdistill.evaluation.features import BLOCK, trained_classifier
from fdistill.methods import generator as generators
from fdistill.methods.generator import Generator
from fdistill.methods.rewards import REWARDS, Reward


def make_reward(section: Any, image: Mapping[str, Any], where: str) -> Reward:
    """The `Reward` of a section, for samples of this kind.

    Args:
      section: a row of `REWARDS` by name, with its settings.
      image: what a sample is, see `sections.resolve`.
      where: what the section is called.

    Raises:
      UserError: an unknown name, a setting out of range, or latents, which no reward can see.
    """
    if 'latents' in image:
        raise UserError(
            f'{where}: the samples are latents, and a reward is of images; leave it out'
        )
    make, options = chosen(REWARDS, section, where)
    known = {'shape': tuple(image['shape']), 'num_classes': image['num_classes']}
    given = {name: known[name] for name in known if name in parameters(make)}
    reward = call(make, options, where, **given)

    def tried():
        x, condition = jnp.zeros((1, *image['shape'])), conditions(image, 1)
        return reward.apply(reward.init(jax.random.key(0), x, condition), x, condition)

    with told(where):
        jax.eval_shape(tried)
    return reward


def load_reward(
    reward: Reward, plain: Mapping[str, Any], mesh: Mesh | None = None
) -> tuple[Any, Any]:
    """(Parameters of a reward that has some, their digests), on the mesh or the first device."""
    return place(trained_classifier(load_data(real(plain), 'train'), reward.trained).params, mesh)


def bound(
    section: Any, image: Mapping[str, Any], train: Callable[[], Source], where: str
) -> tuple[Callable[..., jax.Array], str]:
    """((x[B,...], condition) -> r[B], name of what it sees) of a section `reward`.

    Args:
      section, image, where: see `make_reward`.
      train: () -> training split of the data, of which a classifier is.

    Raises:
      UserError: as of `make_reward`.
    """
    reward = make_reward(section, image, where)
    if reward.trained is None:
        return lambda x, condition: reward.apply({}, x, condition), 'pixels'
    known = trained_classifier(train(), reward.trained)
    return lambda x, condition: reward.apply(known.params, x, condition), known.name


def read_reward(words: str) -> dict[str, Any]:
    """The section `reward` that a word is, as 'classifier(wanted=3, only=8)'.

    Raises:
      UserError: words that are no name with settings.
    """
    try:
        parsed = ast.parse(words, mode='eval').body
        called = parsed if isinstance(parsed, ast.Call) else ast.Call(parsed, [], [])
        if not isinstance(called.func, ast.Name) or called.args:
            raise ValueError('no name, or a setting without one')
        if any(of.arg is None for of in called.keywords):
            raise ValueError('settings in a dict')
        settings = {of.arg: ast.literal_eval(of.value) for of in called.keywords}
    except (SyntaxError, TypeError, ValueError) as error:
        raise UserError(
            f'--reward={words}: {error}; give a name, or as classifier(wanted=3, only=8)'
        ) from error
    return {'name': called.func.id} | settings


def title(section: Mapping[str, Any]) -> str:
    """A section `reward` in a word, as `read_reward` takes it; the seed of a classifier is in the
    name of what it sees."""
    options = {key: value for key, value in section.items() if key not in ('name', 'seed')}
    given = ','.join(f'{key}={value}' for key, value in sorted(options.items()))
    return section['name'] + (f'({given})' if given else '')


def whole(section: Any) -> dict[str, Any]:
    """A section `reward`, of which a name alone may be given."""
    return {'name': section} if isinstance(section, str) else plain_of(section)


def judges(config: Mapping[str, Any], train: Source) -> dict[str, Judge]:
    """The rewards of samples that a row has: that of the config and, of a classifier, the same by
    another one."""
    if 'reward' not in config:
        return {}
    section, image = whole(config['reward']), image_of(train)
    sections = {'reward': section}
    if (seed := make_reward(section, image, 'config.reward').trained) is not None:
        sections['reward_unseen'] = section | {'seed': 0 if seed else 1}
    return {key: _judge(of, image, train) for key, of in sections.items()}


def _judge(section, image, train):
    of, sees = bound(section, image, lambda: train, 'config.reward')
    jitted = jax.jit(of)

    def apply(images, condition):
        made = []
        for start in range(0, len(images), BLOCK):
            part = slice(start, start + BLOCK)
            given = {name: value[part] for name, value in condition.items()}
            made.append(np.asarray(jitted(images[part].astype(np.float32), given)))
        return np.concatenate(made)

    return Judge(f'reward-{title(section)}', sees, apply)


def choosing(
    generator: Generator, asked: Mapping[str, Any] | None, plain: Mapping[str, Any]
) -> Generator:
    """A generator, or the best of several of its samples where that is asked for.

    Args:
      generator: of the run.
      asked: {'candidates', 'alpha', 'reward'} of `generator.best_of`; None for none. Without a
        reward that of the run is taken.
      plain: resolved config of the run.

    Raises:
      UserError: a reward is missing or unknown, or a value out of range.
    """
    if asked is None:
        return generator
    section = asked.get('reward', plain.get('reward'))
    if section is None:
        raise UserError(
            f'--best-of={asked["candidates"]}: the run has no reward; add --reward=NAME, one of '
            f'{", ".join(REWARDS)}'
        )
    reward = make_reward(section, plain['image'], '--reward')
    if reward.trained is not None and 'data' not in plain:
        raise UserError(
            '--reward: weights know no data, of which a classifier would be; give --workdir=DIR, '
            'or another reward'
        )
    of, _ = bound(section, plain['image'], lambda: load_data(real(plain), 'train'), '--reward')
    given = {name: value for name, value in asked.items() if name != 'reward'}
    return call(generators.best_of, given, '--best-of', generator=generator, reward=of)
