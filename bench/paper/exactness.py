"""The error of every update of each implementation, relative to the truth.

All implementations get the same gradients. The parameter is set to zero before each step, so that
it holds the update itself afterwards, with all its digits. The truth is that of the tests: the
formulas of the paper in extended precision.
"""

import multiprocessing
import os
import warnings
from functools import partial
from itertools import count
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch
from tqdm import tqdm

from bench.demo.runs import MakeOptimizer
from bench.rivals import OURS
from bench.style import color, legend, plain
from radam_fused import FusedRAdam
from radam_fused.backends import BACKENDS
from tests.harness.truth import Truth, rho_t

from .grid import logarithmic
from .page import markdown

QUESTION = "How large is the error of each update?"
MINUTES = 7
SIZE = (10, 4.2)  # of the picture, inches

BETA2 = [0.9, 0.99, 0.999, 0.9999, 0.99999]
EPS = 1e-16  # so small that its place in the formula does not matter
ELEMENTS = 1000
CURVE_BETA2 = [0.999, 0.9999]  # for the curves of the picture
INTERPRETED = 300  # steps of Triton's interpreter, which is slow
ALONE = "float64 parameters"


class Kind(NamedTuple):
    """One implementation, and how it is run."""

    make: MakeOptimizer
    dtype: torch.dtype = torch.float32
    device: str = "cpu"
    is_interpreted: bool = False


def _capturable(params: list[torch.Tensor], **options: Any) -> torch.optim.Optimizer:
    """torch's capturable code, also on the CPU, which it refuses because there are no graphs."""
    allowed = mock.patch(
        "torch.optim.radam._get_capturable_supported_devices", return_value=["cpu", "cuda"]
    )
    optimizer = torch.optim.RAdam(params, capturable=True, **options)
    optimizer.step = allowed(optimizer.step)  # type: ignore[method-assign]
    return optimizer


def _optimi(params: list[torch.Tensor], **options: Any) -> torch.optim.Optimizer:
    from optimi import RAdam

    return RAdam(params, triton=False, **options)


def _kinds(interpreter: bool) -> dict[str, Kind]:
    """The other implementations, and every available backend of FusedRAdam."""
    gpu = "cuda" if torch.cuda.is_available() else "cpu"
    loop = partial(torch.optim.RAdam, foreach=False)
    kinds = {
        "torch RAdam, for-loop": Kind(loop),
        "torch RAdam, foreach": Kind(partial(torch.optim.RAdam, foreach=True)),
        "torch RAdam, capturable": Kind(_capturable, device=gpu),
        "optimi RAdam": Kind(_optimi),
    }
    for name, backend in BACKENDS.items():
        ours, is_for_gpus = partial(FusedRAdam, backend=name), name in ("cuda", "triton")
        is_interpreted = name == "triton" and interpreter and backend.unavailable() is not None
        if backend.unavailable() is None or is_interpreted:
            how = {"device": gpu if is_for_gpus else "cpu", "is_interpreted": is_interpreted}
            label = f"FusedRAdam, {name}" + " (interpreted)" * is_interpreted
            kinds[label] = Kind(ours, **how)
            if is_for_gpus:
                kinds[f"{label}, capturable"] = Kind(partial(ours, capturable=True), **how)
    kinds[f"torch RAdam, {ALONE}"] = Kind(loop, torch.float64)
    kinds[f"FusedRAdam, {ALONE}"] = Kind(FusedRAdam, torch.float64)
    return kinds


def _recorded(steps: int) -> list[int]:
    """The early steps and a logarithmic grid."""
    return sorted({*range(1, min(steps, 20) + 1), *logarithmic(steps, 15), steps})


def _gradients(steps: int) -> Any:
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(ELEMENTS, generator=generator) for _ in range(steps))


def _updates(kind: Kind, beta2: float, steps: int) -> dict[int, torch.Tensor]:
    """The updates at the recorded steps, in float64."""
    warnings.simplefilter("ignore")  # of Triton's interpreter
    p = torch.nn.Parameter(torch.zeros(ELEMENTS, dtype=kind.dtype, device=kind.device))
    optimizer = kind.make([p], lr=1.0, betas=(0.9, beta2), eps=EPS)
    found, recorded = {}, set(_recorded(steps))
    for t, gradient in enumerate(_gradients(steps), 1):
        p.data.zero_()
        p.grad = gradient.to(p)
        optimizer.step()
        if t in recorded:
            found[t] = p.detach().to("cpu", torch.float64, copy=True)
    return found


def _interpreted(kind: Kind, steps: int) -> list[dict[int, torch.Tensor]]:
    """The updates in Triton's interpreter, in a process that has not imported Triton yet."""
    with (
        mock.patch.dict(os.environ, {"TRITON_INTERPRET": "1"}),
        multiprocessing.get_context("spawn").Pool(1) as pool,
    ):
        return pool.starmap(_updates, [(kind, beta2, steps) for beta2 in BETA2])


