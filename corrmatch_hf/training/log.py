"""What a run shows while it trains: the log file, one JSON object per line, and the progress bar."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from PIL import Image
from tqdm.auto import tqdm

from ..text import presentable, without_tokens
from .atomic_write import write_text


class TrainingLog:
    """The rows of `training_log.jsonl`. Only the main process writes.

    Args:
        path: the file.
        writes: whether this process writes.
        resume_step: rows of later steps are dropped, since they will be written again; 0 starts a new file.
    """

    def __init__(self, path: Path, writes: bool, resume_step: int = 0):
        self.path, self.writes = path, writes
        self.rows: list[dict[str, Any]] = []
        self._complete = True  # whether the file holds all rows
        if not writes:
            return
        if resume_step and path.exists():
            self.rows = [row for row in _read(path) if row["step"] <= resume_step]
        write_text(path, self._text())

    def add(self, row: dict[str, Any]) -> None:
        """Write a row. It replaces a row of the same kind and step that a killed run had already written."""
        if not self.writes:
            return
        kept = [old for old in self.rows if (old["step"], _kind(old)) != (row["step"], _kind(row))]
        replaces = len(kept) < len(self.rows)
        self.rows = [*kept, row]
        try:
            if replaces or not self._complete:
                write_text(self.path, self._text())
            else:
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
            self._complete = True
        except OSError as error:  # such as a full disk: the rows stay in memory, and training goes on
            if self._complete:
                print(
                    f"\nwarning: {self.path} cannot be written: {error}. Writing is retried with the next row.",
                    file=sys.stderr,
                )
            self._complete = False

    def _text(self) -> str:
        return "".join(json.dumps(row) + "\n" for row in self.rows)


def _kind(row: dict[str, Any]) -> str:
    return "evaluation" if "mean_iou" in row else "training"


class Tracker:
    """The experiment trackers of `--report_to`, through Accelerate. One that fails in the middle of a run, because the
    network is gone for instance, is warned about and no longer used: the training goes on."""

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        self._works = True

    def start(self, options: dict[str, Any]) -> None:
        """Open a run with these options, of which a server gets no secrets and no folders.

        Errors are not caught here, where nothing is lost yet.
        """
        plain = (int, float, bool)  # what every tracker accepts, besides text
        config = {k: v if isinstance(v, plain) else presentable(str(v)) for k, v in options.items()}
        self.accelerator.init_trackers("corrmatch", config=config)

    def log(self, values: dict[str, Any], step: int) -> None:
        self._attempt(self.accelerator.log, values, step=step)

    def show(self, name: str, picture: Image.Image | None, step: int) -> None:
        """A picture, for those trackers that show them; None: there is none."""

        def to_all() -> None:
            for tracker in self.accelerator.trackers if picture is not None else ():
                if tracker.name == "tensorboard":
                    tracker.log_images({name: np.asarray(picture)[None]}, step=step, dataformats="NHWC")
                elif tracker.name == "trackio":
                    import trackio

                    tracker.log({name: trackio.Image(np.asarray(picture))}, step=step)
                elif hasattr(tracker, "log_images"):
                    tracker.log_images({name: [picture]}, step=step)

        self._attempt(to_all)

    def end(self) -> None:
        self._attempt(self.accelerator.end_training)

    def _attempt(self, call: Callable[..., None], *args: Any, **kwargs: Any) -> None:
        if not self._works:
            return
        try:
            call(*args, **kwargs)
        except Exception as error:  # each tracker has its own
            self._works = False
            reason = without_tokens(str(error)) or type(error).__name__
            print(
                f"\nwarning: the tracker of --report_to failed and gets no more rows: {reason}. The training goes on; "
                "training_log.jsonl has every row.",
                file=sys.stderr,
            )


def _read(path: Path) -> list[dict[str, Any]]:
    """The rows of a log, without lines that were cut off while being written."""
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        with contextlib.suppress(ValueError):
            rows.append(json.loads(line))
    return [row for row in rows if isinstance(row, dict) and isinstance(row.get("step"), int)]


class _Unbreakable:
    """A stream whose write errors are ignored: a full disk, a closed terminal or pipe must not end a training."""

    def __init__(self, stream: Any):
        self._stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError, ValueError):  # the latter where it is closed
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def unbreakable_output() -> Iterator[None]:
    """What is printed while the context is open is lost where it cannot be written, and raises no error."""
    with (
        contextlib.redirect_stdout(_Unbreakable(sys.stdout)),  # type: ignore[type-var]
        contextlib.redirect_stderr(_Unbreakable(sys.stderr)),  # type: ignore[type-var]
    ):
        yield


class Progress:
    """A tqdm bar with loss, threshold, kept ratio and images per second; tqdm adds the time left."""

    def __init__(self, total: int, start: int, show: bool):
        self.bar = tqdm(
            total=total, initial=start, disable=not show, desc="train", unit="step", dynamic_ncols=True
        )
        self._images, self._since = 0, time.perf_counter()

    def advance(self, images: int) -> None:
        self._images += images
        self.bar.update(1)

    def images_per_second(self) -> float:
        """Since the last call of this or of `pause`."""
        rate = self._images / max(time.perf_counter() - self._since, 1e-9)
        self.pause()
        return rate

    def pause(self) -> None:
        """Leave the time since the last call out of the rate; it was spent on evaluation, for instance."""
        self._images, self._since = 0, time.perf_counter()

    def show(self, values: dict[str, float]) -> None:
        names = {"loss": "loss", "threshold": "tau", "kept_ratio": "kept", "images_per_second": "img/s"}
        shown = {short: f"{values[name]:.3g}" for name, short in names.items() if name in values}
        self.bar.set_postfix(shown, refresh=False)

    def write(self, text: str) -> None:
        self.bar.write(text)

    def close(self) -> None:
        self.bar.close()
