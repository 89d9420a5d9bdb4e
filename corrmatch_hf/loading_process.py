"""What processes that load images do with signals."""

from __future__ import annotations

import signal


def leave_signals_to_the_trainer(worker: int) -> None:
    """For a `DataLoader`'s `worker_init_fn`: Ctrl-C and a cluster's SIGTERM reach all processes at once, but training
    goes on to the end of the step, and needs its images until then. It ends its loading processes itself."""
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)
