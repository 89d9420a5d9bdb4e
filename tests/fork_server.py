"""Processes that start in no time: forked from a server that has imported the package and computed nothing.

The test's own process cannot be forked once autograd has started a thread in it, which some tests make it do.
"""

import multiprocessing

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.reliability.small_run"])
