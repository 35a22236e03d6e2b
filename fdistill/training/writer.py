"""The log of a run: its metrics as lines of JSON, and the same to TensorBoard and Weights & Biases.

`metrics.jsonl` holds only what is a function of config and step, so that it is equal, byte for
byte, between a resumed and an unbroken run; speeds go to `timing.jsonl`.
"""

import json
import pathlib
import secrets
import time
from collections.abc import Mapping
from typing import Any, TypedDict

import jax
import numpy as np

from fdistill.errors import UserError
from fdistill.files import disk
from fdistill.files.mirror import Mirror

LOGS = ('metrics.jsonl', 'histograms.jsonl', 'timing.jsonl')
WANDB_ID = 'wandb/id'


class Line(TypedDict):
    """A line of one of its files; the other keys are what was logged."""

    step: int


class Writer:
    """Appends to metrics.jsonl, histograms.jsonl, timing.jsonl and tensorboard/ in the workdir, of
    an object store at each `flush`; writes on process 0 only.

    Args:
        workdir: folder of the run, made when missing.
        wandb: project of Weights & Biases to write to as well, or None. Entity and mode come from
          its own environment variables; WANDB_MODE=offline keeps everything below the workdir. A
          resumed run goes on under the same id.

    Raises:
        UserError: wandb is not installed.
    """

    def __init__(self, workdir, wandb=None):
        self._folder = disk.place(workdir)
        self._active = jax.process_index() == 0
        self._step = 0
        self._board = None
        self._wandb = None
        self._mirror = None
        # In every process, for one that stopped alone would leave the others waiting; and before
        # there is a folder.
        module = _wandb_module(wandb) if wandb else None
        if self._active:
            if not isinstance(self._folder, pathlib.Path):
                self._mirror = Mirror(self._folder, (*LOGS, WANDB_ID))
                self._folder = self._mirror.folder
            self._folder.mkdir(parents=True, exist_ok=True)
            if module:
                self._wandb = _wandb_run(module, wandb, self._folder)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def truncate(self, step: int) -> None:
        """Removes what was written after `step`, the step just restored (0 for a new run), and a
        line that a crash left incomplete.

        Must be called before anything is written. TensorBoard hides its own events after `step`
        once something is.
        """
        self._step = step
        self._close_board()
        if self._active:
            for name in LOGS:
                _truncate(self._folder / name, step)

    def metrics(self, step: int, values: Mapping[str, Any]) -> None:
        """Writes scalars that are reproducible: {name: number} to metrics.jsonl and TensorBoard."""
        self._scalars('metrics.jsonl', step, values)

    def timing(self, step: int, values: Mapping[str, Any]) -> None:
        """Writes scalars that differ between runs, such as speeds: to timing.jsonl and, below
        timing/, to TensorBoard."""
        self._scalars('timing.jsonl', step, values, prefix='timing/')

    def evaluation(self, step: int, values: Mapping[str, Any]) -> None:
        """Writes an evaluation, {name: number}, to TensorBoard below evaluation/; its own file is
        written elsewhere."""
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
        disk.append(self._folder / name, _text(values))

    def histograms(self, step: int, counts: Mapping[str, np.ndarray], edges: np.ndarray) -> None:
        """Writes counts of values by noise level to histograms.jsonl and TensorBoard; reproducible.

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

    def image(self, step: int, name: str, array: np.ndarray) -> None:
        """Writes a picture, uint8 [H, W, 3], to TensorBoard."""
        if self._active:
            self._tensorboard().add_image(name, array, int(step), dataformats='HWC')
            if self._wandb:
                import wandb

                self._wandb.log({name: wandb.Image(array)}, step=int(step))

    def config(self, values: Mapping[str, Any]) -> None:
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
        leaves = {
            key: leaf if isinstance(leaf, (bool, int, float, str)) else str(leaf)
            for key, leaf in disk.flat(values).items()
        }
        for summary in hparams(leaves, {}):
            board.file_writer.add_summary(summary)

    def _tensorboard(self):
        if self._board is None:
            from tensorboardX import SummaryWriter

            # Files are named by the second, and opening one anew would empty it.
            suffix = f'.{time.time_ns()}'
            folder = str(self._folder / 'tensorboard')
            self._board = SummaryWriter(folder, purge_step=self._step + 1, filename_suffix=suffix)
        return self._board

    def flush(self) -> None:
        """Makes TensorBoard, and those who read an object store, see everything written so far.

        Raises:
            Held: of an object store, another training has begun there.
        """
        if self._board is not None:
            self._board.flush()
        if self._mirror:
            self._mirror.push()

    def _close_board(self):
        if self._board is not None:
            self._board.close()
            self._board = None

    def close(self) -> None:
        """Ends the event file."""
        self._close_board()
        if self._wandb:
            self._wandb.finish()
            self._wandb = None
        if self._mirror:
            self._mirror.close()
            self._mirror = None


def _wandb_module(project):
    try:
        import wandb
    except ImportError as error:
        raise UserError(
            f"wandb={project!r}: Weights & Biases is not installed: pip install 'fdistill[wandb]'"
        ) from error
    return wandb


def _wandb_run(wandb, project, workdir):
    """A run of Weights & Biases: the one that this workdir began, if there is one."""
    file = workdir / WANDB_ID
    if not file.exists():
        disk.write_bytes(file, f'{secrets.token_hex(8)}\n'.encode())
    return wandb.init(
        project=project,
        id=file.read_text().strip(),
        name=workdir.resolve().name,
        dir=workdir,
        resume='allow',
        reinit='create_new',
    )


def _truncate(path, step):
    if path.exists():
        kept = [line for line in disk.read_json_lines(path, Line) if line['step'] <= step]
        disk.write_bytes(path, ''.join(map(_text, kept)).encode())


def _text(values):
    return json.dumps(disk.plain(values), allow_nan=False) + '\n'
