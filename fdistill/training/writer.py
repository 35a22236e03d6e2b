"""What a run leaves behind for people: metrics, TensorBoard, pictures, JSON, and a line about its
progress.

`metrics.jsonl` holds only what is a function of config and step, so that it is equal, byte for
byte, between a resumed and an unbroken run; speeds go to `timing.jsonl`.
"""

import io
import json
import math
import os
import pathlib
import platform
import secrets
import sys
import time

import jax
import numpy as np
from PIL import Image
from tqdm import tqdm

import fdistill
from fdistill.errors import UserError


class Writer:
    """Appends to metrics.jsonl, histograms.jsonl, timing.jsonl and tensorboard/ in the workdir;
    silent but on process 0.

    Args:
        workdir: folder of the run, made when missing.
        wandb: project of Weights & Biases to write to as well, or None. Entity and mode come from
          its own environment
            variables; WANDB_MODE=offline keeps everything below the workdir. A resumed run goes on
            under the same id.

    Raises:
        UserError: wandb is not installed.
    """

    def __init__(self, workdir, wandb=None):
        self._workdir = pathlib.Path(workdir)
        self._active = jax.process_index() == 0
        self._step = 0
        self._board = None
        self._wandb = None
        # In every process, for one that stopped alone would leave the others waiting; and before
        # there is a folder.
        module = _wandb_module(wandb) if wandb else None
        if self._active:
            self._workdir.mkdir(parents=True, exist_ok=True)
            if module:
                self._wandb = _wandb_run(module, wandb, self._workdir)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def truncate(self, step):
        """Forgets what was written after `step`, the step just restored (0 for a new run), and a
        line torn by a crash.

        Has to come before anything is written. TensorBoard hides its own events after `step` from
        here on.
        """
        self._step = step
        if self._active:
            for name in ('metrics.jsonl', 'histograms.jsonl', 'timing.jsonl'):
                _truncate(self._workdir / name, step)

    def metrics(self, step, values):
        """Writes scalars that are reproducible: {name: number} to metrics.jsonl and TensorBoard."""
        self._scalars('metrics.jsonl', step, values)

    def timing(self, step, values):
        """Writes scalars that no two runs share, as speeds: to timing.jsonl and, below timing/, to
        TensorBoard."""
        self._scalars('timing.jsonl', step, values, prefix='timing/')

    def evaluation(self, step, values):
        """Writes an evaluation, {name: number}, to TensorBoard below evaluation/; its file is its
        own."""
        if self._active:
            self._board_scalars(
                step, {f'evaluation/{key}': float(value) for key, value in values.items()}
            )

    def _scalars(self, name, step, values, prefix=''):
        if not self._active:
            return
        values = {key: float(value) for key, value in values.items()}
        self._line(name, {'step': int(step), **values})
        self._board_scalars(step, {prefix + key: value for key, value in values.items()})

    def _board_scalars(self, step, values):
        for key, value in values.items():
            self._tensorboard().add_scalar(key, value, int(step))
        if self._wandb:
            self._wandb.log(values, step=int(step))

    def _line(self, name, values):
        with open(self._workdir / name, 'a') as file:
            file.write(json.dumps(plain(values), allow_nan=False) + '\n')

    def histograms(self, step, counts, edges):
        """Writes how often something lay where, by noise level: to histograms.jsonl and
        TensorBoard; reproducible.

        Args:
            step: int.
            counts: {name: int [levels, cells]}, the levels from low noise to high.
            edges: [cells + 1], of the cells.
        """
        if not self._active or not counts:
            return
        self._line('histograms.jsonl', {'step': int(step), 'edges': edges, **counts})
        for name, by_level in counts.items():
            levels = {
                f'{name}/noise_level_{k}_of_{len(by_level)}': row
                for k, row in enumerate(by_level, 1)
            }
            for tag, row in ({name: by_level.sum(axis=0)} | levels).items():
                if row.sum():
                    self._histogram(tag, row, np.asarray(edges, float), int(step))

    def _histogram(self, tag, counts, edges, step):
        middle = (edges[1:] + edges[:-1]) / 2
        occupied = np.flatnonzero(counts)
        self._tensorboard().add_histogram_raw(
            tag,
            min=edges[occupied[0]],
            max=edges[occupied[-1] + 1],
            num=int(counts.sum()),
            sum=float(counts @ middle),
            sum_squares=float(counts @ middle**2),
            bucket_limits=edges[1:].tolist(),
            bucket_counts=counts.tolist(),
            global_step=step,
        )
        if self._wandb:
            import wandb

            self._wandb.log({tag: wandb.Histogram(np_histogram=(counts, edges))}, step=step)

    def image(self, step, name, array):
        """Writes a picture, uint8 [H, W, 3], to TensorBoard."""
        if self._active:
            self._tensorboard().add_image(name, array, int(step), dataformats='HWC')
            if self._wandb:
                import wandb

                self._wandb.log({name: wandb.Image(array)}, step=int(step))

    def config(self, values):
        """Writes a config, nested dicts of plain values, to TensorBoard: as text and as
        hyperparameters."""
        if not self._active:
            return
        from tensorboardX.summary import hparams

        if self._wandb:
            self._wandb.config.update(values, allow_val_change=True)
        board = self._tensorboard()
        board.add_text('config', f'```\n{json.dumps(values, indent=2)}\n```')
        # `board.add_hparams` would open a second event file, which TensorBoard shows as a second
        # run.
        for summary in hparams(dict(_flat(values)), {}):
            board.file_writer.add_summary(summary)

    def _tensorboard(self):
        if self._board is None:
            from tensorboardX import SummaryWriter

            # Files are named by the second, and opening one anew would empty it.
            suffix = f'.{time.time_ns()}'
            folder = str(self._workdir / 'tensorboard')
            self._board = SummaryWriter(folder, purge_step=self._step + 1, filename_suffix=suffix)
        return self._board

    def flush(self):
        """Makes TensorBoard see everything written so far."""
        if self._board is not None:
            self._board.flush()

    def close(self):
        """Ends the event file."""
        if self._board is not None:
            self._board.close()
            self._board = None
        if self._wandb:
            self._wandb.finish()
            self._wandb = None


