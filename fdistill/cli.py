"""The command `fdistill`: train, plan, evaluate, sample, export, sweep, run, report, doctor,
check-data, check-teacher, convert, encode, pairs, stats.

What the user got wrong is one line on stderr, exit code 2.
"""

import argparse
import ast
import errno
import json
import math
import os
import re
import shlex
import signal
import sys
import traceback
from collections.abc import Sequence
from typing import Any

from fdistill.errors import NotFinite, UserError, pick, suggest
from fdistill.files import process

# What a user can do about a place that cannot be written to or read.
PLACES = {
    errno.EACCES: 'mend its permissions or choose another place',
    errno.EPERM: 'mend its permissions or choose another place',
    errno.EROFS: 'choose another place',
    errno.ENOSPC: 'make room there, or choose another place',
    errno.EDQUOT: 'make room there, or choose another place',
    errno.EFBIG: 'allow larger files there, or choose another place',
    errno.EIO: 'mend that disk, or choose another place',
    errno.EISDIR: 'give the name of a file',
    errno.ENOTDIR: 'give the name of a folder',
    errno.ENAMETOOLONG: 'give a shorter name',
    errno.ELOOP: 'remove the link or choose another place',
}

# jax, ml_collections and fdistill.build are imported only by a command that runs, so that --help is
# instant.

OVERRIDES = """\
Any value of the config can be set: --config.optimizer.student.learning_rate=1e-4,
--config.shape='(32, 32, 3)'."""

SAMPLER = """\
Options of the sampler follow its name: --sampler=ghvb --order=3.8, --sampler=heun --s_churn=10."""
SWEEP = (
    """\
Slurm and the local executor take submitit's parameters, as --slurm_partition=gpu --timeout_min=60
--gpus_per_node=1.
"""
    + OVERRIDES
)
RECIPE = """\
Any value of a stage can be set: --STAGE.training.steps=1000. --STAGE=DIR uses a folder that is
there already in the place of a stage, as --teacher=runs/digits-teacher.
"""


WORKDIR = 'folder of the run; required'
RUN = 'folder of the run; this or --weights is required'
WEIGHTS = 'weights in place of a run, as written by `fdistill convert teacher`'
# Options of `convert` by what they are for.
CONVERT = {
    'teacher': ('of', 'licence'),
    'vae': ('licence',),
    'average': ('beside', 'std'),
    'lpips-vgg': ('beside',),
    'lpips-alex': ('beside',),
}
# How samples are drawn from a denoiser.
SOLVER = {
    '--sampler': dict(metavar='NAME', help='for a denoiser, as heun, dpmpp_2m or ghvb'),
    '--steps': dict(type=int, help='levels of the noise grid before 0, or jumps of a flow map'),
    '--guidance': dict(
        type=float,
        metavar='W',
        help='scale of guidance, for a denoiser or a flow map that is told it',
    ),
    '--vae': dict(metavar='FILE', help="what decodes latents; default: that of the run's data"),
}
# How one of several samples is chosen.
BEST = {
    '--best-of': dict(type=int, metavar='M', help='each sample is the best of M, by a reward'),
    '--reward': dict(
        metavar='NAME',
        help="for --best-of, as 'classifier(wanted=3, only=8)'; default: that of the run",
    ),
    '--alpha': dict(
        type=float,
        metavar='A',
        help='for --best-of: draw one of M with odds exp(reward/A); default: 0, the best',
    ),
}
PEER_SECONDS = 20
ONE_OF = 'give either --workdir=DIR, a run, or --weights=FILE, converted weights'
# Options that a command needs; of others the workdir, if it has one.
REQUIRED = {
    'sample': (),
    'evaluate': (),
    'check-teacher': (),
    'train': ('config', 'workdir'),
    'sweep': ('config', 'workdir'),
    'run': ('recipe', 'workdir'),
    'plan': ('config', 'topology'),
    'export': ('to', 'out'),
    'encode': ('config', 'vae', 'out'),
    'pairs': ('out', 'count'),
}


class _Parser(argparse.ArgumentParser):
    """argparse, except that an error is a UserError."""

    def error(self, message):
        raise UserError(f'{message}; see `{self.prog} --help`')


def _command(commands, name, description, epilog=None):
    return commands.add_parser(
        name, allow_abbrev=False, help=description, description=description, epilog=epilog
    )


