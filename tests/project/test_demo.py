"""The demo, shortened: its runs agree and its picture is drawn."""

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
    assert "largest parameter difference after the reload: 0.0" in printed
    assert (tmp_path / "demo.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.filterwarnings("ignore")
def test_demo_fails_where_the_reloaded_run_differs(tmp_path, monkeypatch):
    """A checkpoint that loses the moments is noticed."""
    load = demo.Run.load

    def lossy(run, checkpoint):
        load(run, checkpoint)
        run.optimizer.state.clear()

    monkeypatch.setattr(demo.Run, "load", lossy)
    with pytest.raises(SystemExit, match="did not continue bit for bit"):
        demo.main(["--steps", "8", "--out", str(tmp_path)])
