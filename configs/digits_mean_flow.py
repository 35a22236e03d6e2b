"""One-step generator of digits from data alone, by MeanFlow.

fdistill train --config=configs/digits_mean_flow.py --workdir=runs/digits-mean-flow
fdistill evaluate --workdir=runs/digits-mean-flow
"""

from ml_collections import ConfigDict


def get_config():
    return ConfigDict(
        dict(
            seed=0,
            data=dict(name='digits'),
            network=dict(
                name='mlp', width=256, blocks=3, embedding=64, dropout=0.15, numbers=('until',)
            ),
            denoiser=dict(sigma_data=0.75),
            method=dict(
                name='mean_flow',
                law=dict(name='karras_uniform', sigma_min=0.02, sigma_max=40.0),
                pairing='sorted',
                share_equal=0.5,
                power=0.75,
                c=0.001,
                levels=(40.0,),
            ),
            optimizer=dict(
                student=dict(
                    learning_rate=4e-3,
                    b2=0.99,
                    weight_decay=1e-4,
                    clip=1.0,
                    warmup=100,
                    schedule='cosine',
                    final=0.02,
                ),
            ),
            training=dict(
                steps=4000,
                batch_size=128,
                ema_half_life=18e3,
                ema_ramp_up=0.2,
                log_every=250,
                checkpoint_every=2000,
                sample_every=0,
            ),
            mesh=dict(data=-1, fsdp=1),
            evaluation=dict(samples=2000, seed=0, batch_size=500),
        )
    )