def _parsers():
    """The parser of everything and, by name, those of the commands."""
    parser = _Parser(
        prog='fdistill', allow_abbrev=False, description='Distils diffusion models to one step.'
    )
    commands = parser.add_subparsers(dest='command', metavar='command', required=True)

    train = _command(
        commands,
        'train',
        'Trains what a config describes; resumes when the workdir holds a checkpoint.',
        OVERRIDES,
    )
    train.add_argument('--workdir', metavar='DIR', help=WORKDIR)
    train.add_argument(
        '--config', metavar='FILE', help='Python file with get_config(), as configs/x.py; required'
    )
    train.add_argument(
        '--change',
        action='store_true',
        help='go on with other settings of the optimizers than the run has, and record them',
    )
    train.add_argument(
        '--distributed', action='store_true', help='one of several processes; automatic under srun'
    )

    evaluate = _command(
        commands, 'evaluate', 'Measures a trained run and prints the numbers as JSON.', OVERRIDES
    )
    evaluate.add_argument('--workdir', metavar='DIR', help=RUN)
    evaluate.add_argument('--weights', metavar='FILE', help=WEIGHTS)
    for flag, given in {**SOLVER, **BEST}.items():
        evaluate.add_argument(flag, **given)
    evaluate.add_argument(
        '--config', metavar='FILE', help='config to use instead of the one kept in the workdir'
    )
    evaluate.add_argument(
        '--samples', type=int, metavar='N', help='generated samples; default: as in the config'
    )
    evaluate.add_argument(
        '--seed', type=int, metavar='S', help='seed of the samples; default: as in the config'
    )
    evaluate.add_argument(
        '--protocol',
        metavar='NAME',
        help='a published one, as edm or adm, in place of own features',
    )
    evaluate.add_argument(
        '--detector', metavar='FILE', help='weights for a published protocol, of `fdistill convert`'
    )
    evaluate.add_argument(
        '--statistics', metavar='FILE', help='real images under that protocol, of `fdistill stats`'
    )
    evaluate.add_argument(
        '--metrics',
        metavar='LIST',
        help='as fid,kid,prdc; a wrong one says which there are',
    )
    evaluate.add_argument(
        '--ranges', type=int, metavar='R', help='ranges of seeds; default: all of the protocol'
    )
    evaluate.add_argument(
        '--batch-size', type=int, metavar='B', help='images at once on all devices'
    )
    evaluate.add_argument(
        '--distributed', action='store_true', help='one of several processes; automatic under srun'
    )
    evaluate.add_argument('--quiet', action='store_true', help='no progress on stderr')

    sample = _command(commands, 'sample', 'Draws samples from a trained run.', SAMPLER)
    sample.add_argument('--workdir', metavar='DIR', help=RUN)
    sample.add_argument('--weights', metavar='FILE', help=WEIGHTS)
    sample.add_argument(
        '--n', type=int, help='number of samples; default: 64, or 8 with --trajectory'
    )
    sample.add_argument('--seed', type=int, default=0, metavar='S', help='default: %(default)s')
    sample.add_argument(
        '--label', type=int, metavar='L', help='class; default: a random one a sample'
    )
    for flag, given in {**SOLVER, **BEST}.items():
        sample.add_argument(flag, **given)
    sample.add_argument(
        '--trajectory', action='store_true', help='show x0 as the network saw it at each level'
    )
    sample.add_argument('--out', metavar='FILE', help='file to write; default: in the workdir')
    sample.add_argument(
        '--batch-size', type=int, metavar='B', help='samples at once; default: 1000'
    )
    sample.add_argument(
        '--with',
        dest='beside',
        metavar='DIR',
        action='append',
        default=[],
        help='another teacher, sampled with this one as one; may be given several times',
    )
    sample.add_argument(
        '--operator',
        choices=('or', 'and'),
        default='or',
        help='with --with: a sample of one of them, or one likely under all; default: %(default)s',
    )
    sample.add_argument(
        '--temperature',
        type=float,
        default=1.0,
        metavar='T',
        help='of --operator=or: the larger, the sooner one of them is chosen; default: %(default)s',
    )

    sweep = _command(
        commands, 'sweep', 'Runs the trials of a sweep that have no result yet.', SWEEP
    )
    sweep.add_argument('--workdir', metavar='DIR', help=WORKDIR)
    sweep.add_argument(
        '--config', metavar='FILE', help='Python file with get_config() and get_sweep(); required'
    )
    sweep.add_argument(
        '--only',
        metavar='TRIAL',
        action='append',
        help='a trial by name; may be given several times',
    )
    sweep.add_argument('--retry', action='store_true', help='run failed trials again')
    sweep.add_argument(
        '--dry-run',
        action='store_true',
        help='list the trials and what they will cost; run nothing',
    )
    sweep.add_argument(
        '--commands',
        action='store_true',
        help='print a command a trial, for any scheduler; run nothing',
    )
    together = (
        'trials that differ in seed and continuous settings (learning rates, weights) alone '
        'as one program, on one device'
    )
    sweep.add_argument('--vmap-seeds', action='store_true', help=together)
    sweep.add_argument(
        '--executor',
        choices=('local', 'slurm'),
        help='trials in processes of their own, through submitit',
    )
    sweep.add_argument(
        '--parallel', type=int, default=2, metavar='N', help='of them at once; default: %(default)s'
    )
    sweep.add_argument(
        '--distributed', action='store_true', help='one of several processes; automatic under srun'
    )

    recipe = _command(
        commands,
        'run',
        'Runs the stages of a recipe in order; what is done is kept, what was stopped goes on.',
        RECIPE,
    )
    recipe.add_argument('--workdir', metavar='DIR', help='folder of the recipe; required')
    recipe.add_argument(
        '--recipe',
        metavar='FILE',
        help='Python file with get_recipe(), as configs/recipes/x.py; required',
    )
    recipe.add_argument('--seed', type=int, metavar='S', help='of all stages; default: their own')
    recipe.add_argument(
        '--dry-run',
        action='store_true',
        help='list the stages, what they will cost and leave on disk; run nothing',
    )
    recipe.add_argument(
        '--distributed', action='store_true', help='one of several processes; automatic under srun'
    )
    recipe.add_argument('--quiet', action='store_true', help='no progress on stderr')

    description = 'Says what a data set holds, and what training on it would stop at.'
    check = _command(commands, 'check-data', description, OVERRIDES)
    check.add_argument('path', nargs='?', metavar='PATH', help='folder or zip of images')
    check.add_argument(
        '--config', metavar='FILE', help='Python file with get_config(), whose data is looked at'
    )
    check.add_argument(
        '--out',
        metavar='DIR',
        default='check_data',
        help='folder to write to; default: %(default)s',
    )
    check.add_argument('--json', action='store_true', help='print check_data.json and not a table')

    teacher = _command(
        commands,
        'check-teacher',
        'Says what a teacher is worth on data: its errors by noise level beside those of what is '
        'none, samples, conditions, cost; exit code 1 where it is not usable.',
        OVERRIDES,
    )
    teacher.add_argument('--workdir', metavar='DIR', help=RUN)
    teacher.add_argument('--weights', metavar='FILE', help=WEIGHTS)
    teacher.add_argument(
        '--config', metavar='FILE', help='config whose data is taken; default: as of the run'
    )
    teacher.add_argument(
        '--samples', type=int, default=1000, metavar='N', help='to generate; default: %(default)s'
    )
    teacher.add_argument(
        '--out',
        metavar='DIR',
        default='check_teacher',
        help='folder to write to; default: %(default)s',
    )
    teacher.add_argument('--json', action='store_true', help='print check_teacher.json and no page')
    teacher.add_argument('--quiet', action='store_true', help='no progress on stderr')

    plan = _command(
        commands,
        'plan',
        'Compiles what a config describes for devices that need not be there, and says what it '
        'would need of each; exit code 1 where it does not fit.',
        OVERRIDES,
    )
    plan.add_argument(
        '--config', metavar='FILE', help='Python file with get_config(), as configs/x.py; required'
    )
    plan.add_argument(
        '--topology',
        metavar='POD',
        help='as v5e:16x16 (also v4, v5p, v6e), or cpu:64, simulated; required',
    )
    plan.add_argument(
        '--teacher',
        metavar='FILE',
        help='the config of the teacher, or of what the student starts as, where its folder is not '
        "there; default: its network is the student's",
    )
    plan.add_argument(
        '--search', action='store_true', help='where it does not fit, try what makes it smaller'
    )
    plan.add_argument(
        '--out', metavar='DIR', default='plan', help='folder to write to; default: %(default)s'
    )

    description = 'Makes one page of the results of runs and sweeps: scores, tests, plots, samples.'
    report = _command(commands, 'report', description)
    report.add_argument('paths', nargs='+', metavar='PATH', help='folder of a run, sweep or recipe')
    report.add_argument(
        '--out', metavar='DIR', help='folder to write to; default: report in the first PATH'
    )
    report.add_argument(
        '--measure',
        metavar='KEY',
        help='to rank by, as pixel_fd; default: the first that was measured',
    )
    report.add_argument('--quiet', action='store_true', help='no progress on stderr')

    description = (
        'Says what is normal in the log of a run and what is not; exit code 1 where something is '
        'wrong.'
    )
    doctor = _command(commands, 'doctor', description)
    doctor.add_argument('workdir', metavar='WORKDIR', help='folder of the run')
    doctor.add_argument('--out', metavar='DIR', help='folder for doctor.png and doctor.json')
    doctor.add_argument('--json', action='store_true', help='print doctor.json and not a table')

    description = 'Encodes the images of a config by an autoencoder, once, for training on latents.'
    encode = _command(commands, 'encode', description, OVERRIDES)
    encode.add_argument(
        '--config', metavar='FILE', help='Python file with get_config(), whose data is taken'
    )
    encode.add_argument('--vae', metavar='FILE', help='of `fdistill convert vae`; required')
    encode.add_argument('--out', metavar='DIR', help='folder to write to; required')
    encode.add_argument(
        '--dtype',
        default='float32',
        metavar='TYPE',
        help='to keep latents in, or float16; default: %(default)s',
    )
    encode.add_argument(
        '--batch-size', type=int, default=64, metavar='B', help='images at once; default: 64'
    )
    encode.add_argument('--quiet', action='store_true', help='no progress on stderr')

    description = (
        'Makes pairs of noise and of what a teacher makes of it, for methods that learn that map; '
        'goes on where the folder holds a part of them.'
    )
    pairs = _command(commands, 'pairs', description, f'{SAMPLER}\n{OVERRIDES}')
    pairs.add_argument('--workdir', metavar='DIR', help=RUN)
    pairs.add_argument('--weights', metavar='FILE', help=WEIGHTS)
    pairs.add_argument('--out', metavar='DIR', help='folder to write to; required')
    pairs.add_argument('--count', type=int, metavar='N', help='number of pairs; required')
    pairs.add_argument('--seed', type=int, default=0, metavar='S', help='default: %(default)s')
    pairs.add_argument(
        '--label', type=int, metavar='L', help='class of all; default: a random one each'
    )
    for flag in ('--sampler', '--steps', '--guidance'):
        pairs.add_argument(flag, **SOLVER[flag])
    pairs.add_argument(
        '--dtype',
        default='float32',
        metavar='TYPE',
        help='to keep samples in, or float16, or uint8 for images; default: %(default)s',
    )
    pairs.add_argument(
        '--batch-size',
        type=int,
        metavar='B',
        help='pairs at once on each device, at most 1024; default: 256',
    )
    pairs.add_argument(
        '--config',
        metavar='FILE',
        help='config whose data the pairs stand for; default: as of the run',
    )
    pairs.add_argument(
        '--distributed', action='store_true', help='one of several processes; automatic under srun'
    )
    pairs.add_argument('--quiet', action='store_true', help='no progress on stderr')

    description = (
        'Reads published weights, running nothing in the file, and writes them as safetensors.'
    )
    convert = _command(commands, 'convert', description)
    convert.add_argument(
        'kind',
        metavar='KIND',
        help='teacher; vae; average, of snapshots of EDM2; or as inception, a wrong one says which',
    )
    convert.add_argument(
        'source',
        metavar='SRC',
        help='the file or folder as published, or OWNER/NAME at a model hub',
    )
    convert.add_argument('out', metavar='OUT', help='safetensors file to write')
    convert.add_argument(
        '--with',
        dest='beside',
        metavar='FILE',
        action='append',
        default=[],
        help='another snapshot of an average, which may be given several times; for LPIPS, what it '
        'learned beside a network of torchvision',
    )
    convert.add_argument(
        '--std', type=float, metavar='S', help='of an average: its relative width, as 0.13'
    )
    convert.add_argument(
        '--of', metavar='NAME', help='what a teacher is of, as edm; default: as the file looks'
    )
    convert.add_argument(
        '--licence', metavar='NAME', help='of a teacher or vae, where its file does not say it'
    )

    description = 'Writes a model, with its model card, in a form that others read.'
    export = _command(commands, 'export', description, SAMPLER)
    export.add_argument('--workdir', metavar='DIR', help=RUN)
    export.add_argument('--weights', metavar='FILE', help=WEIGHTS)
    export.add_argument(
        '--to',
        metavar='FORM',
        help='jax (programs for CPU, GPU and TPU), onnx, page (it generates in a browser), '
        'safetensors (what --weights and teachers read) or diffusers; required',
    )
    export.add_argument('--out', metavar='DIR', help='folder to make; required')
    export.add_argument(
        '--licence', metavar='NAME', help='of the weights; default: of what they were made from'
    )
    for flag, given in SOLVER.items():
        export.add_argument(flag, **given)
    export.add_argument(
        '--runtime', metavar='DIR', help='onnxruntime-web for --to=page; default: fetched by npm'
    )
    export.add_argument(
        '--push', metavar='OWNER/NAME', help='also upload the folder, to this place of a model hub'
    )
    _add_stats(commands)
    return parser, commands.choices


