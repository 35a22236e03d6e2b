"""Measures runs."""

import json
import pathlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from fdistill import config as configs
from fdistill.build.evaluators import evaluator
from fdistill.build.experiment import Experiment
from fdistill.build.latents import decoder_of, of_images
from fdistill.build.loading import folder_of, opened
from fdistill.build.rewarding import whole
from fdistill.build.run import digest_of
from fdistill.build.sections import load_data, real
from fdistill.build.trained_on import trained_on
from fdistill.data.sources import Source
from fdistill.errors import pick
from fdistill.evaluation import evaluate as evaluation
from fdistill.evaluation.subject import Row, Subject
from fdistill.files import disk
from fdistill.training import checkpoint, sharding


def evaluate(
    config: Mapping[str, Any] | None,
    workdir: str | pathlib.Path | None = None,
    *,
    weights: str | pathlib.Path | None = None,
    solver: Mapping[str, Any] | None = None,
    quiet: bool = False,
    against: Any = None,
    **given: Any,
) -> dict[str, Any]:
    """Measures a run; writes `eval/step-N.json`, or `eval/step-N-PROTOCOL.json`, and returns its
    row.

    If only a part of a protocol was measured, the file's name says which:
    `eval/step-N-edm-3x5k-DIGEST.json`, or `-50k-` for one range. The digest is of weights,
    statistics and checkpoint. Metrics that were measured before with the same digest stay in the
    file. Under another solver than its own it is `eval/step-N-DIGEST.json`.

    Args:
      config: None for the run's own, or one whose `data` and `evaluation` are used instead.
      workdir, weights: run folder, or file of weights; one of them. What is written about weights
        goes to the folder beside them that is called as they are.
      solver: other sampler, steps and guidance than its own, `vae` and `best_of`, see
        `from_workdir`. The row then has the reward of `best_of`.
      quiet: no progress on stderr.
      against: `evaluate.Reference` or `scores.Reference`, to share it between runs.
      given: settings other than the config's `evaluation`, as samples=5000; with `protocol`, in
        place of all of them.

    Raises:
      UserError: on whatever the user can mend.
    """
    given = {name: value for name, value in given.items() if value is not None}
    home = folder_of(workdir, weights)
    if config is None:
        config = configs.read(workdir) if weights is None else {}
    section = given if 'protocol' in given else {**config.get('evaluation', {}), **given}
    chosen, _ = evaluator(section)
    # Before an hour of samples, not after it.
    disk.folder_for(home / 'eval', '--workdir' if weights is None else '--weights', ours=True)
    mesh = sharding.make_mesh() if chosen.sharded else None
    run = opened(workdir, weights, mesh=mesh, **(solver or {}))
    details, other, plain = {}, '', configs.to_json(run.config)
    best, seen = (solver or {}).get('best_of'), plain
    if best and 'reward' in best:
        config = {**config, 'reward': best['reward']}
        # What was chosen by a number is no less biased in it.
        said = {'trained_on': plain.get('trained_on', ()), 'reward': whole(best['reward'])}
        seen = {'trained_on': trained_on(said, lambda: load_data(of_images(config), 'train'))}
    # Weights give other samples under another solver, or in other jumps.
    if weights is not None:
        changed = bool((solver or {}).keys() - {'vae'})
    else:
        own = configs.to_json(configs.read(workdir))['method']
        changed = best is not None or plain['method'] != own
    if weights is not None or changed:
        details = {name: plain[name] for name in ('generator',) if name in plain}
        details |= {'solver': plain.get('method')} | ({'best_of': best} if best else {})
        run = run._replace(digest=digest_of([run.digest, details]))
        other = f'-{run.digest[:8]}' if changed else ''
    subject = Subject(run.sample, run.shape, run.num_classes, run.nfe, run.step, run.digest)
    subject = subject._replace(decoded=run.decoded, trained_on=(*seen.get('trained_on', ()),))
    if chosen.sharded and 'given' in run.config.image:
        subject = subject._replace(given=given_of(load_data(real(config), 'train')))
    return measure(
        config,
        section,
        home,
        subject,
        mesh,
        quiet=quiet,
        against=against,
        details=details,
        other=other,
    )


