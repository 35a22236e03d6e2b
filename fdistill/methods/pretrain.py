"""Teacher pre-training by denoising score matching: EDM, and rectified flow as another law and
weighting."""

import functools

import jax
import jax.numpy as jnp

from fdistill.diffusion import denoiser as denoisers
from fdistill.diffusion import noise, samplers
from fdistill.methods import losses
from fdistill.methods.method import Method, column


def pretrain(
    denoiser,
    *,
    law,
    sigma_data=0.5,
    weighting='edm',
    label_dropout=0.0,
    sampler=samplers.SAMPLERS['heun'],
    sigmas,
    guidance=1.0,
    guidance_interval: tuple[float, float] | None = None,
):
    """min E weighting(sigma) |D(x + sigma eps, sigma) - x|^2 (EDM, arXiv 2206.00364, equation 2).

    Rectified flow (arXiv 2209.03003) is weighting='flow' with the law 'uniform_time' (or
    'lognormal', which is logit-normal in flow time).

    Args:
      denoiser: `Denoiser` to train, as the role `student`.
      law: `NoiseLaw` of sigma.
      sigma_data: standard deviation of the data, for the weighting.
      weighting: key of `noise.WEIGHTINGS`.
      label_dropout: share of labels replaced by -1, for classifier-free guidance; in [0, 1).
      sampler: `samplers.Sampler`. What it draws, it draws from the noise it starts from.
      sigmas: sampling grid from `noise.GRIDS`, falling to 0.
      guidance, guidance_interval: of classifier-free guidance when sampling, see `denoiser.guide`.

    Raises:
      ValueError: on an unknown weighting, or label_dropout out of range.
    """
    if weighting not in noise.WEIGHTINGS:
        raise ValueError(f'weighting={weighting!r}: known are {", ".join(noise.WEIGHTINGS)}')
    if not 0 <= label_dropout < 1:
        raise ValueError(f'label_dropout={label_dropout}: must lie in [0, 1)')
    if guidance != 1 and not label_dropout:
        raise ValueError(
            f'guidance={guidance} needs an unconditional branch: set label_dropout, e.g. 0.1'
        )
    guided = denoisers.guide(denoiser, guidance, guidance_interval)

    def init(key, batch, frozen):
        return {'student': denoiser.init(key, batch['image'], batch['label'])}, {}

    def loss(params, frozen, batch, key, aux):
        x, label = batch['image'], batch['label']
        key_sigma, key_noise, key_label, key_dropout = jax.random.split(key, 4)
        sigma = law.sample(key_sigma, x.shape[0]).astype(x.dtype)
        x_t = x + column(sigma, x) * jax.random.normal(key_noise, x.shape, x.dtype)
        if label_dropout:
            label = jnp.where(
                jax.random.bernoulli(key_label, label_dropout, label.shape), -1, label
            )
        denoised, _ = denoiser.apply(params['student'], x_t, sigma, label, key=key_dropout)
        weight = noise.WEIGHTINGS[weighting](sigma, sigma_data)
        value = jnp.mean(losses.denoising(denoised, x, weight))
        return value, ({'denoising': value}, aux)

    def generate(params, unit_noise, label, **options):
        key = samplers.keys_of(unit_noise)
        return sampler.solve(
            denoisers.bind(guided, params, label), sigmas[0] * unit_noise, sigmas, key, **options
        )

    nfe = sampler.evaluations(len(sigmas) - 1) * (1 if guidance == 1 else 2)
    trajectory = functools.partial(generate, trajectory=True)
    return Method(init, {'student': loss}, lambda step: ('student',), generate, nfe, trajectory)
