"""Tries a run on devices that are not there: what it would need of each, and what to change."""

import itertools
import math
import operator
import pathlib
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from fdistill import config as configs
from fdistill import networks
from fdistill.build.sections import KNOWN, load_data, replaced, resolve
from fdistill.build.shapes import shapes
from fdistill.config import call, parameters, told
from fdistill.data import sources
from fdistill.errors import UserError
from fdistill.files import CONFIG, disk
from fdistill.files.text import clock, table
from fdistill.networks.compute import REMAT
from fdistill.training import loop, sharding, topology
from fdistill.training.estimate import estimate

MOST_PARTS = 32  # microbatches that a search tries


def outline(config: Mapping[str, Any], teacher: str | None = None) -> dict[str, Any]:
    """The resolved config from what it says itself: neither data set nor teacher, nor what the
    student starts as, need be there.

    Args:
      config: sections.
      teacher: config file of the teacher, or where there is none of what the student starts as,
        where its place is not there; default: one of the student's network. A student may start
        as its teacher.

    Raises:
      UserError: on whatever the user can mend, as a teacher whose network no one knows.
    """
    # Of the real data that pairs stand for nothing is asked.
    source, known = load_data(config, 'train', sources.OUTLINES)._replace(pairs=None), {}
    named = 'teacher' if 'teacher' in config else 'start'
    for part, kind in itertools.product(('start', 'teacher'), KNOWN):
        place, where = config.get(part, {}).get(kind), f'config.{part}.{kind}'
        if place is None:
            continue
        what = disk.place(place) / CONFIG if kind == 'workdir' else disk.place(place)
        if disk.exists(what, place, where):
            continue
        if teacher is not None and place == config[named].get(kind):
            known[part] = outline(configs.load(teacher))
        elif isinstance(network := config.get('network', {}), str) or 'name' in network:
            own = {name: config[name] for name in config if name not in ('start', 'teacher')}
            known[part] = resolve(own, source)
        else:
            raise UserError(
                f'{where}={place}: is not there to name its network; '
                'give the config it will be trained with as --teacher=FILE'
            )
    return resolve(config, source, known)


def _estimated(plain, devices, chip, say):
    """`estimate` of a resolved config."""
    mesh = call(sharding.mesh_over, plain.get('mesh', {}), 'config.mesh', those=devices)
    made = shapes(plain)
    training, method = made.training, made.built.method
    call(loop.check, {}, 'config.training', training=training, mesh=mesh)
    of, given = made.optimizers, (made.frozen, made.batch)
    with told('config.training'):
        return estimate(method, of, training, *given, mesh=mesh, chip=chip, say=say)


def remedies(plain: Mapping[str, Any], devices: int) -> Iterator[dict[str, Any]]:
    """What makes a run need less of each device, {dotted name: value}: first what leaves its
    numbers as they are, to rounding. Each is meant on top of those before it.

    Args:
      plain: of `outline`.
      devices: their number.
    """
    if (fsdp := math.gcd(devices, 8)) > plain.get('mesh', {}).get('fsdp', 1):
        yield {'mesh.fsdp': fsdp}
    network = plain['network']
    accepted = parameters(networks.NETWORKS[network['name']])
    if 'remat' in accepted:
        makers, now = list(REMAT.values()), REMAT[network.get('remat', 'nothing')]
        # What keeps the products of an attention in chunks undoes it.
        chunked = network.get('attention') == 'chunked'
        for kind in ('blocks',) if chunked else ('elementwise', 'blocks'):
            if makers.index(now) < makers.index(REMAT[kind]):
                yield {'network.remat': kind}
    size, parts = plain['training']['batch_size'], plain['training'].get('microbatches', 1)
    while (parts := 2 * parts) <= MOST_PARTS and size % (parts * devices) == 0:
        yield {'training.microbatches': parts}
    if 'bfloat16' in accepted and not network.get('bfloat16'):
        yield {'network.bfloat16': True}


def plan(
    config: ConfigDict,
    pod: str,
    out: str | pathlib.Path,
    *,
    teacher: str | None = None,
    search: bool = False,
) -> dict[str, Any]:
    """Compiles all programs of a config for a pod, and writes what they need: plan.json and
    plan.txt. Says on stderr how far it is.

    Args:
      config: ConfigDict.
      pod: see `topology.devices`.
      out: folder to write to.
      teacher: see `outline`.
      search: where it does not fit, try `remedies` until it does.

    Raises:
      UserError: on whatever the user can mend.
    """
    folder = disk.folder_for(out, '--out')
    devices, chip = topology.devices(pod)
    plain, changes, tried = outline(config, teacher), {}, []
    if search and not chip:
        raise UserError(f'--search: what {pod} holds is not known; give a topology of TPUs')

    def say(what):
        print(f'{pod}{_words(changes)}: {what}', file=sys.stderr, flush=True)

    result = _estimated(plain, devices, chip, say)
    left = {} if result.get('fits', True) else list(remedies(plain, len(devices)))
    for remedy in left if search else ():
        tried.append({'changes': dict(changes), 'needed': result['memory']['needed']})
        changes |= remedy
        for name in changes:
            plain.setdefault(name.split('.')[0], {})
        plain = replaced(plain, remedy)
        result = _estimated(plain, devices, chip, say)
        if result['fits']:
            break
    helps = [] if search else left
    result = {'topology': pod, 'changes': changes, 'tried': tried, 'helps': helps} | result
    result['versions'] = disk.versions()
    disk.write_json(folder / 'plan.json', result)
    disk.write_bytes(folder / 'plan.txt', page(result).encode())
    return result


def _words(changes):
    return ''.join(f' --config.{name}={value}' for name, value in changes.items())


def page(result: Mapping[str, Any]) -> str:
    """The result of `plan` for people."""
    mesh = ' x '.join(f'{name} {size}' for name, size in result['mesh'].items())
    lines = [
        f'{result["topology"]}: {result["devices"]} devices, {mesh}{_words(result["changes"])}'
    ]
    if 'fits' in result:
        lines.append('fits' if result['fits'] else 'DOES NOT FIT')
        lines += [f'what makes it smaller:{_words(remedy)}' for remedy in result['helps']]
    lines += ['', 'memory of each device, GiB', *_table(result['memory'].items(), 2**30)]
    rows = [('one step of each device', 'share', 'GiB', 'TFLOP', 'GB accessed', 'seconds', '', '')]
    kinds = []
    for name, one in result['programs'].items():
        slowest = max(one.get('seconds', {'': math.nan}).items(), key=operator.itemgetter(1))
        counted = one.get('flops', math.nan) / 1e12, one.get('bytes_accessed', math.nan) / 1e9
        numbers = one.get('share', 0), one['memory'] / 2**30, *counted, slowest[1]
        spent = f'compiled in {clock(one["compile_seconds"])}'
        rows.append((name, *map(_short, numbers), slowest[0], spent))
        sent = one.get('sent', {}).items()
        kinds += [(f'{name}: {kind}, {of["count"]} times', of['bytes']) for kind, of in sent]
    lines += ['', *table(rows), '', 'sent by each device, GB', *_table(kinds, 1e9)]
    if 'hours' in result:
        step, hours = result['seconds_a_step'], result['hours']
        lines += ['', f'at least {step:.4g} seconds a step, {hours:.4g} hours for the run']
    return '\n'.join([*lines, '', *result['assumptions']]) + '\n'


def _table(sizes, unit):
    return table((f'  {name}', _short(size / unit)) for name, size in sizes) if sizes else []


def _short(number):
    return '-' if math.isnan(number) else f'{number:.4g}'
