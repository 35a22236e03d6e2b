"""One-step generators from diffusion models: distil with any f-divergence or score-implicit
matching, in JAX."""

__version__ = '0.1.0'
