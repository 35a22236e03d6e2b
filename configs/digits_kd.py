"""One-step student of the digits by knowledge distillation of pairs: of the teacher, or as :reflow
of its straightened flow, the last step of rectified flow's recipe.

    fdistill train --config=configs/digits_kd.py --workdir=runs/digits-kd
    fdistill evaluate --workdir=runs/digits-kd

Needs runs/digits-teacher (configs/digits_teacher.py), or runs/digits-reflow
(configs/digits_reflow.py), which makes pairs as they are needed. About 72 and 46 CPU-seconds.
Measured: fd_train 0.028 (teacher, 35 evaluations: 0.035), fd_held_out 0.116 (0.113), pixel_fd 0.35
(0.21), accuracy 0.998; of the reflow 0.032, 0.122, 0.37, 0.998.
"""

from ml_collections import ConfigDict

# What makes pairs, how, and from which level.
SOURCES = {
    'teacher': (
        'runs/digits-teacher',
        dict(sampler='lms', grid=dict(name='karras', steps=12, sigma_min=0.02, sigma_max=40.0)),
        40.0,
    ),
    'reflow': (
        'runs/digits-reflow',
        dict(sampler='same_noise', grid=dict(name='even_time', steps=4, sigma_max=99.0)),
        99.0,
    ),
}


def get_config(source='teacher'):
    workdir, pairs, highest = SOURCES[source]
    return ConfigDict(
        dict(
            seed=0,
            data=dict(name='digits'),
            teacher=dict(workdir=workdir),
            start=dict(workdir=workdir),
            network=dict(dropout=0.0),
            pairs=pairs,
            method=dict(name='kd', sigma_init=highest, pixel_weight=0.5),
            optimizer=dict(
                student=dict(learning_rate=2e-3, b2=0.99, schedule='cosine', final=0.02),
            ),
            training=dict(
                steps=4000,
                batch_size=128,
                ema_half_life=9e3,
                ema_ramp_up=0.5,
                log_every=100,
                checkpoint_every=2000,
                sample_every=0,
            ),
            mesh=dict(data=-1, fsdp=1),
            evaluation=dict(samples=2000, seed=0, batch_size=500),
        )
    )
