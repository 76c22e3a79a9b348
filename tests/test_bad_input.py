"""Every row of docs/errors.md: the input, what happens, and that nothing has changed."""

import re
import sys
import warnings
from functools import partial
from pathlib import Path

import pytest
import torch
from torch.distributed.tensor import Partial, Replicate, Shard
from torch.nn import Parameter

from radam_fused import FusedRAdam

from .harness.backends import IS_REHEARSAL
from .harness.helpers import assert_same_bits, assert_same_run, parameters, same_bits, sharded
from .harness.running import Running, by_torch, fused, interrupt, names_of

PAGE = Path(__file__).parents[1] / "docs" / "errors.md"


def rows():
    """(section, input, result) of each row."""
    for section in PAGE.read_text().split("\n## ")[1:]:
        title = section.partition("\n")[0].replace("`", "")
        for code, result in re.findall(r"^\| `(.+?)` \| (.+?) \| .+ \|$", section, re.MULTILINE):
            yield title, code, result


ROWS = list(rows())
IN_CAPTURES = "Capture of a CUDA graph"
ON_A_GPU = "On a GPU"
INTERRUPTS = "Ctrl-C"
DTENSORS = "DTensors"


def cases(*sections):
    return [
        pytest.param(code, result, id=f"{title}: {code}")
        for title, code, result in ROWS
        if title in sections
    ]


ON_ALL = sorted({title for title, _, _ in ROWS} - {IN_CAPTURES, ON_A_GPU, INTERRUPTS, DTENSORS})


def assert_raises(running, code, result):
    [(_, shown)] = re.findall(r"^(`+) ?(.*?) ?\1$", result)
    kind, _, message = shown.partition(": ")
    error, changed = running.execute(code)
    assert type(error).__name__ == kind, error
    text = error.args[0] if isinstance(error, KeyError) else str(error)
    pattern = ".*".join(map(re.escape, message.split("...")))
    assert re.fullmatch(pattern, text, re.DOTALL), text
    assert not changed


def assert_steps(running, code, twin, twin_code):
    """The step gives the result that other code gives another optimizer."""
    for one, what in ((running, code), (twin, twin_code)):
        error, _ = one.execute(what)
        assert error is None, error


def assert_close_run(running, twin):
    for p, q in zip(running.params, twin.params, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6, equal_nan=True)


def test_every_row_is_a_case():
    assert len(ROWS) == PAGE.read_text().count("\n| `") > 150


@pytest.mark.parametrize(("code", "result"), cases(*ON_ALL))
def test_the_page_says_what_happens(code, result, backend):
    running = Running(fused(backend), **names_of(backend))
    if result.startswith("`UserWarning: "):
        message, _, rest = result.removeprefix("`UserWarning: ").rpartition("`")
        assert rest == ", then a step"
        with pytest.warns(UserWarning, match=re.escape(message) + "$") as caught:
            error, _ = running.execute(code)
        assert error is None
        assert len(caught) == 1
        return
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if result == "a step, as torch":
            twin = Running(by_torch, **names_of("eager"))
            assert_steps(running, code, twin, code)
            assert_close_run(running, twin)
        elif result.startswith("a step, as after `"):
            twin = Running(fused(backend))
            assert_steps(running, code, twin, result.removeprefix("a step, as after ").strip("`"))
            for p, q in zip(running.params, twin.params, strict=True):
                assert_same_bits(p, q)
                for key, value in twin.optimizer.state[q].items():
                    assert_same_bits(running.optimizer.state[p][key], value, key)
        elif result == "a step":
            assert running.execute(code)[0] is None
        else:
            assert_raises(running, code, result)


@pytest.mark.parametrize(("code", "result"), cases(DTENSORS))
def test_the_page_says_what_happens_to_dtensors(code, result, backend, meshes):
    def placed(local, placement, on="own"):
        return sharded(local.detach().clone(), meshes[on], placement)

    def cut(dtensor):
        dtensor._local_tensor = dtensor._local_tensor[1:]
        return dtensor

    def stepped(param, grad, **options):
        param = Parameter(param)
        optimizer = FusedRAdam([param], backend=backend, **options)
        # torch compares the dtype and the whole shape.
        param.grad = grad
        before = param._local_tensor.clone()
        try:
            optimizer.step()
        finally:
            assert same_bits(param._local_tensor, before) == (sys.exc_info()[0] is not None)

    names = {
        "stepped": stepped,
        "cut": cut,
        "other": "other",
        "sharded": partial(placed, placement=Shard(0)),
        "replicated": partial(placed, placement=Replicate()),
        "partial": partial(placed, placement=Partial()),
    }
    running = Running(fused(backend), **names)
    if result == "a step":
        assert running.execute(code)[0] is None
    else:
        assert_raises(running, code, result)


@pytest.mark.parametrize(("code", "result"), cases(IN_CAPTURES))
def test_the_page_says_what_happens_in_a_capture(code, result, device_backend):
    capture = partial(device_backend.capture, device_backend.new_graph())
    running = Running(fused(device_backend.name), capture=capture)
    running.names["w"] = torch.ones(3, 4, device=device_backend.device)
    assert_raises(running, code, result)


@pytest.mark.parametrize(("code", "result"), cases(ON_A_GPU))
@pytest.mark.skipif(IS_REHEARSAL, reason="tensors of the stand-in are on the CPU")
def test_the_page_says_what_happens_on_a_gpu(code, result, gpu):
    [graphed] = parameters((3,))
    graphed.data = graphed.data.cuda()
    graphed.grad = torch.ones_like(graphed)
    optimizer = FusedRAdam([graphed], capturable=True, backend=gpu.name)
    optimizer.step()
    capture = partial(gpu.capture, gpu.new_graph())
    running = Running(fused(gpu.name), "cuda", capture=capture, graphed=optimizer)
    if result == "a step":
        assert running.execute(code)[0] is None
    else:
        assert_raises(running, code, result)


[(INTERRUPTED, INTERRUPTED_RESULT)] = [row[1:] for row in ROWS if row[0] == INTERRUPTS]
SPOILED = {"first": "optimizer.state.clear()", "planned": "group['eps'] = 1e-7", "steady": "pass"}


@pytest.mark.parametrize("plan", SPOILED)
def test_an_interrupted_step_is_whole_or_has_not_begun(plan, backend):
    """Ctrl-C before any line that the step executes, with launches of two kinds."""
    assert INTERRUPTED_RESULT == "`KeyboardInterrupt`"

    def running(after):
        one = Running(fused(backend), interrupt=partial(interrupt, after))
        late = one.names["with_gradient"](torch.ones(3, dtype=torch.float64))
        one.optimizer.add_param_group({"params": [("late", late)]})
        one.params = (*one.params, late)
        one.optimizer.step()
        exec(SPOILED[plan], one.names)
        return one

    def outcome(one):
        return [p.detach().clone() for p in one.params]

    before, twin = outcome(running(1)), running(1)
    twin.optimizer.step()
    after = outcome(twin)
    count, stride, ended = 1, 1 if backend == "cpu" else 5, {True: 0, False: 0}
    while True:
        one = running(count)
        try:
            exec(INTERRUPTED, one.names)
        except KeyboardInterrupt:
            found = outcome(one)
            whole = torch.equal(found[0], after[0])
            for p, q in zip(found, after if whole else before, strict=True):
                assert_same_bits(p, q, f"after {count} lines")
            ended[whole] += 1
            if not whole:
                one.optimizer.step()
            assert_same_run(one.optimizer, twin.optimizer)
            count += stride
        else:
            break
    assert all(ended.values()), ended
