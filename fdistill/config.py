"""Config files: they are read, overridden from the command line, checked against a function's
signature, and kept as JSON."""

import contextlib
import importlib.util
import inspect
import pathlib
import re
import traceback
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NotRequired, TypedDict

import numpy as np
from absl import flags
from ml_collections import ConfigDict, config_flags

from fdistill.errors import UserError, suggest
from fdistill.files import CONFIG, disk
from fdistill.types import misfit

FLOAT32 = float(np.finfo(np.float32).max)


class Latents(TypedDict):
    """What samples that are latents are decoded to: images of that shape, by the autoencoder whose
    arrays and settings have that SHA-256."""

    autoencoder: str
    shape: list[int]


class Image(TypedDict):
    """What a sample is: its shape, the classes (0 for none), shapes of its other conditions, and
    what it is decoded to."""

    shape: list[int]
    num_classes: int
    given: NotRequired[dict[str, list[int]]]
    latents: NotRequired[Latents]


class Named(TypedDict, total=False):
    """A section that is a row of a table, with the settings of that row."""

    name: str


class Change(TypedDict):
    """What `--change` made of a setting of an optimizer, from a step on; None: it was not set."""

    step: int
    setting: str
    before: Any
    after: Any


class Sections(TypedDict, total=False):
    """The sections of a config, as JSON keeps them; see `build.sections`."""

    seed: int
    data: Named
    network: Named | str
    denoiser: Named | str
    fake_score: Named | str
    teacher: dict
    start: dict
    path: dict
    pairs: dict
    method: Named
    discriminator: Named | str
    reward: Named | str
    features: Named | str | list[Named | str]
    optimizer: dict[str, dict]
    training: dict
    mesh: dict
    evaluation: dict
    image: Image
    trained_on: list[str]
    origin: dict[str, str]
    changes: list[Change]


def load(path: str) -> ConfigDict:
    """The locked config of a Python file with `get_config()`.

    Args:
        path: `configs/x.py`, or `configs/x.py:argument` for a `get_config(argument)`.
    Raises:
        UserError: the file is missing, does not run, or gives no ConfigDict.
    """
    config = returned(path, 'get_config', 'a ConfigDict')
    if not isinstance(config, ConfigDict):
        raise UserError(
            f'--config={path}: get_config() returned {type(config).__name__}; '
            'it must return a ConfigDict'
        )
    return config.lock()


def returned(path: str, name: str, what: str, where: str = '--config') -> Any:
    """What a function of a Python file returns.

    Args:
        path: of the file, or `file.py:argument` for the function of that argument.
        name: of the function.
        what: it should return, in words.
        where: what the user calls the path.
    Raises:
        UserError: the file is missing or does not run, or has no such function, or that fails.
    """
    made, (filename, *arguments) = module(path, where), path.split(':', 1)
    if not callable(getattr(made, name, None)):
        raise UserError(f'{where}={path}: has no {name}(); define this function, returning {what}')
    try:
        return getattr(made, name)(*arguments)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f'{where}={path}: {_place(error, filename)}{type(error).__name__}: {error}'
        ) from error


def module(path: str, where: str = '--config') -> types.ModuleType:
    """The module that a config file is, run anew.

    Raises:
        UserError: the file is missing or does not run.
    """
    filename = path.split(':', 1)[0]
    if not pathlib.Path(filename).is_file():
        raise UserError(f'{where}={path}: no such file')
    if not filename.endswith('.py'):
        raise UserError(
            f'{where}={path}: not a Python file; it has to be a .py file with a function, as '
            'get_config()'
        )
    spec = importlib.util.spec_from_file_location('fdistill_config', filename)
    made = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(made)
    except Exception as error:  # The file is the user's: whatever it raises is theirs to mend.
        raise UserError(
            f'{where}={path}: {_place(error, filename)}{type(error).__name__}: {error}'
        ) from error
    return made


def _place(error, filename):
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename.endswith(filename)
    ]
    return f'line {lines[-1]}: ' if lines else ''  # A SyntaxError says its own line.


