"""One-step student of digits by rectified flow: the teacher, pairs of its noise and samples, the
flow of these pairs, which is nearly straight, and its distillation in one step.

    fdistill run --recipe=configs/recipes/reflow.py --workdir=runs/reflow
    fdistill run --recipe=configs/recipes/reflow.py --workdir=runs/reflow
        --teacher=runs/digits-teacher

The second has its teacher already. `reflow.py:short` is a recipe of a few steps a stage. About 85
CPU-seconds after the teacher. Measured: fd_held_out 0.119 (teacher, 35 evaluations: 0.113),
accuracy 0.998.
"""

LENGTHS = {
    'full': ({}, {}, 40_000),
    'short': (
        {'training.steps': 40, 'training.checkpoint_every': 20},
        {'training.steps': 20, 'training.checkpoint_every': 10},
        2000,
    ),
}


def get_recipe(length='full'):
    teacher, students, count = LENGTHS[length]
    return [
        {'name': 'teacher', 'config': '../digits_teacher.py', 'set': teacher},
        {
            'name': 'pairs',
            # As good as 35 evaluations of Heun's method, see docs/results.md.
            'pairs': {
                'workdir': '@teacher',
                'count': count,
                'solver': {'sampler': 'lms', 'steps': 12},
            },
        },
        {
            'name': 'flow',
            'config': '../digits_reflow.py:recorded',
            'set': {'data.path': '@pairs', 'start.workdir': '@teacher'} | students,
        },
        {
            'name': 'student',
            'config': '../digits_kd.py:reflow',
            'set': {'teacher.workdir': '@flow', 'start.workdir': '@flow'} | students,
        },
    ]
