"""One-step student of digits by distribution backtracking (DisBack): the teacher, the teacher
degraded to the samples of its own untrained student, and the student that follows it back.

    fdistill run --recipe=configs/recipes/disback.py --workdir=runs/disback
    fdistill run --recipe=configs/recipes/disback.py --workdir=runs/disback
        --teacher=runs/digits-teacher

The second has its teacher already, and takes about 50 CPU-seconds with what it measures.
Measured: fd_held_out 0.118, fd_train 0.033, pixel_fd 0.27, accuracy 0.997. `disback.py:short` is a
recipe of a few steps a stage.
"""

LENGTHS = {
    'full': {'teacher': {}, 'degrade': {}, 'student': {}},
    'short': {
        'teacher': {'training.steps': 40, 'training.checkpoint_every': 20},
        'degrade': {'training.steps': 40, 'training.checkpoint_every': 10},
        'student': {
            'training.steps': 40,
            'training.checkpoint_every': 20,
            'path.steps': (10, 20, 40),
            'method.interval': 10,
        },
    },
}


def get_recipe(length='full'):
    other = LENGTHS[length]
    teacher = {'teacher.workdir': '@teacher'}
    return [
        {'name': 'teacher', 'config': '../digits_teacher.py', 'set': other['teacher']},
        {
            'name': 'degrade',
            'config': '../digits_degrade.py',
            'set': teacher | other['degrade'],
            'evaluate': False,
        },
        {
            'name': 'student',
            'config': '../digits_disback.py',
            'set': teacher | {'path.workdir': '@degrade'} | other['student'],
        },
    ]