def read(workdir: str | pathlib.Path, where: str = '--workdir') -> ConfigDict:
    """The config a run was started with.

    Raises:
        UserError: `workdir` is no run folder, see also `disk.exists`, or its config is damaged.
    """
    path = disk.place(workdir) / CONFIG
    if not (disk.exists(path, workdir, where) and path.is_file()):
        raise UserError(
            f'{where}={workdir}: has no {CONFIG}; give the folder of a run made by `fdistill train`'
        )
    values = disk.read_json(path, Sections)
    if 'pairing' in values:  # As the section was called at first.
        values['pairs'] = values.pop('pairing')
    image = values.get('image', {'shape': [], 'num_classes': 0})
    shapes = [image['shape'], *image.get('given', {}).values()]
    try:
        if min([size - 1 for shape in shapes for size in shape] + [image['num_classes']]) < 0:
            raise ValueError(f'image is {image}, which no sample can be')
        for setting in (change['setting'] for change in values.get('changes', [])):
            place, _, role = setting.rpartition('.')[0].partition('.')
            if place != 'optimizer' or role not in values.get('optimizer', {}):
                raise ValueError(f'changes have {setting!r}, which is no setting of an optimizer')
        return from_json(values)
    except (AttributeError, KeyError, TypeError, ValueError) as error:  # As of a key with a dot.
        raise UserError(f'{path} is damaged: {error}; {disk.AGAIN}') from error


def override(config: ConfigDict, arguments: Sequence[str]) -> None:
    """Sets values of a config from `--config.a.b=value` arguments, in place.

    Args:
        config: ConfigDict.
        arguments: words `--config.a.b=value`.
    Raises:
        UserError: a key that is not in the config, a whole section, or a value of another type than
          the config has.
    """
    for argument in arguments:
        kind, current = _leaf(config, argument.partition('=')[0].removeprefix('--'))
        values = flags.FlagValues()
        config_flags.DEFINE_config_dict('config', config, flag_values=values, sys_argv=[argument])
        try:
            values(['fdistill', argument])
        except (flags.Error, TypeError, ValueError) as error:
            raise UserError(
                f'{argument}: not of type {kind.__name__}; the config has {current!r}'
            ) from error


def put(config: ConfigDict, name: str, value: Any, where: str) -> None:
    """Sets `config.a.b`, given as 'a.b', to a value of the type it has, in place.

    A section may be replaced by a name, and a name by a section.

    Raises:
        UserError: a key that is not in the config, or a value of another type.
    """
    *path, last = name.split('.')
    section, walked = config, 'config'
    for key in [*path, last]:
        if not isinstance(section, ConfigDict) or key not in section:
            known = section if isinstance(section, ConfigDict) else ()
            raise UserError(
                f'{where}: unknown key {walked}.{key}{suggest(key, known, prefix=f"{walked}.")}'
            )
        owner, section, walked = section, section[key], f'{walked}.{key}'
    try:
        owner[last] = value
    except TypeError as error:
        raise UserError(
            f'{where}: {walked}={value!r} is of type {type(value).__name__}; '
            f'the config has {section!r}'
        ) from error


def _leaf(config, name):
    """Type and value of what a dotted name stands for. It must exist and be a single value, which a
    word can replace."""
    section, value, path = None, config, 'config'
    for key in name.split('.')[1:]:
        if not isinstance(value, ConfigDict):
            raise UserError(f'unknown key {name}: {path} is a value, {value!r}, not a section')
        section = value
        if key not in section:
            raise UserError(f'unknown key {path}.{key}{suggest(key, section, prefix=f"{path}.")}')
        value, path = section[key], f'{path}.{key}'
    if isinstance(value, ConfigDict):
        example = next(iter(value), 'key')
        raise UserError(
            f'--{name}: a section cannot be replaced as a whole; '
            f'set its keys, as --{name}.{example}=...'
        )
    kind = section.get_type(key)
    if kind not in (bool, int, float, str, tuple):
        remedy = 'write a tuple for a list and config_dict.placeholder(type) for None'
        raise UserError(
            f'--{name}: the config has {value!r}, which a word cannot replace; {remedy}'
        )
    return kind, value


