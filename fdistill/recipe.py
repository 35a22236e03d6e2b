"""Recipes: stages in order, each an ordinary run folder, or a folder of pairs, made from those
before it.

A recipe is a Python file with a function:

    def get_recipe(length='full'):
        return [
            {'name': 'teacher', 'config': f'../digits_teacher.py:{length}'},
            {'name': 'pairs', 'pairs': {'workdir': '@teacher', 'count': 20000}},
            {'name': 'student', 'config': '../digits_reflow.py', 'set': {'data.path': '@pairs'}},
        ]

A stage with `config` trains what that file, found from the recipe's folder, describes, with other
values (`set`: {dotted key: value}, and of a section that the config lacks the whole), and is then
evaluated, unless `evaluate` is False. One with `pairs` makes pairs, by these arguments of
`build.make_pairs`. '@NAME' is the folder of an earlier stage.

The folder of a recipe holds those of its stages by their names, and `recipe.json`: of each its
settings, the digests of its parents and of what was made, status, seconds and row. All stages are
checked before the first begins. What is done is kept, as long as its settings and parents are the
same, and measured again where its evaluation is another; what was stopped goes on where it was;
what failed is tried again. Several processes run a recipe as they run one training, in a folder
that all see.
"""

import ast
import contextlib
import functools
import json
import pathlib
import re
import shutil
import sys
import time
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, NotRequired, TypedDict

import jax

from fdistill import build, sweep
from fdistill import config as configs
from fdistill.data import pairs, pipeline, sources
from fdistill.errors import NotFinite, Stopped, UserError, suggest
from fdistill.evaluation.subject import Row
from fdistill.files import CONFIG, disk, lock
from fdistill.files.text import clock, table
from fdistill.training import sharding, stop
from fdistill.training.count import Evaluations
from fdistill.types import Free, misfit

RECIPE = 'recipe.json'
SECTIONS = typing.get_type_hints(configs.Sections)
# Of a stage; none may be called as an option of `fdistill run` is.
NAME = re.compile(r'[A-Za-z][\w-]{0,99}')
OPTIONS = ('recipe', 'workdir', 'dry-run', 'seed', 'quiet', 'distributed', 'help', 'config')
WORD = re.compile(r'--([\w-]+)(?:\.([\w.]+))?=(.*)', re.DOTALL)


class Entry(TypedDict):
    """A stage as `get_recipe` gives it, with one of the keys of `KINDS` besides."""

    name: str
    config: NotRequired[str]
    set: NotRequired[dict]
    evaluate: NotRequired[bool]
    pairs: NotRequired[dict]


class Record(TypedDict):
    """What a stage came to, as in `recipe.json`.

    folder: below that file's, or of a stage that was given its own.
    settings: {dotted key: value} of what makes it what it is.
    parents: {name: digest}.
    evaluation: how it is measured.
    digest: of what was made.
    seconds: of its attempts that ended in order.
    """

    kind: Literal['config', 'pairs']
    folder: str
    given: bool
    settings: dict
    parents: dict[str, str]
    status: Literal['begun', 'failed', 'done']
    evaluation: NotRequired[dict]
    digest: NotRequired[str]
    row: NotRequired[Row | None]
    error: NotRequired[str]
    seconds: float


class Kept(TypedDict):
    """The stages of a recipe in order, as in that file."""

    recipe: str
    stages: dict[str, Record]


class Stage(NamedTuple):
    """A stage of a recipe.

    name: of its folder.
    kind: key of `KINDS`.
    settings: a config as plain values, or arguments of `build.make_pairs`; with references.
    evaluate: it is measured at its end.
    folder: where it is made, or was.
    given: it was made elsewhere, and is used as it is.
    """

    name: str
    kind: str
    settings: Mapping[str, Any]
    evaluate: bool
    folder: pathlib.Path
    given: bool = False

    @property
    def parents(self) -> tuple[str, ...]:
        return () if self.given else tuple(dict.fromkeys(references(self.settings).values()))


