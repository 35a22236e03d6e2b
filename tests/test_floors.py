"""Holds the code to the floors and doors of docs/architecture.md."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1] / 'fdistill'

# A unit is a file or a folder right below fdistill/. It may import units on lower floors, and on
# its own floor as long as there is no circle.
FLOORS = {
    'errors': 0,
    'types': 0,
    'files': 1,
    'divergences': 1,
    'diffusion': 1,
    'networks': 2,
    'methods': 3,
    'data': 4,
    'training': 4,
    'evaluation': 4,
    'weights': 4,
    'config': 5,
    'build': 6,
    'sweep': 7,
    'recipe': 7,
    'report': 7,
    'export': 7,
    'cli': 8,
    '__main__': 9,
}

DOORS = {
    'flax': ('networks/',),
    'orbax': ('training/checkpoint.py',),
    'etils': ('files/disk.py',),
    'grain': ('data/',),
    'tensorflow_datasets': ('data/',),
    'array_record': ('data/pairs.py',),
    'sklearn': ('data/',),
    'tensorboardX': ('training/writer.py',),
    'wandb': ('training/writer.py',),
    'ml_collections': ('build/', 'config.py'),
    'matplotlib': ('report/',),
    'safetensors': ('weights/store.py',),
    'jax2onnx': ('export/onnx.py',),
    'huggingface_hub': ('files/hub.py',),
    'torch': (),
    'tensorflow': (),
}

TYPES = ('Method', 'Context', 'DEPLOYED')  # what a trainer knows of methods

FILES = {
    str(path.relative_to(ROOT)): ast.parse(path.read_text()) for path in sorted(ROOT.rglob('*.py'))
}


def module_of(file):
    """'fdistill.data' for data/__init__.py, 'fdistill.data.sources' for data/sources.py."""
    return '.'.join(['fdistill', *pathlib.PurePath(file.removesuffix('.py')).parts]).removesuffix(
        '.__init__'
    )


MODULES = {module_of(file) for file in FILES}


def imports(file):
    """(module, name or None) of every import in a file, also of those inside functions."""
    for node in ast.walk(FILES[file]):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f'{file}: a relative import; write it out'
            yield from ((node.module, alias.name) for alias in node.names)


def own_imports(file):
    """The modules of fdistill that a file imports; `from package import x` is package.x where that
    is a module."""
    for module, name in imports(file):
        if module.split('.')[0] == 'fdistill':
            target = f'{module}.{name}'
            yield target if target in MODULES else module


def unit_of(module):
    return (module.split('.') + [''])[1]  # fdistill itself is ''


def circle(graph):
    """Some circle of a {node: nodes} graph, or None."""
    done = set()

    def visit(node, path):
        if node in path:
            return path[path.index(node) :] + [node]
        if node in done:
            return None
        found = next(
            filter(None, (visit(other, [*path, node]) for other in sorted(graph.get(node, ())))),
            None,
        )
        done.add(node)
        return found

    return next(filter(None, (visit(node, []) for node in sorted(graph))), None)


def test_every_unit_has_a_floor():
    assert {unit_of(module) for module in MODULES} - {''} <= set(FLOORS)


@pytest.mark.parametrize('file', FILES)
def test_imports_go_down_only(file):
    unit = unit_of(module_of(file))
    for target in own_imports(file):
        other = unit_of(target)
        if other in (unit, ''):  # fdistill itself holds only the version.
            continue
        assert unit, f'fdistill/__init__.py imports {target}; importing fdistill must stay free'
        assert FLOORS[other] <= FLOORS[unit], f'{file} imports {target}, which is above it'


def test_circle_finds_one():
    assert circle({'a': {'b', 'c'}, 'b': {'c'}, 'c': {'d'}}) is None
    assert circle({'a': {'b'}, 'b': {'c'}, 'c': {'b'}}) == ['b', 'c', 'b']


def test_no_circles_between_units():
    graph = {}
    for file in FILES:
        unit = unit_of(module_of(file))
        graph.setdefault(unit, set()).update(
            {unit_of(target) for target in own_imports(file)} - {unit}
        )
    assert circle(graph) is None


def test_no_circles_between_modules():
    # A package's __init__.py holds its types and the table of its modules, so that they import one
    # another.
    graph = {}
    for file in FILES:
        module = module_of(file)
        graph[module] = {
            target for target in own_imports(file) if not module.startswith(f'{target}.')
        }
    assert circle(graph) is None


@pytest.mark.parametrize(
    'file', [file for file in FILES if file.startswith(('data/', 'training/', 'evaluation/'))]
)
def test_methods_are_known_only_by_their_type(file):
    for module, name in imports(file):
        target = module if name is None else f'{module}.{name}'
        if target.startswith('fdistill.methods'):
            known = module == 'fdistill.methods.method' and name in TYPES
            assert known, f'{file} imports {target}; take a Method as an argument'


@pytest.mark.parametrize('file', FILES)
def test_doors(file):
    for module, _ in imports(file):
        door = DOORS.get(module.split('.')[0])
        assert door is None or file.startswith(door), (
            f'{file} imports {module}, which belongs to {door or "no one"}'
        )


ANNOTATED = 0.85  # of the arguments of public functions, at least
MOST_ARGUMENTS = 12  # of a public function
LONGEST = 100  # columns of a line


def public_functions(file):
    """(function, its arguments but self and cls) of a file's public functions and of the public
    methods of its public classes; functions inside others are not public."""
    for node in FILES[file].body:
        is_class = isinstance(node, ast.ClassDef) and not node.name.startswith('_')
        for function in node.body if is_class else [node]:
            if not isinstance(function, ast.FunctionDef) or function.name.startswith('_'):
                continue
            given = function.args
            found = [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg]
            static = any(ast.unparse(mark) == 'staticmethod' for mark in function.decorator_list)
            yield function, list(filter(None, found))[is_class and not static :]


def test_public_arguments_have_types():
    bare, count = [], 0
    for file in FILES:
        for function, arguments in public_functions(file):
            count += len(arguments)
            bare += [
                f'{file}: {function.name}({argument.arg})'
                for argument in arguments
                if argument.annotation is None
            ]
    assert len(bare) <= (1 - ANNOTATED) * count, '\n'.join(bare)


@pytest.mark.parametrize('file', FILES)
def test_public_functions_take_few_arguments(file):
    for function, arguments in public_functions(file):
        assert len(arguments) <= MOST_ARGUMENTS, (
            f'{file}: {function.name} takes {len(arguments)} arguments; make some of them a group, '
            'a NamedTuple'
        )


def test_lines_fit_the_page():
    root = ROOT.parent
    folders = ('fdistill', 'tests', 'configs', 'experiments')
    long = [
        f'{path.relative_to(root)}:{number}'
        for folder in folders
        for path in sorted((root / folder).rglob('*.py'))
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if len(line) > LONGEST
    ]
    assert not long, ', '.join(long)


def test_importing_everything_needs_neither_torch_nor_tensorflow():
    code = (
        'import importlib, sys, warnings\nwarnings.filterwarnings("error", module="fdistill")\n'
        # None makes an import fail as it does where the package is not installed.
        'sys.modules.update({"torch": None, "tensorflow": None})\n'
        f'[importlib.import_module(name) for name in {sorted(MODULES - {"fdistill.__main__"})}]'
    )
    run = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