def _add_stats(commands):
    description = 'Makes, converts, shows and compares statistics files of real images.'
    stats = _command(commands, 'stats', description)
    actions = stats.add_subparsers(dest='action', metavar='action', required=True)

    make = _command(
        actions, 'make', 'Measures the data of a config under a published protocol.', OVERRIDES
    )
    make.add_argument(
        '--config',
        metavar='FILE',
        required=True,
        help='Python file with get_config(), whose data is taken',
    )
    make.add_argument(
        '--protocol', metavar='NAME', required=True, help='as edm, adm, clean-fid or pytorch-fid'
    )
    make.add_argument(
        '--detector', metavar='FILE', required=True, help='weights, of `fdistill convert`'
    )
    make.add_argument('--out', metavar='FILE', required=True, help='.npz file to write')
    split = 'default: train, or all of an image folder'
    make.add_argument('--split', choices=('train', 'held_out', 'all'), help=split)
    make.add_argument(
        '--reference',
        metavar='NAME',
        help="what the images are called in names of numbers; default: the data's",
    )
    make.add_argument(
        '--keep', type=int, metavar='N', help='images whose features are kept for KID and precision'
    )
    make.add_argument('--batch-size', type=int, metavar='B', help='images at once on all devices')
    make.add_argument(
        '--distributed', action='store_true', help='one of several processes; automatic under srun'
    )
    make.add_argument('--quiet', action='store_true', help='no progress on stderr')

    convert = _command(
        actions,
        'convert',
        'Reads statistics of another program and writes them as ours, under their protocol.',
    )
    convert.add_argument(
        'source', metavar='SRC', help='.npz of EDM, ADM, clean-fid or pytorch-fid, .pkl of EDM2'
    )
    convert.add_argument('out', metavar='OUT', help='.npz file to write')
    convert.add_argument(
        '--protocol',
        metavar='NAME',
        required=True,
        help='that its features were made by; no file tells',
    )
    convert.add_argument(
        '--count', type=int, metavar='N', help='images it is of, where the file does not tell'
    )
    convert.add_argument(
        '--reference', metavar='NAME', help='what the images are; default: the name of the file'
    )

    show = _command(actions, 'show', 'Says what a file holds.')
    show.add_argument('files', nargs='+', metavar='FILE')
    compare = _command(
        actions, 'compare', 'Prints the Frechet distance of two files of one protocol.'
    )
    compare.add_argument('files', nargs=2, metavar='FILE')


