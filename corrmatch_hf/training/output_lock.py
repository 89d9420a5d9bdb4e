"""One run per output folder, and one output folder per run.

The main process holds a lock on a file in the folder. The system releases it when the process ends, however it ends.
The file names the holder, for the message to others, and has a token by which the other processes of the run recognise
that they see the same folder.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import socket
import sys
import time
import uuid
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object

from ..errors import InputError
from ..text import some
from .output_folder import LOCK, reason

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

WAIT = 10.0  # seconds for a run that was just killed or stopped to be gone
LOOK = 90.0  # seconds until a new file is seen on all nodes of a network disk, which remember missing ones for 60

# Loading processes are forked from the run. They must not hold its lock when it is killed, so they close its file.
_held: set[int] = set()


def _close_in_child() -> None:
    for descriptor in _held:
        with contextlib.suppress(OSError):
            os.close(descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)


class OutputLock:
    """Holds the output folder of a run, from `hold` to the end of the `with` block.

    Args:
        folder: the output folder.
    """

    def __init__(self, folder: Path):
        self.folder, self.path = folder, folder / LOCK
        self._token = uuid.uuid4().hex
        self._descriptor: int | None = None

    def __enter__(self) -> OutputLock:
        return self

    def __exit__(self, *error) -> None:
        self._release()

    def hold(self, accelerator: Accelerator, timeout: float = math.inf) -> None:
        """Lock the folder, which is made if it does not exist; all processes of the run call this together.

        Args:
            accelerator: of the run.
            timeout: seconds that processes wait for each other.

        Raises:
            InputError: another run works in the folder, or the processes of this one see different folders.
        """
        problem = None
        if accelerator.is_main_process:
            try:
                self._lock()
            except InputError as error:
                problem = str(error)
            except OSError as error:
                problem = (
                    f"--output_dir {self.folder} cannot be written: {reason(error)}; choose another folder."
                )
        problem, token = broadcast_object_list([problem, self._token])
        if problem is not None:
            raise InputError(problem)
        if accelerator.num_processes > 1:
            self._check_same_folder(accelerator, token, min(LOOK, timeout / 2))

    def _lock(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        end = time.monotonic() + WAIT
        while True:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                if fcntl is not None:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):  # some network disks raise the latter
                os.close(descriptor)
                if time.monotonic() > end:
                    raise InputError(
                        f"--output_dir {self.folder} is in use by {self._holder()}; wait until that run has ended, "
                        "stop it, or choose another folder."
                    ) from None
                time.sleep(0.2)
                continue
            except OSError as error:
                print(
                    f"warning: the disk of {self.folder} has no file locks ({error.strerror}); make sure that no other "
                    "run uses this folder.",
                    file=sys.stderr,
                )
            if self._is_current(descriptor):
                break
            os.close(descriptor)  # the run that made the file has just ended, and deleted it
        self._descriptor = descriptor
        _held.add(descriptor)
        holder = {"host": socket.gethostname(), "pid": os.getpid(), "token": self._token}
        os.ftruncate(descriptor, 0)
        os.write(descriptor, json.dumps(holder).encode())
        os.fsync(descriptor)

    def _is_current(self, descriptor: int) -> bool:
        """Whether the path still names the open file."""
        try:
            return os.path.samestat(os.fstat(descriptor), os.stat(self.path))
        except FileNotFoundError:
            return False

    def _holder(self) -> str:
        content = self._read()
        if "pid" not in content:
            return "another run"
        return f"another run, process {content['pid']} on {content.get('host')}"

    def _read(self) -> dict:
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}

    def _check_same_folder(self, accelerator: Accelerator, token: str, patience: float) -> None:
        """Every process writes its part of a checkpoint into the folder, so all must see the same one."""
        end = time.monotonic() + patience
        while not (seen := self._read().get("token") == token) and time.monotonic() < end:
            time.sleep(0.2)
        name = f"{accelerator.process_index} on {socket.gethostname()}"
        blind = gather_object([] if seen else [f"process {name} does not see it"])
        locked_out = gather_object(
            [] if os.access(self.folder, os.W_OK) or not seen else [f"process {name} cannot write there"]
        )
        if blind or locked_out:
            raise InputError(
                f"--output_dir {self.folder} must be one folder for all processes, but {some(blind + locked_out, 4)}; "
                "give a folder on a disk that all nodes share and may write to."
            )

    def _release(self) -> None:
        if self._descriptor not in _held:  # not held at all, or by the process that this one was forked from
            return
        with contextlib.suppress(OSError):
            if self._is_current(self._descriptor):
                self.path.unlink()
        _held.discard(self._descriptor)
        os.close(self._descriptor)
        self._descriptor = None
