"""One-step generator of latents of ImageNet at 256 x 256 from data alone, by MeanFlow with a
transformer of size XL/2 (arXiv 2505.13447), guidance being part of its target.

    fdistill train --config=configs/imagenet256_mean_flow.py --workdir=runs/imagenet256-mean-flow
    fdistill evaluate --workdir=runs/imagenet256-mean-flow

Needs in data/imagenet256-latents what `fdistill encode` makes of ImageNet, mirrored (data.flip),
with Stable Diffusion's autoencoder, weights/sd-vae.safetensors (there its version ft-mse). 307 M
images, 240 epochs. FID there: 3.43; FastGen 3.19. Settings are the authors' code's, which has the
size B/4; omega, kappa and where it is guided, t <= 0.75, are those of FastGen's XL/2. Other than
there: the second time is added within the embedding of the first, and is until itself in place of
t - r; samples begin at t = 0.999, as FastGen's. Not run.
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
            network=dict(name='dit', size='XL/2', numbers=('until',), remat='blocks'),
            denoiser=dict(name='prediction', prediction='flow', schedule=dict(name='flow')),
            method=dict(
                name='mean_flow',
                law=dict(name='lognormal', mean=-0.4, std=1.0),
                pairing='sorted',
                share_equal=0.75,
                power=1.0,
                c=0.01,
                guidance=0.2,
                mixing=0.92,
                guidance_interval=(0.0, 3.0),
                condition_dropout=0.1,
                levels=(999.0,),
            ),
            optimizer=dict(student=dict(learning_rate=1e-4, b1=0.9, b2=0.95)),
            training=dict(
                steps=1200000,
                batch_size=256,
                # Decay 0.9999 a step.
                ema_half_life=1.77e6,
                log_every=100,
                checkpoint_every=10000,
                sample_every=10000,
            ),
            mesh=dict(data=-1, fsdp=8, model=1),
            evaluation=dict(samples=50000, seed=0, batch_size=250),
        )
    )