def _train(options, overrides):
    from fdistill import build
    from fdistill import config as configs

    config = configs.load(options.config)
    build.override(config, overrides)
    if options.distributed or _among_many(os.environ):
        _join_others()

    build.train(config, options.workdir, change=options.change)


def _plan(options, overrides):
    from fdistill import build
    from fdistill import config as configs

    config = configs.load(options.config)
    build.override(config, overrides)
    given = {'teacher': options.teacher, 'search': options.search}
    result = build.plan(config, options.topology, options.out, **given)
    print(build.page(result), end='')
    return 0 if result.get('fits', True) else 1


def _join_others():
    """Joins the other processes of a run, as a launcher says, or JAX_COORDINATOR_ADDRESS,
    JAX_NUM_PROCESSES and JAX_PROCESS_ID."""
    import jax

    numbers = {}
    for name in ('num_processes', 'process_id'):
        value = os.environ.get(variable := f'JAX_{name.upper()}')
        if value is not None and not value.isdecimal():
            raise UserError(f'{variable}={value}: must be a whole number')
        numbers[name] = None if value is None else int(value)
    try:
        # Before anything touches a device. A peer that is gone ends the others within the time.
        jax.distributed.initialize(**numbers, heartbeat_timeout_seconds=PEER_SECONDS)
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f'--distributed: {error}; start the processes with srun or mpirun, or set '
            'JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, or leave it out'
        ) from error


