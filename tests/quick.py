"""For functions of tests that run once: compiled quickly rather than well."""

import functools

import jax

compiled = functools.partial(jax.jit, compiler_options={'xla_backend_optimization_level': 0})
