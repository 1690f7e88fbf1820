"""The benchmark harness: a tiny run end to end, its loss check, and the pages made from rows."""

from __future__ import annotations

import dataclasses
import itertools
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from bench import curvature, kernels, machine, peers, steps, table  # noqa: E402
from bench.__main__ import _parser  # noqa: E402
from bench.cases import CASES, make_problem  # noqa: E402
from bench.peers.numpy_peer import NumpyPeer  # noqa: E402
from bench.peers.thalweg_peer import ThalwegPeer  # noqa: E402
from bench.results import Results, read  # noqa: E402

TWO_ROUNDS = steps.Options(seconds=0.02, turn=0.01)


@pytest.fixture(scope="module")
def row() -> dict[str, Any]:
    return steps.measure(CASES["c"], 32, 1, ["thalweg", "thalweg-step", "numpy"], TWO_ROUNDS)


def test_a_run_times_checked_peers(row: dict[str, Any]) -> None:
    assert TWO_ROUNDS.rounds == 2
    assert list(row["peers"]) == ["thalweg", "thalweg-step", "numpy"]
    assert not row["failed"] and not row["skipped"]
    assert row["rounds"]["used"] >= 1  # rounds that others disturb do not count
    for entry in row["peers"].values():
        time = entry["microseconds"]
        assert 0 < time["q1"] <= time["median"] <= time["q3"]
        assert entry["samples_per_second"] == pytest.approx(32e6 / time["median"], rel=1e-3)
        assert entry["loss_deviation"] <= CASES["c"].tolerance
    assert row["peers"]["thalweg"]["ratio"]["median"] == 1
    assert {"date", "commit", "hardware", "versions"} <= row.keys()
    assert "thalweg" in row["versions"] and "numpy" in row["versions"]
    assert json.loads(json.dumps(row)) == row
    assert "thalweg-step" in steps.describe(row)


def test_inference_is_timed_on_checked_losses() -> None:
    row = steps.measure(
        CASES["b"], 32, 1, ["thalweg", "thalweg-step", "numpy"], TWO_ROUNDS, work="inference"
    )
    assert row["kind"] == "inference" and list(row["peers"]) == ["thalweg", "numpy"]
    assert row["flops_per_sample"] == 2 * (784 * 512 + 512 * 512 + 512 * 10)
    assert max(entry["loss_deviation"] for entry in row["peers"].values()) <= 1e-6
    assert "way to train" in row["skipped"]["thalweg-step"]


@pytest.mark.parametrize("name", ["b", "c"])
def test_curvature_is_timed_on_checked_products(name: str, tmp_path: Path) -> None:
    names = ["thalweg-gradient", "thalweg-product", "thalweg-again"]
    row = curvature.measure(CASES[name], 32, 1, names, TWO_ROUNDS)
    assert list(row["peers"]) == names and not row["failed"]
    assert max(entry["deviation"] for entry in row["peers"].values()) <= 1e-4
    assert row["peers"]["thalweg-gradient"]["over_gradient"]["median"] == 1
    assert row["peers"]["thalweg-again"]["over_thalweg"]["median"] == 1
    assert row["peers"]["thalweg-product"]["over_gradient"]["median"] > 0
    assert json.loads(json.dumps(row)) == row
    assert "thalweg-again" in curvature.describe(row)
    assert f"| {name}, 32 rows, 1 threads" in table.page([row])


def test_a_wrong_product_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = curvature.reference
    monkeypatch.setattr(
        curvature,
        "reference",
        lambda problem: {kind: [1.01 * v for v in row] for kind, row in honest(problem).items()},
    )
    row = curvature.measure(CASES["c"], 32, 1, ["thalweg-product"], TWO_ROUNDS)
    assert not row["peers"] and "deviates by 0.0099" in row["failed"]["thalweg-product"]


@pytest.mark.oracle
def test_all_libraries_multiply_with_the_same_hessian() -> None:
    names = [name for name in peers.CURVATURE if name.startswith("torch")]
    row = curvature.measure(CASES["b"], 32, 1, names, TWO_ROUNDS)
    assert list(row["peers"]) == names, row["failed"]


