"""Sweeps: one base config and many trials, each an ordinary run folder. Trials without a result are
run; those that are done are kept.

A sweep is a config file with two functions:

    def get_config(): ...             # the base, as of any experiment
    def get_sweep():                  # a grid, or a list of trials
        return {'method.divergence': ('reverse_kl', 'js'), 'seed': (0, 1, 2)}

The key `config` of a trial is the argument of get_config() that makes its base, so that trials of
several methods stand in one sweep.

Its folder holds `sweep.json` and, below `trials/`, one run folder for each trial with
`result.json`: the status (done or failed), the row of its evaluation or the error, and the
seconds. Results are written whole or not at all. A trial that is killed in the middle has none, and
resumes from its own checkpoint after the others; one that ends its process twice at the same
checkpoint has failed. One sweep at a time runs in a folder, and one process a trial.
"""

import contextlib
import functools
import hashlib
import itertools
import json
import os
import pathlib
import re
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, NotRequired, TypedDict

import jax
import numpy as np

from fdistill import build
from fdistill import config as configs
from fdistill.errors import NotFinite, UserError
from fdistill.evaluation import evaluate as evaluation
from fdistill.evaluation.protocol import MARK
from fdistill.evaluation.subject import Row
from fdistill.files import disk, lock
from fdistill.files.text import clock, table
from fdistill.training import checkpoint, sharding

RESULT = 'result.json'
LIST = 'sweep.json'
# In the folder of a trial while it runs: how often it has begun at its checkpoint. It outlives a
# process that dies.
BEGUN = 'begun.json'
MOST_TRIES = 2
AGAIN = 'delete it, and the trial runs again'
NAME = re.compile(r'(?!\.+$)[\w=.,()+-]+')


class Overrides(TypedDict, total=False):
    """{dotted key: value} of a trial."""

    seed: int


class Outcome(TypedDict):
    """What a trial came to, as in that file."""

    overrides: Overrides
    fingerprint: str
    status: Literal['done', 'failed']
    row: NotRequired[Row]
    error: NotRequired[str]
    seconds: float


class Begun(TypedDict):
    """How often a trial has begun at a step, as in that file."""

    step: int
    times: int


class Listed(TypedDict):
    """The trials of a sweep, as in `sweep.json`: {name: overrides}."""

    trials: dict[str, dict]


class Trial(NamedTuple):
    """One run of a sweep.

    name: of its folder, made of what differs between the trials.
    overrides: {dotted key: value}.
    config: the base config with the overrides.
    """

    name: str
    overrides: Mapping[str, Any]
    config: configs.ConfigDict


def load(path: str, overrides: Sequence[str] = ()) -> tuple[Trial, ...]:
    """The trials of a sweep file, in order.

    Args:
      path: a file as above; with `path:argument`, get_config(argument).
      overrides: words `--config.a.b=value` for the base.

    Returns:
      tuple of `Trial`.

    Raises:
      UserError: no get_sweep, an unknown key, a value of another type, or two trials alike.
    """

    @functools.cache
    def base(place):
        config = configs.load(place)
        build.override(config, overrides)
        return config

    def base_of(chosen):
        if 'config' not in chosen:
            return base(path)
        argument = chosen['config']
        where = f'--config={path}: get_sweep(): config={argument!r}: '
        if not isinstance(argument, str):
            raise UserError(f'{where}must be the argument of get_config(), a string')
        # Of a trial's own, the argument of `path` does not matter.
        place = f'{path.partition(":")[0]}:{argument}'
        try:
            return base(place)
        except UserError as error:
            raise UserError(where + str(error).removeprefix(f'--config={place}: ')) from error

    base(path)
    make = getattr(configs.module(path), 'get_sweep', None)
    if not callable(make):
        raise UserError(
            f'--config={path}: has no get_sweep(); define it, returning a dict of key: values, or '
            'a list of dicts'
        )
    sweep = make()
    try:
        if isinstance(sweep, dict):
            for key, values in sweep.items():
                if isinstance(values, str):  # Else its letters would be the values.
                    raise ValueError(f'give a tuple in the place of {key}={values!r}')
            sweep = [dict(zip(sweep, values)) for values in itertools.product(*sweep.values())]
        sweep = [dict(chosen) for chosen in sweep]
    except (TypeError, ValueError) as error:
        raise UserError(
            f'--config={path}: get_sweep() must return a dict of key: values, or a list of dicts; '
            f'{error}'
        ) from error
    if not sweep:
        raise UserError(f'--config={path}: get_sweep() returns no trial')
    keys = dict.fromkeys(key for chosen in sweep for key in chosen)
    varied = [key for key in keys if len({repr(chosen.get(key)) for chosen in sweep}) > 1]
    trials = []
    for chosen in sweep:
        config = base_of(chosen).copy_and_resolve_references().unlock()
        values = {key: value for key, value in chosen.items() if key != 'config'}
        build.complete(config, values)
        for key, value in values.items():
            configs.put(config, key, value, f'--config={path}: get_sweep()')
        trials.append(
            Trial(
                _name({key: chosen[key] for key in varied if key in chosen}), chosen, config.lock()
            )
        )
    names = [trial.name for trial in trials]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f'--config={path}: get_sweep() returns the trial {name} twice')
        if not _is_name(name):
            raise UserError(
                f'--config={path}: get_sweep() returns a trial of the name {name[:80]}..., which '
                'is too long for a folder; vary fewer keys, or give shorter values'
            )
    return tuple(trials)


