"""From a config to objects, and from a workdir to a model: the only reader of configs.

Sections of a config, each the keyword arguments of one function:
  data        a source of `data.sources.SOURCES` by name, and `flip`
  network     a network of `networks.NETWORKS`; taken from the teacher where left out
  denoiser    `denoiser.precondition`; likewise
  fake_score  `denoiser.precondition` of the fake score, where it differs from the student's
  teacher     `workdir` of a run, or `oracle`, a named mixture; `guidance` and `guidance_interval`
  method      `pretrain` or one of `methods.DISTILLATIONS`, its laws and grid being sections with a
  name discriminator  a head of `networks.HEADS`
  optimizer   `optim.adam` for each role
  training, mesh   `loop.train`, `sharding.make_mesh`
  evaluation  `evaluate.evaluate`, or with a published `protocol` `scores.evaluate`
"""

import copy
import fnmatch
import functools
import hashlib
import inspect
import json
import operator
import pathlib
import sys
import typing
from typing import Any, Callable, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict, config_dict

from fdistill import config as configs
from fdistill import networks
from fdistill.config import call
from fdistill.data import pipeline, sources
from fdistill.diffusion import denoiser as denoisers
from fdistill.diffusion import noise, oracle, samplers
from fdistill.errors import UserError, pick, suggest
from fdistill.evaluation import evaluate as evaluation
from fdistill.evaluation import protocol as protocols
from fdistill.evaluation import scores, statistics
from fdistill.files import CONFIG, disk, pictures
from fdistill.methods import DISTILLATIONS, exact, pretrain
from fdistill.training import checkpoint, lanes, loop, optim, sharding
from fdistill.training.step import ema_decay

METHODS = {'pretrain': pretrain, 'exact': exact, **DISTILLATIONS}
SECTIONS = 'seed data network denoiser fake_score teacher method discriminator optimizer training mesh evaluation image origin'.split()
# What may differ between a run and its resumption without making it another run.
FREE = ('mesh', 'evaluation', 'origin', 'data.data_dir') + tuple(
    f'training.{name}'
    for name in (
        'log_every',
        'checkpoint_every',
        'sample_every',
        'evaluate_every',
        'keep',
        'max_skipped',
        'wandb',
    )
)
# What the lanes of one program may differ in besides their seed, as patterns of dotted names:
# numbers that enter the arithmetic of a step and nothing else. With each the value, if any, that
# leaves a part of the step out: it has a program of its own.
CONTINUOUS = {
    **{f'optimizer.*.{name}': None for name in ('learning_rate', 'b1', 'b2', 'eps', 'final')},
    **{f'optimizer.*.{name}': 0 for name in ('weight_decay', 'clip')},
    **{f'training.{name}': None for name in ('ema_half_life', 'ema_ramp_up')},
    **{
        f'method.{name}': None
        for name in ('sigma_init', 'alpha', 'c', 'discriminator_weight', 'bins_decay')
    },
    **{f'method.{name}': None for name in ('logit_clip', 'ratio_low', 'ratio_high')},
    **{f'method.{name}': 0 for name in ('gan_weight', 'r1_weight', 'label_dropout')},
    **{f'method.{law}.*': None for law in ('law', 'student_law', 'critic_law')},
    **{f'{section}.sigma_data': None for section in ('denoiser', 'fake_score')},
    'teacher.guidance': 1,
}
# Where things lie may differ too, as long as the same lies there: `origin` has the digests.
PLACES = ('data.path', 'teacher.workdir')


class Experiment(NamedTuple):
    """A config turned into functions. `teacher` is the `Denoiser`, whose parameters, if any, lie in
    `teacher_workdir`."""

    method: Any
    denoiser: Any
    teacher: Any
    teacher_workdir: Any
    shape: tuple
    num_classes: int


class Run(NamedTuple):
    """A trained model, as a notebook, an evaluation or a student wants it.

    config: of the run. step: of the checkpoint. params: the EMA weights.
    generate(key, n, label=None) -> samples[n,...]: label an int, int[n], or None for random
      classes.
    sample(noise[B,...] ~ N(0, 1), label[B]) -> samples[B,...], jitted; the same noise gives the
      same samples.
    denoise(x[B,...], sigma[B], label=None) -> x0[B,...]: the network as a denoiser.
    trajectory(noise[B,...], label[B]) -> (samples, D[N,B,...]): also what the network took x0 for
      at each level; None for a one-step student.
    nfe: network evaluations of one sample. shape, num_classes: of the data. digest: of the EMA
      weights.
    """

    config: Any
    step: int
    params: Any
    generate: Callable
    sample: Callable
    denoise: Callable
    trajectory: Callable | None
    nfe: int
    shape: tuple
    num_classes: int
    digest: str


