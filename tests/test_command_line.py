"""python -m radam_fused: the report, and the measurement of a step on this machine."""

import json
import os
import struct
import subprocess
import sys

import pytest
import torch

from radam_fused import __main__ as command_line
from radam_fused import backends, report
from radam_fused.backends import cpu
from radam_fused.benchmark import command, limit, models
from radam_fused.benchmark.rivals import FUSED_ADAMW, OURS, RADAM
from radam_fused.benchmark.timing import Timing, verdict
from radam_fused.extension import _C

SMALL = [(64, 16), (7,), ()]


def write_weights(path, **tensors):
    """A file of safetensors with a header and no data."""
    header = {"__metadata__": {"format": "pt"}}
    header |= {name: {"dtype": dtype, "shape": shape} for name, (dtype, shape) in tensors.items()}
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    return path


@pytest.mark.parametrize(
    ("model", "tensors", "elements"),
    [
        ("gpt2", 148, 124_439_808),
        ("resnet50", 161, 25_557_032),
        ("llama3-8b", 291, 8_030_261_248),
    ],
)
def test_models_have_their_parameters(model, tensors, elements):
    shapes = models.shapes_of(model)
    assert (len(shapes), models.elements(shapes)) == (tensors, elements)


def test_a_divisor_divides_the_widths():
    whole, part = models.shapes_of("llama3-8b"), models.shapes_of("llama3-8b/8")
    assert len(part) == len(whole)
    assert part[1] == tuple(n // 8 for n in whole[1])


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("gpt3", "no model is named 'gpt3', expected one of gpt2, resnet50, llama3-8b"),
        ("resnet50/2", "no model is named 'resnet50/2'"),
        ("gpt2/3", "'gpt2/3' divides by '3', expected one of 1, 2, 4, 8, 16, 32, 64"),
        ("gpt2/", "'gpt2/' divides by ''"),
    ],
)
def test_an_unknown_model_is_an_error(model, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        command_line.main(["bench", "--model", model])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_shapes_of_the_floating_point_tensors_of_files(tmp_path):
    one = write_weights(tmp_path / "1.safetensors", w=("BF16", [3, 4]), ids=("I64", [9]))
    two = write_weights(tmp_path / "2.safetensors", b=("F32", []))
    assert models.shapes_in([one, two]) == [(3, 4), ()]


@pytest.mark.parametrize(
    "content",
    [b"", b"1234567", struct.pack("<Q", 2**40) + b"{}", struct.pack("<Q", 2) + b"[]",
     struct.pack("<Q", 2) + b"{]", struct.pack("<Q", 9) + b'{"a": {}}'],
    ids=["empty", "short", "long header", "a list", "no JSON", "no shape"],
)  # fmt: skip
def test_another_file_is_an_error(content, tmp_path, capsys):
    path = tmp_path / "other.safetensors"
    path.write_bytes(content)
    with pytest.raises(SystemExit):
        command_line.main(["bench", "--shapes", str(path)])
    assert "other.safetensors is not a safetensors file" in capsys.readouterr().err


def test_files_without_parameters_or_missing_are_errors(tmp_path, capsys):
    path = write_weights(tmp_path / "ids.safetensors", ids=("I64", [9]))
    for file, message in ((path, "no floating-point tensors"), (tmp_path / "x", "No such file")):
        with pytest.raises(SystemExit):
            command_line.main(["bench", "--shapes", str(file)])
        assert message in capsys.readouterr().err


def test_a_model_that_does_not_fit_is_an_error(monkeypatch, capsys):
    monkeypatch.setattr(command, "free_bytes", lambda device: 10**9)
    with pytest.raises(SystemExit):
        command_line.main(["bench", "--model", "gpt2"])
    assert "124,439,808 parameters need 6 GB, and 1 GB are free" in capsys.readouterr().err


def test_the_table_shows_the_limit_and_every_optimizer(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "_ROUNDS", (3, 3))
    path = write_weights(tmp_path / "tiny.safetensors", w=("F32", [64, 16]), b=("F32", [7]))
    command_line.main(["bench", "--shapes", str(path)])
    out = capsys.readouterr().out
    assert "tiny.safetensors: 1,031 float32 parameters in 2 tensors" in out
    rows = {line.split("  ")[0]: line for line in out.splitlines()}
    assert {limit.LIMIT, OURS, FUSED_ADAMW, RADAM} <= set(rows)
    assert "100%" in rows[limit.LIMIT]
    assert rows[RADAM].endswith(("faster", "slower", "level"))


def test_every_optimizer_steps_the_same_tensors(monkeypatch):
    made = []
    shared = command.SharedTensors

    def keep(*args):
        made.append(shared(*args))
        return made[-1]

    monkeypatch.setattr(command, "SharedTensors", keep)
    monkeypatch.setattr(command, "_ROUNDS", (3, 3))
    measured = command.measure(SMALL, "cpu", seconds=0.0)
    [tensors] = made
    assert list(measured) == [limit.LIMIT, OURS, FUSED_ADAMW, RADAM]
    assert len(tensors._moments) == 1
    assert all(t.lower_quartile <= t.median <= t.upper_quartile for t in measured.values())


def around(median, spread=0.1):
    return Timing(median * (1 - spread), median, median * (1 + spread))


@pytest.mark.parametrize(
    ("ours", "other", "expected"),
    [
        (around(1.0), around(1.0), "level"),
        (around(1.0), around(1.2), "level"),
        (around(1.2), around(1.0), "level"),
        (around(1.0), around(1.3), "1.30 x faster"),
        (around(1.3), around(1.0), "1.30 x slower"),
        (around(1.0), around(3.0), "3.0 x faster"),
        (around(1.0), around(24.6), "25 x faster"),
    ],
)
def test_a_verdict_is_level_where_quartiles_overlap(ours, other, expected):
    assert verdict(ours, other) == expected


def test_the_limit_of_a_gpu_is_a_copy_scaled_to_the_bytes_of_a_step(monkeypatch):
    monkeypatch.setattr(limit, "_LARGEST_COPY", 1000)
    copy, part = limit.copy(28_000, "cpu")
    assert part == pytest.approx(2000 / 28_000)
    assert copy().numel() == 1000
    assert limit.copy(280, "cpu")[1] == 1.0


def test_the_limit_reads_four_arrays_and_writes_three():
    arrays = [torch.full((100_003,), float(i)) for i in range(4)]
    limit.move(arrays)()
    assert [a.unique().tolist() for a in arrays] == [[6.0], [1.0], [6.0], [6.0]]


@pytest.mark.parametrize(
    "wrong",
    [torch.zeros(9), torch.zeros(8, dtype=torch.float64), torch.zeros(8, dtype=torch.bfloat16),
     torch.zeros(16)[::2], torch.zeros(8, device="meta")],
    ids=["length", "float64", "bfloat16", "stride", "meta"],
)  # fmt: skip
def test_the_limit_checks_its_arrays(wrong):
    arrays = [torch.zeros(8) for _ in range(3)]
    with pytest.raises((ValueError, RuntimeError, BufferError)):
        _C.cpu_move([*arrays, wrong], 1, "baseline")


REPORT = [sys.executable, "-m", "radam_fused"]


@pytest.mark.parametrize(
    ("built", "text"),
    [
        (None, "not built"),
        ("90-real", "built for sm_90"),
        ("75-real 90", "built for sm_75, sm_90, and as PTX for later GPUs"),
        ("90-real 90-virtual", "built for sm_90, and as PTX for later GPUs"),
    ],
)
def test_the_report_says_which_gpus_have_kernels(built, text, monkeypatch, capsys):
    monkeypatch.setattr(report, "architectures", lambda: built)
    command_line.main([])
    assert f"\n  CUDA kernels     {text}\n" in capsys.readouterr().out


def test_the_report_has_a_help_and_refuses_arguments():
    helped = subprocess.run([*REPORT, "--help"], capture_output=True, text=True, check=True)
    assert helped.stdout.startswith("usage: python -m radam_fused [-h]")
    for name in ("info", "bench"):
        assert name in helped.stdout
    refused = subprocess.run([*REPORT, "cuda"], capture_output=True, text=True)
    assert refused.returncode == 2
    assert "invalid choice: 'cuda'" in refused.stderr
    assert not refused.stdout


def test_the_report_ends_quietly_in_a_closed_pipe():
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(REPORT, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_report_lists_every_backend():
    text = subprocess.run(REPORT, capture_output=True, text=True, check=True).stdout
    for name in ("cuda", "triton", "cpu", "eager"):
        assert f"\n  {name} " in text
    reason = backends.BACKENDS["cuda"].unavailable()
    assert f"cuda     {'unavailable: ' + reason if reason else 'available'}" in text
    assert "cpu      available" in text
    assert torch.__version__ in text
    assert cpu.instruction_sets()[0] in text


def test_info_is_the_default():
    commands = ([*REPORT, *more] for more in ([], ["info"]))
    first, second = (
        subprocess.run(command, capture_output=True, text=True, check=True) for command in commands
    )
    assert first.stdout == second.stdout
    assert "auto would take cpu for parameters on cpu" in first.stdout