class Ahead(NamedTuple):
    """What a stage will be.

    plain: the resolved config of its run, or of the one that makes its pairs.
    work: in words.
    samples: of all steps, or pairs.
    parameters: that are trained.
    evaluations: {part: `Evaluations`}, without those of what is measured.
    bytes: on disk, of checkpoints before they are compressed, or pairs.
    """

    plain: Mapping[str, Any]
    work: str = ''
    samples: int = 0
    parameters: int = 0
    evaluations: Mapping[str, Evaluations] = {}
    bytes: int = 0


def references(settings: Any, key: str = '') -> dict[str, str]:
    """{dotted key: name of a stage} of the references in settings."""
    if isinstance(settings, str):
        return {key: settings[1:]} if settings.startswith('@') else {}
    parts = settings.items() if isinstance(settings, Mapping) else ()
    parts = enumerate(settings) if isinstance(settings, (list, tuple)) else parts
    found = (references(value, f'{key}.{name}' if key else str(name)) for name, value in parts)
    return {at: name for one in found for at, name in one.items()}


def filled(settings: Any, folders: Mapping[str, disk.Path]) -> Any:
    """Settings with folders, {name: folder}, in the places of references."""
    if isinstance(settings, Mapping):
        return {name: filled(value, folders) for name, value in settings.items()}
    if isinstance(settings, (list, tuple)):
        return type(settings)(filled(value, folders) for value in settings)
    refers = isinstance(settings, str) and settings.startswith('@')
    return str(folders[settings[1:]]) if refers else settings


class Kind(NamedTuple):
    """What stages of a kind do.

    note: file by which a folder of it is known; what: that holds, in words.
    read(entry, folder, words, seed) -> settings: of an `Entry` of a recipe in that folder, with
      {dotted key: text} and the seed of the command line.
    compared(settings) -> {dotted key: value} of what makes it what it is.
    digest(folder) -> of what was made, or None.
    ahead(settings, parents, here, load) -> `Ahead`, of settings with folders in the places of
      references; parents is {dotted key: `Ahead`} of those. here: it is to
      run on this machine; load(settings) gives the data.
    make(stage, settings, kept, quiet) -> row of its evaluation, or None; kept is as of
      `sweep.reference`.
    """

    note: str
    what: str
    read: Callable[..., Any]
    compared: Callable[..., dict[str, Any]]
    digest: Callable[..., str | None]
    ahead: Callable[..., Ahead]
    make: Callable[..., Row | None]


def _read_config(entry, folder, words, seed):
    config = configs.load(str(folder / entry['config'])).copy_and_resolve_references().unlock()
    values = dict(entry.get('set', {}))
    for key in [key for key in values if key in SECTIONS and key not in config]:
        config[key] = values.pop(key)
    build.complete(config, values)
    for key, value in values.items():
        configs.put(config, key, value, 'set')
    if seed is not None:
        config.seed = seed
    try:
        build.override(config, [f'--config.{key}={text}' for key, text in words.items()])
    except UserError as error:
        raise UserError(str(error).replace('--config.', f'--{entry["name"]}.')) from error
    return configs.to_json(config)


def _compared_config(settings):
    # Where its parents lie is of no importance, but which they are.
    return build.comparable(settings, places=False) | references(settings)


def _ahead_config(settings, parents, here, load):
    known = {
        part: parents[f'{part}.workdir'].plain
        for part in ('start', 'teacher')
        if f'{part}.workdir' in parents
    }
    pairs, path = (parents.get(key) for key in ('data.path', 'path.workdir'))
    source = build.blank(pairs.plain['image'], pairs.samples) if pairs else load(settings)
    plain = build.resolve(settings, source, known)
    seen = build.foresee(plain, path and path.plain, jax.devices() if here else None)
    configs.call(
        pipeline.batches,
        {},
        'config.data',
        source=source,
        batch_size=seen.batch_size,
        seed=plain.get('seed', 0),
        flip=plain['data'].get('flip', False),
    )
    return Ahead(
        plain,
        f'{seen.steps:,} x {seen.batch_size}',
        seen.steps * seen.batch_size,
        sum(seen.parameters.values()),
        seen.evaluations,
        seen.bytes,
    )