def _truth(beta2: float, steps: int) -> dict[int, np.ndarray]:
    truth, found, recorded = Truth(np.zeros(ELEMENTS)), {}, set(_recorded(steps))
    for t, gradient in enumerate(_gradients(steps), 1):
        truth.p[:] = 0
        truth.step(gradient.double().numpy(), lr=1.0, betas=(0.9, beta2), eps=EPS)
        if t in recorded:
            found[t] = truth.p.copy()
    return found


def _error(update: torch.Tensor, true: np.ndarray) -> float:
    """The largest error of an element, divided by the largest element."""
    return float(np.abs(update.numpy() - true).max() / np.abs(true).max())


def measure(steps: int = 10_000, interpreter: bool = True) -> dict[str, Any]:
    """Measure the data of the picture.

    Args:
        steps: Steps of each run; the run in the interpreter is shorter.
        interpreter: Run the Triton kernels in Triton's interpreter if there is no GPU.
    """
    truths = [_truth(beta2, steps) for beta2 in tqdm(BETA2, "the truth")]
    updates = {}
    kinds = _kinds(interpreter)
    progress = tqdm(kinds.items(), "implementations")
    for name, kind in progress:
        progress.set_postfix_str(name)
        if kind.is_interpreted:
            updates[name] = _interpreted(kind, min(steps, INTERPRETED))
        else:
            updates[name] = [_updates(kind, beta2, steps) for beta2 in BETA2]
    first = [next(t for t in count(1) if rho_t(t, beta2) > 5) for beta2 in BETA2]
    errors = {
        name: {
            str(beta2): {t: _error(update, true[t]) for t, update in of.items() if t in true}
            for beta2, of, true in zip(BETA2, by_beta2, truths, strict=True)
        }
        for name, by_beta2 in updates.items()
    }
    ours = [of for name, of in updates.items() if name.startswith("Fused") and ALONE not in name]
    same = all(
        torch.equal(update, of[t])
        for by_beta2 in ours
        for of, one in zip(by_beta2, ours[0], strict=True)
        for t, update in one.items()
        if t in of
    )
    return {
        "settings": {"steps": steps, "elements": ELEMENTS, "eps": EPS},
        "first rectified step": dict(zip(map(str, BETA2), first, strict=True)),
        "our backends have the same bits": same,
        "errors": {
            name: {
                beta2: {"t": list(of), "error": list(of.values())} for beta2, of in by_beta2.items()
            }
            for name, by_beta2 in errors.items()
        },
    }


def error_at(results: dict[str, Any], name: str, beta2: float, t: int | None = None) -> float:
    """The error of an update; by default, of the first rectified one."""
    step = results["first rectified step"][str(beta2)] if t is None else t
    of = results["errors"][name][str(beta2)]
    return float(of["error"][of["t"].index(step)]) if step in of["t"] else float("nan")


def table(results: dict[str, Any]) -> str:
    last = results["settings"]["steps"]
    tables = []
    for what, step in (("at the first rectified step", None), (f"at t = {last:,}", last)):
        rows = []
        for name in results["errors"]:
            errors = [error_at(results, name, beta2, step) for beta2 in BETA2]
            rows.append([name, *("not run" if x != x else f"{x:.1e}" for x in errors)])
        head = [f"error {what}", *(f"beta2 = {beta2}" for beta2 in BETA2)]
        tables.append(markdown(rows, head))
    same = "the same bits" if results["our backends have the same bits"] else "DIFFERENT BITS"
    return "\n\n".join([*tables, f"All backends of FusedRAdam gave {same} at every recorded step."])


_LINES = {  # the lines of the picture: their members, which coincide, and how they look
    "torch RAdam, capturable": ("torch RAdam, capturable", color("torch RAdam"), "-"),
    "torch RAdam": ("torch RAdam, for-loop", color("torch RAdam foreach"), "-"),
    "optimi RAdam": ("optimi RAdam", color("optimi RAdam"), "-"),
    "FusedRAdam, every backend": ("FusedRAdam, cpu", color(OURS), "-"),
    "torch RAdam, float64": (f"torch RAdam, {ALONE}", color("torch RAdam"), ":"),
    "FusedRAdam, float64": (f"FusedRAdam, {ALONE}", color(OURS), ":"),
}


def draw(results: dict[str, Any], figure: Any) -> None:
    axes = figure.subplots(1, 1 + len(CURVE_BETA2), sharey=True)
    left, *others = axes
    for label, (name, shade, line) in _LINES.items():
        style = {"color": shade, "ls": line, "marker": "o", "ms": 2.5}
        style |= {"lw": 4, "alpha": 0.7} if label == "torch RAdam" else {}  # seen below the others
        at_first = [error_at(results, name, beta2) for beta2 in BETA2]
        left.loglog([1 - beta2 for beta2 in BETA2], at_first, label=label, **style)
        for axis, beta2 in zip(others, CURVE_BETA2, strict=True):
            curve = results["errors"][name][str(beta2)]
            axis.loglog(curve["t"], curve["error"], **style)
            axis.set(xlabel="step t", title=f"Every step, beta2 = {beta2}")
    left.set(xlabel="1 - beta2", title="First rectified step", ylim=(1e-17, 100))
    left.set_ylabel("relative error of the update")
    left.invert_xaxis()
    plain(*axes)
    legend(figure, axes, columns=3)
