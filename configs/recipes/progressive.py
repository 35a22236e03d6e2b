"""One-step student of digits by progressive distillation, in stages of 8, 4, 2 and 1 steps, each of
which learns two steps of the one before as one.

    fdistill run --recipe=configs/recipes/progressive.py --workdir=runs/progressive
    fdistill run --recipe=configs/recipes/progressive.py --workdir=runs/progressive
        --teacher=runs/digits-teacher

The second has its teacher already. `progressive.py:short` is a recipe of a few steps a stage. Two
CPU-minutes after the teacher. Measured in the last stage: fd_held_out 0.125 (teacher, 35
evaluations: 0.113), accuracy 1.
"""

STEPS = {
    'full': ({}, {}),
    'short': (
        {'training.steps': 40, 'training.checkpoint_every': 20},
        {'training.steps': 20, 'training.checkpoint_every': 10},
    ),
}
STAGES = ('steps-8', 'steps-4', 'steps-2', 'steps-1')


def get_recipe(length='full'):
    teacher, students = STEPS[length]
    stages = [{'name': 'teacher', 'config': '../digits_teacher.py', 'set': teacher}]
    for number, name in enumerate(STAGES, 1):
        values = {'teacher.workdir': f'@{stages[-1]["name"]}'} | students
        config = f'../digits_progressive.py:{number}'
        stages.append({'name': name, 'config': config, 'set': values})
    return stages
