"""The experiments of bench/paper, shortened: each shows its effect and records it."""

import itertools
import json
import math
from functools import partial

import pytest
import torch

pytest.importorskip("matplotlib")
pytest.importorskip("tqdm")
pytest.importorskip("tabulate")
pytest.importorskip("sklearn")
pytest.importorskip("optimi")

from bench.paper import __main__ as paper
from bench.paper import (
    amsgrad,
    exact_rectification,
    exactness,
    histogram,
    implementations,
    page,
    rectification,
    robustness,
    training,
    variance,
)
from radam_fused import FusedRAdam

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.fixture
def _in_this_process(monkeypatch):
    """Runs of an experiment in this process: new ones would import torch for each measurement."""

    def one_after_the_other(function, arguments, what):
        return [function(*each) for each in arguments]

    for module in (histogram, robustness):
        monkeypatch.setattr(module, "over_cores", one_after_the_other)


def test_runs_over_all_cores_come_back_in_order():
    assert list(training.over_cores(divmod, [(7, 2), (9, 4)], "runs")) == [(3, 1), (2, 1)]


def is_lost(monkeypatch, effect, where, key, other):
    """Assert that the assertions about an effect fail without the effect."""
    with monkeypatch.context() as patch:
        patch.setitem(where, key, other)
        with pytest.raises(AssertionError):
            effect()


def the_variance_is_even():
    found = variance.measure(replicas=100_000, steps=100)
    simple = found["simple averages"]
    triples = zip(*(simple[key] for key in ("rho", "simulated", "exact")), strict=True)
    for rho, simulated, true in triples:
        if rho >= 6:
            assert simulated == pytest.approx(true, rel=0.08)
    assert simple["exact"] == sorted(simple["exact"], reverse=True)
    assert variance.variance(5) / simple["exact"][2] == pytest.approx(3.307, 1e-3)
    early, late = (found["steps"]["t"].index(t) for t in (6, 100))
    for mean in map(str, variance.MEANS):
        plain, rectified, by_exact = (found["steps"][how][mean] for how in variance.RECTIFIED)
        assert plain[early] > 25 * plain[late]
        assert rectified[late] / 3 < rectified[early] < rectified[late] < 3e-4
        assert by_exact[early] == pytest.approx(by_exact[late], rel=0.3)


def test_the_simulated_variance_is_the_exact_one_and_r_t_evens_it(monkeypatch):
    the_variance_is_even()
    for how in ("r_t psi", "exact r_t psi"):
        is_lost(monkeypatch, the_variance_is_even, variance.RECTIFIED, how, {"rectify": False})


def test_r_t_amounts_to_a_warm_up_of_two_time_constants():
    curves = rectification.measure(longest=6.0)["curves"]
    assert curves["0.999"]["first rectified"] == {"4.0": 5, "5.0": 6}
    for never in ("0.5", "0.6"):
        assert curves[never]["first rectified"] == {"4.0": None, "5.0": None}
        assert not any(curves[never]["r"])
    for beta2 in ("0.99", "0.999", "0.9999"):
        assert curves[beta2]["equal warm-up"] == pytest.approx(2 / (1 - float(beta2)), rel=0.08)


def adam_s_gradients_shrink_and_radam_s_do_not():
    found = histogram.measure(11, rates=[0.01], names=["Adam", "RAdam"], seeds=1)
    [adam], [radam] = found["runs"]["0.01"].values()
    assert histogram.shift(adam, 10) < -1.3
    assert histogram.shift(radam, 10) > -0.5
    assert radam["losses"][10] < radam["losses"][0] - 1  # it has made progress
    assert all(9_900 < sum(counts) <= 10_100 for counts in radam["histograms"])


@pytest.mark.usefixtures("_in_this_process")
def test_adam_s_gradients_shrink_and_radam_s_do_not(monkeypatch):
    adam_s_gradients_shrink_and_radam_s_do_not()
    resting = training.Recipe(torch.optim.SGD, warm_up=10**9)
    wrong = {"Adam": histogram.RECIPES["RAdam"], "RAdam": histogram.RECIPES["Adam"]}
    for name, other in [*wrong.items(), ("RAdam", resting)]:
        is_lost(
            monkeypatch, adam_s_gradients_shrink_and_radam_s_do_not, histogram.RECIPES, name, other
        )