def _name(overrides):
    """The name of a trial's folder: the last part of each key that differs, and its value."""
    parts = (f'{key.rpartition(".")[2]}={value}' for key, value in overrides.items())
    return re.sub(r'[^\w=.,()+-]', '_', ','.join(parts)) or 'base'


def _is_name(text):
    """Whether a trial can be called so: a folder right below `trials/`."""
    return bool(NAME.fullmatch(text)) and len(text.encode()) <= 255


def fingerprint(config: configs.ConfigDict) -> str:
    """Digest of a config without the settings that may change when it is resumed."""
    flat = build.comparable(configs.to_json(config))
    return hashlib.sha256(json.dumps(flat, sort_keys=True).encode()).hexdigest()[:16]


def folder_of(workdir: disk.Path, trial: Trial) -> pathlib.Path:
    return pathlib.Path(workdir) / 'trials' / trial.name


def result(workdir: disk.Path, trial: Trial) -> Outcome | None:
    """The recorded result of a trial, or None.

    Raises:
      UserError: the folder holds the result of another config of that name.
    """
    file = folder_of(workdir, trial) / RESULT
    try:
        if not file.is_file():
            return None
    except OSError:  # Of a folder that is closed to us the trial itself will say so.
        return None
    known = disk.read_json(file, Outcome, AGAIN)
    if known['fingerprint'] != fingerprint(trial.config):
        raise UserError(
            f'{file}: is of another config than the sweep now has; give another --workdir'
        )
    return known


def run_trial(workdir: disk.Path, trial: Trial, references: dict | None = None) -> Outcome:
    """Trains and evaluates a trial, or resumes it; writes and returns its result. An exception is
    recorded as the trial's result, unless it is that another process runs the trial.

    Args:
      workdir: of the sweep.
      trial: `Trial`.
      references: dict in which references of evaluations are kept, for trials on the same data.
    """
    folder, began = folder_of(workdir, trial), time.perf_counter()
    outcome = {'overrides': trial.overrides, 'fingerprint': fingerprint(trial.config)}
    try:
        with _begun(folder):
            build.train(trial.config, folder, quiet=True)
            against = reference(trial.config, references)
            row = build.evaluate(None, folder, quiet=True, against=against)
        outcome |= {'status': 'done', 'row': row}
    except lock.Held as error:
        return outcome | {'status': 'failed', 'error': str(error), 'seconds': 0.0}
    except (NotFinite, UserError) as error:
        outcome |= {'status': 'failed', 'error': ' '.join(str(error).split())}
    except Exception as error:  # One divergence's bug must not cost the others' night.
        # Submitit's, of a job whose time is up: without a result it goes on later.
        if type(error).__name__ == 'UncompletedJobError':
            raise
        outcome |= {
            'status': 'failed',
            'error': f'{type(error).__name__}: ' + ' '.join(str(error).split())[:500],
        }
    return _written(folder, outcome, time.perf_counter() - began)


