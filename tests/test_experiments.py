"""`thalweg.experiments`: quick settings run everywhere, cheap claims hold, reports are whole."""

from __future__ import annotations

import json
import sys

import pytest
import thalweg
from thalweg.experiments import CORE, Context, report

QUICK = Context(quick=True)
IDS = ["e2", "e14", "e15", "e18", "e20", "e25", "e30", "e31"]
CHEAP = {"e14", "e15", "e18", "e20", "e25"}


def by_id(name):
    return next(experiment for experiment in CORE if experiment.id == name)


def test_core_is_complete_and_described():
    assert [experiment.id for experiment in CORE] == IDS
    for experiment in CORE:
        for text in (experiment.title, experiment.claim, experiment.source, experiment.setting):
            assert text
        assert experiment.threshold


@pytest.mark.parametrize("name", IDS)
def test_quick_setting_runs(name, monkeypatch):
    monkeypatch.delenv("THALWEG_DATA", raising=False)
    outcome = by_id(name).run(QUICK)
    assert outcome.measured
    assert (outcome.passed is None) == (name in ("e30", "e31"))
    json.dumps(outcome.values, allow_nan=False)


@pytest.mark.parametrize("name", sorted(CHEAP))
def test_claim_holds(name, monkeypatch):
    monkeypatch.delenv("THALWEG_DATA", raising=False)
    outcome = by_id(name).run(Context(seed=1))
    assert outcome.passed, outcome.measured


def test_runs_are_repeatable():
    first, second = (by_id("e18").run(QUICK).values for _ in range(2))
    assert first == second


def test_report(tmp_path):
    names = ("e15", "e18", "e30")
    rows = [report.Row(by_id(name), by_id(name).run(QUICK), 0.25) for name in names]
    files = report.write(tmp_path, rows, QUICK)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index.html", "results.json"]
    assert {path.name for path in files} == {"index.html", "results.json"}
    results = json.loads((tmp_path / "results.json").read_text())
    assert [row["id"] for row in results] == list(names)
    keys = (
        "id claim source setting seed measured values threshold pass verdict seconds version commit"
    )
    assert set(results[0]) == set(keys.split())
    assert results[0]["version"] == thalweg.__version__
    assert results[2]["verdict"] == "report"
    page = (tmp_path / "index.html").read_text()
    assert page.count("<h2") == 3
    assert "http" not in page
    if report.has_figures():
        assert page.count("data:image/png;base64,") == 3


def test_report_without_matplotlib(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "has_figures", lambda: False)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    rows = [report.Row(by_id("e15"), by_id("e15").run(QUICK), 0.25)]
    report.write(tmp_path, rows, QUICK)
    page = (tmp_path / "index.html").read_text()
    assert "matplotlib is not installed" in page
    assert "<img" not in page


@pytest.mark.parametrize("name", IDS)
def test_figures_draw(name, monkeypatch):
    figure_module = pytest.importorskip("matplotlib.figure")
    monkeypatch.delenv("THALWEG_DATA", raising=False)
    figure = figure_module.Figure()
    by_id(name).run(QUICK).draw(figure)
    assert figure.axes