def _wandb_module(project):
    try:
        import wandb
    except ImportError as error:
        raise UserError(
            f"wandb={project!r}: Weights & Biases is not installed: pip install 'fdistill[wandb]'"
        ) from error
    return wandb


def _wandb_run(wandb, project, workdir):
    """A run of Weights & Biases, the one that this workdir began if it did."""
    file = workdir / 'wandb' / 'id'
    if not file.exists():
        _replace(file, f'{secrets.token_hex(8)}\n'.encode())
    return wandb.init(
        project=project,
        id=file.read_text().strip(),
        name=workdir.resolve().name,
        dir=workdir,
        resume='allow',
        reinit='create_new',
    )


def _flat(values, prefix=''):
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f'{prefix}{key}.')
        else:
            yield prefix + key, value if isinstance(value, (bool, int, float, str)) else str(value)


def _truncate(path, step):
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)['step'] > step:
                break
        except json.JSONDecodeError:  # Torn: a proper prefix of an object is never JSON.
            break
        kept.append(line + '\n')
    _replace(path, ''.join(kept).encode())


def _replace(path, data):
    """Writes a file so that a crash leaves either the old one or the new one."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f'.{path.name}.{os.getpid()}')
    with open(temporary, 'wb') as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def versions():
    """Of what numbers and reports are made with."""
    return {
        'fdistill': fdistill.__version__,
        'python': platform.python_version(),
        'jax': jax.__version__,
        'numpy': np.__version__,
    }


def plain(value):
    """Turns numpy and jax values, at any depth, into what JSON holds; other than finite: 'nan',
    'inf', '-inf'."""
    if isinstance(value, dict):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    if isinstance(value, (np.ndarray, np.generic, jax.Array)):
        return plain(np.asarray(value).tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def writable(folder):
    """Makes a folder; UserError where it cannot be made or written to."""
    folder = pathlib.Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f'{folder}: cannot be made: {error.strerror}') from error
    if not os.access(folder, os.W_OK):
        raise UserError(f'{folder}: may not be written to; mend its permissions or copy the run')


def write_json(path, value):
    """Writes `plain(value)` to a file, atomically."""
    _replace(path, (json.dumps(plain(value), indent=2, allow_nan=False) + '\n').encode())


def write_png(path, array):
    """Writes a picture, uint8 [H, W, 3] or [H, W], to a file, atomically."""
    data = io.BytesIO()
    Image.fromarray(array).save(data, 'PNG')
    _replace(path, data.getvalue())


def image_grid(images, columns=None, tile=64):
    """Sets images side by side, row by row.

    Args:
        images: float [N, H, W, 1 or 3] in [-1, 1], cut to that range; a pixel that is not finite
          becomes magenta.
        columns: images a row; default: about as many as rows.
        tile: an image smaller than this many pixels is enlarged by a whole factor, to at least
          this.
    Returns:
        uint8 [height, width, 3].
    Raises:
        ValueError: images of another shape, or none.
    """
    images = np.asarray(images, np.float32)
    if images.ndim != 4 or images.shape[-1] not in (1, 3) or not len(images):
        raise ValueError(
            f'images have shape {images.shape}; a grid needs [N, H, W, 1 or 3] with N > 0'
        )
    count, height, width, _ = images.shape
    columns = columns or math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    finite = np.isfinite(images).all(axis=-1)
    pixels = np.round(
        np.where(finite[..., None], np.clip(images, -1, 1), 0) * 127.5 + 127.5
    ).astype(np.uint8)
    pixels = np.broadcast_to(pixels, (count, height, width, 3)).copy()
    pixels[~finite] = (255, 0, 255)
    factor = max(1, math.ceil(tile / min(height, width)))
    pixels = pixels.repeat(factor, axis=1).repeat(factor, axis=2)
    pixels = np.pad(pixels, [(0, rows * columns - count), (1, 1), (1, 1), (0, 0)])
    grid = pixels.reshape(rows, columns, *pixels.shape[1:])
    return grid.transpose(0, 2, 1, 3, 4).reshape(
        rows * pixels.shape[1], columns * pixels.shape[2], 3
    )


def scatter(points, reference=None, limit=None, size=384, dot=3):
    """A picture of points in the plane, darker where there are more.

    Args:
        points: [N, 2], in blue; points that are not finite or not within the limit are left out.
        reference: [M, 2], in grey below them, or None.
        limit: half the side of the square shown, centred at 0; default: what holds the reference,
          else the points.
        size: side of the picture in pixels, rounded down to whole dots.
        dot: side of a dot in pixels.
    Returns:
        uint8 [size, size, 3], x to the right and y up.
    """
    layers = [] if reference is None else [(np.asarray(reference), (0.7, 0.7, 0.7))]
    layers.append((np.asarray(points), (0.1, 0.3, 0.85)))
    if limit is None:
        shown = layers[0][0]
        limit = 1.1 * float(np.abs(shown[np.isfinite(shown)]).max(initial=1e-3))
    cells = size // dot
    picture = np.ones((cells, cells, 3))
    for layer, colour in layers:
        layer = layer[np.isfinite(layer).all(axis=-1)]
        counts, _, _ = np.histogram2d(layer[:, 1], layer[:, 0], cells, [(-limit, limit)] * 2)
        # One point is seen; some ten times the mean of a filled picture is full colour.
        shade = np.where(
            counts > 0,
            0.25 + 0.75 * (1 - np.exp(-counts * cells**2 / (10 * max(len(layer), 1)))),
            0,
        )
        picture += shade[::-1, :, None] * (np.array(colour) - picture)
    return np.round(picture * 255).astype(np.uint8).repeat(dot, axis=0).repeat(dot, axis=1)


class Progress:
    """Says on stderr how far a run is: a bar on a terminal, otherwise a line now and then; process
    0 only.

    Args:
        total: last step.
        start: steps already done when this run began.
        images: images a step, for the speed.
        every: seconds between lines and between measurements of the speed.
        quiet: say nothing, only measure.
    """

    def __init__(self, total, start=0, images=1, every=10.0, quiet=False):
        self._total, self._images, self._every = total, images, every
        self._began = self._mark = time.monotonic()
        self._mark_step = start
        self._metrics = {}
        self._compiled = False
        loud = not quiet and jax.process_index() == 0
        self._bar = None
        self._lines = loud and not sys.stderr.isatty()
        if loud and not self._lines:
            self._bar = tqdm(total=total, initial=start, unit='step', dynamic_ncols=True)

    def note(self, metrics):
        """Shows these metrics, {name: number}, from the next line on."""
        self._metrics = {name: f'{float(value):.4g}' for name, value in metrics.items()}

    def update(self, step):
        """Notes that `step` steps are done.

        Returns:
            {'images_per_second', 'seconds'} every so many seconds and after the last step,
            otherwise None.
        """
        if self._bar is not None:
            self._bar.set_postfix(self._metrics, refresh=False)
            self._bar.update(step - self._bar.n)
        now = time.monotonic()
        if not self._compiled and step < self._total:
            # The first step compiles; counting it, the first line would promise hours.
            self._compiled, self._mark, self._mark_step = True, now, step
            return None
        if now - self._mark < self._every and step < self._total:
            return None
        speed = (step - self._mark_step) / max(now - self._mark, 1e-9)
        self._mark, self._mark_step = now, step
        timing = {'images_per_second': speed * self._images, 'seconds': now - self._began}
        if self._lines:
            print(self._line(step, speed, timing), file=sys.stderr, flush=True)
        return timing

    def _line(self, step, speed, timing):
        left = _clock((self._total - step) / speed) if speed else '?'
        words = [
            f'step {step}/{self._total} ({100 * step / max(self._total, 1):.0f} %)',
            f'{timing["images_per_second"]:.0f} images/s',
            f'{_clock(timing["seconds"])} elapsed',
            f'{left} left',
        ]
        return '  '.join(words + [f'{name} {value}' for name, value in self._metrics.items()])

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        """Leaves the bar as it is."""
        if self._bar is not None:
            self._bar.close()


def _clock(seconds):
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f'{hours}:{minutes:02}:{seconds:02}'
