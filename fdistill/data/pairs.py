"""Pairs of noise and what a teacher makes of it: a folder of samples and of what they were to be
like.

    pairs.json                        what they are, and digests: `Note`; written last
    making.json                       until then the same without digests: `Settings`
    00000-of-00020.array_record ...   a record a pair: x0 and its condition, byte for byte
    README.md                         in words

The noise is not there, for it follows from the seed and the number of a pair: `pairing.noise_of`.
"""

import errno
import hashlib
import html
import json
import math
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NotRequired, TypedDict

import numpy as np
from array_record.python import array_record_module

from fdistill.data import cache
from fdistill.errors import UserError
from fdistill.files import CONFIG, disk

FORMAT, NOTE, MAKING, CARD = 'fdistill pairs 1', 'pairs.json', 'making.json', 'README.md'
SHARD = 1024  # pairs in a file
SUFFIX = '.array_record'
OPTIONS = 'group_size:64,max_parallelism:1'
# What x0 may be kept in, and the largest grey level of it.
DTYPES = {'float32': 0, 'float16': 0, 'uint8': 255}
KINDS = 'biuf'  # of the numbers of a condition
# Settings of a method that say how it is sampled, for the card.
SAMPLING = ('sampler', 'grid', 'guidance', 'guidance_interval', 'sigma_init', 'levels')
TEXT = """# Pairs of noise and {what} of a teacher of {name}

Each record is what a diffusion model made of one draw of Gaussian noise, with the solver below, and
the condition that it was given. The noise is not stored: it follows from the seed and the number of
the pair, on any machine, to rounding. So the data set is a map from noise to samples, for students
that learn that map: reflow, distillation by regression, SlimFlow. Nothing in it is real data; the
samples are as good as the teacher and its solver.

{table}

## Use

In a config of fdistill:

```python
data=dict(name='pairs', path='DIR', flip={flip}),  # this folder
```

A flip mirrors sample and noise together. Batches have `x`, `condition` and `pair`, of which
`fdistill.methods.pairing.noise_of` makes the noise. Samples of students are measured against the
data of the teacher, not against these.

The files are ArrayRecord; `pairs.json` says what is in a record and has a SHA-256 of each file.
"""
AGAIN = 'give the command that made it, `fdistill pairs`, again'
ANEW = 'bring it back from a copy, or make the pairs anew in another folder'


class Field(TypedDict):
    """A part of a record, in little endian: of the first, x0, and of each condition."""

    name: str
    dtype: str
    shape: list[int]


class Shard(TypedDict):
    """Pairs in a file, and its SHA-256."""

    count: int
    sha256: str


class Decoded(TypedDict):
    """What pairs of latents are decoded to, see `sources.Decoded`."""

    autoencoder: str
    shape: list[int]


class Settings(TypedDict):
    """What pairs are.

    name: of the data that their teacher was trained on.
    data: the section of a config with those data, real ones, by which samples are measured; without
      it no one knows.
    num_classes: of those data, 1 without labels.
    record: what is in a record, x0 first.
    decoded: of latents.
    seed, count: the noise of pair i in 0..count - 1 is normal(fold_in(key(seed), i)).
    label: that all have; without it a random one each.
    levels: of uint8 the largest grey level: x0 = 2 u / levels - 1; else 0.
    batch_size: pairs that a device made at once.
    sampling: evaluations of the network for one pair, and sections that say how it was made.
    teacher: digest of its weights.
    trained_on: features that the teacher was trained on, as in a protocol.
    """

    format: str
    name: str
    data: NotRequired[dict[str, Any]]
    num_classes: int
    record: list[Field]
    decoded: NotRequired[Decoded]
    seed: int
    count: int
    label: NotRequired[int]
    levels: int
    batch_size: int
    sampling: dict[str, Any]
    teacher: str
    trained_on: list[str]
    versions: dict[str, str]


class Note(Settings):
    """The same of pairs that are all there."""

    shards: list[Shard]