def _first():
    """Whether this process is the one of several that writes files, and so may show them."""
    import jax

    return jax.process_index() == 0


def _among_many(environ):
    """Whether a launcher started this process as one of several."""
    counts = ('SLURM_STEP_NUM_TASKS', 'OMPI_COMM_WORLD_SIZE', 'JAX_NUM_PROCESSES')
    several = any(environ.get(name, '') not in ('', '0', '1') for name in counts)
    return several or ',' in environ.get('TPU_WORKER_HOSTNAMES', '')


def _sets_protocol(options, overrides):
    """Whether the config that is evaluated names a protocol."""
    from fdistill import config as configs

    if any(word.startswith('--config.evaluation.protocol=') for word in overrides):
        return True
    if not options.config and options.weights:
        return False
    config = configs.load(options.config) if options.config else configs.read(options.workdir)
    return 'protocol' in config.get('evaluation', {})


def _solver(options, rest):
    """{'sampler', 'steps', 'guidance', 'vae', 'best_of'} of those that are given."""
    given = {n: getattr(options, n, None) for n in ('sampler', 'steps', 'guidance', 'vae')}
    if rest:
        given['sampler'] = {'name': options.sampler} | keyword_options(rest)
    given['best_of'] = _best_of(options)
    return {name: value for name, value in given.items() if value is not None}


def _best_of(options):
    """How one of several samples is chosen, or None."""
    names = {'best_of': 'candidates', 'alpha': 'alpha', 'reward': 'reward'}
    given = {key: getattr(options, name, None) for name, key in names.items()}
    given = {key: value for key, value in given.items() if value is not None}
    if given and 'candidates' not in given:
        raise UserError(f'--{next(iter(given))}: is for --best-of; add --best-of=M')
    if 'reward' in given:
        from fdistill import build

        given['reward'] = build.read_reward(given['reward'])
    return given or None


def _evaluate(options, overrides, rest=()):
    published = [
        name
        for name in ('detector', 'statistics', 'metrics', 'ranges')
        if getattr(options, name) is not None
    ]
    if published and not options.protocol and not _sets_protocol(options, overrides):
        raise UserError(
            f'--{published[0]}: is for a published protocol; add --protocol=NAME, as edm'
        )
    if options.protocol and options.seed is not None:
        raise UserError(
            f'--seed={options.seed}: a published protocol has seeds of its own; leave it out'
        )
    from fdistill import build
    from fdistill import config as configs

    if options.distributed or _among_many(os.environ):
        _join_others()

    config = None
    if overrides and not options.config and options.weights:
        raise UserError(f'{overrides[0]}: weights have no config of their own; give --config=FILE')
    if options.config or overrides:
        config = configs.load(options.config) if options.config else configs.read(options.workdir)
        build.override(config, overrides)
    from fdistill.files.disk import plain

    names = ('samples', 'seed', 'protocol', 'detector', 'statistics', 'ranges', 'batch_size')
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    given |= {'metrics': tuple(options.metrics.split(','))} if options.metrics else {}
    given |= {} if options.weights is None else {'weights': options.weights}
    solver = _solver(options, rest)
    result = build.evaluate(config, options.workdir, solver=solver, quiet=options.quiet, **given)
    if _first():
        print(json.dumps(plain(result), indent=2))


def _sample(options, overrides, rest=()):
    if overrides:
        raise UserError(f'{overrides[0]}: sample takes the config kept in the workdir')
    from fdistill import build

    keywords = {
        name: getattr(options, name)
        for name in ('weights', 'n', 'seed', 'label', 'out', 'trajectory', 'beside')
    }
    keywords['solver'] = _solver(options, rest)
    keywords |= {'operator': options.operator, 'temperature': options.temperature}
    if options.batch_size is not None:
        keywords['batch_size'] = options.batch_size
    build.sample(options.workdir, **keywords)


