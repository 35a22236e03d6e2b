"""The ways to measure: own features, which need nothing but the data, and published protocols."""

import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from fdistill.build.latents import of_images
from fdistill.build.rewarding import judges
from fdistill.build.run import digest_of
from fdistill.build.sections import load_data, plain_of, real
from fdistill.config import call
from fdistill.data.sources import Source
from fdistill.errors import UserError
from fdistill.evaluation import evaluate as evaluation
from fdistill.evaluation import protocol as protocols
from fdistill.evaluation import scores
from fdistill.evaluation.protocol import Measure


def splits(config: Mapping[str, Any]) -> tuple[Source, Source]:
    """The two splits of a config's data, real ones, as images."""
    config = of_images(config)
    return load_data(config, 'train'), load_data(config, 'held_out')


class Evaluator(NamedTuple):
    """A way to measure. Options are the settings of a section `evaluation`, without a name.

    check(**options): raises ValueError or UserError where they cannot be.
    sharded: whether samples are global arrays, split over all devices.
    reference(source, config, options, mesh, shape): what samples are compared with, made once for
      several measurements.
    measures(against, options, config): {number: `protocol.Measure`} of all that a row will have.
    row(subject, config, options, mesh, progress, against): what was measured.
    suffix(row, options, digest): of the name of the row's file.
    merged(old, row): the row with what an earlier one of the same file has besides.
    """

    check: Callable[..., Any]
    sharded: bool
    reference: Callable[..., Any]
    measures: Callable[..., dict[str, Measure]]
    row: Callable[..., dict[str, Any]]
    suffix: Callable[..., str]
    merged: Callable[..., dict[str, Any]]


SECTION = 'config.evaluation'


def _own_row(subject, config, options, mesh, progress, against):
    train, held_out = (against.train, against.held_out) if against else splits(config)
    made, real = tuple(subject.decoded or subject.shape), train.images.shape[1:]
    if made != real:
        raise UserError(
            f'config.data: {train.name!r} has samples of shape {real}, and the model makes {made}; '
            'give the config of the data that it was trained on'
        )
    return call(
        evaluation.evaluate,
        options,
        SECTION,
        generate=subject.sample,
        train=train,
        held_out=held_out,
        noise_shape=subject.shape,
        trained_on=subject.trained_on,
        nfe=subject.nfe,
        progress=progress,
        against=against,
        rewards=judges(config, train),
    )


def _own_reference(source, config, options, mesh, shape):
    train, held_out = (
        splits(config)
        if source is None or source.decoded
        else (source, load_data(real(config), 'held_out'))
    )
    return evaluation.reference(train, held_out, progress=False)


def _published_row(subject, config, options, mesh, progress, against):
    row = call(
        scores.evaluate,
        options,
        SECTION,
        subject=subject,
        mesh=mesh,
        progress=progress,
        against=against,
    )
    known = row['details']['statistics']
    if progress and not (known['weights_sha256'] or jax.process_index()):
        print(
            f'the statistics {known["reference"]!r} do not tell the weights they were made with: '
            f'the numbers are right only if they are those of {options["detector"]}',
            file=sys.stderr,
        )
    return row


def _published_suffix(row, options, digest):
    details = row['details']
    rules, samples, ranges = (details[name] for name in ('rules', 'samples', 'ranges'))
    suffix = f'-{rules["name"]}'
    # Less than the whole protocol must not take the place of it.
    if (samples, len(ranges)) != (rules['samples'], len(rules['seeds'])):
        part = protocols.short(samples)
        suffix += f'-{len(ranges)}x{part}' if len(ranges) > 1 else f'-{part}'
    # What was measured with other weights or against other images is another number.
    return suffix + '-' + digest_of([details['detector'], details['statistics'], digest])[:8]


def _published_reference(source, config, options, mesh, shape):
    return call(scores.reference, options, SECTION, mesh=mesh, shape=shape)


EVALUATORS = {
    'own': Evaluator(
        evaluation.check,
        False,
        _own_reference,
        lambda against, options, config: (
            evaluation.measures(against.train)
            | {name: evaluation.OTHERS[name] for name in judges(config, against.train)}
        ),
        _own_row,
        lambda row, options, digest: '',
        lambda old, row: row,
    ),
    'published': Evaluator(
        scores.check,
        True,
        _published_reference,
        lambda against, options, config: scores.measures(
            against, options.get('metrics'), options.get('samples')
        ),
        _published_row,
        _published_suffix,
        scores.merged,
    ),
}


def evaluator(section: Mapping[str, Any]) -> tuple[Evaluator, dict[str, Any]]:
    """(row of `EVALUATORS`, options) of a section `evaluation`, before there is anything to
    evaluate.

    Raises:
      UserError: on settings out of range.
    """
    options = plain_of(section)
    if options.get('protocol', protocols.OWN) == protocols.OWN:
        options.pop('protocol', None)
        chosen = EVALUATORS['own']
    else:
        chosen = EVALUATORS['published']
        if 'seed' in options:
            raise UserError(
                f'{SECTION}.seed: a published protocol has seeds of its own; leave it out'
            )
    call(chosen.check, options, SECTION)
    return chosen, options


def reference(config: Mapping[str, Any]) -> Any:
    """What the samples of all runs on the same data are compared with, to be made once; None where
    each run has its own."""
    chosen, options = evaluator(config.get('evaluation', {}))
    if chosen.sharded:
        return None
    return chosen.reference(None, config, options, None, None)
