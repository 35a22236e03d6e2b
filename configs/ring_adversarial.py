"""Ring of 8 Gaussians by a discriminator alone, in one step.

    fdistill train --config=configs/ring_adversarial.py --workdir=runs/ring-adversarial
    fdistill evaluate --workdir=runs/ring-adversarial

The argument is the method, as ring_adversarial.py:add: `ladd`, `add` or `adversarial_flow`.
About 30 CPU-seconds; what was measured is in docs/results.md.
"""

from ml_collections import ConfigDict

LAW = dict(name='loguniform', sigma_min=0.03, sigma_max=3.0)
# An oracle's features are x_t itself.
GAME = dict(features='input', from_teacher=False, sigma_init=1.4, critic_law=LAW, r1_weight=0.1)
OWN = {
    'ladd': GAME | dict(gan_loss='softplus'),
    # The regression alone would leave a point of each mode.
    'add': GAME
    | dict(gan_loss='softplus', student_law=LAW, distillation='sds', distillation_weight=0.02),
    'adversarial_flow': dict(
        sigma_init=1.4,
        ot_weight=0.2,
        ot_steps=2000,
        r1_weight=5.0,
        r2_weight=5.0,
        penalty_step=0.05,
    ),
}


def get_config(method='ladd'):
    adam = dict(b1=0.0, b2=0.99, schedule='cosine', final=0.05)
    teacher = {} if method == 'adversarial_flow' else dict(teacher=dict(oracle='ring'))
    return ConfigDict(
        dict(
            seed=0,
            data=dict(name='mixture', mixture='ring', labelled=False),
            network=dict(name='mlp', width=64, blocks=2, embedding=64, fourier=3),
            denoiser=dict(sigma_data=1.4),
            **teacher,
            method=dict(name=method) | OWN[method],
            discriminator=dict(name='mlp', width=128, layers=3, fourier=3),
            optimizer=dict(
                student=dict(learning_rate=1e-3) | adam, critic=dict(learning_rate=2e-3) | adam
            ),
            training=dict(
                steps=4000,
                batch_size=256,
                ema_half_life=90e3,
                ema_ramp_up=0.5,
                log_every=100,
                checkpoint_every=2000,
                sample_every=0,
            ),
            mesh=dict(data=-1, fsdp=1),
            evaluation=dict(samples=10000, seed=0, batch_size=1000),
        )
    )
