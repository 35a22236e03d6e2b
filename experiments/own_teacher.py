"""A teacher of one's own, a plain JAX function with its parameters, distilled to one step.

    python experiments/own_teacher.py save
    fdistill check-teacher --config=experiments/own_teacher.py --weights=runs/own.safetensors
    fdistill train --config=experiments/own_teacher.py --workdir=runs/own
    python experiments/own_teacher.py sample --workdir=runs/own

Here it is the mean velocity u(x, r, t, label) of a flow x_t = (1 - t) x + t eps at r = t, of eight
Gaussians on a ring, exact. Put yours in place of `velocity` and `parameters`. A network is known to
the process that ran this file: any command can be given to it, and --config runs it as well.
About 25 CPU-seconds. Expect 8 modes, a high-quality share of 0.98 and a spread of 1.00.
"""

import sys

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from fdistill import build, cli, networks
from fdistill.data.sources import mixture_parameters

WEIGHTS = 'runs/own.safetensors'
IMAGE = dict(shape=(2,), num_classes=8)


def parameters():
    _, means, stds = mixture_parameters('ring')
    return {'means': jnp.asarray(means, jnp.float32), 'std': jnp.asarray(stds[0], jnp.float32)}


def velocity(params, x, r, t, label):
    """u = E[eps - x0 | x_t = x] at r = t; a label of -1 is none."""
    means, t = params['means'], t[:, None]
    variance = ((1 - t) * params['std']) ** 2 + t**2
    away = x[:, None] - (1 - t)[..., None] * means
    logits = -0.5 * jnp.sum(away**2, axis=-1) / variance
    own = (label[:, None] < 0) | (label[:, None] == jnp.arange(len(means)))
    share = jax.nn.softmax(jnp.where(own, logits, -jnp.inf))[..., None]
    gain = (t - (1 - t) * params['std'] ** 2) / variance
    return jnp.sum(share * (gain[..., None] * away - means), axis=1)


def own(*, num_classes):
    """The `Network` of `velocity`; its settings would be those of a section `network`."""

    def init(key, x, t, condition):
        return parameters()  # Of a teacher only the shapes count.

    def apply(params, x, t, condition, key=None):
        return velocity(params, x, t, t, networks.label_of(condition, x)), ()

    return networks.Network(init, apply, takes=('label',))


networks.NETWORKS['own'] = own


def save(path=WEIGHTS):
    flow = dict(name='prediction', prediction='flow', schedule='flow')
    network = dict(name='own')
    build.save_teacher(
        path, parameters(), network=network, denoiser=flow, image=IMAGE, licence='Apache-2.0'
    )


def get_config():
    law = dict(name='loguniform', sigma_min=0.03, sigma_max=3.0)
    adam = dict(b1=0.5, b2=0.99, schedule='cosine', final=0.05)
    return ConfigDict(
        dict(
            seed=0,
            data=dict(name='mixture', mixture='ring'),
            teacher=dict(weights=WEIGHTS),
            network=dict(name='mlp', width=64, blocks=2, embedding=64, fourier=3),
            denoiser=dict(name='edm', sigma_data=0.7),
            method=dict(
                name='diff_instruct',
                sigma_init=1.4,
                # The student has a network of another kind.
                from_teacher=False,
                student_law=law,
                critic_law=law,
                weighting='unit',
                cycle='alternate',
                student_every=1,
            ),
            optimizer=dict(
                student=dict(learning_rate=3e-3, **adam), critic=dict(learning_rate=2e-3, **adam)
            ),
            training=dict(
                steps=3000,
                batch_size=256,
                ema_half_life=90e3,
                ema_ramp_up=0.5,
                log_every=100,
                checkpoint_every=1000,
                sample_every=1000,
            ),
            mesh=dict(data=-1, fsdp=1),
            evaluation=dict(samples=10000, seed=0, batch_size=1000),
        )
    )


if __name__ == '__main__':
    sys.exit(save() if sys.argv[1:] == ['save'] else cli.main())