def test_adam_2k_updates_the_second_moment_alone_while_it_is_frozen():
    optimizers = []

    def make(params, lr):
        optimizers.append(training.adam(params, lr=lr))
        return optimizers[0]

    recipe = training.Recipe(make, frozen=3)
    weights, moments, gradients = [], [], []
    for _, model in training.steps_of(training.TASKS["digits"], recipe, 0.01, 6, seed=0):
        params = list(model.parameters())
        weights.append(torch.cat([p.detach().flatten() for p in params]))
        moments.append(
            {name: tensor.clone() for name, tensor in optimizers[0].state[params[0]].items()}
        )
        gradients.append(params[0].grad.clone())
    moved = [not torch.equal(a, b) for a, b in itertools.pairwise(weights)]
    assert moved == [False, False, False, True, True]
    # The second moment has advanced; the momentum contains only the first update.
    assert [int(of["step"]) for of in moments[1:]] == [1, 2, 3, 4, 5]
    assert not torch.equal(moments[1]["exp_avg_sq"], moments[2]["exp_avg_sq"])
    torch.testing.assert_close(moments[4]["exp_avg"], 0.1 * gradients[3])


def radam_survives_a_learning_rate_at_which_adam_does_not():
    found = robustness.measure(
        150,
        seeds={"digits": 1},
        rates=[0.01, 0.1],
        recipes={name: robustness.RECIPES[name] for name in ("Adam", "RAdam")},
    )
    scores = found["scores"]["digits"]
    assert scores["Adam"]["0.1"]["scores"][0] < 0.5 < 0.85 < scores["RAdam"]["0.1"]["scores"][0]
    assert min(scores[name]["0.01"]["scores"][0] for name in scores) > 0.9
    assert len(scores["Adam"]["0.01"]["curves"][0]) == 15


@pytest.mark.usefixtures("_in_this_process")
def test_radam_survives_a_learning_rate_at_which_adam_does_not(monkeypatch):
    radam_survives_a_learning_rate_at_which_adam_does_not()
    for name, other in (("Adam", "RAdam"), ("RAdam", "Adam")):
        is_lost(
            monkeypatch,
            radam_survives_a_learning_rate_at_which_adam_does_not,
            robustness.RECIPES,
            name,
            robustness.RECIPES[other],
        )


def adam_ends_at_the_wrong_end_and_amsgrad_at_the_right_one():
    runs = amsgrad.measure(20_000)["runs"]
    periodic = {name: run["x"][-1][0] for name, run in runs.items()}
    random = {name: sum(run["x"][-1][1:]) / amsgrad.REPLICAS for name, run in runs.items()}
    for wrong, right in (("Adam", "AMSGrad"), ("RAdam", "RAdam, amsgrad")):
        assert periodic[right] < -0.5 < 0.9 < periodic[wrong]
        assert random[right] < 0.2 < 0.6 < random[wrong]
        regrets = [runs[name]["average regret"][-1][0] for name in (wrong, right)]
        assert 0 < regrets[1] < regrets[0]


def test_adam_converges_to_the_wrong_point_and_amsgrad_to_the_right_one(monkeypatch):
    adam_ends_at_the_wrong_end_and_amsgrad_at_the_right_one()
    for name, other in (("Adam", "AMSGrad"), ("RAdam, amsgrad", "RAdam")):
        is_lost(
            monkeypatch,
            adam_ends_at_the_wrong_end_and_amsgrad_at_the_right_one,
            amsgrad.OPTIMIZERS,
            name,
            amsgrad.OPTIMIZERS[other],
        )


def ours_is_exact_and_the_capturable_form_of_torch_is_not():
    found = exactness.measure(200, interpreter=False)
    assert found["our backends have the same bits"]
    assert found["first rectified step"]["0.999"] == 6
    for beta2 in exactness.BETA2:
        error = partial(exactness.error_at, found, beta2=beta2)
        ours = [name for name in found["errors"] if name.startswith("Fused")]
        assert len(ours) >= 3
        for name in ours:
            unit = 2.0**-53 if exactness.ALONE in name else 2.0**-24
            assert error(name) < 32 * unit
            # Later, all of them share the rounding error of beta2.
            theirs = name.replace("FusedRAdam, ", "torch RAdam, ")
            theirs = theirs if theirs in found["errors"] else "torch RAdam, for-loop"
            assert error(name, t=200) < 2 * error(theirs, t=200) + 32 * unit
    assert exactness.error_at(found, "torch RAdam, capturable", 0.999) > 1e-3
    assert exactness.error_at(found, "torch RAdam, capturable", 0.9999) > 0.5