def read(path: disk.Path) -> Note:
    """The note of a folder of pairs.

    Raises:
      UserError: there is none, it is damaged, or there are other files than it says.
    """
    folder = pathlib.Path(path)
    if not (folder / NOTE).is_file():
        if (folder / MAKING).is_file():
            raise UserError(f'pairs {str(path)!r}: are not all made yet; {AGAIN}')
        raise UserError(
            f'pairs {str(path)!r}: has no {NOTE}; make the folder with `fdistill pairs`'
        )
    note = _read(folder / NOTE, Note)
    names = {place(folder, note, k).name for k in range(shards(note))}
    found = {file.name for file in folder.glob(f'[!.]*{SUFFIX}')}
    if missing := sorted(names - found):
        raise UserError(f'{folder / missing[0]}: is missing; {AGAIN}')
    if more := sorted(found - names):
        raise UserError(f'{folder / more[0]}: is not of these pairs; remove it')
    return note


def begun(path: disk.Path) -> Settings | Note | None:
    """What was to be made in a folder, whether it is all there or not; None where nothing was.

    Raises:
      UserError: what says it is damaged, or not there while pairs are, or something else is there.
    """
    folder = pathlib.Path(path)
    for name, shape in ((NOTE, Note), (MAKING, Settings)):
        if (folder / name).is_file():
            return _read(folder / name, shape)
    if found := sorted(folder.glob(f'[!.]*{SUFFIX}')):
        raise UserError(
            f'{found[0]}: nothing says what it is of; remove it, or give another folder'
        )
    for name in (CARD, CONFIG):
        if (folder / name).exists():
            raise UserError(f'{folder / name}: is of something else; give another folder for pairs')
    return None


def _read(file, shape):
    note = disk.read_json(file, shape, ANEW)
    if found := problem(note):
        raise UserError(f'{file}: {found}; {ANEW}')
    return note


def problem(note: Mapping[str, Any]) -> str:
    """Why this is no note of pairs, or ''."""
    if note['format'] != FORMAT:
        return f'its format is {note["format"]!r:.40}, not {FORMAT!r}'
    sizes = [note['count'], note['num_classes'], note['batch_size'], len(note['record'])]
    sizes += [side for field in note['record'][:1] for side in field['shape'] or [0]]
    sizes += note.get('decoded', {'shape': []})['shape']
    if min(sizes) < 1 or max(sizes) >= 2**31:
        return f'{sizes!r:.80} are no sizes'
    names = [field['name'] for field in note['record']]
    if len({*names}) < len(names) or ('label' in names[1:]) != (note['num_classes'] > 1):
        return f'its records have {names!r:.80}, in {note["num_classes"]} classes'
    for field in note['record']:
        if not _is_type(field['dtype']) or min(field['shape'], default=1) < 1:
            return f'{field!r:.120} is no part of a record'
    dtype = note['record'][0]['dtype']
    if note['levels'] != DTYPES.get(dtype):
        return f'x0 is of {dtype!r:.40} with levels {note["levels"]}'
    if size(note['record']) >= 2**31 or not 0 <= note['seed'] < 2**31:
        return f'a record of {size(note["record"])} bytes, the seed {note["seed"]}: out of range'
    counts = [stop - start for start, stop in (bounds(note, k) for k in range(shards(note)))]
    if 'shards' in note and [shard['count'] for shard in note['shards']] != counts:
        return f'its files are not those of {note["count"]} pairs'
    return ''


def _is_type(name):
    try:
        found = np.dtype(name)
    except TypeError:
        return False
    return found.kind in KINDS and found.name == name


def record_of(
    shape: Sequence[int], dtype: str, labels: bool, given: Mapping[str, tuple[str, Sequence[int]]]
) -> list[Field]:
    """What is in a record, x0 first.

    Args:
      shape, dtype: of a sample.
      labels: whether there are classes.
      given: {name of another condition: (dtype, shape of one)}.
    """
    parts = [('x0', dtype, shape)] + ([('label', 'int32', ())] if labels else [])
    parts += [(name, *one) for name, one in given.items()]
    return [Field(name=name, dtype=of, shape=list(shape)) for name, of, shape in parts]


