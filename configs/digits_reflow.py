"""2-rectified flow of the digits teacher: a flow straight enough for few Euler steps.

    fdistill train --config=configs/digits_reflow.py --workdir=runs/digits-reflow
    fdistill evaluate --workdir=runs/digits-reflow

Needs runs/digits-teacher (configs/digits_teacher.py), which makes pairs as they are needed; as
:recorded the pairs runs/digits-pairs, of `fdistill pairs`. About 75 CPU-seconds, or 40.
Measured, in four steps: fd_train 0.031 (teacher, 35 evaluations: 0.035), fd_held_out 0.123 (0.113),
pixel_fd 0.34 (0.21), accuracy 0.998; in one: 0.032, 0.134, 0.44, 0.998.
"""

from ml_collections import ConfigDict

TEACHER = dict(workdir='runs/digits-teacher')
GRID = dict(name='karras', steps=12, sigma_min=0.02, sigma_max=40.0)
PAIRS = {
    'online': dict(data=dict(name='digits'), teacher=TEACHER, pairs=dict(sampler='lms', grid=GRID)),
    'recorded': dict(
        data=dict(name='pairs', path='runs/digits-pairs', shape=(8, 8, 1), num_classes=10)
    ),
}


def get_config(pairs='online'):
    return ConfigDict(
        dict(
            seed=0,
            **PAIRS[pairs],
            start=TEACHER,
            network=dict(dropout=0.0),
            method=dict(
                name='reflow',
                # Above, the teacher knows nothing, and a student wastes its time.
                law=dict(name='u_shaped_time', edge=0.01),
                grid=dict(name='even_time', steps=4, sigma_max=99.0),
                sampler='same_noise',
            ),
            optimizer=dict(
                student=dict(learning_rate=4e-3, b2=0.99, schedule='cosine', final=0.02),
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
