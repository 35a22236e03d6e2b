"""Whether the levels of noise that a method asks for are those that a network knows."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from fdistill.build.parts import Site, check_known, known_levels, known_range
from fdistill.diffusion import noise
from fdistill.errors import UserError

# Of the levels that a law draws, the share that may lie beyond those of a network.
BEYOND = 0.01


def check_levels(name: str, parts: Mapping[str, Any], site: Site) -> None:
    """Raises UserError where a network would be asked for levels that it does not know.

    Args:
      name: of the part that is the network, a `Denoiser`.
      parts: of the method; its laws and its grid are looked at, `sigma_init` and `levels`.
      site: where the parts were made.
    """
    ends = known_range(parts[name])
    for part, value in parts.items():
        if isinstance(value, noise.NoiseLaw):
            inside = [float(value.cdf(jnp.asarray(end))) for end in ends]
            outside = 1 - np.diff(np.clip(inside, 0, 1)).item()
            if outside > BEYOND:
                raise UserError(
                    f'config.method.{part}: {outside:.0%} of its levels lie elsewhere; '
                    f'{known_levels(name, parts[name])}'
                )
    levels = {'grid': parts['sigmas'][:-1]} if 'sigmas' in parts else {}
    if start := site.wants.get('sigma_init'):
        levels['sigma_init'] = [site.options.get('sigma_init', start.default)]
    if several := site.wants.get('levels'):
        levels['levels'] = site.options.get('levels', several.default)
    for setting, values in levels.items():
        check_known(f'config.method.{setting}', values, name, parts[name])
