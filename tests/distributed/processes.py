"""Runs functions on several processes that are connected by Gloo."""

import functools
import inspect
import itertools
import multiprocessing
import sys
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from datetime import timedelta
from importlib import import_module

import pytest

TIMEOUT = 120  # seconds


def _on_rank(rank, size, store, module, name, arguments):
    """Call a function in a process group of its own."""
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    torch.manual_seed(0)
    function = getattr(import_module(module), name)
    dist.init_process_group(
        "gloo",
        store=dist.FileStore(store, size),
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=TIMEOUT / 2),
    )
    found = inspect.unwrap(function)(*arguments)
    dist.barrier()  # no process closes its connections while another one still uses them
    dist.destroy_process_group()
    return found


class Processes:
    """Processes that stay alive between calls, because importing torch takes seconds.

    After an error all of them are replaced, since some could still wait for the others.
    """

    def __init__(self, folder):
        self._folder = folder
        self._pools = []
        self._numbers = itertools.count()

    def run(self, size, function, *arguments):
        """Call a function of a module on `size` processes.

        A process that dies is replaced once: a thread of Gloo (pt_gloo_runloop) has crashed in one
        of ten runs of these tests. An error of the function is never repeated.

        Returns:
            Its result on each of them.
        """
        try:
            return self._run(size, function, *arguments)
        except BrokenProcessPool as error:
            print(f"{function.__name__} runs again: {error}", file=sys.stderr)
            return self._run(size, function, *arguments)

    def _run(self, size, function, *arguments):
        context = multiprocessing.get_context("spawn")
        while len(self._pools) < size:
            self._pools.append(ProcessPoolExecutor(1, context))
        store = str(self._folder / str(next(self._numbers)))
        calls = [
            pool.submit(
                _on_rank, rank, size, store, function.__module__, function.__name__, arguments
            )
            for rank, pool in enumerate(self._pools[:size])
        ]
        done, waiting = wait(calls, TIMEOUT, FIRST_EXCEPTION)
        if any(call.exception() is not None for call in done):
            # Where one process has died, another one may be the first to notice.
            done, waiting = wait(calls, 5)
        errors = [call.exception() for call in done if call.exception() is not None]
        if errors or waiting:
            self.stop()
        for error in sorted(errors, key=lambda error: not isinstance(error, BrokenProcessPool)):
            raise error
        assert not waiting, f"{len(waiting)} of {size} processes did not end in {TIMEOUT} s"
        return [call.result() for call in calls]

    def stop(self):
        """End all processes, also those that wait."""
        for pool in self._pools:
            for process in list(pool._processes.values()):
                process.kill()
            pool.shutdown(cancel_futures=True)
        self._pools = []


def on(size):
    """The test runs on each of so many processes. Its arguments are values of parametrize."""

    def decorate(function):
        @pytest.mark.slow
        @functools.wraps(function)
        def test(processes, **arguments):
            names = inspect.signature(function).parameters
            processes.run(size, function, *(arguments[name] for name in names))

        own = inspect.signature(function).parameters.values()
        fixture = inspect.Parameter("processes", inspect.Parameter.KEYWORD_ONLY)
        keywords = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own]
        test.__signature__ = inspect.Signature([fixture, *keywords])
        return test

    return decorate
