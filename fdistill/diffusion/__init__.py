"""The noise coordinate, the denoiser and the closed-form oracle: everything a diffusion model is,
apart from its network."""
