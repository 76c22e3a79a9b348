"""The benchmark of stored formats, at a small size: its bytes, its errors, its verdicts."""

import json

import pytest

pytest.importorskip("tqdm")
pytest.importorskip("tabulate")

import torch

from bench import format_quality, formats
from bench.format_bytes import (
    FLOAT32,
    FLOAT32_MOMENTS,
    FORMATS,
    NARROW,
    OTHER_RIVALS,
    SPLIT,
    SPLIT_MOMENTS,
    TIMED_RIVALS,
)
from bench.formats_page import CHOICE
from radam_fused import FusedRAdam
from radam_fused.benchmark.timing import timings


def kept_by(optimizer, p):
    """Bytes per parameter, from the tensors."""
    tensors = [p, *(t for key, t in optimizer.state[p].items() if key != "step")]
    return sum(t.element_size() for t in tensors)


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_keeps_the_bytes_that_are_counted(name):
    format = FORMATS[name]
    p = torch.nn.Parameter(torch.ones(8, dtype=format.dtype))
    p.grad = torch.ones_like(p)
    optimizer = FusedRAdam([p], backend="cpu", **format.options)
    optimizer.step()
    assert format.bytes().kept() == kept_by(optimizer, p)
    assert format.bytes().grad == p.grad.element_size()


def test_bytes_of_known_formats():
    found = {name: format.bytes() for name, format in FORMATS.items()} | TIMED_RIVALS | OTHER_RIVALS
    assert (found[FLOAT32].kept(), found[FLOAT32].moved()) == (12, 28)
    assert (found[SPLIT_MOMENTS].kept(), found[SPLIT_MOMENTS].moved()) == (8, 18)
    torch_states, engine, flash = list(OTHER_RIVALS.values())
    assert (torch_states.kept(), torch_states.moved()) == (8, 20)
    assert (engine.kept(), engine.moved()) == (8, 18)
    assert (flash.kept(), flash.moved()) == (5.125, 12.25)
    assert found[FLOAT32].share(limit=1.0, seconds=2.0) == 0.5
    assert found[SPLIT_MOMENTS].share(limit=28.0, seconds=18.0) == 1.0
    assert set(CHOICE) == set(FORMATS)


@pytest.mark.slow
@pytest.mark.parametrize("large", [0, 10**7], ids=["shared gradients", "own gradients"])
def test_every_format_is_timed(large, monkeypatch):
    monkeypatch.setattr(formats, "LARGE", large)
    seconds = formats.time_case("small", [(4, 3), (2,)], 3)
    assert {*FORMATS, *TIMED_RIVALS, formats.LIMIT} == seconds.keys()
    assert all(t.lower_quartile > 0 for t in timings(seconds).values())
    for target in formats.TARGETS:
        assert {target.ours, target.rival} <= seconds.keys()
        assert target.case in formats.CASES


def stream(steps=600):
    """Gradients that become a hundred times smaller: the second moment must decay."""
    generator = torch.Generator().manual_seed(0)
    for step in range(steps):
        scale = 1.0 if step < steps // 4 else 0.01
        yield [(torch.randn(n, generator=generator) + 0.3) * scale for n in (300, 40)]


def test_the_error_of_moments_is_measured():
    found = format_quality.errors(list(stream()))
    later = {name: format_quality.summary(of[300:])["mean"] for name, of in found.items()}
    assert 0.001 < later[format_quality.STOCHASTIC] < format_quality.LARGEST_ERROR
    assert later[format_quality.NEAREST] > 0.1


def test_moments_that_are_not_rounded_have_no_error():
    gradients = list(stream(40))
    exact = format_quality.updates(gradients)
    for one, other in zip(
        exact, format_quality.updates_to_nearest(gradients, torch.float32), strict=True
    ):
        assert torch.equal(one, other)


@pytest.mark.slow
def test_a_run_depends_on_its_seed_and_its_format_only():
    assert format_quality.train(SPLIT, 4, 0) == format_quality.train(SPLIT, 4, 0)
    losses = {format_quality.train(name, 4, seed) for name in (SPLIT, NARROW) for seed in (0, 1)}
    assert len(losses) == 4
    sample = format_quality.gradients(2)
    assert len(sample) == 2
    assert {len(g) for g in sample[0]} <= {128, format_quality.SAMPLE}


def quality(shift=0.0, error=0.01):
    losses = {name: [2.0, 2.1, 2.2] for name in format_quality.TRAINED}
    losses[SPLIT] = [loss + shift for loss in losses[SPLIT]]
    errors = {format_quality.STOCHASTIC: {"mean": error, "lowest": 0.0, "highest": 1.0}}
    return {"losses": losses, "update_errors": errors, "steps": 1, "learning_rate": 1.0}


@pytest.mark.parametrize(
    ("shift", "verdict"), [(0.19, "equal"), (-0.19, "equal"), (0.21, "worse"), (-0.21, "better")]
)
def test_a_loss_is_equal_within_the_spread_of_float32(shift, verdict):
    assert format_quality.loss_verdict(quality(shift)["losses"], SPLIT) == verdict


def verdicts(**changes):
    return [target["verdict"] for target in format_quality.targets(quality(**changes))]


def test_targets_of_accuracy_can_be_missed():
    assert verdicts() == ["reached"] * 4
    assert verdicts(error=0.031) == ["missed", *["reached"] * 3]
    assert verdicts(shift=0.21).count("missed") == 1


def test_a_part_of_a_record_can_be_measured_again(tmp_path, monkeypatch, capsys):
    calls = []
    around = {"lower_quartile": 0.99, "median": 1.0, "upper_quartile": 1.01}
    names = (FLOAT32, FLOAT32_MOMENTS, SPLIT)

    def times():
        calls.append("times")
        return {"machine": {}, "seconds": {formats.GPT2: dict.fromkeys(names, around)}}

    def accuracy():
        calls.append("quality")
        return quality(error=len(calls) / 1000)

    monkeypatch.setattr(formats, "_times", times)
    monkeypatch.setattr(format_quality, "measure", accuracy)
    formats.main(["--out", str(tmp_path)])
    formats.main(["--out", str(tmp_path), "--only", "quality"])
    assert calls == ["times", "quality", "quality"]
    record = json.loads((tmp_path / "formats.json").read_text())
    assert record["quality"]["update_errors"][format_quality.STOCHASTIC]["mean"] == 0.003
    assert len(record["targets"]) == len(formats.TARGETS) + 4
    assert "missed" in capsys.readouterr().out  # the time of moments: 1.00 is more than 0.85
