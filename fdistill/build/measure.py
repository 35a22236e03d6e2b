"""Measures runs, and real images."""

import functools
import json
import pathlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from fdistill import config as configs
from fdistill.build.experiment import Experiment
from fdistill.build.run import Run, digest_of, from_workdir
from fdistill.build.sections import load_data, plain_of
from fdistill.config import call
from fdistill.data.sources import Source
from fdistill.errors import UserError
from fdistill.evaluation import evaluate as evaluation
from fdistill.evaluation import protocol as protocols
from fdistill.evaluation import scores
from fdistill.files import disk
from fdistill.training import checkpoint, sharding


def published(config: Mapping[str, Any]) -> bool:
    """Whether a config is evaluated under a protocol other than that of own features."""
    return _published(config.get('evaluation', {}))


def _published(options):
    return options.get('protocol', protocols.OWN) != protocols.OWN


def checked(section: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of an evaluation, before there is anything to evaluate; own features named are own
    features."""
    options = plain_of(section)
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


def evaluate(
    config: Mapping[str, Any] | None,
    workdir: str | pathlib.Path,
    *,
    quiet: bool = False,
    against: Any = None,
    **given: Any,
) -> dict[str, Any]:
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
    options = checked(given if 'protocol' in given else {**config.get('evaluation', {}), **given})
    # Before an hour of samples, not after it.
    disk.folder_for(pathlib.Path(workdir) / 'eval', '--workdir')
    mesh = sharding.make_mesh() if _published(options) else None
    run = from_workdir(workdir, mesh=mesh)
    return measure(config, options, workdir, run, mesh, quiet, against)


def measure(
    config: Mapping[str, Any],
    options: Mapping[str, Any],
    workdir: str | pathlib.Path,
    run: Any,
    mesh: Mesh | None,
    quiet: bool,
    against: Any,
) -> dict[str, Any]:
    """`evaluate` of a `Run`, or of what has its step, sample, nfe, shape, num_classes and digest,
    under the options of an evaluation section."""
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
        known = row['details']['statistics']
        if not (quiet or known['weights_sha256'] or jax.process_index()):
            print(
                f'the statistics {known["reference"]!r} do not tell the weights they were made '
                f'with: the numbers are right only if they are those of {options["detector"]}',
                file=sys.stderr,
            )
        suffix = f'-{rules["name"]}'
        # Less than the whole protocol must not take the place of it.
        if (samples, len(ranges)) != (rules['samples'], len(rules['seeds'])):
            part = protocols.short(samples)
            suffix += f'-{len(ranges)}x{part}' if len(ranges) > 1 else f'-{part}'
        # What was measured with other weights or against other images is another number.
        suffix += '-' + digest_of([row['details']['detector'], known, run.digest])[:8]
    else:
        train, held_out = (against.train, against.held_out) if against else splits(config)
        row = call(
            evaluation.evaluate,
            options,
            'config.evaluation',
            generate=run.sample,
            train=train,
            held_out=held_out,
            nfe=run.nfe,
            progress=not quiet,
            against=against,
        )
    row = {'step': run.step, **row}
    versions = disk.versions() | {
        'device': f'{jax.device_count()} x {jax.devices()[0].device_kind}'
    }
    about = {'checkpoint': run.digest, 'versions': versions}
    row['details'] = row.get('details', {}) | about
    if jax.process_index() == 0:
        path = pathlib.Path(workdir) / 'eval' / f'step-{run.step:09d}{suffix}.json'
        if _published(options) and path.is_file():
            row = scores.merged(json.loads(path.read_text()), row)
        disk.write_json(path, row)
    return json.loads(json.dumps(disk.plain(row)))


def splits(config: Mapping[str, Any]) -> tuple[Source, Source]:
    """The two splits of a config's data."""
    return load_data(config, 'train'), load_data(config, 'held_out')


def while_training(
    plain: Mapping[str, Any],
    built: Experiment,
    source: Source,
    workdir: str | pathlib.Path,
    mesh: Mesh,
) -> Callable[[Any, int], dict[str, float]]:
    """measure(averaged weights, step) -> {name: number}, as `evaluate` measures the finished run.

    Args:
      plain, built: config and experiment of the run.
      source: its training split.
      workdir, mesh: of the run.
    """
    options = checked(plain.get('evaluation', {}))
    # Made once, before there is a step: hours later is too late to hear of statistics of another
    # protocol.
    if _published(options):
        split = sharding.batch_sharding(mesh)
        against = call(scores.reference, options, 'config.evaluation', mesh=mesh, shape=built.shape)
    else:
        split = sharding.replicated(mesh)
        held_out = load_data(plain, 'held_out')
        against = evaluation.reference(source, held_out, progress=False)
    generator = built.method.generator
    generate = jax.jit(generator.sample, out_shardings=split)

    def evaluated(params, step):
        run = Run(
            config=None,
            step=step,
            params=params,
            start=None,
            generate=None,
            sample=functools.partial(generate, params),
            denoise=None,
            trajectory=None,
            nfe=generator.nfe,
            shape=built.shape,
            num_classes=built.num_classes,
            digest=digest_of(checkpoint.digests(params)),
        )
        return evaluation.numbers(measure(plain, options, workdir, run, mesh, True, against))

    return evaluated
