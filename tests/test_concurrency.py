"""Steps in threads and in forked processes."""

import os
import subprocess
import sys
import threading

import pytest
import torch

from radam_fused import FusedRAdam

from .harness.helpers import gradients, parameters, train


def test_concurrent_steps_run_one_after_the_other():
    """The test keeps all gradients: torch must not free one while another thread reads it."""
    [p] = parameters((400_000,))
    optimizer = FusedRAdam([p], backend="cpu")
    errors, kept = [], [torch.ones(400_000) for _ in range(60)]

    def work(grads):
        for i in range(30):
            p.grad = kept[30 * (grads // 2) + i] if grads else None
            try:
                optimizer.step()
            except Exception as error:  # the assertion shows it
                errors.append(repr(error))

    threads = [threading.Thread(target=work, args=(grads,)) for grads in (1, 0, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # A gradient that another thread removes during a step raises this error.
    assert all("changed while the step was prepared" in error for error in errors), errors
    assert p.isfinite().all()
    assert 1 <= optimizer.state[p]["step"] <= 90


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
def test_a_process_forked_during_a_step_can_step():
    [p] = parameters((5,))
    optimizer = train(FusedRAdam([p], backend="cpu"), gradients([p], 1))
    with optimizer._lock:  # as another thread would hold it
        child = os.fork()
        if child == 0:
            optimizer.step()
            os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


@pytest.mark.parametrize("flatten", [False, True])
def test_a_signal_handler_can_save_the_optimizer_during_a_step(flatten):
    [p] = parameters((5,))
    optimizer = train(FusedRAdam([p], backend="cpu", flatten=flatten), gradients([p], 1))
    for flat in optimizer.flat_buffers:
        flat.flatten_gradients()
    saved = []
    with optimizer._lock:  # as the interrupted step holds it
        thread = threading.Thread(target=lambda: saved.append(optimizer.state_dict()), daemon=True)
        thread.start()
        thread.join(20)
    assert saved[0]["state"][0]["step"] == 1


# Another process, because the threads of OpenMP stay for ever.
FORK = """
import os, signal, threading, torch
from radam_fused import FusedRAdam

torch.set_num_threads(2)
p = torch.nn.Parameter(torch.zeros(400_000))
p.grad = torch.ones(400_000)
optimizer = FusedRAdam([p], backend="cpu")
optimizer.step()
stopped = threading.Event()

def steps():
    while not stopped.is_set():
        optimizer.step()

thread = threading.Thread(target=steps)
thread.start()
for _ in range(10):
    child = os.fork()
    if child == 0:
        signal.alarm(20)  # ends a process that hangs
        before = p[0].item(), p[-1].item()  # operations of torch on all of it would hang
        optimizer.step()
        os._exit(1 if before[0] == p[0].item() or before[1] == p[-1].item() else 7)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
stopped.set()
thread.join()
"""


def test_processes_forked_while_a_kernel_runs_can_step():
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORK], capture_output=True, text=True, timeout=120
    )
    assert run.stdout.split() == ["7"] * 10, run.stderr
