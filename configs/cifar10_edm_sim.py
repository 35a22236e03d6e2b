"""One-step student of EDM's conditional CIFAR-10 teacher by score implicit matching
(SIM, arXiv 2410.16794).

    fdistill convert teacher edm-cifar10-32x32-cond-vp.pkl weights/cifar10-edm.safetensors
    fdistill train --config=configs/cifar10_edm_sim.py --workdir=runs/cifar10-edm-sim

Needs the teacher as EDM published it, and CIFAR-10. The paper's FID: 1.96 (EDM itself
1.79, with 35 evaluations); measure it with `fdistill evaluate --protocol=edm`.
Not run here.
"""

from ml_collections import ConfigDict, config_dict


def get_config():
    return ConfigDict(
        dict(
            seed=0,
            data=dict(name='tfds', dataset='cifar10', data_dir=config_dict.placeholder(str)),
            teacher=dict(weights='weights/cifar10-edm.safetensors'),
            # The teacher's own, dropout of the fake score included.
            network=dict(
                name='ddpmpp',
                augment_dim=9,
                model_channels=128,
                channel_mult=(2, 2, 2),
                num_blocks=4,
                attn_resolutions=(16,),
                dropout=0.13,
            ),
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
