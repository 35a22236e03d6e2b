"""Teachers: where a method's frozen network comes from."""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, NamedTuple

from jax.sharding import Mesh

from fdistill.build import published
from fdistill.build.models import load_ema, make_denoiser
from fdistill.data import sources
from fdistill.diffusion import denoiser as denoisers
from fdistill.diffusion import oracle as oracles
from fdistill.diffusion.denoiser import Denoiser
from fdistill.types import Continuous, Place


class Teacher(NamedTuple):
    """A frozen network and how to get its weights.

    model: `Denoiser`, guidance included.
    load(mesh) -> (params, digests); None where it has no parameters.
    """

    model: Denoiser
    load: Callable[[Mesh | None], tuple[Any, Any]] | None = None


def from_run(
    plain: Mapping[str, Any],
    *,
    workdir: Annotated[str, Place],
    network: Any,
    denoiser: Any,
    guidance: Annotated[float, Continuous(off=1)] = 1.0,
    guidance_interval: tuple[float, float] | None = None,
) -> Teacher:
    """The averaged weights of a run."""
    base = make_denoiser(network, denoiser, plain['image'], 'config.teacher.')

    def load(mesh):
        params, position = load_ema(base, workdir, mesh)
        return params, position['digests']['ema']

    return Teacher(denoisers.guide(base, guidance, guidance_interval), load)


def from_file(
    plain: Mapping[str, Any],
    *,
    weights: Annotated[str, Place],
    network: Any,
    denoiser: Any,
    guidance: Annotated[float, Continuous(off=1)] = 1.0,
    guidance_interval: tuple[float, float] | None = None,
) -> Teacher:
    """A published network, of `fdistill convert teacher`."""
    base = make_denoiser(network, denoiser, plain['image'], 'config.teacher.')

    def load(mesh):
        return published.load(base, weights, plain['image'], mesh)

    return Teacher(denoisers.guide(base, guidance, guidance_interval), load)


def from_oracle(
    plain: Mapping[str, Any],
    *,
    oracle: str,
    guidance: Annotated[float, Continuous(off=1)] = 1.0,
    guidance_interval: tuple[float, float] | None = None,
) -> Teacher:
    """A named mixture, of which everything is known."""
    base = mixture_of(oracle).denoiser(conditional=plain['image']['num_classes'] > 0)
    return Teacher(denoisers.guide(base, guidance, guidance_interval))


def mixture_of(name: str) -> oracles.GaussianMixture:
    """The named mixture of the data, as an oracle."""
    return oracles.mixture(*sources.mixture_parameters(name))


# Key of the section `teacher` that says which teacher it is -> what makes it.
TEACHERS = {'workdir': from_run, 'weights': from_file, 'oracle': from_oracle}
