"""One-step student of the CIFAR-10 teacher by score implicit matching (SIM, arXiv 2410.16794),
class-conditional.

    fdistill train --config=configs/cifar10_sim.py --workdir=runs/cifar10-sim
    [--config.data.data_dir=DIR] fdistill evaluate --workdir=runs/cifar10-sim

Needs runs/cifar10-teacher (configs/cifar10_teacher.py) and its data. 800 M images. The paper
reports FID 1.96 from EDM's teacher but publishes neither c nor the weight; laws, optimiser and
budget are SiD's. Not run; our distances use other features.
"""

from ml_collections import ConfigDict, config_dict


def get_config():
    return ConfigDict(
        dict(
            seed=0,
            data=dict(name='tfds', dataset='cifar10', data_dir=config_dict.placeholder(str)),
            # The network is the teacher's; the fake score keeps its dropout of 0.13.
            teacher=dict(workdir='runs/cifar10-teacher'),
            method=dict(
                name='sim',
                distance='pseudo_huber',
                c=0.1,
                scale='eps',
                sigma_init=2.5,
                # sigma <= 24.4.
                student_law=dict(name='karras_uniform', low=0.0, high=0.8),
                critic_law=dict(name='lognormal', mean=-1.2, std=1.2),
                cycle='alternate',
                student_every=1,
            ),
            optimizer=dict(
                student=dict(learning_rate=1e-5, b1=0.0, b2=0.999),
                critic=dict(learning_rate=1e-5, b1=0.0, b2=0.999, eps=3e-12),
            ),
            training=dict(
                steps=3125000,
                batch_size=256,
                ema_half_life=0.5e6,
                ema_ramp_up=0.05,
                log_every=100,
                checkpoint_every=10000,
                sample_every=10000,
            ),
            mesh=dict(data=-1, fsdp=1, model=1),
            evaluation=dict(samples=50000, seed=0, batch_size=500),
        )
    )
