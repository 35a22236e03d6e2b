"""One-step student of EDM's ImageNet-64 teacher by f-distill with the Jensen-Shannon divergence
(arXiv 2502.15681), with the settings of its code, FastGen.

    fdistill convert teacher edm-imagenet-64x64-cond-adm.pkl weights/imagenet64-edm.safetensors
    fdistill train --config=configs/imagenet64_edm_js.py --workdir=runs/imagenet64-edm-js

Needs the teacher as EDM published it, and ImageNet at 64 x 64. The paper's FID: JS 1.16; measure it
with `fdistill evaluate --protocol=edm`. Not run here.
"""

from ml_collections import ConfigDict, config_dict


def get_config():
    return ConfigDict(
        dict(
            seed=0,
            data=dict(
                name='tfds',
                dataset='imagenet_resized/64x64',
                held_out='validation',
                data_dir=config_dict.placeholder(str),
            ),
            teacher=dict(weights='weights/imagenet64-edm.safetensors'),
            # The teacher's, without its dropout.
            network=dict(
                name='adm',
                model_channels=192,
                channel_mult=(1, 2, 3, 4),
                num_blocks=3,
                attn_resolutions=(32, 16, 8),
                dropout=0.0,
                bfloat16=True,
                remat='elementwise',
            ),
            method=dict(
                name='f_distill',
                divergence='js',
                sigma_init=80.0,
                student_law=dict(name='karras_uniform', low=0.002, high=0.998),
                critic_law=dict(name='karras_uniform', low=0.002, high=0.998),
                # FastGen leaves the fake score unweighted; the default here is DMD2's 'edm'.
                critic_weighting='unit',
                features='teacher',
                gan_weight=3e-3,
                discriminator_weight=1.0,
                r1_weight=0.0,
                logit_clip=10.0,
                ratio_low=0.1,
                ratio_high=20.0,
                bins=10,
                bins_decay=0.5,
                cycle='fastgen',
                student_every=5,
            ),
            # The bottleneck, 8 x 8.
            discriminator=dict(name='conv', indices=(-1,)),
            optimizer=dict(
                student=dict(learning_rate=2e-6, b1=0.9, b2=0.999, weight_decay=0.01, clip=10.0),
                critic=dict(learning_rate=2e-6, b1=0.9, b2=0.999, weight_decay=0.01),
            ),
            training=dict(
                steps=600000,
                batch_size=512,
                # FastGen: decay 0.9999 a step, which is 0.9995 an update of the student.
                ema_half_life=0.71e6,
                log_every=100,
                checkpoint_every=5000,
                sample_every=5000,
            ),
            mesh=dict(data=-1, fsdp=1, model=1),
            evaluation=dict(samples=50000, seed=0, batch_size=250),
        )
    )
