"""Flow map of the digits teacher, by MeanFlow with the teacher's velocity.

    fdistill train --config=configs/digits_mean_flow_distill.py --workdir=runs/digits-flow-map
    fdistill evaluate --workdir=runs/digits-flow-map
"""

from ml_collections import ConfigDict


def get_config():
    return ConfigDict(
        dict(
            seed=0,
            data=dict(name='digits'),
            teacher=dict(workdir='runs/digits-teacher'),
            network=dict(name='mlp', width=256, blocks=3, embedding=64, numbers=('until',)),
            denoiser=dict(sigma_data=0.75),
            method=dict(
                name='mean_flow_distill',
                law=dict(name='lognormal', mean=-0.6, std=1.4),
                pairing='sorted',
                share_equal=0.25,
                power=0.75,
                c=0.001,
                levels=(40.0,),
            ),
            optimizer=dict(
                student=dict(learning_rate=1e-3, b2=0.99, schedule='cosine', final=0.1),
            ),
            training=dict(
                steps=1800,
                batch_size=128,
                ema_half_life=9e3,
                ema_ramp_up=0.5,
                log_every=100,
                checkpoint_every=900,
                sample_every=0,
            ),
            mesh=dict(data=-1, fsdp=1),
            evaluation=dict(samples=2000, seed=0, batch_size=500),
        )
    )