def _export(options, overrides, rest=()):
    if overrides:
        raise UserError(f'{overrides[0]}: export takes the config kept in the workdir')
    from fdistill import export

    names = ('weights', 'licence', 'runtime', 'push')
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    given['solver'] = _solver(options, rest)
    print(export.export(options.workdir, options.to, options.out, **given))


def keyword_options(words: Sequence[str]) -> dict[str, Any]:
    """The options {'order': 3.8} out of words --order=3.8; a value that is no Python literal is a
    string."""
    options = {}
    for word in words:
        name, _, value = word.removeprefix('--').partition('=')
        try:
            options[name.replace('-', '_')] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            options[name.replace('-', '_')] = value
    return options


def _sweep(options, overrides, rest=()):
    if options.vmap_seeds and (options.executor or options.distributed):
        raise UserError('--vmap-seeds: is for one process; leave out --executor and --distributed')
    if options.parallel < 1:
        raise UserError(f'--parallel={options.parallel}: need at least 1')
    if options.distributed or _among_many(os.environ):
        _join_others()
    from fdistill import sweep

    trials = sweep.select(sweep.load(options.config, overrides), options.only)
    if options.dry_run:
        print(sweep.listing(options.workdir, trials))
    elif options.commands:
        for trial in sweep.missing(options.workdir, trials, options.retry):
            print(sweep.command(options.config, options.workdir, trial, overrides))
    else:
        given = {'overrides': overrides, 'only': options.only, 'retry': options.retry}
        if options.executor:
            given |= {'parallel': options.parallel} | keyword_options(rest)
            results = sweep.submit(options.config, options.workdir, options.executor, **given)
        else:
            results = sweep.run(
                options.config, options.workdir, vmap_seeds=options.vmap_seeds, **given
            )
        failed = [trial.name for trial, outcome in results if outcome['status'] == 'failed']
        print(
            f'{len(results) - len(failed)} trials done, '
            f'{len(failed)} failed{": " + ", ".join(failed) if failed else ""}'
        )
        return 1 if failed else 0


def _run(options, overrides, words=()):
    if overrides:
        raise UserError(f'{overrides[0]}: a recipe has stages; set --STAGE.key=value')
    if options.distributed or _among_many(os.environ):
        _join_others()
    from fdistill import recipe

    given = {'words': words, 'seed': options.seed}
    if options.dry_run:
        stages = recipe.load(options.recipe, options.workdir, **given)
        listed = recipe.listing(stages, options.workdir)
        if _first():
            print(listed)
    else:
        known = recipe.run(options.recipe, options.workdir, quiet=options.quiet, **given)
        if _first():
            print(recipe.results(known))


def _report(options, overrides):
    if overrides:
        raise UserError(f'{overrides[0]}: report takes the configs kept in the folders')
    from fdistill import report

    for path in report.write(options.paths, options.out, options.measure, options.quiet).values():
        print(path)


def _doctor(options, overrides):
    if overrides:
        raise UserError(f'{overrides[0]}: doctor takes the config kept in the folder')
    from fdistill.files import disk
    from fdistill.report import doctor

    if options.out is not None:
        disk.folder_for(options.out, '--out')
    result = doctor.examine(options.workdir)
    paths = doctor.write(result, options.out) if options.out is not None else ()
    if options.json:
        print(json.dumps(disk.plain(result), indent=2))
    else:
        print(doctor.page(result), end='')
        print(*paths, sep='\n', end='\n' * bool(paths))
    return 0 if result['healthy'] else 1


def _check_data(options, overrides):
    if (options.path is None) == (options.config is None):
        raise UserError('check-data: give either PATH, a folder or zip of images, or --config')
    if options.path is not None and overrides:
        raise UserError(f'{overrides[0]}: is for --config, not for PATH')
    from fdistill import build
    from fdistill import config as configs

    config = {'data': {'name': 'image_folder', 'path': options.path}}
    if options.config:
        config = configs.load(options.config)
        build.override(config, overrides)
    from fdistill.data import check
    from fdistill.files import disk

    # Of pairs none are held out; they are what is looked at, and not what they stand for.
    made = config['data'].get('name') == 'pairs'
    config = config if made else build.of_images(config)
    section = dict(config['data'])
    folder = section if section.get('name') == 'image_folder' and section.get('path') else None
    disk.folder_for(options.out, '--out')
    if folder and check.within(options.out, folder['path']):
        raise UserError(
            f'--out={options.out}: lies within the data, {folder["path"]}; give another folder'
        )
    report, train = check.check(
        lambda split: build.load_data(config, split), folder, ('train',) if made else check.SPLITS
    )
    print(json.dumps(disk.plain(report), indent=2) if options.json else check.text(report))
    paths = check.write(options.out, report, train)
    if not options.json:
        print('', *paths, sep='\n')
    if report['errors']:
        first, *others = report['errors']
        more = f' (and {len(others)} more)' if others else ''
        raise UserError(f'{report["name"]}: cannot be trained on: {first}{more}')