def _make_run(stage, settings, kept, quiet):
    build.train(configs.from_json(settings), stage.folder, quiet=quiet)
    if not stage.evaluate:
        return None
    against = sweep.reference(configs.read(stage.folder), kept)
    return build.evaluate(None, stage.folder, quiet=quiet, against=against)


def _read_pairs(entry, folder, words, seed):
    settings = configs.to_json(entry['pairs'], 'pairs') | ({} if seed is None else {'seed': seed})
    for key, text in words.items():
        *path, last = key.split('.')
        section = settings
        for name in path:
            section = section.setdefault(name, {})
            if not isinstance(section, dict):
                raise UserError(f'--{entry["name"]}.{key}: {name} is a value, not a section')
        try:
            section[last] = configs.to_json(ast.literal_eval(text), key)
        except (ValueError, SyntaxError):
            section[last] = text
    return settings


def _compared_pairs(settings):
    known = configs.parameters(build.make_pairs)
    free = {name for name, one in known.items() if Free in typing.get_args(one.annotation)}
    return {key: of for key, of in disk.flat(settings).items() if key.split('.')[0] not in free}


def _ahead_pairs(settings, parents, here, load):
    @functools.wraps(build.make_pairs)
    def checked(*given, **options):
        pass

    settings = configs.with_tuples(settings)
    configs.call(checked, settings, 'pairs', out='', quiet=True)
    workdir, weights = (settings.get(name) for name in ('workdir', 'weights'))
    build.folder_of(workdir, weights)
    solver = dict(settings.get('solver') or {})
    if weights is not None:
        run = build.from_weights(weights, **solver)
        plain, nfe = configs.to_json(run.config), run.nfe
    else:
        known = parents['workdir'].plain if 'workdir' in parents else None
        plain = known or configs.to_json(configs.read(workdir, 'pairs.workdir'))
        solved = build.replaced(plain, {})
        solve = functools.partial(build.solve, solved, f'workdir={workdir}')
        configs.call(solve, solver, 'pairs.solver')
        nfe = build.experiment(solved).method.generator.nfe
    count, image = settings['count'], plain['image']
    asked = configs.parameters(build.check_pairs).keys() & settings.keys()
    build.check_pairs(image, **{name: settings[name] for name in asked})
    given = {name: ('float32', shape) for name, shape in image.get('given', {}).items()}
    dtype = settings.get('dtype', 'float32')
    record = pairs.record_of(image['shape'], dtype, image['num_classes'] > 0, given)
    evaluations = {'teacher': Evaluations(nfe * count)}
    return Ahead(plain, f'{count:,} pairs', count, 0, evaluations, count * pairs.size(record))


def _make_pairs(stage, settings, kept, quiet):
    build.make_pairs(stage.folder, quiet=quiet, **configs.with_tuples(settings))


# Key of a stage that says what it is made of -> how.
KINDS = {
    'config': Kind(
        note=CONFIG,
        what='a run with a checkpoint',
        read=_read_config,
        compared=_compared_config,
        digest=build.digest,
        ahead=_ahead_config,
        make=_make_run,
    ),
    'pairs': Kind(
        note=pairs.NOTE,
        what='pairs',
        read=_read_pairs,
        compared=_compared_pairs,
        digest=build.digest_pairs,
        ahead=_ahead_pairs,
        make=_make_pairs,
    ),
}


