"""A process that dies is replaced once; an error is not repeated."""

import os
import signal
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest
import torch.distributed as dist

pytestmark = pytest.mark.slow


def die_at_first(folder, deaths):
    count = len(list(Path(folder).iterdir()))
    dist.barrier()
    if dist.get_rank() == 1:
        (Path(folder) / str(count)).touch()
        if count < deaths:
            os.kill(os.getpid(), signal.SIGKILL)
    return count


def fail_at_first(folder):
    count = die_at_first(folder, 0)
    assert count > 0
    return count


def test_a_process_that_dies_is_replaced_once(processes, tmp_path):
    assert processes.run(2, die_at_first, str(tmp_path), 1) == [1, 1]
    with pytest.raises(BrokenProcessPool):
        processes.run(2, die_at_first, str(tmp_path), 9)


def test_an_error_is_not_repeated(processes, tmp_path):
    with pytest.raises(AssertionError):
        processes.run(2, fail_at_first, str(tmp_path))
