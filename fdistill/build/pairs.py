"""Makes pairs of noise and samples by a teacher: `fdistill pairs`."""

import contextlib
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, PartitionSpec

from fdistill import config as configs
from fdistill.build.loading import opened
from fdistill.build.run import Run, digest_of
from fdistill.build.sections import image_of, load_data, real
from fdistill.data import pairs
from fdistill.data.sources import OUTLINES, Source, to_levels
from fdistill.errors import UserError, pick
from fdistill.files import disk, lock, progress
from fdistill.methods import pairing
from fdistill.training import sharding

BATCH = 256  # pairs at once on a device
MOST = pairs.SHARD  # of them: what goes beyond a file is made in vain
SOLVER = ('sampler', 'steps', 'guidance')
FREE = ('versions', 'shards')  # of a note, what may be otherwise of the same pairs
NAMES = ('dataset', 'mixture', 'path', 'name')  # of a section `data`, what the data are called by


def make_pairs(
    out: disk.Path,
    *,
    workdir: disk.Path | None = None,
    weights: disk.Path | None = None,
    count: int,
    seed: int = 0,
    solver: dict[str, Any] | None = None,
    dtype: str = 'float32',
    batch_size: int = BATCH,
    label: int | None = None,
    config: dict[str, Any] | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Makes pairs of noise and samples, for `data.sources.pairs`; goes on where the folder holds a
    part of them, and makes anew what is damaged.

    Pair i has the noise `pairing.noise_of` of seed and i, and likewise its label, or the condition
    of a sample of the data. Any number of devices and processes makes the same, bit for bit; each
    process makes files of its own.

    Args:
      out: folder to write to.
      workdir, weights: run folder, or file of weights; one of them.
      count, seed: of the pairs, >= 1 and >= 0.
      solver: sampler, steps and guidance other than the model's own, see `from_workdir`.
      dtype: of `data.pairs.DTYPES`, what samples are kept in; uint8 is for images.
      batch_size: pairs at once on each device, at most those of a file. With another, samples
        differ by rounding.
      label: class of all; default: a random one each.
      config: whose `data` the pairs stand for and are measured against; default: the run's.
      quiet: no progress on stderr.

    Returns:
      What `pairs.json` holds.

    Raises:
      UserError: on whatever the user can mend, as a folder that holds other pairs.
    """
    solver = dict(solver or {})
    for name in solver.keys() - set(SOLVER):
        raise UserError(
            f'solver.{name}: pairs are made with {", ".join(SOLVER)} alone; leave it out'
        )
    out = disk.folder_for(out, '--out')
    first, processes = jax.process_index() == 0, jax.process_count()
    if first:
        lock.check(out, '--out')
    mesh = sharding.mesh_over(jax.local_devices())
    teacher = _opened(workdir, weights, config, mesh, solver)
    asked = {'seed': seed, 'count': count, 'batch_size': batch_size}
    check_pairs(teacher.image, **asked, dtype=dtype, label=label)
    note = _settings(teacher, asked, dtype, label)
    note = _begun(out, note) or note
    if processes > 1:
        sharding.check_agreement(digest_of(_compared(note)))
    with lock.held(out, '--out') if first else contextlib.nullcontext():
        if first and 'shards' not in note:
            disk.write_json(out / pairs.MAKING, note)
        mine = range(jax.process_index(), pairs.shards(note), processes)
        _make(out, note, mine, _maker(teacher, note, mesh), mesh.size, first and not quiet)
        if processes > 1:
            multihost_utils.sync_global_devices('made')
        made = pairs.finish(out, note) if first else note
        if processes > 1:
            multihost_utils.sync_global_devices('finished')
    return dict(made)


def digest_pairs(folder: disk.Path) -> str | None:
    """Of what a folder of pairs holds, whatever it was made with; None where they are not whole."""
    file = pathlib.Path(folder) / pairs.NOTE
    if not file.is_file():
        return None
    # The note has the digests of the files.
    note = disk.read_json(file, remedy=pairs.ANEW)
    return digest_of({name: value for name, value in note.items() if name != 'versions'})


def check_pairs(
    image: Mapping[str, Any],
    *,
    count: int,
    seed: int = 0,
    dtype: str = 'float32',
    batch_size: int = BATCH,
    label: int | None = None,
) -> None:
    """Raises UserError on settings by which no pairs of a section `image` can be made; arguments as
    of `make_pairs`."""
    levels, shape = pick(pairs.DTYPES, dtype, '--dtype'), image['shape']
    if min(count, batch_size) < 1 or seed < 0 or max(count, seed) >= 2**31 or batch_size > MOST:
        raise UserError(
            f'--count={count}, --batch-size={batch_size}, --seed={seed}: count and batch size must '
            f'be >= 1, the seed >= 0, the batch size at most {MOST}, the others below 2^31'
        )
    if levels and (len(shape) != 3 or 'latents' in image):
        raise UserError(f'--dtype={dtype}: is for images; keep these in float32 or float16')
    classes = image['num_classes']
    if label is not None and not 0 <= label < classes:
        told = f'give 0 to {classes - 1}' if classes else 'there are no classes'
        raise UserError(f'--label={label}: {told}')


class _Teacher(NamedTuple):
    """where: what a run came from; image: what its samples are; data: the section of what it was
    trained on, or None; source: those data, where conditions are drawn from them."""

    where: str
    run: Run
    image: Mapping[str, Any]
    data: Mapping[str, Any] | None
    source: Source | None


def _opened(workdir, weights, config, mesh, solver):
    run, where = opened(workdir, weights, mesh=mesh, **solver), str(workdir or weights)
    plain = configs.to_json(run.config)
    image, section, source = plain['image'], None, None
    if config is not None or 'data' in plain:
        section = configs.to_json(real(plain if config is None else config))['data']
    if config is not None:
        found = image_of(load_data({'data': section}, 'train', OUTLINES))
        # What was published does not say whose latents it makes.
        image = {name: found[name] for name in ('latents',) if name in found} | image
        if found != image:
            raise UserError(f'config.data: {where} was trained on {image}, not {found}')
    if 'given' in image:
        if section is None:
            raise UserError(
                '--config: missing; give the config of the data, of whose '
                f'{", ".join(image["given"])} pairs are made'
            )
        source = load_data({'data': section}, 'train')
    return _Teacher(where, run, image, section, source)


def _settings(teacher, asked, dtype, label):
    """The `pairs.Settings` of what is asked, as JSON keeps them."""
    where, run, image, data, source = teacher
    shape, classes, levels = image['shape'], image['num_classes'], pairs.DTYPES[dtype]
    given = source.given if source else {}
    given = {name: (str(of.dtype), of.shape[1:]) for name, of in given.items()}
    plain = configs.to_json(run.config)
    how = {name: plain[name] for name in ('method', 'generator') if name in plain}
    note = {
        'format': pairs.FORMAT,
        'name': _called(data) if data else pathlib.PurePath(where).stem,
        'num_classes': max(classes, 1),
        'record': pairs.record_of(shape, dtype, classes > 0, given),
        'levels': levels,
        'sampling': {'evaluations': run.nfe} | how,
        'teacher': run.digest,
        'trained_on': plain.get('trained_on', []),
        'versions': disk.versions() | {'device': jax.devices()[0].device_kind},
    }
    more = {'data': data, 'decoded': image.get('latents'), 'label': label}
    note |= asked | {name: value for name, value in more.items() if value is not None}
    note = disk.plain(note)
    if problem := pairs.problem(note):
        raise UserError(f'{where}: no pairs can be made: {problem}')
    return note


def _called(section):
    name = next(section[name] for name in NAMES if section.get(name))
    return pathlib.PurePath(name).name.removesuffix('.zip')


def _compared(note):
    return {name: value for name, value in note.items() if name not in FREE}


def _begun(out, note):
    """What was begun in a folder, which must be the same pairs; None where nothing was."""
    known = pairs.begun(out)
    old, new = (disk.flat(_compared(of or note)) for of in (known, note))
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) != new.get(key):
            raise UserError(
                f'--out={out}: holds pairs with {key}={old.get(key)!r}, now {new.get(key)!r}; '
                'give the same settings, or another folder'
            )
    return known


def _maker(
    teacher: _Teacher, note: Mapping[str, Any], mesh: Mesh
) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """make(numbers of pairs int [b]) -> {name of a field: its values [b, ...]}, where b is the
    batch size times the devices."""
    _, run, image, _, source = teacher
    split = sharding.batch_sharding(mesh)
    count = len(source.labels) if source else note['num_classes']

    def of_parts(function, *specs):
        # So that a device runs the program of its part, however many there are.
        apart = jax.shard_map(
            function, mesh=mesh, in_specs=specs, out_specs=split.spec, check_vma=False
        )
        return jax.jit(apart)

    def begin(index):
        pair = {'seed': jnp.full_like(index, note['seed']), 'index': index}
        pair['mirrored'] = jnp.zeros(index.shape, bool)
        like = jnp.zeros((len(index), *image['shape']))
        return pairing.noise_of(pair, like), pairing.drawn_of(pair, count)

    # Apart: what a solver draws it draws of the bits of its noise, which must not change with what
    # they are computed for.
    begin = of_parts(begin, split.spec)
    solve = of_parts(run.generator.sample, PartitionSpec(), split.spec, split.spec)

    def make(index):
        noise, drawn = begin(jax.device_put(index.astype(np.uint32), split))
        drawn = np.asarray(drawn)
        condition = source.condition(drawn) if source else {'label': drawn}
        if 'label' in note:
            condition['label'] = np.full_like(drawn, note['label'])
        condition = {f['name']: condition[f['name']] for f in note['record'][1:]}
        placed = jax.device_put(condition, split)
        return {'x0': _kept(solve(run.params, noise, placed), note, index)} | condition

    return make


def _kept(x0, note, index):
    """Samples as they are kept."""
    dtype, x0 = note['record'][0]['dtype'], np.asarray(x0)
    if not note['levels']:
        with np.errstate(over='ignore'):
            x0 = x0.astype(dtype)
    finite = np.isfinite(x0).reshape(len(x0), -1).all(axis=1)
    if not finite.all():
        raise UserError(
            f'pair {index[~finite][0]} is not finite in {dtype}; keep them in float32, or take '
            'another sampler or teacher'
        )
    return to_levels(x0, note['levels']) if note['levels'] else x0


def _make(
    out: pathlib.Path,
    note: Mapping[str, Any],
    mine: Sequence[int],
    make: Callable[[np.ndarray], dict[str, np.ndarray]],
    devices: int,
    shown: bool,
) -> None:
    """Makes those of some files that are not there."""
    pairs.clear(pairs.place(out, note, k) for k in mine)
    known = dict(enumerate(note.get('shards', ())))
    missing = [k for k in mine if not pairs.whole(out, note, k, known.get(k))]
    size, bounds = note['batch_size'], {k: pairs.bounds(note, k) for k in mine}
    # Each part of a device begins where it would with any number of them.
    parts = [(k, start) for k in missing for start in range(*bounds[k], size)]
    whole = sum(stop - start for start, stop in bounds.values())
    left = sum(bounds[k][1] - bounds[k][0] for k in missing)
    ready = []
    with progress.bar('pairs', whole, 'pair', shown, whole - left) as bar:
        for at in range(0, len(parts), devices):
            some = parts[at : at + devices]
            starts = np.resize([start for _, start in some], (devices, 1))
            index = (starts + np.arange(size)).clip(max=note['count'] - 1).reshape(-1)
            made = make(index)
            for place, (k, start) in enumerate(some):
                stop = min(start + size, bounds[k][1])
                rows = slice(place * size, place * size + stop - start)
                ready.append({name: values[rows] for name, values in made.items()})
                bar.update(stop - start)
                if stop == bounds[k][1]:
                    joined = {name: np.concatenate([r[name] for r in ready]) for name in made}
                    pairs.write_shard(out, note, k, joined)
                    ready = []
