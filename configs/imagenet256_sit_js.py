"""One-step student of SiT-XL/2 on latents of ImageNet at 256 x 256 by f-distill with the
Jensen-Shannon divergence (arXiv 2502.15681).

    fdistill convert teacher SiT-XL-2-256.pt weights/sit-xl-2.safetensors --of=sit
    fdistill train --config=configs/imagenet256_sit_js.py --workdir=runs/imagenet256-sit-js

Needs the teacher as SiT published it, and in data/imagenet256-latents what `fdistill encode` makes
of ImageNet with Stable Diffusion's autoencoder, weights/sd-vae.safetensors. SiT itself, with many
evaluations, has FID 2.06 (arXiv 2401.08740). The settings are FastGen's for ImageNet-64; the laws,
uniform in SiT's time, and the guidance are a choice of ours. Not run here.
"""

from ml_collections import ConfigDict


def get_config():
    return ConfigDict(
        dict(
            seed=0,
            data=dict(
                name='latents',
                path='data/imagenet256-latents',
                vae='weights/sd-vae.safetensors',
                shape=(32, 32, 4),
                num_classes=1000,
            ),
            teacher=dict(weights='weights/sit-xl-2.safetensors', guidance=1.5),
            network=dict(
                name='dit', size='XL/2', learned_variance=True, bfloat16=True, remat='blocks'
            ),
            denoiser=dict(
                name='prediction',
                prediction='reverse_flow',
                schedule=dict(name='flow'),
                time_scale=-1.0,
                time_offset=1.0,
            ),
            method=dict(
                name='f_distill',
                divergence='js',
                sigma_init=80.0,
                student_law=dict(name='uniform_time', low=0.001, high=0.98),
                critic_law=dict(name='uniform_time', low=0.001, high=0.98),
                critic_weighting='flow',
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
            # The tokens after half of the blocks, 16 x 16.
            discriminator=dict(name='conv', indices=(1,)),
            optimizer=dict(
                student=dict(learning_rate=2e-6, b1=0.9, b2=0.999, weight_decay=0.01, clip=10.0),
                critic=dict(learning_rate=2e-6, b1=0.9, b2=0.999, weight_decay=0.01),
            ),
            training=dict(
                steps=600000,
                batch_size=512,
                ema_half_life=0.71e6,
                log_every=100,
                checkpoint_every=5000,
                sample_every=5000,
            ),
            mesh=dict(data=-1, fsdp=8, model=1),
            evaluation=dict(samples=50000, seed=0, batch_size=250),
        )
    )