def _plain(section):
    """A section as keyword arguments: what JSON made a list is a tuple again."""
    return configs.with_tuples(
        section.to_dict() if isinstance(section, ConfigDict) else dict(section)
    )


def _named(table, section, where, **given):
    """table[section.name](**rest of the section); a name alone is a section without the rest."""
    made, options = _chosen(table, section, where)
    return _call(made, options, where, **given)


def _call(function, section, where, **given):
    """`config.call`. A number of lanes has no type to check: each config had its own checked."""
    own = {name: value for name, value in section.items() if isinstance(value, lanes.Number)}
    rest = {name: value for name, value in section.items() if name not in own}
    return call(function, rest, where, **given, **own)


def _chosen(table, section, where):
    """(table[section.name], rest of the section)."""
    section = {'name': section} if isinstance(section, str) else _plain(section)
    if 'name' not in section:
        raise UserError(f'{where}.name: missing{suggest("", table)}')
    return pick(table, section.pop('name'), f'{where}.name'), section


def _section(config, name):
    if name not in config:
        raise UserError(
            f'config.{name}: missing; this section is needed, see the files in configs/'
        )
    return config[name]


def load_data(config, split):
    """The `Source` of a split."""
    section = _plain(_section(config, 'data'))
    section.pop('flip', None)
    return _named(sources.SOURCES, section, 'config.data', split=split)


def resolve(config, source):
    """The config that a run keeps: plain values, complete without the teacher's folder or the data.

    A network or denoiser left out is the teacher's; the shape of the data is noted in `image`.
    """
    plain = configs.to_json(config)
    for name in plain:
        if name not in SECTIONS:
            raise UserError(
                f'config.{name}: unknown section{suggest(name, SECTIONS, prefix="config.")}'
            )
    plain['image'] = {
        'shape': list(source.images.shape[1:]),
        'num_classes': source.num_classes if source.num_classes > 1 else 0,
    }
    teacher = plain.get('teacher', {})
    if 'workdir' in teacher:
        known = configs.to_json(configs.read(teacher['workdir'], 'config.teacher.workdir'))
        if known['image'] != plain['image']:
            raise UserError(
                f'config.teacher.workdir={teacher["workdir"]}: was trained on {known["image"]}, not {plain["image"]}'
            )
        for name in ('network', 'denoiser'):
            teacher[name] = known[name]
            plain.setdefault(name, known[name])
    return plain


def _denoiser(network, precondition, image, where):
    """A preconditioned network that fits the data."""
    parameters = inspect.signature(
        pick(networks.NETWORKS, network.get('name'), f'{where}network.name')
    ).parameters
    fitting = {'num_classes': image['num_classes']}
    if 'resolution' in parameters:
        height, width, channels = image['shape'] if len(image['shape']) == 3 else (0, 1, 0)
        if height != width:
            raise UserError(
                f'{where}network.name={network["name"]}: needs square images, the data has {image["shape"]}'
            )
        fitting |= {'resolution': height, 'channels': channels}
    built = _named(networks.NETWORKS, network, f'{where}network', **fitting)
    return _call(denoisers.precondition, precondition, f'{where}denoiser', network=built)