def size(record: Sequence[Field]) -> int:
    """Bytes of a record."""
    return sum(np.dtype(field['dtype']).itemsize * math.prod(field['shape']) for field in record)


def shards(note: Settings) -> int:
    """Number of files."""
    return -(-note['count'] // SHARD)


def bounds(note: Settings, k: int) -> tuple[int, int]:
    """The first pair of file k, and the first that is no more in it."""
    return k * SHARD, min((k + 1) * SHARD, note['count'])


def place(folder: disk.Path, note: Settings, k: int) -> pathlib.Path:
    """Where file k is."""
    return pathlib.Path(folder) / f'{k:05d}-of-{shards(note):05d}{SUFFIX}'


def _little(field):
    return np.dtype(field['dtype']).newbyteorder('<')


def write_shard(
    folder: disk.Path, note: Settings, k: int, arrays: Mapping[str, np.ndarray]
) -> None:
    """Writes a file, which is absent or whole.

    Args:
      folder, note, k: which file.
      arrays: {name of a field: its values [n, ...]}.

    Raises:
      OSError: there is no room.
    """
    count = len(arrays[note['record'][0]['name']])
    parts = [
        np.ascontiguousarray(arrays[field['name']], _little(field)).reshape(count, -1)
        for field in note['record']
    ]
    rows = np.concatenate([part.view(np.uint8) for part in parts], axis=1)

    def save(temporary):
        try:
            writer = array_record_module.ArrayRecordWriter(temporary, OPTIONS)
            for row in rows:
                writer.write(row.tobytes())
            writer.close()
        except RuntimeError as error:  # Its library's, which has the system's words in it.
            said = (number for number in errno.errorcode if os.strerror(number) in str(error))
            number = next(said, errno.EIO)
            raise OSError(number, os.strerror(number), str(folder)) from error

    disk.write(place(folder, note, k), save)


def read_shard(folder: disk.Path, note: Settings, k: int) -> dict[str, np.ndarray] | None:
    """{name of a field: its values [n, ...]} of a file, or None where it does not hold them."""
    start, stop = bounds(note, k)
    try:
        reader = array_record_module.ArrayRecordReader(str(place(folder, note, k)))
        records = reader.read_all() if reader.num_records() == stop - start else []
    except (RuntimeError, ValueError, IndexError):
        return None
    lengths = {len(record) for record in records}
    if len(records) != stop - start or lengths != {size(note['record'])}:
        return None
    rows, found, at = np.frombuffer(b''.join(records), np.uint8).reshape(stop - start, -1), {}, 0
    for field in note['record']:
        dtype, shape = _little(field), field['shape']
        end = at + dtype.itemsize * math.prod(shape)
        part = np.ascontiguousarray(rows[:, at:end]).view(dtype).reshape(stop - start, *shape)
        found[field['name']], at = part.astype(field['dtype'], copy=False), end
    return found


def whole(folder: disk.Path, note: Settings, k: int, known: Shard | None = None) -> bool:
    """Whether a file is there and holds its pairs: those of `known`, if that is given."""
    path = place(folder, note, k)
    if not path.is_file():
        return False
    if known is not None:
        return disk.sha256(path) == known['sha256']
    return read_shard(folder, note, k) is not None


def clear(files: Iterable[pathlib.Path]) -> None:
    """Removes what a process that was killed left of files that it was writing."""
    for file in files:
        for left in file.parent.glob(f'.{file.stem}.*{file.suffix}'):
            left.unlink(missing_ok=True)


def finish(folder: disk.Path, settings: Settings) -> Note:
    """Writes the card and the note, which makes a folder of pairs whole, and returns the note.

    Raises:
      UserError: files are missing.
    """
    folder, made = pathlib.Path(folder), []
    for k in range(shards(settings)):
        path, (start, stop) = place(folder, settings, k), bounds(settings, k)
        if not path.is_file():
            raise UserError(
                f'{path}: is missing; processes of one command need one folder that all see'
            )
        made.append(Shard(count=stop - start, sha256=disk.sha256(path)))
    note = Note(**{name: settings[name] for name in settings if name != 'shards'}, shards=made)
    disk.write_text(folder / CARD, card(note))
    disk.write_json(folder / NOTE, note)
    clear(folder / name for name in (CARD, NOTE, MAKING))
    (folder / MAKING).unlink(missing_ok=True)
    return note


def load(path: disk.Path, note: Note) -> tuple[dict[str, np.ndarray], str]:
    """({name of a field: its values [count, ...]}, digest of all); kept below $FDISTILL_CACHE,
    memory-mapped. x0 is float32 or, with grey levels, uint8.

    Raises:
      UserError: a file is not what was written.
    """
    own = {name: note[name] for name in ('record', 'seed', 'shards')}
    digest = hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()
    fields, count = note['record'], note['count']
    kinds = {field['name']: f'pairs{i}' for i, field in enumerate(fields)}
    types = {field['name']: field['dtype'] for field in fields}
    if not note['levels']:
        types[fields[0]['name']] = 'float32'

    def fill(arrays):
        for k, known in enumerate(note['shards']):
            found = read_shard(path, note, k) if whole(path, note, k, known) else None
            if found is None:
                raise UserError(f'{place(path, note, k)}: is not what was written; {AGAIN}')
            for name, array in arrays.items():
                array[slice(*bounds(note, k))] = found[name]
        for array in arrays.values():
            array.flush()

    def make(paths):
        def begin(left, arrays):
            """Each is written while all others are, so that the files are read once."""
            if not left:
                return fill(arrays)
            name, shape = left[0]['name'], left[0]['shape']

            def save(temporary):
                array = disk.array(temporary, types[name], (count, *shape))
                begin(left[1:], {**arrays, name: array})

            disk.write(paths[kinds[name]], save)

        begin(fields, {})
        return digest

    found, _ = cache.arrays(digest[:32], kinds.values(), 'decoded pairs', make)
    return {name: found[kind] for name, kind in kinds.items()}, digest


def card(note: Note) -> str:
    """What a folder holds, in words: Markdown."""
    fields, sampling = note['record'], note['sampling']
    x0, settings = fields[0], sampling.get('method', {})
    kinds = {0: f'{x0["dtype"]}, as they are', 255: 'grey levels u of 0..255, x0 = 2 u / 255 - 1'}
    total, seed, count = size(note['record']) * note['count'], note['seed'], note['count']
    conditions = [
        f'`{field["name"]}`, {field["dtype"]} of shape {tuple(field["shape"])}'
        for field in fields[1:]
    ]
    if 'label' in note:
        conditions[0] += f', {note["label"]} for all'
    facts = {
        'pairs': f'{count:,}, in {shards(note):,} files',
        'size': f'{total:,} bytes before compression',
        'x0': f'{" x ".join(map(str, x0["shape"]))}, {kinds[note["levels"]]}',
        'conditions': '; '.join(conditions) or 'none',
        'classes': note['num_classes'] if note['num_classes'] > 1 else 'none',
        'noise': f'normal(fold_in(key({seed}), i)) of jax.random for pair i of 0..{count - 1}',
        'data of the teacher': json.dumps(note.get('data', 'not said')),
        'weights of the teacher': note['teacher'],
        'network evaluations a pair': sampling['evaluations'],
        **{name: json.dumps(settings[name]) for name in SAMPLING if name in settings},
        'made at once by a device': note['batch_size'],
        'made with': ', '.join(f'{name} {version}' for name, version in note['versions'].items()),
    }
    rows = [f'| {_cell(name)} | {_cell(value)} |' for name, value in facts.items()]
    if note['trained_on']:
        seen = ', '.join(note['trained_on'])
        rows.append(f'| features that the teacher was trained on | {_cell(seen)} |')
    of_latents = 'decoded' in note
    return TEXT.format(
        name=_cell(note['name']),
        what='latents' if of_latents else 'samples',
        table='\n'.join(['| what | value |', '| --- | --- |', *rows]),
        flip=bool(note.get('data', {}).get('flip')) and not of_latents,
    )


def _cell(value):
    """A value in Markdown, where it is to be no markup of HTML and no border of a cell."""
    return html.escape(' '.join(str(value).split()), quote=False).replace('|', '\\|')
