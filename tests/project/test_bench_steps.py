"""The benchmarks of sharded parameters and of clipping, at a small size."""

import subprocess
import sys

import pytest

from bench import clipping, machine, sharded
from bench.cases import elements
from radam_fused.benchmark.timing import timings


@pytest.mark.slow
def test_sharded_parameters_are_timed_in_two_processes():
    seconds = sharded.time_shapes([(4, 3), (2,)], 3, "small")
    for target in sharded.TARGETS:
        assert {target.ours, target.rival} <= seconds.keys()
    assert all(t.lower_quartile > 0 for t in timings(seconds).values())
    shapes = sharded.CASES[sharded.FEW]
    assert (len(shapes), elements(shapes)) == (98, 33_411_584)
    assert len(sharded.CASES[sharded.MANY]) == 722


@pytest.mark.slow
def test_steps_that_clip_are_timed():
    for seconds in (
        clipping.time_case("small", [(4, 3), (2,)], 3),
        sharded.time_shapes([(4, 3), (2,)], 3, "small", clipping.sharded_steps, 1),
    ):
        assert {clipping.CLIPPED, clipping.TRACKED, clipping.CLIP_ADAMW} <= seconds.keys()
        assert all(t.lower_quartile > 0 for t in timings(seconds).values())
    assert {target.case for target in clipping.TARGETS} == set(clipping.CASES)


CLIPS = """
import os
os.environ["TRITON_INTERPRET"] = "1"
import torch
from bench.one_launch import Clipper
torch.manual_seed(0)
grads = [torch.randn(n) for n in (5, 4096, 10_000)]
expected = [g.clone() for g in grads]
params = [torch.nn.Parameter(g.clone()) for g in expected]
for p, g in zip(params, expected): p.grad = g
norm = torch.nn.utils.clip_grad_norm_(params, 1.0)
torch.testing.assert_close(Clipper(grads).clip(1.0), norm)
for g, e in zip(grads, expected): torch.testing.assert_close(g, e)
"""


@pytest.mark.slow
def test_the_rival_of_one_launch_clips():
    pytest.importorskip("triton")
    done = subprocess.run([sys.executable, "-c", CLIPS], cwd=machine.ROOT, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