def experiment(plain):
    """An `Experiment` from a resolved config; reads no file."""
    image, method = plain['image'], dict(_section(plain, 'method'))
    denoiser = _denoiser(_section(plain, 'network'), plain.get('denoiser', {}), image, 'config.')
    sigma_data = plain.get('denoiser', {}).get('sigma_data', 0.5)
    name = method.get('name')
    make = pick(METHODS, name, 'config.method.name')
    for law in ('law', 'student_law', 'critic_law'):
        if law in method:
            method[law] = _named(noise.LAWS, method[law], f'config.method.{law}')
    teacher, workdir = None, None
    if name == 'pretrain':
        if 'grid' not in method:
            raise UserError(
                'config.method.grid: missing; it is the sampling grid, e.g. dict(name="karras", steps=18)'
            )
        sigmas = _named(noise.GRIDS, method.pop('grid'), 'config.method.grid')
        if 'sampler' in method:
            method['sampler'] = _sampler(method['sampler'], 'config.method.sampler')
        built = _named(
            {name: make},
            method,
            'config.method',
            denoiser=denoiser,
            sigma_data=sigma_data,
            sigmas=sigmas,
        )
    elif name == 'exact':
        mixture = _exact_teacher(plain, image)
        teacher = mixture.denoiser()
        built = _named({name: make}, method, 'config.method', student=denoiser, mixture=mixture)
    else:
        teacher, workdir = _teacher(_section(plain, 'teacher'), image)
        fake, given = denoiser, {}
        if 'fake_score' in plain:
            fake = _denoiser(plain['network'], plain['fake_score'], image, 'config.fake_score.')
            sigma_data = plain['fake_score'].get('sigma_data', 0.5)
        if 'discriminator' in plain:
            section = dict(plain['discriminator'])
            if section.get('name') == 'mlp':
                section['num_classes'] = image['num_classes']
            given['discriminator'] = _named(networks.HEADS, section, 'config.discriminator')
        if workdir is None and method.get('from_teacher', True):
            raise UserError(
                'config.method.from_teacher: an oracle has no network to start from; set it to False'
            )
        built = _named(
            {name: make},
            method,
            'config.method',
            student=denoiser,
            teacher=teacher,
            fake_score=fake,
            sigma_data=sigma_data,
            **given,
        )
    return Experiment(
        built, denoiser, teacher, workdir, tuple(image['shape']), image['num_classes']
    )


def _sampler(section, where):
    """A `samplers.Sampler` with its options, which are checked by tracing it on a toy."""

    sampler, options = _chosen(samplers.SAMPLERS, section, where)
    toy = {
        'denoise': lambda x, sigma: x,
        'x': jnp.ones((1, 1)),
        'sigmas': np.arange(5.0, -1.0, -1.0),
        'key': jax.random.key(0),
    }
    jax.eval_shape(lambda: call(sampler.solve, options, where, trajectory=False, **toy))
    return sampler._replace(solve=functools.partial(sampler.solve, **options))


def _exact_teacher(plain, image):
    """The mixture of the method `exact`, whose formulas hold for one kind of student only."""
    if plain['network']['name'] != 'gaussian':
        raise UserError(
            f'config.network.name={plain["network"]["name"]!r}: the method exact needs the network gaussian'
        )
    section = _section(plain, 'teacher')
    if set(section) != {'oracle'}:
        raise UserError(
            'config.teacher: the method exact needs oracle, a named mixture, and nothing else'
        )
    mixture = oracle.mixture(*sources.mixture_parameters(section['oracle']))
    if mixture.means.shape[1:] != tuple(image['shape']):
        raise UserError(
            f'config.teacher.oracle={section["oracle"]}: lies in {mixture.means.shape[1]} dimensions, the data not'
        )
    return mixture


def _teacher(section, image):
    """(Denoiser with guidance, workdir or None)."""
    if ('workdir' in section) == ('oracle' in section):
        raise UserError(
            'config.teacher: give either workdir, the folder of a trained teacher, or oracle, a named mixture'
        )
    if 'oracle' in section:
        mixture = oracle.mixture(*sources.mixture_parameters(section['oracle']))
        return mixture.denoiser(conditional=image['num_classes'] > 0), None
    base = _denoiser(section['network'], section['denoiser'], image, 'config.teacher.')
    try:
        return denoisers.guide(
            base, section.get('guidance', 1.0), section.get('guidance_interval')
        ), section['workdir']
    except ValueError as error:
        raise UserError(f'config.teacher: {error}') from error


def _load_ema(built, workdir, mesh=None):
    """(EMA weights of a run, position of their checkpoint), placed on the mesh or on the first
    device."""
    label = jnp.zeros(1, jnp.int32)
    shape = tuple(configs.read(workdir)['image']['shape'])
    shapes = jax.eval_shape(
        lambda: built.init(jax.random.key(0), jnp.zeros((1, *shape), jnp.float32), label)
    )
    if not (pathlib.Path(workdir) / checkpoint.FOLDER).is_dir():
        raise UserError(f'{workdir}: has no checkpoint yet; run `fdistill train` on it first')
    placed = (
        sharding.state_sharding(shapes, mesh)
        if mesh
        else jax.tree.map(lambda _: _first_device(), shapes)
    )
    with checkpoint.Checkpoints(workdir) as checkpoints:
        restored = checkpoints.restore({'ema': checkpoint.abstract(shapes, placed)})
    if restored is None:
        raise UserError(f'{workdir}: has no finished checkpoint; run `fdistill train` on it first')
    arrays, position = restored
    return arrays['ema'], position


