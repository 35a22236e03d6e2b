"""Speed of f-distill's student and critic step against FastGen's (NVlabs, PyTorch) on the same
network.

    python experiments/bench_fastgen.py --fastgen=DIR --python=INTERPRETER [--batch 16]

DIR holds a checkout of github.com/NVlabs/FastGen, INTERPRETER is a Python with torch, which runs
FastGen in a process of its own: neither is a dependency of fdistill. Both train EDM's DDPM++ on
CIFAR-10's shape with the settings of configs/cifar10_f_distill.py, which are FastGen's, in float32
with a GAN term; weights are random and batches synthetic. A step of FastGen's is its
`single_train_step`, the backward pass and its optimizers' step; ours keeps an average of the
student and looks for values that are not finite besides. The two take turns, as the speed of a
shared machine moves. Where others use its cores too, keep both on one (`taskset -c 0`): threads
that wait for one another then lose more than the core that is taken.
"""

import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
# For bench.py, of our side alone: the other process has no fdistill.
sys.path.insert(0, str(ROOT / 'experiments'))
PROGRAMS = ('student step', 'critic step')
STUDENT_EVERY = 5  # steps: one cycle is one of the student's and four of the critic's
LONG_ENOUGH = 3.0  # seconds of one measurement: the first step after the other side is slower
WARM = 6  # steps before any is measured: until then memory is taken from the system
PAUSE = 0.3  # seconds between turns, in which the threads of the other side cease to spin
# What FastGen imports for other methods and networks; where it is not installed, something empty
# stands in for it.
UNUSED = (
    'av boto3 botocore cv2 decord diffusers ftfy huggingface_hub hydra imageio loguru pandas peft '
    'psutil timm torchvision tqdm transformers wandb webdataset'
).split()


