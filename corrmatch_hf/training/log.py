"""The training log: one JSON object a line, and the progress bar."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from .atomic_write import write_text


class TrainingLog:
    """Rows of `training_log.jsonl`. Only the main process writes; the others keep silent.

    Args:
        path: the file.
        writes: whether this process writes.
        resume_step: rows after this step are dropped, since they will be written again; 0 starts a new file.
    """

    def __init__(self, path: Path, writes: bool, resume_step: int = 0):
        self.path, self.writes = path, writes
        self.rows: list[dict[str, Any]] = []
        if not writes:
            return
        if resume_step and path.exists():
            self.rows = [row for row in _read(path) if row["step"] <= resume_step]
        write_text(path, self._text())
        self._complete = True

    def add(self, row: dict[str, Any]) -> None:
        """Write a row; one of the same kind and step, which a killed run had written already, gives way to it."""
        if not self.writes:
            return
        same = [
            i for i, old in enumerate(self.rows) if old["step"] == row["step"] and _kind(old) == _kind(row)
        ]
        for i in reversed(same):
            del self.rows[i]
        self.rows.append(row)
        try:
            if same or not self._complete:
                write_text(self.path, self._text())
            else:
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
            self._complete = True
        except OSError as error:  # a full disk: training is worth more than its log, which is kept in memory
            if self._complete:
                print(
                    f"\nwarning: {self.path} cannot be written: {error}. It will be tried again.",
                    file=sys.stderr,
                )
            self._complete = False

    def _text(self) -> str:
        return "".join(json.dumps(row) + "\n" for row in self.rows)


def _kind(row: dict[str, Any]) -> bool:
    """Of training, or of an evaluation."""
    return "mean_iou" in row


def _read(path: Path) -> list[dict[str, Any]]:
    """The rows of a log; a last line that was cut off while being written is none."""
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


class Progress:
    """A tqdm bar with the losses, the threshold, the kept ratio and images a second; tqdm adds the time left."""

    def __init__(self, total: int, start: int, show: bool):
        self.bar = tqdm(
            total=total, initial=start, disable=not show, desc="train", unit="step", dynamic_ncols=True
        )
        self._images, self._since = 0, time.perf_counter()

    def advance(self, images: int) -> None:
        self._images += images
        self.bar.update(1)

    def images_per_second(self) -> float:
        """Since the last call."""
        now = time.perf_counter()
        rate = self._images / max(now - self._since, 1e-9)
        self._images, self._since = 0, now
        return rate

    def pause(self) -> None:
        """Forget the time since the last call: what follows was no training."""
        self._images, self._since = 0, time.perf_counter()

    def show(self, values: dict[str, float]) -> None:
        names = {"loss": "loss", "threshold": "tau", "kept_ratio": "kept", "images_per_second": "img/s"}
        shown = {short: f"{values[name]:.3g}" for name, short in names.items() if name in values}
        self.bar.set_postfix(shown, refresh=False)

    def write(self, text: str) -> None:
        self.bar.write(text)

    def close(self) -> None:
        self.bar.close()