def _first_device():
    return jax.sharding.SingleDeviceSharding(jax.local_devices()[0])


def _check_resumable(plain, workdir):
    """Refuses to go on with another experiment in the same folder."""
    if not (pathlib.Path(workdir) / CONFIG).is_file():
        return
    before = configs.to_json(configs.read(workdir))
    old, new = disk.flat(before), disk.flat(configs.to_json(plain))
    # A run of 0.1 has no digests, so its places have to stay.
    free = FREE + PLACES if 'origin' in before else FREE
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) != new.get(key) and not key.startswith(free):
            raise UserError(
                f'--workdir={workdir}: holds a run with config.{key}={old.get(key)!r}, now {new.get(key)!r}; '
                'go on with the same config or give another folder'
            )
    for name, digest in before.get('origin', {}).items():
        if digest != plain['origin'].get(name):
            what = {'data': 'other data', 'teacher': 'other weights of its teacher'}[name]
            raise UserError(
                f'--workdir={workdir}: its run began with {what}; go on with the same or give another folder'
            )


def _origin(source, teacher=None):
    """{'data', 'teacher'}: digests of what a run is made from, wherever it lies.

    Args:
      source: `Source`. Its labels stand for it: pixels may be decoded a little differently by
        another library.
      teacher: the digests in the teacher's checkpoint, if it has one.
    """
    parts = {'data': source.labels.tolist()} | ({'teacher': teacher} if teacher else {})
    return {name: _digest(part) for name, part in parts.items()}


def _digest(value):
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def optimizers(plain, method):
    """{role: optimizer}, each told how often its role is trained."""
    section, steps = dict(_section(plain, 'optimizer')), _section(plain, 'training').get('steps', 0)
    counts = optim.role_updates(method.cycle, steps)
    for role in section:
        if role not in method.losses:
            raise UserError(f'config.optimizer.{role}: no such role{suggest(role, method.losses)}')
    missing = [role for role in method.losses if role not in section]
    if missing:
        raise UserError(
            f'config.optimizer.{missing[0]}: missing; this method trains {", ".join(method.losses)}'
        )
    return {
        role: _call(
            optim.adam, section[role], f'config.optimizer.{role}', steps=counts.get(role, 0)
        )
        for role in method.losses
    }


def train(config, workdir, *, quiet=False, stop_at=None):
    """Trains what a config describes; resumes where the workdir holds a checkpoint.

    Args:
      config: ConfigDict.
      workdir: run folder; nothing is written there before everything has been checked.
      quiet: no progress on stderr.
      stop_at: see `loop.train`.

    Returns:
      The final `TrainState`.

    Raises:
      UserError: on whatever the user can mend.
    """
    disk.folder_for(workdir, '--workdir')
    mesh = call(sharding.make_mesh, _plain(config.get('mesh', {})), 'config.mesh')
    ready = _ready(config, workdir, mesh)
    return call(
        loop.train,
        ready.training,
        'config.training',
        method=ready.built.method,
        optimizers=ready.optimizers,
        frozen=ready.frozen,
        batches=ready.batches,
        mesh=mesh,
        workdir=workdir,
        config=ready.plain,
        seed=ready.seed,
        num_classes=ready.built.num_classes,
        quiet=quiet,
        stop_at=stop_at,
        evaluate=_evaluation(ready, workdir, mesh)
        if ready.training.get('evaluate_every')
        else None,
    )


def train_to_the_end(config, workdir, *, quiet=False):
    """`train` for whoever goes on with what came of it; one that a SIGTERM ended early is no
    result.

    Raises:
      KeyboardInterrupt: it stopped before its last step, with a checkpoint; the same command goes
        on.
    """
    state = train(config, workdir, quiet=quiet)
    if int(state.step) < config.training.steps:
        raise KeyboardInterrupt(
            f'{workdir}: stopped at step {int(state.step)} of {config.training.steps}'
        )
    return state


def replaced(plain, settings):
    """A copy of nested dicts with other values in the places of {dotted name: value}."""
    plain = copy.deepcopy(plain)
    for name, value in settings.items():
        *path, last = name.split('.')
        functools.reduce(operator.getitem, path, plain)[last] = value
    return plain


