"""Flow maps of the ring of 8 Gaussians by every method, from the oracle or from data; one step.

    fdistill train --config=configs/ring_flow_map.py --workdir=runs/ring-flow-map
    fdistill evaluate --workdir=runs/ring-flow-map

The argument is the method, as ring_flow_map.py:scd; `tcm` needs runs/ring-ect (that of `ect`).
Up to 30 CPU-seconds; what was measured is in docs/results.md.
"""

from ml_collections import ConfigDict

LAW = dict(name='karras_uniform', sigma_min=0.02, sigma_max=10.0)
NORMAL = dict(name='lognormal', mean=-0.6, std=1.4)
GAP = dict(name='loguniform', sigma_min=0.03, sigma_max=3.0)
GRID = dict(grid=dict(name='karras', steps=18, sigma_min=0.02, sigma_max=10.0), target_decay=0.95)
LEVELS = dict(sigma_min=0.02, sigma_max=10.0, growth_steps=4000)
DISTIL = dict(law=LAW, share_equal=0.1, power=0.5, c=0.001)
LEARN = dict(law=LAW, share_equal=0.25, power=0.0)
TANGENT = dict(law=NORMAL, warmup_steps=600)
CRITIC = dict(student_law=GAP, critic_law=GAP, cycle='fastgen', student_every=2)

ORACLE = {
    'consistency': GRID,
    'tscd': GRID | dict(segments=1),
    'scd': TANGENT,
    'dscd': TANGENT | dict(grid=GRID['grid'] | dict(steps=256)),
    'rcm': TANGENT | CRITIC,
    'mean_flow_distill': DISTIL,
    'flow_map_distill': DISTIL | dict(form='lagrangian'),
    'any_flow': DISTIL | CRITIC | dict(form='lagrangian', share_zero=0.25, rollouts=(1, 2, 4)),
}
DATA = {
    'consistency_training': LEVELS | dict(growth='root', intervals=(2, 60), target_decay=0.9),
    'ict': LEVELS | dict(law=NORMAL, growth='doubling', intervals=(10, 160)),
    'ect': dict(law=NORMAL, q=4.0, stage_steps=1000),
    'tcm': dict(law=NORMAL, q=64.0, stage_steps=4000, transition=0.5),
    'scm': TANGENT,
    'mean_flow': LEARN,
    'improved_mean_flow': LEARN,
    'alpha_flow': LEARN | dict(alpha_until=3000),
    'shortcut': dict(law=LAW, finest=16),
}


def get_config(method='flow_map_distill'):
    jumps = 'share_equal' in (row := (ORACLE | DATA)[method]) or method == 'shortcut'
    network = dict(name='mlp', width=64, blocks=2, embedding=64, fourier=3)
    first = dict(levels=(10.0,)) if jumps else dict(sigma_init=10.0) if method != 'tscd' else {}
    made = {'oracle': 'ring'} if method in ORACLE else {'workdir': 'runs/ring-ect'}
    teacher = dict(teacher=made) if method in ORACLE or method == 'tcm' else {}
    own = dict(from_teacher=False) if method in ORACLE else {}
    adam = dict(learning_rate=3e-3, b2=0.99, schedule='cosine', final=0.02)
    roles = ('student', 'critic') if 'critic_law' in row else ('student',)
    return ConfigDict(
        dict(
            seed=0,
            data=dict(name='mixture', mixture='ring', labelled=False),
            network=network | (dict(numbers=('until',)) if jumps else {}),
            denoiser=dict(sigma_data=0.7),
            **teacher,
            method=dict(name=method) | row | first | own,
            optimizer={role: adam for role in roles},
            training=dict(
                steps=4000,
                batch_size=256,
                ema_half_life=30e3,
                ema_ramp_up=0.5,
                log_every=200,
                checkpoint_every=2000,
                sample_every=0,
            ),
            mesh=dict(data=-1, fsdp=1),
            evaluation=dict(samples=10000, seed=0, batch_size=1000),
        )
    )