def load(
    path: str, workdir: disk.Path, words: Sequence[str] = (), seed: int | None = None
) -> tuple[Stage, ...]:
    """The stages of a recipe, in order.

    Args:
      path: a file as above; with `path:argument`, get_recipe(argument).
      workdir: folder of the recipe.
      words: `--STAGE.key=value`, another setting of a stage, and `--STAGE=DIR`, a folder that is
        used in the place of a stage.
      seed: of all stages.

    Raises:
      UserError: on whatever is wrong in that, in one line.
    """
    entries = configs.returned(path, 'get_recipe', 'a list of dicts', '--recipe')
    where = f'--recipe={path}: get_recipe()'
    if not isinstance(entries, (list, tuple)) or not entries:
        raise UserError(f'{where} returned {entries!r:.80}; it must return a list of stages')
    entries = [_entry(entry, f'{where}: stage {n}') for n, entry in enumerate(entries, 1)]
    names = [entry['name'] for entry in entries]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f'{where} has two stages {name}; give each a name of its own')
    changes, given = _words(words, names)
    stages = []
    for entry in entries:
        name, kind = entry['name'], next(kind for kind in KINDS if kind in entry)
        if name in given:
            folder = _given(name, kind, given[name], changes[name])
            stages.append(Stage(name, kind, {}, False, folder, True))
            continue
        with _named(name):
            home = pathlib.Path(path.partition(':')[0]).parent
            settings = KINDS[kind].read(entry, home, changes[name], seed)
            _check_references(settings, {stage.name: stage for stage in stages}, names)
        measured = kind == 'config' and entry.get('evaluate', True)
        stages.append(Stage(name, kind, settings, measured, pathlib.Path(workdir) / name))
    return tuple(stages)


def _entry(entry, where):
    """An `Entry`, once it is known to be one."""
    if found := misfit(entry, Entry, where):
        raise UserError(f'{found}; give a dict, as {{"name": "teacher", "config": "teacher.py"}}')
    known, name = typing.get_type_hints(Entry), entry['name']
    for key in entry:
        if key not in known:
            raise UserError(f'{where} ({name}): unknown {key!r}{suggest(key, known)}')
    kinds = [kind for kind in KINDS if kind in entry]
    if len(kinds) != 1:
        raise UserError(f'{where} ({name}): give one of {", ".join(KINDS)}')
    for key in ('set', 'evaluate') if kinds != ['config'] else ():
        if key in entry:
            raise UserError(f'{where} ({name}): {key!r} is for a stage with a config')
    if not NAME.fullmatch(name) or name in OPTIONS:
        raise UserError(
            f'{where}: name={name!r:.80} cannot be that of a folder and of an option; use letters, '
            f'digits, - and _, and none of {", ".join(OPTIONS)}'
        )
    return entry


def _words(words, names):
    """({stage: {key: text}}, {stage: folder that is given in its place}) of a command line."""
    changes, given = {name: {} for name in names}, {}
    for word in words:
        match = WORD.fullmatch(word)
        if not match:
            raise UserError(f'{word}: give --STAGE.key=value, or --STAGE=DIR in place of a stage')
        name, key, text = match.groups()
        if name not in names:
            raise UserError(f'{word}: no such stage{suggest(name, names, prefix="--")}')
        if key:
            changes[name][key] = text
        else:
            given[name] = text
    return changes, given


def _given(name, kind, place, changes):
    """The folder that is given in the place of a stage, once it is known to hold what it should."""
    folder, of, where = disk.place(place), KINDS[kind], f'--{name}'
    if changes:
        raise UserError(
            f'{where}.{next(iter(changes))}: the stage is given as {place}; leave it out'
        )
    if not (disk.exists(folder, place, where) and (folder / of.note).is_file()):
        raise UserError(f'{where}={place}: has no {of.note}; give a folder that holds {of.what}')
    if of.digest(folder) is None:
        raise UserError(f'{where}={place}: give a folder that holds {of.what}')
    return folder.absolute() if isinstance(folder, pathlib.Path) else folder


