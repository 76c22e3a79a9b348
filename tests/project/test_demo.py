"""The demo, shortened: its runs agree and its picture is drawn."""

from functools import partial

import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("tqdm")
pytest.importorskip("tabulate")

from bench.demo import __main__ as demo

pytestmark = pytest.mark.slow


@pytest.mark.filterwarnings("ignore")
def test_demo(tmp_path, capsys):
    demo.main(["--steps", "8", "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    assert "FusedRAdam and torch RAdam are equal up to rounding" in printed
    assert "The reloaded run is equal, bit for bit" in printed
    assert (tmp_path / "demo.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.filterwarnings("ignore")
def test_demo_fails_where_fused_radam_is_not_radam(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "FusedRAdam", partial(demo.FusedRAdam, rectify_threshold=4.0))
    with pytest.raises(SystemExit, match="not what it should be"):
        demo.main(["--steps", "8", "--out", str(tmp_path)])
    assert "FusedRAdam and torch RAdam are NOT equal" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore")
def test_demo_fails_where_the_reloaded_run_differs(tmp_path, monkeypatch, capsys):
    """A checkpoint that loses the moments is noticed."""
    load = demo.Run.load

    def lossy(run, checkpoint):
        load(run, checkpoint)
        run.optimizer.state.clear()

    monkeypatch.setattr(demo.Run, "load", lossy)
    with pytest.raises(SystemExit, match="not what it should be"):
        demo.main(["--steps", "8", "--out", str(tmp_path)])
    assert "The reloaded run is NOT equal" in capsys.readouterr().out
