"""The progress of a run, on stderr."""

import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
from tqdm import tqdm

from fdistill.files.text import clock

LINE = (
    '{desc}: {n_fmt} of {total_fmt} ({percentage:.0f} %), {rate_fmt}, {elapsed} elapsed, '
    '{remaining} left\n'
)


def bar(title: str, total: int, unit: str, shown: bool, start: int = 0) -> tqdm:
    """How far work of hours is, on stderr: a bar on a terminal, otherwise a line now and then, for
    hours of silence look like a hang.

    Args:
        title, total, unit: of what.
        shown: whether to say anything.
        start: done before.
    """
    lines = (
        {} if sys.stderr.isatty() else {'mininterval': 30, 'maxinterval': 60, 'bar_format': LINE}
    )
    return tqdm(
        total=total,
        initial=start,
        desc=title,
        unit=unit,
        delay=2,
        leave=False,
        disable=not shown,
        **lines,
    )


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

    def __init__(
        self,
        total: int,
        start: int = 0,
        images: int = 1,
        every: float = 10.0,
        quiet: bool = False,
    ) -> None:
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

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def note(self, metrics: Mapping[str, float]) -> None:
        """Shows these metrics from the next line on."""
        self._metrics = {name: f'{float(value):.4g}' for name, value in metrics.items()}

    def update(
        self, step: int, finish: Callable[[], Any] = lambda: None
    ) -> dict[str, float] | None:
        """Notes that `step` steps are done, or begun where they are computed in the background.

        Args:
            finish: waits until they are done; called before the speed is measured alone.
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
        finish()
        now = time.monotonic()
        speed = (step - self._mark_step) / max(now - self._mark, 1e-9)
        self._mark, self._mark_step = now, step
        timing = {'images_per_second': speed * self._images, 'seconds': now - self._began}
        if self._lines:
            print(self._line(step, speed, timing), file=sys.stderr, flush=True)
        return timing

    def _line(self, step, speed, timing):
        left = clock((self._total - step) / speed) if speed else '?'
        words = [
            f'step {step}/{self._total} ({100 * step / max(self._total, 1):.0f} %)',
            f'{timing["images_per_second"]:.0f} images/s',
            f'{clock(timing["seconds"])} elapsed',
            f'{left} left',
        ]
        return '  '.join(words + [f'{name} {value}' for name, value in self._metrics.items()])

    def close(self) -> None:
        """Leaves the bar as it is."""
        if self._bar is not None:
            self._bar.close()
