"""Teacher pre-training by denoising score matching: EDM, and rectified flow as another law and
weighting."""

from collections.abc import Callable
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np

from fdistill.diffusion import augment as augmentation
from fdistill.diffusion import denoiser as denoisers
from fdistill.diffusion import noise, samplers
from fdistill.diffusion.denoiser import Denoiser, column
from fdistill.methods import generator, losses
from fdistill.methods.generator import Corrections
from fdistill.methods.method import Method, begin, leave_out
from fdistill.types import Continuous


def pretrain(
    student: Denoiser,
    *,
    law: noise.NoiseLaw,
    sigmas: np.ndarray,
    sigma_data: Annotated[float, Continuous()] = 0.5,
    weighting: str = 'edm',
    label_dropout: Annotated[float, Continuous(off=0)] = 0.0,
    augment: float = 0.0,
    sampler: samplers.Sampler = samplers.SAMPLERS['heun'],
    guidance: float = 1.0,
    guidance_interval: tuple[float, float] | None = None,
    corrections: Corrections = Corrections(),
) -> Method:
    """min E weighting(sigma) |D(x + sigma eps, sigma) - x|^2 (EDM, arXiv 2206.00364, equation 2).

    Rectified flow (arXiv 2209.03003) is weighting='flow' with the law 'uniform_time' (or
    'lognormal', which is logit-normal in flow time).

    Args:
      student: `Denoiser` to train.
      law: `NoiseLaw` of sigma.
      sigma_data: standard deviation of the data, for the weighting.
      weighting: key of `noise.WEIGHTINGS`.
      label_dropout: share of conditions left out (`denoiser.null`), for classifier-free
        guidance; in [0, 1).
      augment: probability of each move of EDM's augmentation, `augment.augment` (0.12 for
        CIFAR-10), in [0, 1]; 0 for none. The network is told the moves by the condition `augment`,
        and so has to take it (`augment_dim=9`); samples are drawn without it.
      sampler: `samplers.Sampler`. Random samplers take their noise from the noise they start from.
      sigmas: sampling grid from `noise.GRIDS`, falling to 0.
      guidance, guidance_interval: of classifier-free guidance when sampling, see `denoiser.guide`.
      corrections: settings.

    Raises:
      ValueError: on an unknown weighting, values out of range, or a network that does not take the
        condition `augment` where it is needed.
    """
    if weighting not in noise.WEIGHTINGS:
        raise ValueError(f'weighting={weighting!r}: known are {", ".join(noise.WEIGHTINGS)}')
    if not 0 <= augment <= 1:
        raise ValueError(f'augment={augment}: must lie in [0, 1]')
    if augment and 'augment' not in student.takes:
        raise ValueError(
            f'augment={augment}: the network does not take the condition augment; set its '
            'augment_dim=9, or leave it out'
        )

    def couple(key, context, batch):
        x, condition = batch['x'], batch['condition']
        if augment:
            if pictures := [name for name, value in condition.items() if value.ndim == 4]:
                raise ValueError(
                    f'augment={augment}: would move the image and not its condition {pictures[0]}'
                )
            # Another key than those of `regression`, which stay as without augmentation.
            key_moves = jax.random.fold_in(key, 4)
            x, moves = augmentation.augment(key_moves, x, probability=augment)
            condition = {**condition, 'augment': moves}
        return x, None, condition

    def objective(denoised, x, sigma, context, batch):
        weight = noise.WEIGHTINGS[weighting](sigma, sigma_data)
        value = losses.denoising(denoised, x, weight)
        return value, {'denoising': jnp.mean(value)}

    generate = sampled(
        student,
        sampler,
        sigmas,
        label_dropout=label_dropout,
        guidance=guidance,
        guidance_interval=guidance_interval,
        corrections=corrections,
    )
    loss = regression(student, law, couple, objective, label_dropout)
    return Method(begin(student), {'student': loss}, lambda step: ('student',), generate)


def regression(
    student: Denoiser,
    law: noise.NoiseLaw,
    couple: Callable[..., Any],
    objective: Callable[..., Any],
    label_dropout: Annotated[float, Continuous(off=0)] = 0.0,
) -> Callable[..., Any]:
    """The loss of a denoiser at x + sigma z: mean objective(D(x + sigma z, sigma), x).

    Args:
      student: `Denoiser` in training.
      law: `NoiseLaw` of sigma.
      couple: (key, context, batch) -> (x[B,...], z[B,...], condition); z is None where it is drawn
        by itself.
      objective: (D, x, sigma[B], context, batch) -> ([B], metrics).
      label_dropout: share of conditions left out, in [0, 1).
    """

    def loss(params, context, batch, key):
        key_sigma, key_noise, key_label, key_dropout = jax.random.split(key, 4)
        x, z, condition = couple(key, context, batch)
        sigma = law.sample(key_sigma, x.shape[0]).astype(x.dtype)
        z = jax.random.normal(key_noise, x.shape, x.dtype) if z is None else z
        x_t = x + column(sigma, x) * z
        if label_dropout and condition:
            given = key_label, label_dropout, student, params['student'], condition
            condition, _ = leave_out(*given)
        denoised, _ = student.apply(params['student'], x_t, sigma, condition, key=key_dropout)
        values, metrics = objective(denoised, x, sigma, context, batch)
        return jnp.mean(values), (metrics, context.aux)

    return loss


def sampled(
    student: Denoiser,
    sampler: samplers.Sampler,
    sigmas: np.ndarray,
    *,
    label_dropout: float,
    guidance: float,
    guidance_interval: tuple[float, float] | None,
    corrections: Corrections = Corrections(),
) -> generator.Generator:
    """The solver that samples what `regression` trains; arguments as of `pretrain`.

    Raises:
      ValueError: on values out of range, or guidance without label dropout.
    """
    if not 0 <= label_dropout < 1:
        raise ValueError(f'label_dropout={label_dropout}: must lie in [0, 1)')
    if guidance != 1 and not label_dropout:
        raise ValueError(
            f'guidance={guidance} needs an unconditional branch: set label_dropout, e.g. 0.1'
        )
    guided = denoisers.guide(student, guidance, guidance_interval)
    return generator.solver(
        guided,
        sampler,
        sigmas,
        evaluations=1 if guidance == 1 else 2,
        corrected=corrections,
    )


# See `distribution.TINY`.
TINY = {
    'pretrain': {
        'method': {'grid': {'name': 'karras', 'steps': 3, 'sigma_min': 0.02, 'sigma_max': 5.0}}
    }
}
