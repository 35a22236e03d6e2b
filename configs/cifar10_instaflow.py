"""InstaFlow (arXiv 2309.06380) at the scale of CIFAR-10: classes and their guidance in the place of
text, whose condition is not there yet.

    fdistill train --config=configs/cifar10_instaflow.py --workdir=runs/cifar10-instaflow-reflow
    fdistill train --config=configs/cifar10_instaflow.py:distil --workdir=runs/cifar10-instaflow
    [--config.data.data_dir=DIR] fdistill evaluate --workdir=runs/cifar10-instaflow

Pairs are made as they are needed: in the reflow by the guided runs/cifar10-teacher, which has to be
trained with --config.method.label_dropout=0.1 (configs/cifar10_teacher.py), in the distillation by
the reflow. Rates, batch and steps are those of its later stages; it distils first by l2, as here,
and then by LPIPS (`features`, as in configs/cifar10_slimflow.py). Not run.
"""

from ml_collections import ConfigDict, config_dict

STAGES = {
    'reflow': dict(
        steps=25000,
        teacher=dict(workdir='runs/cifar10-teacher', guidance=2.0),
        start=dict(workdir='runs/cifar10-teacher'),
        pairs=dict(
            sampler='dpmpp_2m',
            grid=dict(name='karras', steps=25, sigma_min=0.002, sigma_max=80.0),
        ),
        method=dict(
            name='reflow',
            law=dict(name='uniform_time', low=1e-3, high=1 - 1e-3),
            grid=dict(name='even_time', steps=25, sigma_max=999.0),
        ),
    ),
    'distil': dict(
        steps=21500,
        teacher=dict(workdir='runs/cifar10-instaflow-reflow'),
        start=dict(workdir='runs/cifar10-instaflow-reflow'),
        pairs=dict(sampler='euler', grid=dict(name='even_time', steps=25, sigma_max=999.0)),
        method=dict(name='kd', sigma_init=999.0),
    ),
}


def get_config(stage='reflow'):
    own = dict(STAGES[stage])
    steps = own.pop('steps')
    return ConfigDict(
        dict(
            seed=0,
            data=dict(
                name='tfds', dataset='cifar10', data_dir=config_dict.placeholder(str), flip=True
            ),
            network=dict(dropout=0.0),
            **own,
            optimizer=dict(student=dict(learning_rate=1e-6, b1=0.9, b2=0.999, clip=1.0)),
            training=dict(
                steps=steps,
                batch_size=1024,
                ema_half_life=7.1e6,  # Decay 0.9999 a step.
                log_every=100,
                checkpoint_every=2500,
                sample_every=2500,
            ),
            mesh=dict(data=-1, fsdp=1, model=1),
            evaluation=dict(samples=50000, seed=0, batch_size=500),
        )
    )
