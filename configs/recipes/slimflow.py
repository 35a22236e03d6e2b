"""A one-step generator of digits of a quarter of its teacher's parameters by SlimFlow: the teacher,
pairs of its noise and samples, the small flow of these pairs by annealing reflow, and flow-guided
distillation of that.

    fdistill run --recipe=configs/recipes/slimflow.py --workdir=runs/slimflow
    fdistill run --recipe=configs/recipes/slimflow.py --workdir=runs/slimflow
        --teacher=runs/digits-teacher

The second has its teacher already. `slimflow.py:short` is a recipe of a few steps a stage. The
paper's search for the structure of the small network is not part of it. About 110 CPU-seconds after
the teacher. Measured: fd_held_out 0.125 (teacher, 35 evaluations: 0.113), accuracy 0.999.
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
    students = students | {'data.path': '@pairs'}
    return [
        {'name': 'teacher', 'config': '../digits_teacher.py', 'set': teacher},
        {
            'name': 'pairs',
            'pairs': {
                'workdir': '@teacher',
                'count': count,
                'solver': {'sampler': 'lms', 'steps': 12},
            },
        },
        {'name': 'flow', 'config': '../digits_slimflow.py', 'set': students},
        {
            'name': 'student',
            'config': '../digits_slimflow.py:distil',
            'set': students | {'teacher.workdir': '@flow'},
        },
    ]
