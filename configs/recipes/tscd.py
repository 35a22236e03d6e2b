"""Digits in one jump, by trajectory-segmented consistency distillation (TSCD of Hyper-SD) in stages
of 8, 4, 2 and 1 segments, each of which begins as the student of the one before.

    fdistill run --recipe=configs/recipes/tscd.py --workdir=runs/tscd
    fdistill run --recipe=configs/recipes/tscd.py --workdir=runs/tscd --teacher=runs/digits-teacher

The second has its teacher already, and takes about 65 CPU-seconds with what it measures.
Measured, by segments, each an evaluation of a sample: fd_held_out 0.121, 0.121, 0.111, 0.111,
fd_train 0.042, 0.045, 0.036, 0.033, pixel_fd 0.26, 0.30, 0.43, 0.81, recall 0.84, 0.85, 0.77, 0.66.
All stages together have the steps of configs/digits_tscd.py, one segment from the start: 0.130,
0.055, 0.43. More steps are no better here: 1800 a stage end at 0.170, 0.096, 0.33, and 5400 of one
segment from the start at 0.167, 0.102, 0.42. `tscd.py:short` is a recipe of a few steps a stage.
"""

STEPS = {
    'full': {'training.steps': 450, 'training.checkpoint_every': 225},
    'short': {'training.steps': 20, 'training.checkpoint_every': 10},
}
SEGMENTS = (8, 4, 2, 1)


def get_recipe(length='full'):
    teacher = {} if length == 'full' else STEPS[length]
    stages = [{'name': 'teacher', 'config': '../digits_teacher.py', 'set': teacher}]
    start = {}
    for segments in SEGMENTS:
        name, values = f'segments-{segments}', {'teacher.workdir': '@teacher'}
        values |= start | STEPS[length]
        stages.append({'name': name, 'config': f'../digits_tscd.py:{segments}', 'set': values})
        start = {'start': {'workdir': f'@{name}'}}
    return stages
