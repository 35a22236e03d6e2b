"""Rewards as functions of samples, with their parameters."""

from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from fdistill.build.models import first_device
from fdistill.build.sections import chosen, load_data
from fdistill.config import call, parameters
from fdistill.errors import UserError
from fdistill.evaluation.features import trained_classifier
from fdistill.methods.rewards import REWARDS, Reward
from fdistill.training import checkpoint, sharding


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
    return call(make, options, where, **given)


def load_reward(
    reward: Reward, plain: Mapping[str, Any], mesh: Mesh | None = None
) -> tuple[Any, Any]:
    """(Parameters of a reward, their digests), on the mesh or the first device."""
    if reward.trained is None:
        return {}, {}
    params = trained_classifier(load_data(plain, 'train'), reward.trained).params
    placed = sharding.state_sharding(params, mesh) if mesh else first_device()
    return jax.device_put(params, placed), checkpoint.digests(params)