def parse(words):
    import bench

    parser = bench.Parser(description=__doc__.split('\n\n')[0], allow_abbrev=False)
    parser.add_argument('--fastgen', required=True, metavar='DIR', help='checkout of FastGen')
    parser.add_argument(
        '--python', required=True, metavar='FILE', help='interpreter that has torch'
    )
    parser.add_argument('--channels', type=int, default=32, help='default: %(default)s')
    parser.add_argument('--batch', type=int, default=16, help='default: %(default)s')
    parser.add_argument(
        '--repeats', type=int, default=5, help='measurements of each program; default: %(default)s'
    )
    parser.add_argument(
        '--device', choices=('cpu', 'cuda'), help='of both; default: cuda where jax has it'
    )
    parser.add_argument('--json', metavar='FILE', help='also write the numbers there')
    options = parser.parse_args(words)
    for name, least in (('channels', 4), ('batch', 1), ('repeats', 1)):
        value = getattr(options, name)
        if value < least:
            parser.error(f'--{name}={value}: need at least {least}')
    if not (pathlib.Path(options.fastgen) / 'fastgen/methods/model.py').is_file():
        parser.error(f'--fastgen={options.fastgen}: no checkout of FastGen there')
    try:
        subprocess.run([options.python, '-c', 'import torch'], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        parser.error(f'--python={options.python}: no Python that can import torch')
    return options


def _now():
    return time.perf_counter(), time.process_time()


def _since(began):
    return [now - then for now, then in zip(_now(), began)]


def ours(options):
    """(run(program, count) -> (seconds, CPU-seconds), parameters of the student, a line about the
    side)."""
    import bench
    import jax

    plain, _ = bench.resolve(
        *bench.parse(
            [
                f'--config={ROOT}/configs/cifar10_f_distill.py',
                f'--config.network.model_channels={options.channels}',
                f'--config.method.student_every={STUDENT_EVERY}',
            ]
        )
    )
    plain['teacher']['network'] = plain['network']
    _, state, steps, _, _ = bench.programs(plain, options.batch)
    count = sum(x.size for x in jax.tree.leaves(state.params['student']))
    advance = {name: compiled()[0] for name, compiled in steps.items()}

    def run(name, count):
        nonlocal state
        began = _now()
        for _ in range(count):
            state = advance[name](state)
        jax.block_until_ready(state)
        return _since(began)

    return run, count, f'{jax.devices()[0].device_kind}, jax {jax.__version__}'


class Theirs:
    """FastGen in its own process: `run`, `parameters` and `about`, as what `ours` returns."""

    def __init__(self, options, device):
        settings = vars(options) | {'device': device}
        self.errors = tempfile.TemporaryFile('w+')
        self.process = subprocess.Popen(
            [options.python, __file__, 'serve', json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
        )
        self.parameters, self.about = self._read()

    def run(self, program, count):
        print(json.dumps([program, count]), file=self.process.stdin, flush=True)
        return self._read()

    def _read(self):
        from fdistill.errors import UserError

        line = self.process.stdout.readline()
        if not line:
            self.errors.seek(0)
            last = (self.errors.read().strip() or 'no message').splitlines()[-1]
            raise UserError(f'FastGen ended: {last}')
        return json.loads(line)

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def serve(settings):
    """The other process, under --python: reads [program, count] a line and answers with
    seconds."""
    # Standard output is the parent's alone, whatever FastGen prints.
    answers, sys.stdout = sys.stdout, sys.stderr
    step, parameters, about = _fastgen(**settings)
    print(json.dumps([parameters, about]), file=answers, flush=True)
    for line in sys.stdin:
        program, count = json.loads(line)
        print(json.dumps(step(program, count)), file=answers, flush=True)


def _stand_in():
    import importlib.abc
    import importlib.machinery
    from unittest import mock

    class Absent(importlib.abc.MetaPathFinder, importlib.abc.Loader):
        def find_spec(self, name, path=None, target=None):
            if name.split('.')[0] in UNUSED:
                return importlib.machinery.ModuleSpec(name, self, is_package=True)

        def create_module(self, spec):
            return mock.MagicMock(__path__=[], __spec__=spec, __name__=spec.name)

        def exec_module(self, module):
            pass

    sys.meta_path.append(Absent())


def _fastgen(fastgen, channels, batch, device, **_):
    import torch

    _stand_in()
    sys.path.insert(0, fastgen)
    from fastgen.configs.methods import config_f_distill
    from fastgen.methods import FdistillModel

    # As its trainer has it.
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    config = config_f_distill.create_config().model
    config.device, config.student_update_freq, config.f_distill.f_div = device, STUDENT_EVERY, 'kl'
    config.net.update(model_channels=channels, augment_dim=0)
    config.discriminator.in_channels = 2 * channels
    model = FdistillModel(config)
    model.on_train_begin()
    model.discriminator.to(device)
    model.init_optimizers()
    data = {
        'real': torch.randn(batch, 3, 32, 32, device=device),
        'condition': torch.eye(10, device=device)[torch.arange(batch, device=device) % 10],
        'neg_condition': None,
    }

    def step(program, count):
        iteration = 0 if program == 'student step' else 1
        began = _now()
        for _ in range(count):
            losses, _ = model.single_train_step(data, iteration)
            model.grad_scaler.scale(losses['total_loss']).backward()
            model.optimizers_schedulers_step(iteration)
            model.optimizers_zero_grad(iteration)
        if device == 'cuda':
            torch.cuda.synchronize()
        return _since(began)

    parameters = sum(p.numel() for p in model.net.parameters())
    return step, parameters, f'torch {torch.__version__}, {torch.get_num_threads()} threads'


def measure(sides, repeats):
    """[seconds, CPU-seconds] of one step, {program: {side: [repeats]}}; the sides take turns."""
    measured = {}
    for program in PROGRAMS:
        counts = {}
        for name, run in sides.items():
            run(program, WARM)
            counts[name] = max(1, round(LONG_ENOUGH / run(program, 1)[0]))
        measured[program] = {name: [] for name in sides}
        for _ in range(repeats):
            for name, run in sides.items():
                time.sleep(PAUSE)
                total = run(program, counts[name])
                measured[program][name].append([value / counts[name] for value in total])
    # A cycle a turn, so that its ratio too is of times measured side by side.
    measured['cycle'] = {
        name: [
            [a + (STUDENT_EVERY - 1) * b for a, b in zip(student, critic)]
            for student, critic in zip(*(measured[program][name] for program in PROGRAMS))
        ]
        for name in sides
    }
    return measured


def table(measured):
    """A row a program: medians of each side, and of the ratios of a turn with their extremes; our
    speed over theirs."""
    rows = {}
    for program, sides in measured.items():
        rows[program] = row = {}
        for i, unit in enumerate(('seconds', 'cpu_seconds')):
            a, b = ([turn[i] for turn in turns] for turns in sides.values())
            ratios = [theirs / own for own, theirs in zip(a, b)]
            row[unit] = dict(zip(sides, map(statistics.median, (a, b))))
            row[unit] |= {
                'speed': statistics.median(ratios),
                'least': min(ratios),
                'most': max(ratios),
            }
    return rows


def main(words=None):
    options = parse(words)
    if options.device:
        os.environ['JAX_PLATFORMS'] = options.device
    os.environ['XLA_PYTHON_CLIENT_PREALLOCATE'] = 'false'  # The device is shared with torch.
    import bench
    import jax

    from fdistill.files import disk

    if options.json is not None:
        disk.file_for(options.json, '--json')
    device = options.device or ('cuda' if jax.default_backend() == 'gpu' else 'cpu')
    theirs = Theirs(options, device)
    try:
        run, parameters, about = ours(options)
        rows = table(measure({'fdistill': run, 'fastgen': theirs.run}, options.repeats))
    finally:
        theirs.close()
    print(
        f'batch {options.batch}, {options.channels} channels, {options.repeats} turns; '
        f'{bench.cores()} cores, {about}; {theirs.about}'
    )
    print(f'parameters: fdistill {parameters:,}, fastgen {theirs.parameters:,}')
    columns = list(rows['cycle']['seconds'])
    print(f'{"":26}' + ''.join(f'{column:>10}' for column in columns))
    for program, row in rows.items():
        # On an accelerator, the processors only wait.
        for unit, values in row.items() if device == 'cpu' else [('seconds', row['seconds'])]:
            cells = ''.join(f'{values[column]:10.3f}' for column in columns)
            print(f'{program:14}{unit:12}{cells}')
    if options.json:
        disk.write_json(options.json, {'parameters': parameters, 'programs': rows})
    return 0


if __name__ == '__main__':
    if sys.argv[1:2] == ['serve']:
        sys.exit(serve(json.loads(sys.argv[2])))
    from fdistill.errors import UserError
    from fdistill.files import process

    process.prepare()
    try:
        sys.exit(main())
    except UserError as error:
        print(f'bench_fastgen: {error}', file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