def _check_teacher(options, overrides):
    if overrides and options.config is None:
        raise UserError(f'{overrides[0]}: is for the data of a config; give --config=FILE')
    from fdistill import build
    from fdistill import config as configs
    from fdistill.build.check_teacher import check_teacher
    from fdistill.files import disk
    from fdistill.report import teacher

    config = None
    if options.config:
        config = configs.load(options.config)
        build.override(config, overrides)
    disk.folder_for(options.out, '--out')
    given = {'weights': options.weights, 'samples': options.samples, 'quiet': options.quiet}
    measured, drawn = check_teacher(config, options.workdir, **given)
    result = teacher.judge(measured)
    paths = teacher.write(options.out, result, drawn)
    if options.json:
        print(json.dumps(disk.plain(result), indent=2))
    else:
        print(teacher.page(result), *paths, sep='\n')
    return 0 if result['usable'] else 1


def _encode(options, overrides):
    from fdistill import build
    from fdistill import config as configs

    config = configs.load(options.config)
    build.override(config, overrides)
    names = ('dtype', 'batch_size', 'quiet')
    given = {name: getattr(options, name) for name in names}
    note = build.encode(config, options.vae, options.out, **given)
    count = sum(split['count'] for split in note['splits'].values())
    print(f'{count:,} latents of {" x ".join(map(str, note["latent"]))} in {options.out}')


def _pairs(options, overrides, rest=()):
    if overrides and options.config is None:
        raise UserError(f'{overrides[0]}: is for the data of a config; give --config=FILE')
    from fdistill import build
    from fdistill import config as configs

    if options.distributed or _among_many(os.environ):
        _join_others()

    config = None
    if options.config:
        config = configs.load(options.config)
        build.override(config, overrides)
    names = ('workdir', 'weights', 'count', 'seed', 'label', 'dtype', 'batch_size', 'quiet')
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    solver = _solver(options, rest)
    note = build.make_pairs(options.out, solver=solver, config=config, **given)
    if _first():
        shape = ' x '.join(map(str, note['record'][0]['shape']))
        print(f'{note["count"]:,} pairs of {shape} in {options.out}')


def _convert(options, overrides, rest=()):
    if overrides:
        raise UserError(f'{overrides[0]}: convert takes no config')
    for name in {name for names in CONVERT.values() for name in names}:
        if getattr(options, name) and name not in CONVERT.get(options.kind, ()):
            flag = 'with' if name == 'beside' else name
            kinds = ' or '.join(kind for kind, names in CONVERT.items() if name in names)
            raise UserError(f'--{flag}: is for {kinds}, not for {options.kind!r:.40}')
    if options.kind in CONVERTERS:
        from fdistill.data import cache
        from fdistill.files import hub

        if options.kind != 'average' and hub.is_name(options.source):
            options.source = hub.fetch(options.source, cache.folder('hub'))
        CONVERTERS[options.kind](options, rest)
        return
    from fdistill import weights

    pick({**CONVERTERS, **weights.CONVERTERS}, options.kind, 'KIND')
    given = options.kind, options.source, options.out, options.beside
    for name, value in sorted(weights.convert(*given).items()):
        print(f'{name}: {value}')


def _convert_average(options, rest):
    if options.std is None:
        raise UserError('--std=S: is missing; give the relative width of the average, as 0.13')
    from fdistill.weights import posthoc

    paths = (options.source, *options.beside)
    for name, value in posthoc.reconstruct(paths, options.out, std=options.std).items():
        print(f'{name}: {value}')


def _convert_vae(options, rest):
    from fdistill import config as configs
    from fdistill.weights import autoencoders

    given = {'licence': options.licence} | keyword_options(rest)
    places = {'source': options.source, 'out': options.out}
    row = configs.call(autoencoders.convert, given, 'convert vae: --', **places)
    for name, value in sorted(row.items()):
        print(f'{name}: {json.dumps(value)}')
    print(options.out)


def _convert_teacher(options, rest):
    from fdistill import build

    given = {'of': options.of, 'licence': options.licence} | keyword_options(rest)
    report = build.convert(options.source, options.out, **given)
    arrays, model = report.pop('arrays'), report.pop('model')
    numbers = sum(math.prod(array['shape']) for array in arrays)
    print(f'{model["network"]["name"]} of {numbers:,} numbers in {len(arrays)} arrays')
    for name, value in {**model, **report}.items():
        print(f'{name}: {json.dumps(value)}')
    print(options.out)


CONVERTERS = {'teacher': _convert_teacher, 'average': _convert_average, 'vae': _convert_vae}


def _stats(options, overrides):
    if overrides and options.action != 'make':
        raise UserError(f'{overrides[0]}: stats {options.action} takes no config')
    STATS[options.action](options, overrides)


def _stats_make(options, overrides):
    from fdistill import build
    from fdistill import config as configs

    config = configs.load(options.config)
    build.override(config, overrides)
    if options.distributed or _among_many(os.environ):
        _join_others()

    names = ('protocol', 'detector', 'keep', 'batch_size', 'split', 'reference')
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    build.make_statistics(config, options.out, quiet=options.quiet, **given)
    if _first():
        _stats_show(argparse.Namespace(files=[options.out]), ())


def _stats_convert(options, overrides):
    from fdistill.evaluation import statistics_files

    statistics_files.convert(
        options.source, options.out, options.protocol, options.count, options.reference
    )
    _stats_show(argparse.Namespace(files=[options.out]), ())