def _check_references(settings, earlier, names):
    """Raises UserError on a reference to no earlier stage, or to one of another kind."""
    for key, name in references(settings).items():
        if name not in earlier:
            later = name in names
            what = 'this stage or a later one' if later else 'no stage'
            raise UserError(f'{key}={"@" + name!r}: is {what}{suggest(name, earlier, prefix="@")}')
        wanted = 'pairs' if key == 'data.path' else 'config'
        if earlier[name].kind != wanted:
            raise UserError(
                f'{key}={"@" + name!r}: will hold {KINDS[earlier[name].kind].what}; name a stage '
                f'with {wanted!r}'
            )


@contextlib.contextmanager
def _named(name: str) -> Iterator[None]:
    """Lets what is raised begin with the name of a stage, and end a process as it would have."""
    at = f'stage {name}: '
    try:
        yield
    except Stopped as error:
        raise Stopped(f'{at}{error}', error.signum) from error
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(at + (str(error) or 'interrupted')) from error
    except (UserError, NotFinite, MemoryError) as error:
        raise type(error)(f'{at}{error}') from error
    except OSError as error:
        if error.errno is not None:
            error.filename = f'{at}{error.filename or "?"}'
        raise
    except Exception as error:
        error.add_note(f'in the stage {name}')
        raise


def ahead(
    stages: Sequence[Stage], made: Mapping[str, Any] = {}, here: bool = False
) -> dict[str, Ahead]:
    """{name: what it will be} of stages, whose parents need not be there; a given one is nothing
    but its config.

    Args:
      stages: of `load`.
      made: those that are there, which are not looked at again but for their configs.
      here: they are to run on this machine, with data that are there.

    Raises:
      UserError: on whatever a stage would stop at that can be known before it begins.
    """
    rows, found = sources.SOURCES if here else sources.OUTLINES, {}

    @functools.lru_cache(1)
    def data(section):
        return build.load_data({'data': json.loads(section)}, 'train', rows)

    def load(settings):
        # What says that there is none, or that it is no dict, stands there.
        section = settings.get('data')
        return data(json.dumps(section)) if section else build.load_data(settings, 'train', rows)

    folders = {stage.name: stage.folder for stage in stages}
    for stage in stages:
        is_made = stage.given or stage.name in made
        with _named(stage.name):
            if is_made and stage.kind == 'config':
                plain = configs.to_json(configs.read(stage.folder, f'--{stage.name}'))
                found[stage.name] = Ahead(plain)
            elif not is_made:
                refs = references(stage.settings).items()
                parents = {key: found[name] for key, name in refs if name in found}
                # The data of pairs that are there say themselves what they are.
                settings = filled(stage.settings, folders)
                found[stage.name] = KINDS[stage.kind].ahead(settings, parents, here, load)
    return found


def records(workdir: disk.Path) -> dict[str, Record]:
    """{name: record} of a recipe's folder, in order; {} where none was run.

    Raises:
      UserError: `recipe.json` is damaged, or a name in it is of no folder of a stage.
    """
    file = pathlib.Path(workdir) / RECIPE
    known = disk.read_json(file, Kept)['stages'] if file.is_file() else {}
    for name, record in known.items():
        if not NAME.fullmatch(name) or not (record['given'] or record['folder'] == name):
            raise UserError(f'{file} is damaged: no stage is called {name!r:.80}; {disk.AGAIN}')
    return known