def test_fused_radam_is_exact_and_the_capturable_form_of_torch_is_not(monkeypatch):
    ours_is_exact_and_the_capturable_form_of_torch_is_not()
    wrongs = [{"rectify_threshold": 6.0}, {"maximize": True}, {"exact_rectification": True}]
    for wrong in wrongs:
        is_lost(
            monkeypatch,
            ours_is_exact_and_the_capturable_form_of_torch_is_not,
            vars(exactness),
            "FusedRAdam",
            partial(FusedRAdam, **wrong),
        )


def the_presets_part_where_their_rules_differ():
    runs = implementations.measure(7)["runs"]
    plain, decayed, alike = (runs[name]["same gradients"] for name in implementations.SETTINGS)
    assert not any(plain["torch"] + plain["labml"])
    assert plain["official"][:5] == [1.0] * 5  # no step at all
    assert not any(plain["optax"][:5])
    assert 0 < plain["optax"][5] < 0.2
    assert plain["paper"][3] == 0 < plain["paper"][4]  # rectified one step earlier
    assert decayed["labml"][5] > 0.5  # L2 against decoupled decay
    assert plain["optimi"][5] > 1  # because of its beta2
    assert alike["optimi"] == alike["optax"]


def test_the_presets_differ_where_their_rules_differ(monkeypatch):
    the_presets_part_where_their_rules_differ()
    for name in ("official", "optax", "optimi", "paper"):
        is_lost(
            monkeypatch,
            the_presets_part_where_their_rules_differ,
            vars(implementations),
            "PRESETS",
            {**implementations.PRESETS, name: {}},
        )


def the_exact_variance_changes_the_first_rectified_steps():
    found = exact_rectification.measure(20, seeds={"digits": 1}, rates=[0.01])
    first, exact, early = (found["r"]["0.999"][how] for how in exact_rectification.OPTIONS)
    ratios = [b / a for a, b in zip(first, exact, strict=True) if a]
    assert ratios[0] == pytest.approx(1.466, abs=1e-3)
    assert ratios == sorted(ratios, reverse=True)
    assert ratios[-1] < 1.001
    begins = [found["t"][next(i for i, r in enumerate(of) if r)] for of in (first, exact, early)]
    assert begins == [6, 6, 3]
    cells = [by_rate["0.01"] for by_rate in found["scores"]["digits"].values()]
    losses = [cell["curves"][0] for cell in cells]
    # Each one begins to move earlier than the one before.
    assert losses[0][1] > losses[1][1] > losses[2][1]


@pytest.mark.usefixtures("_in_this_process")
def test_the_exact_variance_changes_the_first_rectified_steps(monkeypatch):
    the_exact_variance_changes_the_first_rectified_steps()
    for where in (exact_rectification.OPTIONS, exact_rectification.RECIPES):
        is_lost(
            monkeypatch,
            the_exact_variance_changes_the_first_rectified_steps,
            where,
            exact_rectification.EXACT,
            where["first order"],
        )


def test_a_run_that_breaks_off_has_no_score():
    outcome = training.train("digits", training.Recipe(torch.optim.SGD), 1e30, 50, 0)
    assert math.isnan(outcome.score)
    assert len(outcome.losses) < 50
    cell = {"scores": [0.9, None, None], "curves": []}
    assert robustness.median_of(cell, "digits") == 0.0
    assert robustness.median_of(cell, "bytes") == math.inf


def test_a_run_writes_its_record_and_leaves_the_page_alone(tmp_path, monkeypatch, capsys):
    before = page.PAGE.read_text()
    small = implementations.measure
    monkeypatch.setattr(implementations, "measure", lambda: small(2))
    paper.main(["implementations", "--out", str(tmp_path)])
    record = json.loads((tmp_path / "implementations.json").read_text())
    assert record["command"] == "python -m bench.paper implementations"
    assert implementations.table(record["results"]) in capsys.readouterr().out
    assert page.PAGE.read_text() == before


def test_a_table_has_one_place_in_the_page(tmp_path):
    path = tmp_path / "page.md"
    path.write_text("a\n<!-- x -->\nold\n<!-- end of x -->\nb\n")
    page.put("x", "new \\1", path)
    assert path.read_text() == "a\n<!-- x -->\nnew \\1\n<!-- end of x -->\nb\n"
    with pytest.raises(ValueError, match="0 places for y"):
        page.put("y", "new", path)