def _stats_show(options, overrides):
    from fdistill.evaluation import statistics_files

    print(*map(statistics_files.show, options.files), sep='\n\n')


def _stats_compare(options, overrides):
    from fdistill.evaluation import statistics, statistics_files

    ours, theirs = map(statistics_files.read, options.files)
    distance = statistics.compare(ours, theirs)
    print(
        f'{distance:.10g}  Frechet distance under {ours.protocol} of {ours.reference} and '
        f'{theirs.reference}'
    )


STATS = {
    'make': _stats_make,
    'convert': _stats_convert,
    'show': _stats_show,
    'compare': _stats_compare,
}
COMMANDS = {
    'train': _train,
    'plan': _plan,
    'evaluate': _evaluate,
    'sample': _sample,
    'export': _export,
    'sweep': _sweep,
    'run': _run,
    'report': _report,
    'doctor': _doctor,
    'check-data': _check_data,
    'check-teacher': _check_teacher,
    'convert': _convert,
    'encode': _encode,
    'pairs': _pairs,
    'stats': _stats,
}


def split(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words of a command line without its overrides, and these. An override becomes one word,
    `--config.key=value`."""
    rest, overrides = [], []
    words = list(words)
    while words:
        word = words.pop(0)
        if not word.startswith('--config.'):
            rest.append(word)
            continue
        if '=' not in word and words and not words[0].startswith('--'):
            word += '=' + words.pop(0)
        overrides.append(word if '=' in word else word + '=true')
    return rest, overrides


def _parse(words):
    """(function of the command, its arguments)."""
    parser, commands = _parsers()
    if words and not words[0].startswith('-') and words[0] not in commands:
        raise UserError(f'unknown command {words[0]}{suggest(words[0], commands)}')
    rest, overrides = split(words)
    options, unknown = parser.parse_known_args(rest)
    # Options of a sampler, of submitit or of a teacher, known where those are imported, and stages.
    passed_on = (
        getattr(options, 'sampler', None)
        or getattr(options, 'executor', None)
        or getattr(options, 'kind', None) in ('teacher', 'vae')
        or getattr(options, 'recipe', None)
    )
    passed_on = passed_on and all(re.fullmatch(r'--\w[\w.-]*=.+', word) for word in unknown)
    if unknown and not passed_on:
        flag = unknown[0].split('=')[0].lstrip('-')
        known = [name for name in vars(options) if name != 'command']
        raise UserError(
            f'{options.command}: unknown argument {unknown[0]}{suggest(flag, known, prefix="--")}'
        )
    # Not argparse's `required`, which would hide the better message about a misspelt name.
    for name in REQUIRED.get(options.command, ('workdir',)):
        if not getattr(options, name, True):
            raise UserError(
                f'{options.command}: --{name} is missing; see `fdistill {options.command} --help`'
            )
    if hasattr(options, 'weights') and (options.workdir is None) == (options.weights is None):
        raise UserError(ONE_OF)
    for name, value in vars(options).items():
        if isinstance(value, (int, float)) and not -(2**31) < value < 2**31:
            raise UserError(
                f'--{name.replace("_", "-")}={value}: is out of range; give a number within +-2^31'
            )
    return COMMANDS[options.command], (options, overrides, *([unknown] if unknown else []))


def main(words: Sequence[str] | None = None) -> int:
    """Runs a command line.

    Args:
        words: without the program's name; default: those of this process.
    Returns:
        The exit code: 0, 1 if training stopped because the numbers were not finite or a check found
        something, 2 for a user's error or a run that a rule of its config ended, 128 + the number
        of the signal that stopped it: 130 after Ctrl-C, 143 after SIGTERM.
    """
    words, code = sys.argv[1:] if words is None else words, 1
    try:
        command, arguments = _parse(words)
        process.prepare()
        code = command(*arguments) or 0
    except (UserError, NotFinite) as error:
        print('fdistill: ' + ' '.join(str(error).split()), file=sys.stderr)
        code = 2 if isinstance(error, UserError) else 1
    except OSError as error:
        if error.errno not in PLACES:
            raise
        # A file that was open when the disk became full has no name.
        place = error.filename or ' '.join(w for w in words if w.startswith('--workdir=')) or '?'
        print(f'fdistill: {place}: {error.strerror}; {PLACES[error.errno]}', file=sys.stderr)
        code = 2
    except MemoryError as error:
        print(
            f'fdistill: memory is short ({error}); lower the batch size or the number of samples',
            file=sys.stderr,
        )
        code = 2
    except KeyboardInterrupt as error:
        again, said = shlex.join(['fdistill', *words]), str(error) or 'interrupted'
        print(f'fdistill: {said}; to go on, give the same command again: {again}', file=sys.stderr)
        code = 128 + getattr(error, 'signum', signal.SIGINT)
    finally:
        if code in (1, 2):
            _leave_others(code)
    return code


def _leave_others(code):
    """Ends this process at once where it is one of several, which wait for it: leaving in order
    would wait for them, for minutes. They end when its connections do."""
    if 'jax' in sys.modules and sys.modules['jax'].distributed.is_initialized():
        if sys.exc_info()[0]:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