def _continuous(name, value):
    """Whether a setting may differ between lanes of one program."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return any(
        fnmatch.fnmatchcase(name, pattern) and value != off for pattern, off in CONTINUOUS.items()
    )


def common(plain):
    """What configs have in common that can be trained by `train_lanes`, {dotted name: value}; the
    same, or they cannot."""
    return {
        name: '*' if _continuous(name, value) else value
        for name, value in disk.flat(plain).items()
        if name != 'seed'
    }


def train_lanes(trials, *, quiet=False):
    """Trains configs that differ in their seed and `CONTINUOUS` settings alone as one vmapped
    program; see `lanes.train`.

    Args:
      trials: [(config, workdir)], of workdirs without a checkpoint.
      quiet: no progress on stderr.

    Returns:
      [None, or the NotFinite that ended the run].

    Raises:
      UserError: on whatever the user can mend.
      MemoryError: when they are too many for the device.
    """
    (config, workdir), *others = trials
    if any(
        common(configs.to_json(other)) != common(configs.to_json(config)) for other, _ in others
    ):
        raise UserError(
            'train_lanes: the configs differ in more than their seed and continuous settings'
        )
    first = _ready(config, workdir)
    ready = [first, *(_ready(other, folder, like=first) for other, folder in others)]
    flats = [disk.flat(one.plain) for one in ready]
    names = [
        name
        for name, value in flats[0].items()
        if _continuous(name, value) and len({own[name] for own in flats}) > 1
    ]
    ema = {'ema_half_life': 'half_life', 'ema_ramp_up': 'ramp_up'}

    def make(settings):
        plain = replaced(first.plain, settings)
        method, training = experiment(plain).method, plain['training']
        options = {ema[name]: value for name, value in training.items() if name in ema}
        decay = _call(ema_decay, options, 'config.training', batch_size=training['batch_size'])
        return method, optimizers(plain, method), decay

    return call(
        lanes.train,
        {name: value for name, value in first.training.items() if name not in ema},
        'config.training',
        make=make,
        frozen=first.frozen,
        lanes=[
            lanes.Lane(
                one.seed, one.batches, folder, one.plain, {name: own[name] for name in names}
            )
            for one, own, (_, folder) in zip(ready, flats, trials)
        ],
        quiet=quiet,
    )


class _Ready(NamedTuple):
    """A config whose every part has been made and checked."""

    source: sources.Source
    plain: dict
    built: Experiment
    optimizers: dict
    training: dict
    batches: Callable
    frozen: dict
    seed: int


def _ready(config, workdir, mesh=None, like=None):
    """Everything `loop.train` needs, checked before anything is written; the teacher on the mesh or
    on the first device.

    With `like`, what is ready of another config of the same data and teacher, these are not loaded
    again.
    """
    source = like.source if like else load_data(config, 'train')
    plain = resolve(config, source)
    built = experiment(plain)
    roles = optimizers(plain, built.method)
    training = dict(_section(plain, 'training'))
    flip = plain['data'].get('flip', False)
    batch_size = training.get('batch_size', 0)
    seed = plain.get('seed', 0)

    def batches(start):
        return pipeline.batches(
            source,
            batch_size,
            seed,
            start,
            flip,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )

    # Checked here, before anything is written, and not where the trainer finds it.
    if mesh is not None:
        call(sharding.check_batch_size, {'batch_size': batch_size}, 'config.training', mesh=mesh)
    call(batches, {'start': 0}, 'config.data')
    _checked(plain.get('evaluation', {}))
    frozen, weights = like.frozen if like else {}, None
    if built.teacher_workdir is not None and not like:
        base = _denoiser(
            plain['teacher']['network'],
            plain['teacher']['denoiser'],
            plain['image'],
            'config.teacher.',
        )
        frozen['teacher'], position = _load_ema(base, built.teacher_workdir, mesh)
        weights = position['digests']['ema']
    plain['origin'] = like.plain['origin'] if like else _origin(source, weights)
    _check_resumable(plain, workdir)
    return _Ready(source, plain, built, roles, training, batches, frozen, seed)


def from_workdir(path, *, sampler=None, steps=None, mesh=None):
    """A trained model.

    Args:
      path: run folder.
      sampler, steps: other than the run's own, for a model trained by `pretrain`; a key of
        `samplers.SAMPLERS`, or a section with its name and options, as {'name': 'ghvb', 'order':
        3.8}.
      mesh: whose devices share a batch of `Run.sample`, which then takes and gives global arrays;
        default: the first device.

    Returns:
      `Run`.

    Raises:
      UserError: if there is no run or no checkpoint, or a one-step student is asked for a sampler.
    """
    plain = configs.to_json(configs.read(path))
    if sampler is not None or steps is not None:
        if plain['method']['name'] != 'pretrain':
            raise UserError(
                f'--workdir={path}: a one-step student takes neither --sampler nor --steps'
            )
        plain['method'] |= {'sampler': sampler} if sampler else {}
        plain['method']['grid'] |= {'steps': steps} if steps else {}
    built = experiment(plain)
    params, position = _load_ema(built.denoiser, path, mesh)
    jitted = jax.jit(built.method.generate, out_shardings=mesh and sharding.batch_sharding(mesh))
    denoise = jax.jit(
        lambda params, x, sigma, label: built.denoiser.apply(params, x, sigma, label)[0]
    )

    def sample(noise, label):
        return jitted(params, noise, label)

    def generate(key, n, label=None):
        return sample(*start(key, n, label, built.shape, built.num_classes))

    def denoise_with(x, sigma, label=None):
        label = jnp.full(x.shape[0], -1, jnp.int32) if label is None else label
        return denoise(params, x, jnp.broadcast_to(jnp.asarray(sigma, x.dtype), x.shape[:1]), label)

    config = configs.from_json(plain)
    trajectory = built.method.trajectory and functools.partial(
        jax.jit(built.method.trajectory), params
    )
    nfe, shape, num_classes = built.method.nfe, built.shape, built.num_classes
    digest = _digest(position['digests']['ema'])
    return Run(
        config,
        position['next_step'],
        params,
        generate,
        sample,
        denoise_with,
        trajectory,
        nfe,
        shape,
        num_classes,
        digest,
    )


def start(key, n, label, shape, num_classes):
    """(unit noise [n, *shape], label int32 [n]): label an int, int[n], or None for random
    classes."""
    key_noise, key_label = jax.random.split(key)
    if label is None:
        label = jax.random.randint(key_label, (n,), 0, max(num_classes, 1))
    return jax.random.normal(key_noise, (n, *shape)), jnp.broadcast_to(
        jnp.asarray(label, jnp.int32), (n,)
    )


def _defaults(config):
    """{dotted name: default} of what a config may set and need not; a placeholder of its type where
    the default is None."""
    data = config.get('data', {}).get('name')
    takes = {
        'data': ([sources.SOURCES[data]] if data in sources.SOURCES else [], {'split'}),
        'training': ([loop.train], {'quiet', 'stop_at', 'evaluate'}),
        'evaluation': ([evaluation.evaluate, scores.evaluate], {'progress', 'against'}),
    }
    found = {}
    for section, (functions, left_out) in takes.items():
        for function in functions:
            for name, parameter in inspect.signature(function, eval_str=True).parameters.items():
                value = parameter.default
                if value is parameter.empty or name in left_out:
                    continue
                if value is None:
                    kinds = [
                        kind
                        for kind in typing.get_args(parameter.annotation)
                        if kind in (int, float, str)
                    ]
                    if not kinds:
                        continue
                    value = config_dict.placeholder(kinds[0])
                found[f'{section}.{name}'] = value
    # It has no default, for it decides on all others.
    return found | {'evaluation.protocol': protocols.OWN}


def complete(config, names):
    """Gives a config those of `names`, dotted, that it leaves to their defaults, so that they can
    be set; in place."""
    defaults = _defaults(config)
    for name in names:
        section, _, last = name.rpartition('.')
        if name in defaults and section in config and last not in config[section]:
            with config.unlocked():
                config[section][last] = defaults[name]


def override(config, words):
    """`config.override` that also takes what a config leaves to its default, as
    --config.training.evaluate_every=100."""
    complete(config, [word.removeprefix('--config.').partition('=')[0] for word in words])
    configs.override(config, words)


def published(config):
    """Whether a config is evaluated under a protocol other than that of own features."""
    return _published(config.get('evaluation', {}))


def _published(options):
    return options.get('protocol', protocols.OWN) != protocols.OWN


def _checked(section):
    """Settings of an evaluation, before there is anything to evaluate; own features named are own
    features."""
    options = _plain(section)
    if _published(options):
        if 'seed' in options:
            raise UserError(
                'config.evaluation.seed: a published protocol has seeds of its own; leave it out'
            )
        call(scores.check, options, 'config.evaluation')
        return options
    options.pop('protocol', None)
    call(evaluation.check, options, 'config.evaluation')
    return options


def evaluate(config, workdir, *, quiet=False, against=None, **given):
    """Measures a run; writes `eval/step-N.json`, or `eval/step-N-PROTOCOL.json`, and returns its
    row.

    Of a part of a protocol the file says which: `eval/step-N-edm-3x5k-DIGEST.json`, or `-50k-` of
    one range. The digest is of weights, statistics and checkpoint; metrics that were measured
    before with the same stay in the file.

    Args:
      config: None for the run's own, or one whose `data` and `evaluation` are used instead.
      workdir: run folder.
      quiet: no progress on stderr.
      against: `evaluate.Reference` or `scores.Reference`, to share it between runs.
      given: settings other than the config's `evaluation`, as samples=5000; with `protocol`, in
        place of all of them.

    Raises:
      UserError: on whatever the user can mend.
    """
    given = {name: value for name, value in given.items() if value is not None}
    config = config or configs.read(workdir)
    options = _checked(given if 'protocol' in given else {**config.get('evaluation', {}), **given})
    # Before an hour of samples, not after it.
    disk.folder_for(pathlib.Path(workdir) / 'eval', '--workdir')
    mesh = sharding.make_mesh() if _published(options) else None
    run = from_workdir(workdir, mesh=mesh)
    return _measure(config, options, workdir, run, mesh, quiet, against)


def _measure(config, options, workdir, run, mesh, quiet, against):
    """`evaluate` of a `Run`, or of what has its fields, under the options of an evaluation
    section."""
    options, suffix = dict(options), ''
    if _published(options):
        row = call(
            scores.evaluate,
            options,
            'config.evaluation',
            generate=run.sample,
            shape=run.shape,
            num_classes=run.num_classes,
            nfe=run.nfe,
            mesh=mesh,
            progress=not quiet,
            against=against,
        )
        rules, samples, ranges = (row['details'][name] for name in ('rules', 'samples', 'ranges'))
        if not (quiet or row['details']['statistics']['weights_sha256'] or jax.process_index()):
            said = f'the statistics {row["details"]["statistics"]["reference"]!r} do not tell the weights they were made with'
            print(
                f'{said}: the numbers are right only if they are those of {options["detector"]}',
                file=sys.stderr,
            )
        suffix = f'-{rules["name"]}'
        # Less than the whole protocol must not take the place of it.
        if (samples, len(ranges)) != (rules['samples'], len(rules['seeds'])):
            suffix += (
                f'-{len(ranges)}x{protocols.short(samples)}'
                if len(ranges) > 1
                else f'-{protocols.short(samples)}'
            )
        # What was measured with other weights or against other images is another number.
        suffix += (
            '-'
            + _digest([row['details']['detector'], row['details']['statistics'], run.digest])[:8]
        )
    else:
        train_source, held_out = (against.train, against.held_out) if against else _splits(config)
        row = call(
            evaluation.evaluate,
            options,
            'config.evaluation',
            generate=run.sample,
            train=train_source,
            held_out=held_out,
            nfe=run.nfe,
            progress=not quiet,
            against=against,
        )
    row = {'step': run.step, **row}
    versions = disk.versions() | {
        'device': f'{jax.device_count()} x {jax.devices()[0].device_kind}'
    }
    row['details'] = row.get('details', {}) | {'checkpoint': run.digest, 'versions': versions}
    if jax.process_index() == 0:
        path = pathlib.Path(workdir) / 'eval' / f'step-{run.step:09d}{suffix}.json'
        if _published(options) and path.is_file():
            row = scores.merged(json.loads(path.read_text()), row)
        disk.write_json(path, row)
    return json.loads(json.dumps(disk.plain(row)))


def _splits(config):
    return load_data(config, 'train'), load_data(config, 'held_out')


def _evaluation(ready, workdir, mesh):
    """evaluate(EMA weights, step) -> {name: number}, for `loop.train`: as `evaluate` measures the
    finished run."""
    options = _checked(ready.plain.get('evaluation', {}))
    built = ready.built
    # Made once, before there is a step: hours later is too late to hear of statistics of another
    # protocol.
    if _published(options):
        split = sharding.batch_sharding(mesh)
        against = call(scores.reference, options, 'config.evaluation', mesh=mesh, shape=built.shape)
    else:
        split = sharding.replicated(mesh)
        against = evaluation.reference(
            ready.source, load_data(ready.plain, 'held_out'), progress=False
        )
    generate = jax.jit(built.method.generate, out_shardings=split)

    def evaluate(ema, step):
        run = Run(
            None,
            step,
            ema,
            None,
            functools.partial(generate, ema),
            None,
            None,
            built.method.nfe,
            built.shape,
            built.num_classes,
            _digest(checkpoint.digests(ema)),
        )
        row = _measure(ready.plain, options, workdir, run, mesh, True, against)
        return evaluation.numbers(row)

    return evaluate


def make_statistics(config, out, *, split=None, reference=None, quiet=False, **options):
    """Measures the real images of a config's data under a protocol; writes a statistics file and
    returns what it holds.

    Args:
      config: whose `data` is taken.
      out: `.npz` file to write.
      split: 'train', 'held_out' or 'all'; default: 'all' of an image folder, whose splits are ours,
        else 'train'.
      reference: what the images are called in names of numbers; default: the data's name, with
        another split behind it.
      quiet: no progress on stderr.
      options: protocol, detector, keep and batch_size, as of `scores.make_statistics`.

    Raises:
      UserError: on whatever the user can mend; nothing has been written then.
    """
    statistics.vacant(out)  # Before an hour of features, not after it.
    usual = 'all' if config['data']['name'] == 'image_folder' else 'train'
    split = split or usual
    if split == 'all':
        parts = _splits(config)
        joined = {
            field: np.concatenate([getattr(part, field) for part in parts])
            for field in ('images', 'labels')
        }
        source = parts[0]._replace(**joined)
    else:
        source = load_data(config, split)
    # So that numbers against several parts of a data set have several names.
    source = source._replace(
        name=reference or source.name + ('' if split == usual else f'-{split}')
    )
    made = call(
        scores.make_statistics,
        options,
        'stats make',
        source=source,
        mesh=sharding.make_mesh(),
        progress=not quiet,
    )
    if jax.process_index() == 0:
        statistics.write(out, made)
    return made


def sample(
    workdir, *, n=None, seed=0, label=None, out=None, sampler=None, steps=None, trajectory=False
):
    """Draws samples from a run into a PNG grid (or a scatter plot of points), or an .npy of floats.

    Args:
      workdir: run folder.
      n, seed: number of samples, by default 64, or 8 with their trajectory; seed of noise and
        labels. n > 0, seed >= 0.
      label: class, or None for random ones.
      out: file, .png or .npy; default samples/sample-seed.png in the workdir.
      sampler, steps: see `from_workdir`.
      trajectory: draw, or keep [n, N + 1, ...], what the network took x0 for at each of N levels,
        and the samples last (DT-visualisation, arXiv 2503.10637). A row a sample; points are
        scattered, a picture a level.

    Returns:
      The path written.

    Raises:
      UserError: on values out of range.
    """
    out = pathlib.Path(workdir) / 'samples' / f'sample-{seed}.png' if out is None else out
    path = disk.file_for(out, '--out', ('.png', '.npy'))
    n = (
        n
        if n is not None
        else 8
        if trajectory and len(configs.read(workdir).image.shape) == 3
        else 64
    )
    if n < 1 or seed < 0:
        raise UserError(f'--n={n}, --seed={seed}: n must be >= 1 and seed >= 0')
    run = from_workdir(workdir, sampler=sampler, steps=steps)
    if label is not None and not -1 <= label < max(run.num_classes, 1):
        raise UserError(f'--label={label}: give 0 to {run.num_classes - 1}, or -1 for none')
    if trajectory and not run.trajectory:
        raise UserError(f'--trajectory: {workdir} holds a one-step generator, which has none')
    noise, labels = start(jax.random.key(seed), n, label, run.shape, run.num_classes)
    if trajectory:
        x0, estimates = run.trajectory(noise, labels)
        samples = np.asarray(jnp.concatenate([estimates, x0[None]]).swapaxes(0, 1), np.float32)
    else:
        samples = np.asarray(run.sample(noise, labels), np.float32)
    if path.suffix == '.npy':
        disk.write(path, lambda temporary: np.save(temporary, samples))
    else:
        pictures.write_png(path, _picture(samples, trajectory))
    print(path)
    return path


def _picture(samples, trajectory):
    if len(samples.shape) - trajectory == 4:
        return pictures.image_grid(
            samples.reshape(-1, *samples.shape[-3:]), samples.shape[1] if trajectory else None
        )
    if not trajectory:
        return pictures.scatter(samples)
    limit = 1.1 * float(np.abs(samples).max())
    return np.concatenate(
        [pictures.scatter(level, limit=limit) for level in samples.swapaxes(0, 1)], 1
    )