def digest(stage: Stage, record: Record | None, digests: Mapping[str, str]) -> str | None:
    """Of a stage that is there, or None: it is to be made, or to go on.

    Args:
      stage: of `load`.
      record: of it, if there is one.
      digests: of its parents, as far as they are there.

    Raises:
      UserError: what is there was made in another way, or from others.
    """
    kind, folder = KINDS[stage.kind], stage.folder
    if stage.given:
        return kind.digest(folder)
    anew = f'remove {folder} to make it anew, or give another --workdir'
    if record and record['given']:
        raise UserError(
            f'stage {stage.name}: was given; add --{stage.name}={record["folder"]} again, or give '
            'another --workdir'
        )
    if record is None or not (folder / kind.note).is_file():
        return None
    old, new = record['settings'], disk.plain(kind.compared(stage.settings))
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) != new.get(key):
            raise UserError(
                f'stage {stage.name}: {folder} was made with {key}={old.get(key)!r}, now '
                f'{new.get(key)!r}; give the same again, {anew}'
            )
    for name in stage.parents:
        was, now = record['parents'].get(name), digests.get(name)
        if now is not None and was != now:
            raise UserError(
                f'stage {stage.name}: {folder} was made from another {name} (digest {was}, now '
                f'{now}); {anew}'
            )
    if record['status'] != 'done':
        return None
    if record.get('digest') != (now := kind.digest(folder)):
        raise UserError(
            f'stage {stage.name}: {folder} is no more what was made (digest '
            f'{record.get("digest")}, now {now}); bring it back from a copy, {anew}'
        )
    # One that is to be measured now, or otherwise than it was, has nothing else to do.
    measured = record.get('row') and record.get('evaluation') == _evaluation(stage)
    return now if measured or not stage.evaluate else None


def _evaluation(stage):
    return disk.plain(stage.settings.get('evaluation', {}))


def there(stages: Sequence[Stage], known: Mapping[str, Record]) -> dict[str, str]:
    """{name: digest} of the stages that are there; arguments and errors as of `digest`."""
    digests = {}
    for stage in stages:
        found = digest(stage, known.get(stage.name), digests)
        digests |= {stage.name: found} if found else {}
    return digests


def run(
    path: str,
    workdir: disk.Path,
    *,
    words: Sequence[str] = (),
    seed: int | None = None,
    quiet: bool = False,
) -> dict[str, Record]:
    """Runs the stages of a recipe that are not done, in order.

    Args:
      path, words, seed: see `load`.
      workdir: folder of the recipe.
      quiet: no progress on stderr.

    Returns:
      as `records`, of all stages.

    Raises:
      UserError: on whatever the user can mend; if it can be known then, before the first stage.
      Exception: of a stage, with its name; what is done is kept.
    """
    folder, first = disk.folder_for(workdir, '--workdir'), jax.process_index() == 0
    stages = load(path, folder, words, seed)
    if first:
        lock.check(folder)
    ahead(stages, there(stages, records(folder)), here=True)
    folders, against = {stage.name: stage.folder for stage in stages}, {}
    with lock.held(folder) if first else contextlib.nullcontext(), stop.interrupting():
        old, digests = records(folder), {}
        known = {stage.name: old.get(stage.name) for stage in stages}
        sharding.of_first(len(known))  # None writes before all have read.
        note = functools.partial(_note, path, folder, known)
        for n, stage in enumerate(stages, 1):
            name, kind = stage.name, KINDS[stage.kind]
            say = functools.partial(_say, quiet or not first, f'[{n}/{len(stages)}] {name}')
            # Looked at again, for a parent that was made anew may be another now.
            found = digest(stage, known[name], digests)
            if found is None:
                say('')
                known[name] = _begun(stage, known[name], digests)
                settings = filled(stage.settings, folders)
                make = functools.partial(kind.make, stage, settings, against, quiet)
                with _named(name):
                    _attempt(known[name], make, functools.partial(kind.digest, stage.folder), note)
            elif stage.given:
                known[name] = _begun(stage, None, {}) | {'status': 'done', 'digest': found}
                note()
            digests[name] = known[name]['digest']
            say(f': {summary(known[name])}')
    return known


def _begun(stage, record, digests):
    """The record of a stage that begins, or goes on."""
    kind = KINDS[stage.kind]
    goes_on = record and (stage.folder / kind.note).is_file()
    return {
        'kind': stage.kind,
        'folder': str(stage.folder) if stage.given else stage.name,
        'given': stage.given,
        'settings': {} if stage.given else disk.plain(kind.compared(stage.settings)),
        'parents': {name: digests[name] for name in stage.parents},
        'status': 'begun',
        'evaluation': _evaluation(stage),
        'seconds': record['seconds'] if goes_on else 0.0,
    }


