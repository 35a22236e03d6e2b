"""One-step student of EDM's conditional CIFAR-10 teacher by f-distill with the forward KL (arXiv
2502.15681), with the settings of its code, FastGen.

    fdistill convert teacher edm-cifar10-32x32-cond-vp.pkl weights/cifar10-edm.safetensors
    fdistill train --config=configs/cifar10_edm_forward_kl.py --workdir=runs/cifar10-edm-forward-kl

Needs the teacher as EDM published it, and CIFAR-10. The paper's FID: forward KL 1.92, FastGen 1.85
(EDM itself 1.79, with 35 evaluations); measure it with `fdistill evaluate --protocol=edm`.
Not run here.
"""

from ml_collections import ConfigDict, config_dict


def get_config():
    return ConfigDict(
        dict(
            seed=0,
            data=dict(name='tfds', dataset='cifar10', data_dir=config_dict.placeholder(str)),
            teacher=dict(weights='weights/cifar10-edm.safetensors'),
            # The teacher's, without its dropout.
            network=dict(
                name='ddpmpp',
                augment_dim=9,
                model_channels=128,
                channel_mult=(2, 2, 2),
                num_blocks=4,
                attn_resolutions=(16,),
                dropout=0.0,
            ),
            method=dict(
                name='f_distill',
                divergence='forward_kl',
                sigma_init=80.0,
                student_law=dict(name='karras_uniform', low=0.002, high=0.998),
                critic_law=dict(name='karras_uniform', low=0.002, high=0.998),
                # FastGen leaves the fake score unweighted; the default here is DMD2's 'edm'.
                critic_weighting='unit',
                features='teacher',
                gan_weight=1e-3,
                discriminator_weight=1.0,
                r1_weight=0.0,
                logit_clip=10.0,
                ratio_low=0.1,
                ratio_high=20.0,
                bins=10,
                bins_decay=0.0,
                cycle='fastgen',
                student_every=5,
            ),
            # One logit for each resolution: 32, 16 and 8.
            discriminator=dict(name='conv', indices=(0, 1, 2)),
            optimizer=dict(
                student=dict(learning_rate=1e-4, b1=0.9, b2=0.999, weight_decay=0.01, clip=10.0),
                critic=dict(learning_rate=1e-4, b1=0.9, b2=0.999, weight_decay=0.01),
            ),
            training=dict(
                steps=100000,
                batch_size=2048,
                # FastGen: decay 0.9999 a step, which is 0.9995 an update of the student.
                ema_half_life=2.84e6,
                log_every=100,
                checkpoint_every=2500,
                sample_every=2500,
            ),
            mesh=dict(data=-1, fsdp=1, model=1),
            evaluation=dict(samples=50000, seed=0, batch_size=500),
        )
    )
