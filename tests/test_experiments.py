"""`thalweg.experiments`: quick settings run everywhere, cheap claims hold, reports are whole."""

from __future__ import annotations

import dataclasses
import json
import sys

import numpy as np
import pytest
import thalweg
from thalweg.experiments import CORE, Context, convex, report

QUICK = Context(quick=True)
IDS = [f"e{n}" for n in (*range(2, 13), *range(14, 19), 20, 22, 23, 25, 26, 28, 30, 31, 34)]
REPORTS = {"e22", "e30", "e31"}
CHEAP = set(IDS) - REPORTS - {"e2", "e3", "e6", "e11", "e28"}


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
    assert (outcome.passed is None) == (name in REPORTS)
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
        "id claim source setting seed measured values threshold pass verdict seconds version "
        "commit seeds"
    )
    assert set(results[0]) == set(keys.split())
    assert results[0]["version"] == thalweg.__version__
    assert results[2]["verdict"] == "report"
    page = (tmp_path / "index.html").read_text()
    assert page.count("<h2") == 3
    assert "http" not in page
    if report.has_figures():
        assert page.count("data:image/png;base64,") == 3


def test_a_row_fails_with_one_of_its_seeds():
    outcome = by_id("e15").run(QUICK)
    bad = dataclasses.replace(outcome, passed=False)
    experiment = by_id("e15")
    assert report.Row(experiment, outcome, 1.0).verdict == "pass"
    assert report.Row(experiment, outcome, 1.0, {0: outcome, 1000: outcome}).verdict == "pass"
    assert report.Row(experiment, outcome, 1.0, {0: outcome, 1000: bad}).verdict == "fail"
    silent = dataclasses.replace(outcome, passed=None)
    assert report.Row(experiment, silent, 1.0, {0: silent}).verdict == "report"


def test_reference_solutions_of_convex_programs():
    rng = np.random.default_rng(3)
    a, b = rng.normal(size=(4, 9)), rng.normal(size=4)
    x = convex.least_l1(a, b)
    np.testing.assert_allclose(a @ x, b, atol=1e-9)
    # No better one: the dual bound b'v with |a'v| <= 1 is reached.
    support = np.abs(x) > 1e-7
    dual = np.linalg.lstsq(a[:, support].T, np.sign(x[support]), rcond=None)[0]
    assert np.abs(a.T @ dual).max() <= 1 + 1e-7
    assert b @ dual == pytest.approx(np.abs(x).sum(), rel=1e-8)
    z = rng.normal(size=(12, 5)) + 2 * np.ones(5)
    for norm in (1, 2, np.inf):
        w, margin = convex.largest_margin(z, norm)
        assert np.linalg.norm(w, norm) == pytest.approx(1.0)
        # The least dual norm over the convex hull of the rows is a bound; the rows at the margin
        # carry it, and no random direction does better.
        others = rng.normal(size=(4000, 5)) * 0.3 + w
        others /= np.linalg.norm(others, norm, axis=1, keepdims=True)
        assert (others @ z.T).min(axis=1).max() <= margin + 1e-9
    with pytest.raises(RuntimeError, match="feasible"):
        convex.largest_margin(np.array([[1.0, 0.0], [-1.0, 0.0]]), 2)


@pytest.mark.oracle
def test_reference_solutions_agree_with_scipy():
    from scipy.optimize import linprog

    rng = np.random.default_rng(5)
    for _ in range(5):
        a, b = rng.normal(size=(6, 15)), rng.normal(size=6)
        expected = linprog(np.ones(30), A_eq=np.hstack([a, -a]), b_eq=b).fun
        assert np.abs(convex.least_l1(a, b)).sum() == pytest.approx(expected, rel=1e-8)
        z = rng.normal(size=(20, 6)) + 1.5
        for norm in (1, np.inf):
            ball = [(None, None)] * 6 + [(0, None)] * (6 if norm == 1 else 1)
            sizes = np.eye(6) if norm == 1 else np.ones((6, 1))
            cost = np.concatenate([np.zeros(6), np.ones(sizes.shape[1])])
            bounds = np.vstack([np.hstack([np.eye(6), -sizes]), np.hstack([-np.eye(6), -sizes])])
            rows = np.vstack([np.hstack([-z, np.zeros((20, sizes.shape[1]))]), bounds])
            right = np.concatenate([-np.ones(20), np.zeros(12)])
            expected = 1 / linprog(cost, A_ub=rows, b_ub=right, bounds=ball).fun
            assert convex.largest_margin(z, norm)[1] == pytest.approx(expected, rel=1e-7)


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