@contextlib.contextmanager
def _begun(folder: pathlib.Path) -> Iterator[None]:
    """Holds the folder of a trial while it runs, and leaves a note there for those who come after
    a process that died.

    Raises:
      Held: another process runs the trial.
      UserError: processes died of it before.
    """
    with contextlib.ExitStack() as stack:
        refused = None
        if jax.process_index() == 0:
            try:
                stack.enter_context(lock.held(folder, 'trial', '.trial'))
                _count(folder)
                stack.callback((folder / BEGUN).unlink, missing_ok=True)
            except (OSError, UserError) as error:
                refused = error
        # The others would wait for process 0 in vain.
        if sharding.of_first(np.array(refused is not None)):
            raise refused or UserError(f'{folder}: process 0 does not run it')
        yield


def _count(folder):
    """Counts in `BEGUN` how often a trial has begun since its last checkpoint."""
    file, step = folder / BEGUN, checkpoint.newest(folder)
    known = disk.read_json(file, Begun) if file.is_file() else {'step': step, 'times': 0}
    times = known['times'] if known['step'] == step else 0
    if times >= MOST_TRIES:
        file.unlink()
        raise UserError(
            f'its process ended {times} times at step {step} without a result, as where memory '
            'is short; --retry runs it again'
        )
    disk.write_json(file, {'step': step, 'times': times + 1})


def _written(folder, outcome, seconds):
    outcome['seconds'] = seconds
    if jax.process_index() == 0:
        try:
            disk.write_json(folder / RESULT, outcome)
        except OSError as error:  # It must not cost the others their turn.
            outcome |= {'status': 'failed', 'error': f'its result cannot be kept: {error}'}
    # The next trial's programs are others, and a sweep may have hundreds.
    jax.clear_caches()
    return outcome