def parameters(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The settings of a function: its parameters by name.

    A parameter whose default is a NamedTuple with defaults of its own is a group of settings. It
    appears here as its fields, each with the default that it has in that group: a config names the
    fields alone.
    """
    found = {}
    for name, parameter in inspect.signature(function, eval_str=True).parameters.items():
        found |= {
            field: own.replace(default=getattr(parameter.default, field))
            for field, own in _fields(parameter.default).items()
        } or {name: parameter}
    return found


def _fields(default):
    """The fields of a group of settings as parameters; of anything else none."""
    kind = type(default)
    if not isinstance(default, tuple) or len(getattr(kind, '_field_defaults', ())) < len(default):
        return {}
    return inspect.signature(kind, eval_str=True).parameters if default else {}


def call(function: Callable[..., Any], section: Mapping[str, Any], where: str, **given: Any) -> Any:
    """`function(**section, **given)`; the function's signature is the section's schema.

    Args:
        function: has keyword arguments, see `parameters`.
        section: mapping of what the user configured.
        where: the section's name in messages, for example 'config.method'.
        given: arguments, or fields of a group, that do not come from the config.
    Raises:
        UserError: an argument unknown, missing or of the wrong type, or a ValueError raised by our
          own `function`.
    """
    schema = parameters(function)
    names = [name for name in schema if name not in given]
    open_ended = any(parameter.kind is parameter.VAR_KEYWORD for parameter in schema.values())
    for name, value in section.items():
        if name in given or (name not in schema and not open_ended):
            raise UserError(f'{where}.{name}: unknown{suggest(name, names)}')
        if name in schema:
            _check_type(value, schema[name], f'{where}.{name}')
    for name in names:
        parameter = schema[name]
        variadic = parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
        if name not in section and parameter.default is parameter.empty and not variadic:
            raise UserError(f'{where}.{name}: missing; it has no default')
    values = dict(section) | given
    for name, parameter in inspect.signature(function).parameters.items():
        if name not in given and (fields := _fields(parameter.default)):
            own = {field: values.pop(field) for field in fields if field in values}
            values[name] = parameter.default._replace(**own)
    try:
        with told(where):
            return function(**values)
    except TypeError as error:
        # A function with **options passes on what it does not know; the one below it objects.
        found = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        if not (open_ended and found and found[1] in section):
            raise
        raise UserError(f'{where}.{found[1]}: unknown') from error


@contextlib.contextmanager
def told(where: str) -> Iterator[None]:
    """Turns a ValueError of ours into a UserError that says where in the config it comes from.

    Ours say what the user should change; one out of numpy or jax is a bug and keeps its traceback.
    """
    try:
        yield
    except UserError:
        raise
    except ValueError as error:
        *_, (frame, _) = traceback.walk_tb(error.__traceback__)
        if frame.f_globals.get('__name__', '').split('.')[0] != 'fdistill':
            raise
        raise UserError(f'{where}: {error}') from error


def _check_type(value, parameter, where):
    annotation = parameter.annotation
    if annotation is parameter.empty and isinstance(
        parameter.default, (bool, int, float, str, tuple)
    ):
        annotation = type(parameter.default)  # A default says as much as an annotation would.
    if value is None and parameter.default is None:
        return
    if found := misfit(value, annotation, where):
        raise UserError(found)
    # A default that is infinite says that the setting may be.
    if not (isinstance(value, float) and value == parameter.default):
        check_range(value, where, whole=bool(misfit(0.5, annotation)))


def check_range(value: Any, where: str, whole: bool = True) -> None:
    """Raises UserError where a number, or one in a tuple or list, is beyond what the arrays of a
    run hold: int32, and float32 where it need not be `whole`."""
    if isinstance(value, (tuple, list)):
        for part in value:
            check_range(part, where, whole)
    elif isinstance(value, (int, float)):
        # An integer is int32 there too; 1e10 is no integer.
        most = 2**31 - 1 if whole or isinstance(value, int) else FLOAT32
        if not -most <= value <= most:
            kind = 'an integer' if whole else 'a finite number'
            raise UserError(f'{where}: {value} is out of range; give {kind} within +-{most:g}')


def to_json(config: Any, where: str = 'config') -> Any:
    """The config as dicts, lists, strings, numbers, bools and None.

    Raises:
        ValueError: a value that JSON cannot hold.
    """
    if isinstance(config, (ConfigDict, dict)):
        return {key: to_json(value, f'{where}.{key}') for key, value in config.items()}
    if isinstance(config, (tuple, list)):
        return [to_json(value, f'{where}[{index}]') for index, value in enumerate(config)]
    if config is None or isinstance(config, (bool, int, float, str)):
        return config
    raise UserError(
        f'{where}: {config!r} cannot be kept in {CONFIG}; use numbers, strings, bools, '
        'None and tuples'
    )


def from_json(values: Mapping[str, Any]) -> ConfigDict:
    """The locked config that `to_json` was given; its lists were tuples there."""
    return ConfigDict(with_tuples(values)).lock()


def with_tuples(values: Any) -> Any:
    """Dicts and lists with every list, at any depth, made a tuple."""
    if isinstance(values, dict):
        return {key: with_tuples(value) for key, value in values.items()}
    return tuple(map(with_tuples, values)) if isinstance(values, list) else values