def _attempt(record, make, digest, note):
    """Makes a stage, and keeps in its record what comes of it."""
    began, before = time.perf_counter(), record['seconds']
    note()
    try:
        row = make()
        record |= {'status': 'done', 'digest': digest(), 'row': row}
    except Exception as error:
        said = '' if isinstance(error, UserError) else f'{type(error).__name__}: '
        record |= {'status': 'failed', 'error': said + ' '.join(str(error).split())[:500]}
        raise
    finally:
        record['seconds'] = before + time.perf_counter() - began
        # Of what fails, its own error is worth more.
        with contextlib.suppress(*[OSError] * (record['status'] != 'done')):
            note()
    # The programs of the next stage are others.
    jax.clear_caches()


def _note(path, folder, known):
    """Writes `recipe.json`."""
    if jax.process_index() == 0:
        stages = {name: record for name, record in known.items() if record}
        disk.write_json(folder / RECIPE, {'recipe': str(path), 'stages': stages})


def _say(quiet, *parts):
    if not quiet:
        print(*parts, sep='', file=sys.stderr, flush=True)


def summary(record: Record) -> str:
    """A record in one line."""
    numbers = sweep.summary(record) if record.get('row') or record['status'] == 'failed' else ''
    return f'{_state(record)}  {numbers}'.rstrip()


def _state(record):
    if record['given']:
        return f'given, {record["folder"]}'
    return f'{record["status"]}, {clock(record["seconds"])}'


def results(known: Mapping[str, Record]) -> str:
    """What came of the stages, a line each."""
    return '\n'.join(table((name, summary(record)) for name, record in known.items()))


def listing(stages: Sequence[Stage], workdir: disk.Path) -> str:
    """What `--dry-run` prints: each stage with what it is made from, does and leaves, and the sum
    of those to do."""
    known = records(workdir)
    digests, seen = there(stages, known), ahead(stages)
    rows = [('stage', 'from', 'work', 'parameters', 'evaluations + derivatives', 'disk', '')]
    todo, total = [], Evaluations()
    for stage in stages:
        if stage.given:
            rows.append((stage.name, *'-----', f'given, {stage.folder}'))
            continue
        one, record = seen[stage.name], known.get(stage.name)
        begun = record and (stage.folder / KINDS[stage.kind].note).is_file()
        counts = (
            f'{name} {_short(of.forward)}' + f' + {_short(of.derivative)}' * (of.derivative > 0)
            for name, of in one.evaluations.items()
        )
        cells = ', '.join(stage.parents) or '-', one.work, f'{one.parameters:,}', ', '.join(counts)
        rows.append((stage.name, *cells, _size(one.bytes), _state(record) if begun else ''))
        if stage.name not in digests:
            todo.append(one)
            total = functools.reduce(Evaluations.plus, one.evaluations.values(), total)
    above = pathlib.Path(workdir).absolute()
    free = shutil.disk_usage(next(at for at in (above, *above.parents) if at.is_dir())).free
    said = (
        f'{len(stages)} stages, {len(todo)} to do: {sum(one.samples for one in todo):,} samples',
        f'{_short(total.forward)} evaluations of networks, {_short(total.derivative)} with '
        'derivatives',
        f'at most {_size(sum(one.bytes for one in todo))} on disk, where {_size(free)} are free',
        'what is measured is not in it, and of stages that have begun all is',
    )
    return '\n'.join([*table(rows), '; '.join(said)])


def _short(number):
    """As 230k."""
    for unit, name in ((1e12, 'T'), (1e9, 'G'), (1e6, 'M'), (1e3, 'k')):
        if number >= unit:
            return f'{number / unit:.3g}{name}'
    return str(number)


def _size(count):
    return f'{count / 2**20:,.1f} MiB' if count < 2**30 else f'{count / 2**30:,.1f} GiB'