def run_lanes(
    workdir: disk.Path,
    trials: Sequence[Trial],
    references: dict | None = None,
    say: Callable[[str], Any] = print,
) -> list[Outcome]:
    """Does what `run_trial` does, for a group of trials that `lanes` made: trains them as one
    vmapped program and returns their results.

    If the group does not fit into memory, or a part of a config is wrong, its halves are trained
    one after the other.
    """
    if len(trials) == 1:
        return [run_trial(workdir, trials[0], references)]
    began = time.perf_counter()
    folders = [folder_of(workdir, trial) for trial in trials]
    try:
        with contextlib.ExitStack() as stack:
            for folder in folders:
                stack.enter_context(_begun(folder))
            failed = build.train_lanes(
                [(trial.config, folder) for trial, folder in zip(trials, folders)], quiet=True
            )
    except Exception as error:
        # Only its text: the error itself holds on to the arrays that did not fit.
        reason = f'{type(error).__name__}: ' + ' '.join(str(error).split())[:200]
    else:
        share = (time.perf_counter() - began) / len(trials)
        return [
            _after(workdir, trial, error, share, references) for trial, error in zip(trials, failed)
        ]
    say(f'    {len(trials)} trials as one program: {reason}; so in halves')
    halves = trials[: len(trials) // 2], trials[len(trials) // 2 :]
    groups = [group for half in halves for group in lanes(workdir, half)]
    return [outcome for group in groups for outcome in run_lanes(workdir, group, references, say)]


def _after(workdir, trial, error, seconds, references):
    """The result of a trial that was trained as a lane in so many seconds, or stopped by an
    error."""
    if error is None:
        outcome = run_trial(workdir, trial, references)
    else:
        outcome = {'overrides': trial.overrides, 'fingerprint': fingerprint(trial.config)}
        outcome |= {'status': 'failed', 'error': str(error)}
    return _written(folder_of(workdir, trial), outcome, seconds + outcome.get('seconds', 0.0))


def lanes(workdir: disk.Path, trials: Iterable[Trial]) -> list[list[Trial]]:
    """Trials in groups that differ only in their seed and continuous settings (`types.Continuous`).

    A trial that has begun is a group of its own, and resumes; so is one that is evaluated during
    training.
    """
    groups = {}
    for trial in trials:
        common = build.common(configs.to_json(trial.config))
        folder = folder_of(workdir, trial)
        begun = any(os.path.exists(folder / name) for name in (checkpoint.FOLDER, BEGUN))
        alone = trial.name if begun or trial.config.training.get('evaluate_every') else None
        groups.setdefault((json.dumps(common, sort_keys=True), alone), []).append(trial)
    return list(groups.values())


def reference(config: Mapping[str, Any], kept: dict | None) -> Any:
    """What an evaluation compares with, for `build.evaluate`; None where nothing is kept.

    Args:
      config: of the run.
      kept: dict in which the last one is, for others on the same data.
    """
    if kept is None:
        return None
    key = json.dumps([configs.to_json(config.get(name, {})) for name in ('data', 'evaluation')])
    if key not in kept:
        kept.clear()
        kept[key] = build.reference(config)
    return kept[key]


def run(
    path: str,
    workdir: disk.Path,
    *,
    overrides: Sequence[str] = (),
    only: Sequence[str] | None = None,
    retry: bool = False,
    vmap_seeds: bool = False,
    quiet: bool = False,
) -> list[tuple[Trial, Outcome]]:
    """Runs the trials that have no result, one after another in this group of processes.

    Args:
      path, overrides: see `load`.
      workdir: folder of the sweep.
      only: names of trials; default: all.
      retry: run failed trials again.
      vmap_seeds: train trials that differ in their seed and in continuous settings alone as one
        vmapped program, on one device, in as many parts as its memory asks for.
      quiet: no progress on stderr.

    Returns:
      as `finished`, of all trials.

    Raises:
      UserError: on whatever the user can mend before the first trial, as another sweep that runs
        in the folder; single trials may run side by side.
    """
    disk.folder_for(workdir, '--workdir')
    trials = load(path, overrides)
    chosen = select(trials, only)
    with _held(workdir, only):
        waiting = missing(workdir, chosen, retry)
        note(path, workdir, trials)
        progress = Progress(workdir, chosen, waiting, quiet)
        references = {}
        if vmap_seeds and any(trial.config.training.get('evaluate_every') for trial in waiting):
            progress.say('trials with evaluate_every are trained one by one')
        for group in lanes(workdir, waiting) if vmap_seeds else [[trial] for trial in waiting]:
            progress.start(*group)
            for outcome in run_lanes(workdir, group, references, progress.say):
                progress.done(outcome)
        return finished(workdir, trials, waiting)


def _held(workdir, only):
    """Holds the folder of a sweep, process 0 for all; single trials may run side by side."""
    alone = not only and jax.process_index() == 0
    return lock.held(workdir) if alone else contextlib.nullcontext()


def note(path: str, workdir: disk.Path, trials: Iterable[Trial]) -> None:
    """Leaves `sweep.json` for the report."""
    if jax.process_index() == 0:
        listed = {trial.name: trial.overrides for trial in trials}
        disk.write_json(pathlib.Path(workdir) / LIST, {'config': str(path), 'trials': listed})


def listed(workdir: disk.Path) -> list[str]:
    """Names of the trials that `sweep.json` lists; [] where there is none.

    Raises:
      UserError: it is damaged, or a name is of no folder of a trial.
    """
    file = pathlib.Path(workdir) / LIST
    names = list(disk.read_json(file, Listed)['trials']) if file.is_file() else []
    for name in names:
        if not _is_name(name):
            raise UserError(f'{file} is damaged: no trial is called {name!r}; {disk.AGAIN}')
    return names


def finished(
    workdir: disk.Path, trials: Iterable[Trial], tried: Sequence[Trial] = ()
) -> list[tuple[Trial, Outcome]]:
    """[(Trial, its result)] of the trials that have one; one that was tried and has none failed."""
    lost = {'status': 'failed', 'error': 'it left no result', 'seconds': 0.0}
    known = ((trial, result(workdir, trial) or (trial in tried and lost)) for trial in trials)
    return [(trial, outcome) for trial, outcome in known if outcome]


def select(trials: Sequence[Trial], only: Sequence[str] | None) -> Sequence[Trial]:
    names = {trial.name: trial for trial in trials}
    for name in only or ():
        if name not in names:
            raise UserError(f'--only={name}: no such trial; `--dry-run` lists them')
    return trials if not only else [names[name] for name in only]


def missing(workdir: disk.Path, trials: Sequence[Trial], retry: bool = False) -> list[Trial]:
    """The trials to run: those without a result, and with `retry` those that failed; last those
    whose process died. All hosts get process 0's answer."""
    known = [result(workdir, trial) for trial in trials]
    wanted = [not found or (retry and found['status'] == 'failed') for found in known]
    died = [os.path.exists(folder_of(workdir, trial) / BEGUN) for trial in trials]
    wanted, died = sharding.of_first(np.array([wanted, died]))
    order = sorted(np.flatnonzero(wanted), key=lambda index: died[index])
    return [trials[index] for index in order]


class Progress:
    """Lines on stderr: which trial of how many, its result, and how long the others will take."""

    def __init__(
        self, workdir: disk.Path, trials: Sequence[Trial], waiting: Sequence[Trial], quiet: bool
    ) -> None:
        self._total, self._left, self._quiet = (
            len(trials),
            len(waiting),
            quiet or jax.process_index() != 0,
        )
        self._seconds = [known['seconds'] for _, known in finished(workdir, trials)]
        if self._left < self._total:
            self.say(f'{self._total - self._left} of {self._total} trials have a result')

    def start(self, trial: Trial, *others: Any) -> None:
        left = (
            f'  {clock(statistics.median(self._seconds) * self._left)} left'
            if self._seconds
            else ''
        )
        more = f' and {len(others)} others at once' if others else ''
        self.say(f'[{self._total - self._left + 1}/{self._total}] {trial.name}{more}{left}')

    def done(self, outcome: Outcome) -> None:
        self._left -= 1
        self._seconds.append(outcome['seconds'])
        self.say(f'    {outcome["seconds"]:.0f} s  {summary(outcome)}')

    def say(self, text: str) -> None:
        if not self._quiet:
            print(text, file=sys.stderr, flush=True)


def summary(outcome: Outcome) -> str:
    """A result in one line."""
    if outcome['status'] == 'failed':
        return f'FAILED: {outcome["error"]}'
    row = outcome['row']
    numbers = {key: row[key] for key in ('nfe',) if key in row} | evaluation.numbers(row)
    shown = (
        (f'{key} {value:.4g}' if isinstance(value, (int, float)) else f'{key} {value}')
        + f' ({MARK})' * (key in row.get('trained_on', ()))
        for key, value in numbers.items()
    )
    return '  '.join(shown)


def listing(workdir: disk.Path, trials: Sequence[Trial]) -> str:
    """What `--dry-run` prints: each trial with its steps, images and state, and what the missing
    ones will cost."""
    rows, seconds, images = [], [], 0
    for trial in trials:
        known = result(workdir, trial)
        training = trial.config.training
        state = (
            known['status']
            if known
            else 'started'
            if folder_of(workdir, trial).exists()
            else 'missing'
        )
        rows.append(
            (
                trial.name,
                f'{training.steps} steps',
                f'{training.steps * training.batch_size:,} images',
                state,
            )
        )
        seconds += [known['seconds']] if known else []
        images += 0 if known else training.steps * training.batch_size
    missing = len(rows) - len(seconds)
    cost = (
        f', about {clock(statistics.median(seconds) * missing)} one after another'
        if seconds
        else ''
    )
    return '\n'.join(
        [*table(rows), f'{len(rows)} trials, {missing} without a result: {images:,} images{cost}']
    )


def command(path: str, workdir: disk.Path, trial: Trial, overrides: Sequence[str] = ()) -> str:
    """The command line that runs one trial, for any scheduler."""
    return shlex.join(
        [
            'fdistill',
            'sweep',
            f'--config={path}',
            f'--workdir={workdir}',
            f'--only={trial.name}',
            *overrides,
        ]
    )


def _job(path, workdir, name, overrides):
    """One trial in a process of its own; at module level, so that it can be pickled."""
    (trial,) = select(load(path, overrides), [name])
    return run_trial(workdir, trial)


def executor(cluster: str, workdir: disk.Path, parallel: int, **parameters: Any) -> Any:
    """A submitit executor whose files lie in the sweep's folder.

    Args:
      cluster: 'local', or 'slurm' for an array job.
      parallel: trials at once.
      parameters: of submitit's AutoExecutor: timeout_min (default: a day), cpus_per_task,
        gpus_per_node, mem_gb, slurm_partition, ...

    Raises:
      UserError: submitit is not installed, or an unknown parameter.
    """
    try:
        import submitit
    except ImportError as error:
        raise UserError(
            "--executor: needs submitit; install it with pip install -e '.[slurm]'"
        ) from error
    # Submitit's own default is five minutes.
    parameters = {'timeout_min': 24 * 60} | parameters
    if cluster == 'slurm':
        parameters = {'slurm_array_parallelism': parallel} | parameters
    try:
        made = submitit.AutoExecutor(
            folder=pathlib.Path(workdir).absolute() / 'jobs', cluster=cluster
        )
        made.update_parameters(name='fdistill-sweep', **parameters)
    except (NameError, TypeError, RuntimeError) as error:
        raise UserError(f'--executor={cluster}: {error}') from error
    return made


def submit(
    path: str,
    workdir: disk.Path,
    cluster: str,
    *,
    overrides: Sequence[str] = (),
    only: Sequence[str] | None = None,
    retry: bool = False,
    parallel: int = 2,
    quiet: bool = False,
    **parameters: Any,
) -> list[tuple[Trial, Outcome]]:
    """Runs the missing trials in processes of their own, through submitit; arguments as of `run`
    and `executor`.

    Slurm gets one array job, and this returns when it is queued. Local processes are waited for; a
    trial that ends its own without a word has failed.
    """
    path, workdir = (
        str(pathlib.Path(path.split(':')[0]).absolute()) + ''.join(path.partition(':')[1:]),
        disk.folder_for(workdir, '--workdir'),
    )
    trials = load(path, overrides)
    chosen = select(trials, only)
    made = executor(cluster, workdir, parallel, **parameters)
    with _held(workdir, only):
        waiting = missing(workdir, chosen, retry)
        note(path, workdir, trials)
        if cluster == 'slurm':
            with made.batch():
                jobs = [
                    made.submit(_job, path, workdir, trial.name, tuple(overrides))
                    for trial in waiting
                ]
            print(
                f'queued {len(jobs)} trials as job {jobs[0].job_id.split("_")[0]}'
                if jobs
                else 'nothing to run'
            )
            return finished(workdir, trials)
        progress, running, queue = Progress(workdir, chosen, waiting, quiet), {}, list(waiting)
        while queue or running:
            while queue and len(running) < parallel:
                trial = queue.pop(0)
                running[trial.name] = (
                    trial,
                    made.submit(_job, path, workdir, trial.name, tuple(overrides)),
                    time.perf_counter(),
                )
                progress.start(trial)
            for name, (trial, job, began) in list(running.items()):
                if job.done():
                    del running[name]
                    progress.done(result(workdir, trial) or _lost(workdir, trial, job, began))
            time.sleep(0.2)
        return finished(workdir, trials, waiting)


def _lost(workdir, trial, job, began):
    """The result of a trial that left none. One whose process died has failed; one whose time was
    up, of which submitit knows, goes on at the next call."""
    error = f'its process ended without a result; see {job.paths.stderr}'
    outcome = {'overrides': trial.overrides, 'fingerprint': fingerprint(trial.config)}
    outcome |= {'status': 'failed', 'error': error, 'seconds': time.perf_counter() - began}
    if job.paths.result_pickle.exists():
        return outcome
    (folder_of(workdir, trial) / BEGUN).unlink(missing_ok=True)
    return _written(folder_of(workdir, trial), outcome, outcome['seconds'])
