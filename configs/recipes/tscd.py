"""Digits in one jump, by trajectory-segmented consistency distillation (TSCD of Hyper-SD) in stages
of 8, 4, 2 and 1 segments, each of which begins as the student of the one before.

    fdistill run --recipe=configs/recipes/tscd.py --workdir=runs/tscd
    fdistill run --recipe=configs/recipes/tscd.py --workdir=runs/tscd --teacher=runs/digits-teacher

The second has its teacher already. `tscd.py:short` is a recipe of a few steps a stage.
"""

STEPS = {'full': {}, 'short': {'training.steps': 20, 'training.checkpoint_every': 10}}
SEGMENTS = (8, 4, 2, 1)


def get_recipe(length='full'):
    stages, start = (
        [{'name': 'teacher', 'config': '../digits_teacher.py', 'set': STEPS[length]}],
        {},
    )
    for segments in SEGMENTS:
        values = {'teacher.workdir': '@teacher'} | start | STEPS[length]
        name = f'segments-{segments}'
        stages.append({'name': name, 'config': f'../digits_tscd.py:{segments}', 'set': values})
        start = {'start': {'workdir': f'@{name}'}}
    return stages
