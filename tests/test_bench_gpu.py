"""The command for a GPU machine: a dry run of all its stages, its clock and its list of cases."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT

if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from bench.gpu import run, steps
from bench.results import read


def test_dry_run_writes_one_file(tmp_path: Path) -> None:
    output = tmp_path / "results.json"
    done = subprocess.run(
        ["bash", "bench/gpu/run.sh", "--dry-run", "--output", str(output)],
        cwd=ROOT,
        env={**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = read(output)
    stages = {row["stage"]: row["outcome"] for row in rows if row["kind"] == "gpu-stage"}
    assert list(stages) == ["tests", "sanitizers", "benchmark"]
    assert set(stages.values()) <= {"passed", "skipped"}
    (timed,) = [row for row in rows if row["kind"] == "gpu-step"]
    assert timed["peers"]["thalweg"]["microseconds"]["median"] > 0
    assert timed["peers"]["thalweg"]["loss_deviation"] <= 1e-3
    entry = timed["peers"]["thalweg"]
    assert entry["seconds_per_epoch"] == pytest.approx(
        2e-6 * entry["microseconds"]["median"], rel=1e-3
    )
    assert {"gpu", "commit", "versions", "hardware", "date"} <= timed.keys()


def runner(tmp_path: Path, minutes: float = 1.0) -> run.Runner:
    options = argparse.Namespace(minutes=minutes, output=tmp_path / "r.json", dry_run=False)
    return run.Runner(options)


def test_a_stage_that_takes_too_long_is_stopped_and_recorded(tmp_path: Path) -> None:
    begin = time.monotonic()
    one = runner(tmp_path)
    # The child of the command would keep the pipe open if only the command were killed.
    outcome, output = one.command(["bash", "-c", "echo before; sleep 60 & sleep 60"], 1.0)
    assert outcome == "timeout" and output == "before\n"
    one.record("build", outcome, begin, output)
    assert time.monotonic() - begin < 20
    assert one.failed == ["build"]
    assert read(tmp_path / "r.json")[0]["output"] == ["before"]


def test_stages_share_one_clock(tmp_path: Path) -> None:
    one = runner(tmp_path, minutes=2.0)
    assert one.left("build") < 120
    assert runner(tmp_path, minutes=9.0).left("build") == run.SECONDS["build"]
    assert sum(run.SECONDS.values()) < 9 * 60


def test_a_failed_build_is_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[list[str]] = []

    def command(self: run.Runner, arguments: list[object], limit: float, *rest: object) -> object:
        calls.append([str(word) for word in arguments])
        assert limit > 0
        return "failed", "no such compiler"

    monkeypatch.setattr(run.Runner, "command", command)
    assert not run.build(runner(tmp_path))
    assert "-Ccmake.define.THALWEG_CUDA=ON" in calls[0]
    row = read(tmp_path / "r.json")[0]
    assert row["outcome"] == "failed" and row["output"] == ["no such compiler"]


def sanitizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """A compute-sanitizer on the path, and a program for it."""
    folder = tmp_path / "bin"
    folder.mkdir()
    tool = folder / "compute-sanitizer"
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)
    program = tmp_path / "cmake" / "cuda_x_test"
    program.parent.mkdir()
    program.write_text("")
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(run, "BUILD", tmp_path)


def test_sanitizers_report_per_program_and_tool(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sanitizer(tmp_path, monkeypatch, 'echo "tool $2"; [ "$2" != racecheck ] || exit 9')
    one = runner(tmp_path)
    run.sanitizers(one)
    (row,) = read(tmp_path / "r.json")
    assert row["outcome"] == "failed" and one.failed == ["sanitizers"]
    assert one.status() == 1
    assert row["programs"] == {
        "cuda_x_test": {
            "memcheck": "passed",
            "racecheck": "failed",
            "initcheck": "passed",
            "synccheck": "passed",
        }
    }


def test_sanitizers_that_do_not_finish_have_not_passed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sanitizer(tmp_path, monkeypatch, "sleep 60")
    monkeypatch.setitem(run.SECONDS, "sanitizers", 3)
    one = runner(tmp_path)
    run.sanitizers(one)
    (row,) = read(tmp_path / "r.json")
    assert row["outcome"] == "incomplete" and one.incomplete == ["sanitizers"]
    assert one.status() == 3
    tools = row["programs"]["cuda_x_test"]
    assert tools == dict.fromkeys(run.SANITIZERS, "not run") | {"memcheck": "timeout"}
    assert row["output"] == ["not finished:", *(f"cuda_x_test, {k}: {v}" for k, v in tools.items())]


def test_sanitizers_pass_when_all_have_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sanitizer(tmp_path, monkeypatch, "exit 0")
    one = runner(tmp_path)
    run.sanitizers(one)
    assert read(tmp_path / "r.json")[0]["outcome"] == "passed"
    assert not one.failed and not one.incomplete and one.status() == 0


def test_a_failure_comes_before_what_is_incomplete(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = runner(tmp_path)
    one.record("sanitizers", "incomplete", time.monotonic(), "")
    one.record("tests", "timeout", time.monotonic(), "")
    assert one.status() == 1
    assert "INCOMPLETE: sanitizers\nFAILED: tests\n" in capsys.readouterr().out


def test_the_status_of_the_command_is_the_runners(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "r.json"
    monkeypatch.setattr(sys, "argv", ["run.sh", "--dry-run", "--output", str(output)])
    for stage in ("tests", "benchmark"):
        monkeypatch.setattr(run, stage, lambda one: None)
    monkeypatch.setattr(
        run, "sanitizers", lambda one: one.record("sanitizers", "incomplete", time.monotonic(), "")
    )
    assert run.main() == 3
    assert read(output)[0]["outcome"] == "incomplete"


def test_every_named_test_exists() -> None:
    assert len(run.TESTS) > 15
    for name in run.TESTS:
        assert (ROOT / "tests" / f"test_{name}.py").is_file(), name


def test_cases_cover_the_range_early() -> None:
    todo = steps.tasks()
    assert len({(t.case.name, t.batch, t.precision) for t in todo}) == len(todo)
    assert {t.batch for t in todo} >= {256, 1024, 4096, 16384, 65536}
    widths = {t.case.widths[0] for t in todo}
    assert widths >= {64, 128, 256, 512, 1024, 2048, 4096}
    early = todo[:14]
    assert {64, 4096} <= {t.case.widths[0] for t in early}
    assert {t.precision for t in early} == {"highest", "high", "medium"}
    assert any(t.case.batch_norm for t in early)
    assert any(t.case.name == "mnist" for t in early)
    assert any(t.slow_peers for t in early)


def test_a_peer_that_does_not_answer_is_given_up(tmp_path: Path) -> None:
    workers = steps.Workers(tmp_path)
    try:
        worker = workers.get("numpy")
        worker._process.send_signal(signal.SIGSTOP)  # it is alive and silent
        with pytest.raises(steps.FailedError, match="no answer"):
            worker.ask(0.1, do="problem", case={}, folder="", batch=1, threads=1)
        worker._process.wait(10)
        assert workers.get("numpy") is not worker
    finally:
        workers.close()