def given_of(source: Source) -> Callable[[Any], dict[str, Any]]:
    """`Subject.given`: of the training samples in their order."""
    return lambda index: source.condition(np.asarray(index) % len(source.labels))


def measure(
    config: Mapping[str, Any],
    section: Mapping[str, Any],
    workdir: str | pathlib.Path,
    subject: Subject,
    mesh: Mesh | None,
    *,
    quiet: bool = False,
    against: Any = None,
    details: Mapping[str, Any] = {},
    other: str = '',
) -> dict[str, Any]:
    """`evaluate` of a `Subject`, under a section `evaluation`; `details` go into those of its row,
    and `other` into the name of its file, where nothing else tells another solver's apart."""
    chosen, options = evaluator(section)
    row = chosen.row(subject, config, options, mesh, not quiet, against)
    suffix = chosen.suffix(row, options, subject.digest) or other
    row = {'step': subject.step, **row}
    versions = disk.versions() | {
        'device': f'{jax.device_count()} x {jax.devices()[0].device_kind}'
    }
    about = {'checkpoint': subject.digest, 'versions': versions}
    row['details'] = row.get('details', {}) | about | details
    if jax.process_index() == 0:
        path = disk.place(workdir) / 'eval' / f'step-{subject.step:09d}{suffix}.json'
        if path.is_file():
            try:
                row = chosen.merged(disk.read_json(path, Row), row)
            except (KeyError, ValueError) as error:  # The new numbers are worth more.
                print(f'{path}: is written anew, for it was damaged: {error}', file=sys.stderr)
        disk.write_json(path, row)
    return json.loads(json.dumps(disk.plain(row)))


def while_training(
    plain: Mapping[str, Any],
    built: Experiment,
    source: Source,
    workdir: str | pathlib.Path,
    mesh: Mesh,
) -> Callable[[Any, int], tuple[dict[str, float], checkpoint.Rating | None]]:
    """measure(averaged weights, step) -> ({name: number}, as `evaluate` measures the finished run,
    and the one that `training.keep_best` names, if it is finite).

    Args:
      plain, built: config and experiment of the run.
      source: the training split of its data, real ones.
      workdir, mesh: of the run.

    Raises:
      UserError: `training.keep_best` is none of the numbers, or tells no good from bad.
    """
    section, named = plain.get('evaluation', {}), plain['training'].get('keep_best')
    chosen, options = evaluator(section)
    decode = decoder_of(plain, mesh)
    # Made once, before there is a step: hours later is too late to hear of statistics of another
    # protocol.
    against = chosen.reference(source, plain, options, mesh, decode.shape)
    known = {name: of for name, of in chosen.measures(against, options, plain).items() if of.sign}
    sign = pick(known, named, 'config.training.keep_best').sign if named is not None else 0
    split = sharding.batch_sharding(mesh) if chosen.sharded else sharding.replicated(mesh)
    generator, seen = built.method.generator, (*plain.get('trained_on', ()),)
    generate = jax.jit(generator.sample, out_shardings=split)

    def evaluated(params, step):
        def sample(noise, condition):
            return decode.images(generate(params, noise, condition))

        digest = digest_of(checkpoint.digests(params))
        subject = Subject(sample, built.shape, built.num_classes, generator.nfe, step, digest)
        subject = subject._replace(decoded=decode.shape, trained_on=seen)
        if source.given:
            subject = subject._replace(given=given_of(source))
        row = measure(plain, section, workdir, subject, mesh, quiet=True, against=against)
        numbers, rating = evaluation.numbers(row), None
        # What is not finite is its name, in a row.
        if named is not None and not isinstance(numbers[named], str):
            rating = {'name': named, 'value': numbers[named], 'sign': sign}
        return numbers, rating

    return evaluated
