"""docs/evidence.md agrees with the records in bench/results/paper."""

import json
import re

import pytest
from PIL import Image

pytest.importorskip("matplotlib")
pytest.importorskip("tqdm")
pytest.importorskip("tabulate")

from bench.paper import __main__ as paper
from bench.paper import page
from bench.style import digest


@pytest.fixture(params=paper.EXPERIMENTS)
def recorded(request):
    path = paper.RESULTS / f"{request.param}.json"
    return request.param, paper.EXPERIMENTS[request.param], json.loads(path.read_text())


def test_the_page_has_the_recorded_tables_pictures_and_commands(recorded):
    name, module, record = recorded
    text = page.PAGE.read_text()
    [table] = re.findall(rf"<!-- {name} -->\n(.*?)\n<!-- end of {name} -->", text, re.DOTALL)
    assert table == module.table(record["results"])
    assert f"(images/{name}.png)" in text
    assert f"\n{record['command']}\n" in text
    assert re.fullmatch("[0-9a-f]{12}", record["machine"]["commit"])


@pytest.mark.slow
def test_the_picture_agrees_with_the_record(recorded, tmp_path):
    name, module, record = recorded
    paper.picture(module, record["results"], tmp_path / "again.png")
    kept, again = (
        Image.open(path) for path in (paper.IMAGES / f"{name}.png", tmp_path / "again.png")
    )
    assert kept.text["Source"] == again.text["Source"] == digest(record["results"])["Source"]
    assert kept.size == again.size