def test_a_lower_precision_competes_with_its_like() -> None:
    row = steps.measure(CASES["c"], 32, 1, ["thalweg", "numpy"], TWO_ROUNDS, precision="medium")
    assert list(row["peers"]) == ["thalweg"] and "float32" in row["skipped"]["numpy"]
    assert 1e-6 < row["peers"]["thalweg"]["loss_deviation"] <= 3e-2
    assert "`python -m bench cpu --precision medium`" in table.page([row])


def test_a_population_makes_the_steps_of_all_its_networks() -> None:
    problem = make_problem(CASES["c"], 32, 1)
    peer = ThalwegPeer(problem, "population")
    assert peer.granularity == 32
    losses = peer.losses(2)
    assert steps.loss_deviation(losses, NumpyPeer(problem, dtype=np.float64).losses(2)) <= 1e-6
    before = [model.steps_done for model in peer._models]
    peer.run(64)
    assert [model.steps_done for model in peer._models] == [done + 2 for done in before]


def test_the_picture_of_the_rows(row: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path, picture = tmp_path / "run.json", tmp_path / "steps.svg"
    Results(path).add(row)
    table.write([path], tmp_path / "page.md", picture=picture)
    first = picture.read_bytes()
    assert b"<svg" in first
    table.write([path], tmp_path / "page.md", picture=picture)
    assert picture.read_bytes() == first


@pytest.mark.parametrize("name", ["a", "c", "e"])
@pytest.mark.parametrize("factor", [1.0, 2.0])
def test_the_loss_check_catches_a_wrong_learning_rate(name: str, factor: float) -> None:
    problem = make_problem(CASES[name], 32, 1)
    reference = steps.reference_losses(problem)
    peer = NumpyPeer(dataclasses.replace(problem, lr=factor * problem.lr))
    deviation = steps.loss_deviation(peer.losses(problem.case.check_steps), reference)
    assert (deviation <= problem.case.tolerance) == (factor == 1.0)


def test_a_loss_that_is_not_a_number_deviates() -> None:
    assert steps.loss_deviation([1.0, np.nan], [1.0, 1.0]) == np.inf
    assert steps.loss_deviation([np.nan, 1.0], [1.0, 1.0]) == np.inf


def test_a_peer_that_deviates_is_not_timed() -> None:
    strict = dataclasses.replace(CASES["c"], tolerance=-1.0)
    row = steps.measure(strict, 32, 1, ["numpy"], TWO_ROUNDS)
    assert not row["peers"]
    assert "deviates" in row["failed"]["numpy"]
    assert "FAILED" in steps.describe(row)


def test_turns_that_end_inside_an_epoch_make_all_their_steps() -> None:
    problem = make_problem(CASES["c"], batch=256, threads=1)
    peer = ThalwegPeer(problem, "fit")
    for steps_of_turn in (3, problem.steps_per_epoch, 1, problem.steps_per_epoch + 5):
        peer.run(steps_of_turn)
    assert peer._model.steps_done == 2 * problem.steps_per_epoch + 9


@pytest.mark.parametrize("name", CASES)
def test_size_of_a_case(name: str) -> None:
    case = CASES[name]
    pairs = list(zip(case.widths[:-1], case.widths[1:], strict=True))
    assert case.rows(96) % 96 == 0
    assert case.flops_per_sample == sum(
        2 * i * o * (3 if layer else 2) for layer, (i, o) in enumerate(pairs)
    )
    problem = make_problem(dataclasses.replace(case, widths=(*case.widths[:2], 10)), 32, 1)
    # The NumPy peer keeps a weight and a bias per batch norm and a bias elsewhere, as all peers do.
    assert NumpyPeer(problem)._arena.values.size == problem.case.parameters


def test_pages_from_rows(row: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "results" / "run.json"
    results = Results(path)
    results.add({**row, "noisy": True})
    results.add({**row, "noisy": False, "date": "9999-01-01T00:00:00+00:00"})
    assert len(read(path)) == 2
    page, readme = tmp_path / "benchmarks.md", tmp_path / "README.md"
    readme.write_text(f"above\n{table.BEGIN}\n{table.END}\nbelow\n")
    assert table.write([path], page) == [page]
    assert "(noisy)" not in page.read_text()
    assert table.step_table([row]).splitlines()[0].startswith("| case | batch |")
    assert table.write([path], page, readme) == [page, readme]
    text = readme.read_text()
    assert text.startswith("above\n") and text.endswith("below\n") and CASES["c"].title in text
    assert table.write([path], page, readme) == [page, readme]
    assert readme.read_text() == text


def of_machine(row: dict[str, Any], processor: str, day: int, **changes: Any) -> dict[str, Any]:
    hardware = {**row["hardware"], "processor": processor}
    date = f"2026-01-{day:02}T00:00:00+00:00"
    return {**row, "hardware": hardware, "date": date, "noisy": False, **changes}


def test_the_readme_shows_the_machine_measured_last(row: dict[str, Any], tmp_path: Path) -> None:
    first, second, page = (tmp_path / name for name in ("a.json", "b.json", "page.md"))
    readme, results = tmp_path / "README.md", Results(second)
    readme.write_text(f"{table.BEGIN}\n{table.END}\n")

    def shown() -> list[tuple[str, str, str]]:
        table.write([first, second], page, readme)
        lines = [line.split(" | ") for line in readme.read_text().splitlines()]
        return [(line[0][2:], line[1], line[2]) for line in lines if len(line) > 3][2:]

    # An older machine, with a case that the newer one lacks and more threads.
    Results(first).add(of_machine(row, "old", 1, threads=4))
    Results(first).add(of_machine(row, "old", 2, batch=256, threads=2))
    results.add(of_machine(row, "new", 3, threads=2, noisy=True, title="other"))
    assert shown() == [("c: other (noisy)", "32", "2")]  # there is nothing else
    results.add(of_machine(row, "new", 3, threads=2, placement="far", title="far"))
    assert shown() == [("c: far", "32", "2")]
    results.add(of_machine(row, "new", 4, threads=2, placement="near", title="near"))
    results.add(of_machine(row, "new", 5, threads=2, placement="far", title="far, newer"))
    results.add(of_machine(row, "new", 6, threads=2, placement="near", noisy=True, title="noisy"))
    results.add(of_machine(row, "new", 7, threads=1))
    results.add(of_machine(row, "new", 8, batch=256, threads=2, title="quiet"))
    assert shown() == [("c: near", "32", "2"), ("c: quiet", "256", "2")]
    chosen = table._of_last_machine(read(first) + read(second))  # what the picture shows
    assert [(r["threads"], r["batch"]) for r in chosen] == [(1, 32), (2, 32), (2, 256)]
    assert {r["hardware"]["processor"] for r in chosen} == {"new"}
    text = page.read_text()
    assert text.count("\n## ") == 2 and "\n## old, " in text and "\n## new, " in text
    # Measured again, the other machine is the last one.
    Results(first).add(of_machine(row, "old", 9, threads=4, title="again"))
    assert shown() == [("c: again", "32", "4")]
    readme.write_text("no marks\n")
    with pytest.raises(ValueError, match="expected the marks"):
        table.write([first], page, readme)


def test_only_training_steps_at_full_precision_enter_the_readme(row: dict[str, Any]) -> None:
    rows = [
        of_machine(row, "old", 1),
        of_machine(row, "new", 2, precision="medium"),
        of_machine(row, "new", 3, kind="inference"),
        of_machine(row, "new", 4, peers={}),
        of_machine(row, "new", 5, batch=8192),
    ]
    assert table._of_last_machine(rows) == rows[:1]
    assert table._of_last_machine(rows[1:]) == []
    assert "`--cases c --batches 8192`" in table.page(rows)
    assert "--batches" not in table.page(rows[:4])


def test_requirements_are_judged() -> None:
    start = {"kind": "start", "libraries": {"thalweg": {"import_ms": {"median": 151.0}}}}
    assert "**no**" in table._requirement_table([start])
    start["libraries"]["thalweg"]["import_ms"]["median"] = 149.0  # type: ignore[index]
    assert "| yes |" in table._requirement_table([start])


def test_near_processors_are_judged() -> None:
    def measured(placement: str, ratio: float) -> dict[str, Any]:
        jax = {"microseconds": {"median": 1.0}, "ratio": {"median": ratio}}
        case = {"kind": "step", "case": "a", "batch": 128, "threads": 2, "precision": "highest"}
        return {**case, "placement": placement, "peers": {"jax-scan": jax}}

    near, far = measured("near", 1.29), measured("far", 1.31)
    assert "| 1.29x | **no** |" in table._requirement_table([near, far])
    assert "| 1.31x | yes |" in table._requirement_table([far])


@pytest.mark.parametrize(
    ("value", "text"), [(999.4, "999"), (64_340, "64.3k"), (999_800, "1.00M"), (2_331_000, "2.33M")]
)
def test_short_numbers(value: float, text: str) -> None:
    assert table.short(value) == text


def test_hop_between_processors() -> None:
    pair = machine.processors()[:2]
    program, reason = machine.hop_program()
    if program is None or len(pair) < 2:
        pytest.skip(reason or "one processor")
    hop = machine.hop_ns(program, pair)
    assert hop is not None and 1 < hop < 1e6
    assert machine.placement([30.0, 40.0]) == "near"
    assert machine.placement([30.0, 400.0]) == "mixed"


class StubWorker:
    """A peer whose turns take as long as the stub's clock says."""

    name = "thalweg"
    steps = 1

    def __init__(self, foreign: list[float]) -> None:
        self.foreign = foreign
        self.turns = 0

    def turn(self) -> tuple[float, float]:
        self.turns += 1
        return 1e-6 * self.turns, 1e-6 * self.turns * self.foreign[self.turns - 1]


@pytest.mark.parametrize(
    ("hops", "foreign", "counted", "quiet"),
    [
        # Before and after each of at most eight rounds; the counted rounds by number.
        ([30.0] * 16, [0.0] * 8, [1, 2, 3, 4], 4),
        ([30.0] * 16, [0.0, 0.5, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0], [1, 3, 4, 5], 4),
        ([30, 30, 30, 150, 150, 30, *[30.0] * 10], [0.0] * 8, [1, 4, 5, 6], 4),
        ([30, 30, *[150.0] * 14], [0.0] * 8, [2, 3, 4, 5], 4),
        ([30.0, 150.0] * 7 + [30.0, 30.0], [0.0] * 8, [1, 2, 3, 4, 5, 6, 7, 8], 8),
        ([30.0] * 16, [0.5] * 7 + [0.0], [1, 2, 3, 4, 5, 6, 7, 8], 1),
        ([None] * 16, [0.0] * 8, [1, 2, 3, 4], 4),
    ],
)
def test_only_rounds_of_one_placement_are_compared(
    hops: list[float | None], foreign: list[float], counted: list[int], quiet: int
) -> None:
    options = steps.Options(seconds=4.0, turn=1.0)
    assert options.rounds == 4
    rest = iter(hops)
    rounds, number = steps.run_rounds(
        [cast(steps.Worker, StubWorker(foreign))], options, lambda: next(rest)
    )
    assert [round(one.microseconds["thalweg"]) for one in rounds] == counted
    assert number == quiet
    assert machine.placement([]) == "unknown"


class CalibratedWorker(StubWorker):
    calibrations = 0

    def calibrate(self) -> None:
        self.calibrations += 1


def run_far(hops: Iterable[float | None], patience: float = 60.0) -> tuple[int, list[int]]:
    """Calibrations, and the rounds that count out of as many as it takes."""
    options = steps.Options(seconds=2.0, turn=1.0, placement="far", patience=patience)
    worker, rest = CalibratedWorker([0.0] * 20), iter(hops)
    rounds, number = steps.run_rounds([cast(steps.Worker, worker)], options, lambda: next(rest))
    assert number == len(rounds)
    return worker.calibrations, [round(one.microseconds["thalweg"]) for one in rounds]


def test_rounds_wait_for_a_placement(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "_POLL_SECONDS", 0.0)
    near, far = 30.0, 150.0
    # Waits, calibrates and looks again; then waits before each round and looks after it.
    assert run_far([near, far, far, *[far] * 4]) == (1, [1, 2])
    assert run_far([far, near, None, far, far, *[far] * 4]) == (2, [1, 2])
    assert run_far([far, far, far, near, near, *[far] * 4]) == (1, [2, 3])


def test_waiting_for_a_placement_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "_POLL_SECONDS", 0.0)
    with pytest.raises(steps.PlacementError, match=r"expected 2 quiet rounds between far.*0\.01 s"):
        run_far(itertools.repeat(30.0), patience=0.01)


def test_a_case_is_timed_in_its_placement(monkeypatch: pytest.MonkeyPatch) -> None:
    if len(machine.processors()) < 2:
        pytest.skip("one processor")
    monkeypatch.setattr(steps, "_POLL_SECONDS", 0.0)
    monkeypatch.setattr(machine, "hop_program", lambda: (Path("hop"), ""))
    hops = itertools.cycle([30.0, 150.0, 150.0, 150.0])
    monkeypatch.setattr(machine, "hop_ns", lambda program, pair: next(hops))
    options = dataclasses.replace(TWO_ROUNDS, placement="far")
    row = steps.measure(CASES["c"], 32, 2, ["thalweg", "numpy"], options)
    assert row["placement"] == "far" and row["rounds"]["used"] == 2
    assert set(row["peers"]) == {"thalweg", "numpy"}


@pytest.mark.parametrize("patience", ["nan", "0", "-1", "inf", "x"])
def test_patience_ends(patience: str) -> None:
    with pytest.raises(SystemExit):
        _parser().parse_args(["cpu", "--placement", "far", "--patience", patience])


@pytest.mark.parametrize(
    "arguments", [["--cases", "z"], ["--peers", "caffe"], ["--threads", "0"], ["--python", "jax"]]
)
def test_bad_arguments(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        _parser().parse_args(["cpu", *arguments])
    assert "expected" in capsys.readouterr().err


def test_kernels_are_compared_shape_by_shape() -> None:
    def entry(library: str, rows: int, time: float, ratio: float) -> dict[str, Any]:
        shape = {"what": "gemm", "form": "dgrad", "rows": rows, "in": 64, "out": 10}
        measured = {"microseconds": time, "best": time, "gflops": 1e2 / time, "ratio": ratio}
        return {**shape, "library": library, **measured}

    entries = [entry("thalweg", 32, 1.0, 1.0), entry("onednn", 32, 2.0, 1.5)]
    entries += [entry("openblas", 32, 4.0, 4.25), entry("thalweg", 64, 2.0, 1.0)]
    row = {"kind": "kernels", "case": "gemm", "threads": 1, **machine.stamp(), "entries": entries}
    first, second = kernels.shapes(row).values()
    assert list(first) == ["thalweg", "onednn", "openblas"]
    assert kernels.against_best(first) == 1.5
    assert kernels.against_best(second) is None
    assert "onednn 50 GFLOP/s (1.50x)" in kernels.describe(row)
    assert "libdnnl-dev" not in kernels.describe(row)
    assert "libdnnl-dev" in kernels.describe({**row, "entries": entries[-1:]})
    page = table.page([row])
    assert (
        "| gemm, dgrad, 32, 64, 10 | 100 GFLOP/s | 50 GFLOP/s (1.50x) | 25 GFLOP/s (4.25x) |"
        in page
    )
    assert "| gemm, dgrad, 64, 64, 10 | 50 GFLOP/s | - | - |" in page
