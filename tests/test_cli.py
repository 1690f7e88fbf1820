"""The command line as a user meets it: files, output, exit codes, one-line errors."""

from __future__ import annotations

import gzip
import json
import os
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
import thalweg
from conftest import EMULATED
from thalweg.cli import bench, main
from thalweg.cli.console import fields, plural, quantity, table
from thalweg.datasets import load_digits

TRAIN = ("train", "--epochs", "2", "--hidden", "16", "--no-plot")
# For what takes the default network elsewhere.
NETWORK = ("--hidden", "64,64") if EMULATED else ()


def thalweg_command(folder, *arguments, code=0, **options):
    """Run in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "thalweg", *map(str, arguments)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        **options,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Run in this process, which saves the imports; returns standard output and error."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments, code=0):
        result = main([str(argument) for argument in arguments])
        output = capsys.readouterr()
        assert result == code, output.out + output.err
        if code == 2:
            assert output.err.count("\n") == 1, output.err
            assert "Traceback" not in output.err
        return output

    return call


def iris_like(path, rows=90, header=True):
    rng = np.random.default_rng(0)
    lines = ["length,width,colour,kind"] if header else []
    for i in range(rows):
        kind = i % 3
        x = rng.normal([2 * kind, -kind], 0.2)
        lines.append(f"{x[0]:.3f},{x[1]:.3f},{('red', 'blue')[i % 2]},kind-{'abc'[kind]}")
    path.write_text("\n".join(lines) + "\n")
    return path


def without_column(path, name, output):
    rows = [line.split(",") for line in path.read_text().splitlines()]
    at = rows[0].index(name)
    output.write_text("\n".join(",".join(r[:at] + r[at + 1 :]) for r in rows) + "\n")
    return output


# ---- train --------------------------------------------------------------------------------------


def test_train_on_the_digits(tmp_path):
    done = thalweg_command(tmp_path, "train", *NETWORK)
    accuracy = float(re.search(r"test accuracy (\d+\.\d+) %", done.stdout)[1])
    assert accuracy >= (95 if EMULATED else 97)
    assert "1,200 rows for training, 597 for testing" in done.stdout
    rows = re.findall(r"^ +(\d+)(?: +\d\.\d+){4} +[\d,]+$", done.stdout, re.MULTILINE)
    assert rows == [str(epoch) for epoch in range(1, 31)]
    assert done.stderr == ""
    files = {path.name for path in tmp_path.iterdir()}
    assert {"digits.safetensors", "digits.preprocess.json"} <= files
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        assert len(files) == 2
    else:
        assert (tmp_path / "digits.png").read_bytes().startswith(b"\x89PNG")
        assert len(files) == 3


@pytest.mark.skipif(EMULATED, reason="trains the default network five times")
@pytest.mark.parametrize("seed", range(5))
def test_digits_accuracy_for_every_seed(run, seed):
    output = run("train", "--quiet", "--no-plot", "--seed", seed).out
    assert output.count("\n") == 1
    assert float(re.search(r"test accuracy (\d+\.\d+) %", output)[1]) >= 97


def test_csv_classification_and_prediction(run, tmp_path):
    data = iris_like(tmp_path / "flowers.csv")
    output = run("train", data, "--target", "kind", "--epochs", 20, "--no-plot", *NETWORK).out
    assert "72 rows for training, 18 for validation, 4 features, 3 classes" in output
    assert "validation accuracy 100.00 %" in output
    assert json.loads((tmp_path / "flowers.preprocess.json").read_text())["target"] == "kind"

    output = run("predict", "flowers.safetensors", data)
    lines = output.out.splitlines()
    assert lines[:4] == ["kind", "kind-a", "kind-b", "kind-c"]
    assert len(lines) == 91
    assert "accuracy 100.00 %" in output.err

    features = without_column(data, "kind", tmp_path / "new.csv")
    output = run("predict", "flowers.safetensors", features, "--probabilities", "--output", "p.csv")
    assert output.out == ""
    table_lines = (tmp_path / "p.csv").read_text().splitlines()
    assert table_lines[0] == "kind,p(kind-a),p(kind-b),p(kind-c)"
    assert sum(map(float, table_lines[1].split(",")[1:])) == pytest.approx(1, abs=1e-5)
    run("predict", "flowers.safetensors", features, "--output", "p.npy")
    assert np.load(tmp_path / "p.npy").tolist() == lines[1:]


def test_csv_regression(run, tmp_path):
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (200, 2))
    y = 5e4 + 1e4 * (x[:, 0] - x[:, 1])
    np.savetxt(tmp_path / "houses.csv", np.column_stack([x, y]), delimiter=",")
    target = "column 3"
    options = ("--target", target, "--epochs", 40, "--no-plot", *NETWORK)
    output = run("train", "houses.csv", *options).out
    assert "regression of 1 value" in output
    assert float(re.search(r"R2 (\d\.\d+)", output)[1]) > 0.95
    output = run("predict", "houses.safetensors", "houses.csv")
    values = np.array([float(line) for line in output.out.splitlines()[1:]])
    assert np.corrcoef(values, y)[0, 1] > 0.97
    np.savetxt(tmp_path / "new.csv", x, delimiter=",")
    assert run("predict", "houses.safetensors", "new.csv").out == output.out


def test_npz_npy_and_idx(run, tmp_path):
    x, y, _, _ = load_digits()
    np.savez(tmp_path / "d.npz", x=x, y=y)
    assert "validation accuracy" in run(*TRAIN, "d.npz").out
    assert "accuracy" in run("predict", "d.safetensors", "d.npz").err
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", y)
    assert "10 classes" in run(*TRAIN, "x.npy", "--labels", "y.npy").out
    assert len(run("predict", "x.safetensors", "x.npy").out.splitlines()) == 1201
    folder = tmp_path / "idx"
    folder.mkdir()
    for part in ("train", "t10k"):
        images = (x[:200] * 16).astype(np.uint8)
        header = bytes([0, 0, 8, 2, 0, 0, 0, 200, 0, 0, 0, 64])
        (folder / f"{part}-images-idx2-ubyte").write_bytes(header + images.tobytes())
        labels = bytes([0, 0, 8, 1, 0, 0, 0, 200]) + y[:200].astype(np.uint8).tobytes()
        (folder / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels))
    output = run(*TRAIN, folder, "--output", "i.safetensors").out
    assert "200 rows for training, 200 for testing" in output
    assert "accuracy" in run("predict", "i.safetensors", folder).err


def test_options_reach_the_model(run, tmp_path):
    run(
        *("train", "--epochs", 2, "--hidden", "8,4", "--activation", "tanh", "--no-batch-norm"),
        *("--dropout", "0.25", "--optimizer", "momentum", "--lr", "0.02", "--weight-decay", "1e-4"),
        *("--schedule", "constant", "--batch-size", 100, "--seed", 5, "--validation-split", "0.25"),
        *("--patience", 3, "--class-weight", "balanced", "--no-plot", "--output", "m.safetensors"),
    )
    description = thalweg.Model.load(tmp_path / "m.safetensors").description
    kinds = [layer["type"] for layer in description["layers"]]
    assert kinds == ["dense", "tanh", "dropout", "dense", "tanh", "dropout", "dense"]
    assert description["optimizer"]["type"] == "momentum"
    assert description["optimizer"]["lr"] == 0.02
    assert description["optimizer"]["weight_decay"] == 1e-4
    assert description["seed"] == 5


def test_resume_equals_an_uninterrupted_run(run, tmp_path):
    data = iris_like(tmp_path / "a.csv")
    common = ("--no-plot", "--schedule", "constant", "--hidden", "16", "--target", "kind")
    run("train", data, *common, "--epochs", 6, "--output", "whole.safetensors")
    run("train", data, *common, "--epochs", 2, "--output", "part.safetensors")
    again = ("train", data, "--no-plot", "--resume", "part.safetensors")
    output = run(*again, "--epochs", 6, "--output", "resumed.safetensors").out
    assert "resumed after 2 epochs" in output
    whole, resumed = (
        thalweg.Model.load(tmp_path / f"{name}.safetensors") for name in ("whole", "resumed")
    )
    np.testing.assert_array_equal(whole.parameters, resumed.parameters)
    assert "has 2 epochs already" in run(*again, "--epochs", 2, code=2).err
    assert "--lr cannot be combined" in run(*again, "--lr", "1", code=2).err
    assert (
        "resume with the same data"
        in run(
            "train", iris_like(tmp_path / "b.csv", 30), "--resume", "part.safetensors", code=2
        ).err
    )


@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT")
def test_ctrl_c_saves_and_can_be_resumed(tmp_path):
    arguments = ("train", "--epochs", "1000000", "--hidden", "256", "--no-plot")
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "thalweg", *arguments],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    for _ in range(8):
        process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=30)
    assert process.returncode == 130
    assert error.count("\n") == 1
    assert "--resume digits.safetensors" in error
    done = thalweg.Model.load(tmp_path / "digits.safetensors").epochs_done
    assert done >= 1
    resume = ("--resume", "digits.safetensors", "--epochs", done + 1, "--no-plot")
    assert "resumed" in thalweg_command(tmp_path, "train", *resume).stdout


# ---- errors -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "arguments", "match"),
    [
        (None, ("train", "missing.csv", "--target", "y"), "No such file or directory: missing.csv"),
        ("a,b\n1,2\n3,4\n", ("train", "d.csv"), "--target COLUMN; d.csv has a, b"),
        (
            "a,b\n1,2\n3,4\n",
            ("train", "d.csv", "--target", "z"),
            "target column 'z' in d.csv, got a, b",
        ),
        ("a,y\n1,0\nx,1\n3,1\n", ("train", "d.csv", "--target", "y"), "line 3.*'a'.*got 'x'"),
        ("a,y\n1,0\n?,1\n3,1\n", ("train", "d.csv", "--target", "y"), "line 3.*--impute"),
        ("a,y\n1,0\n2\n3,1\n", ("train", "d.csv", "--target", "y"), "line 3.*expected 2 fields"),
        ("a,y\n1,0\n", ("train", "d.csv", "--target", "y"), "at least 2 rows.*has 1 row, and 1"),
        ("1,0\n2,1\n", ("train", "d.csv", "--target", "y"), "column 2; --header yes"),
        ("a,y\n1,0\n2,0\n3,0\n", ("train", "d.csv", "--target", "y"), "at least two classes"),
        ("", ("train", "d.csv", "--target", "y"), "empty file"),
        ("a,y\n1,0\n2,1\n", ("train", "d.csv", "--target", "y", "--output", "d.csv"), "left alone"),
        (None, ("train", "--output", "no/where.safetensors"), "no folder no"),
        (None, ("train", "--plot", "no/where.png"), "--plot: there is no folder no"),
        (None, ("train", "--plot", "a.txt"), "--plot: expected a .png, .svg or .pdf file, got a"),
        (None, ("train", "--target", "x"), "--target is for tables"),
        (None, ("train", "--epochs", "0"), "whole number >= 1"),
        (None, ("train", "--hidden", "3,x"), "--hidden.*got 'x'"),
        (None, ("train", "--optimizer", "magic"), "adam"),
        (None, ("train", "--activation", "magic"), "relu"),
        (None, ("train", "--lr", "-1"), "number > 0"),
        (None, ("train", "--device", "cuda", "--no-plot"), "CUDA"),
        ("x", ("predict", "d.csv", "d.csv"), "d.csv"),
        ("x", ("info", "d.csv"), "expected a safetensors file"),
        (None, ("info", "none"), "No such file"),
        (None, ("reproduce", "e99"), "unknown experiment e99"),
        (None, ("reproduce",), "--core"),
        (None, ("fly",), "invalid choice"),
    ],
)
def test_user_errors(run, tmp_path, text, arguments, match):
    if match == "CUDA" and thalweg._core.information()["cuda_available"]:
        pytest.skip("it works here")
    if text is not None:
        (tmp_path / "d.csv").write_text(text)
    output = run(*arguments, code=2)
    assert re.search(match, output.err), output.err
    assert output.err.startswith("thalweg")
    left = {path.name for path in tmp_path.iterdir()} - {"d.csv"}
    assert not left


def test_predict_says_which_column_is_missing(run, tmp_path):
    iris_like(tmp_path / "a.csv")
    run(*TRAIN, "a.csv", "--target", "kind")
    (tmp_path / "b.csv").write_text("length,height,colour\n1,2,red\n")
    assert re.search(
        "columns length, width, colour as in training, got b.csv without 'width': length, height",
        run("predict", "a.safetensors", "b.csv", code=2).err,
    )
    (tmp_path / "b.csv").write_text("|comment\nlength,width,colour\n1,2,red\n")
    assert "delete the first line" in run("predict", "a.safetensors", "b.csv", code=2).err
    (tmp_path / "b.csv").write_text("length,width,colour\n1,,red\n")
    assert "train with impute" in run("predict", "a.safetensors", "b.csv", code=2).err
    assert "no DATA was named" in run("train", "--resume", "a.safetensors", code=2).err


def test_predict_with_a_text_target_that_holds_numbers(run, tmp_path):
    lines = [f"{i},{'1' if i % 5 == 0 else 'low' if i < 20 else 'high'}" for i in range(40)]
    (tmp_path / "a.csv").write_text("x,y\n" + "\n".join(lines))
    run(*TRAIN, "a.csv", "--target", "y")
    (tmp_path / "b.csv").write_text("x,y\n0,1\n5,1\n3,low\n")
    assert "of 3 wrong" in run("predict", "a.safetensors", "b.csv").err


def test_column_of_labels_in_an_array(run, tmp_path):
    x = np.random.default_rng(0).normal(size=(60, 3))
    y = (x[:, :1] > 0).astype(np.int64)
    np.savez(tmp_path / "a.npz", x=x, y=y)
    assert "accuracy" in run(*TRAIN, "a.npz").out
    assert "of 60 wrong" in run("predict", "a.safetensors", "a.npz").err
    np.savez(tmp_path / "b.npz", x=x, y=y[:40])
    output = run("predict", "a.safetensors", "b.npz")
    assert "no score: expected 60 targets, got shape (40,)" in output.err


def test_error_of_a_process_is_one_line(tmp_path):
    done = thalweg_command(tmp_path, "train", "nothing.npz", code=2)
    assert done.stderr == "thalweg: No such file or directory: nothing.npz\n"
    assert done.stdout == ""


def test_damaged_checkpoint(run, tmp_path):
    run(*TRAIN)
    path = tmp_path / "digits.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 4
    path.write_bytes(data)
    x = tmp_path / "x.npy"
    np.save(x, load_digits().x_test)
    run("predict", path, x, code=2)
    run("info", path, code=2)
    path.write_bytes(data[:-3])
    assert "truncated" in run("info", path, code=2).err


def test_prediction_of_the_wrong_shape(run, tmp_path):
    run(*TRAIN)
    np.save(tmp_path / "x.npy", np.zeros((3, 5)))
    assert (
        "expected 64 values per row, got 5"
        in run("predict", "digits.safetensors", "x.npy", code=2).err
    )
    np.save(tmp_path / "x.npy", np.full((3, 64), np.nan))
    assert "finite" in run("predict", "digits.safetensors", "x.npy", code=2).err


def test_prediction_without_preprocessing(run, tmp_path):
    run(*TRAIN)
    (tmp_path / "digits.preprocess.json").unlink()
    np.save(tmp_path / "x.npy", load_digits().x_test)
    output = run("predict", "digits.safetensors", "x.npy")
    assert "missing" in output.err
    assert len(output.out.splitlines()[0].split(",")) == 10


# ---- the other commands -------------------------------------------------------------------------


def test_info(run, tmp_path):
    run(*TRAIN)
    output = run("info", "digits.safetensors").out
    for expected in (
        "checksum correct",
        "64 > dense 16 > batch_norm > relu > dense 10",
        "2 epochs",
    ):
        assert expected in output
    data = json.loads(run("info", "digits.safetensors", "--json").out)
    assert data["description"]["in_features"] == 64
    shapes = {tensor["name"]: tensor["shape"] for tensor in data["tensors"]}
    assert shapes["layers.0.weight"] == [16, 64]


def test_info_of_a_foreign_file(run, tmp_path):
    numpy_files = pytest.importorskip("safetensors.numpy")
    numpy_files.save_file({"w": np.zeros((2, 3), np.float16)}, tmp_path / "f.safetensors")
    output = run("info", "f.safetensors").out
    assert "not written by thalweg" in output
    assert re.search(r"w +F16 +2 x 3 +6", output)


def test_doctor(run):
    output = run("doctor").out
    assert "self-check" in output
    assert "passed" in output
    report = json.loads(run("doctor", "--json").out)
    assert report["thalweg"].startswith(thalweg.__version__)
    assert report["CUDA back end"]
    assert report["NVIDIA driver"]
    if not thalweg._core.information()["cuda_available"]:
        assert re.search("no CUDA back end|driver|GPU", report["cuda"])


def test_bench(run, tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "_LIBRARIES", {"thalweg": bench._LIBRARIES["thalweg"]})
    output = run("bench", "--seconds", "0.01", "--json", "b.json").out
    assert "784-512-512-10" in output
    rows = json.loads((tmp_path / "b.json").read_text())["rows"]
    assert all(row["microseconds"] > 0 for row in rows)


def test_reproduce(run, tmp_path):
    output = run("reproduce", "e15", "e18").out
    for word in ("claim", "measured", "threshold", "verdict", "PASS", "2 passed, 0 failed"):
        assert word in output
    assert len(json.loads((tmp_path / "reproduce" / "results.json").read_text())) == 2
    assert "e31" in run("reproduce", "--list").out
    output = run("reproduce", "e15", "--seeds", "2", "--output", "seeds").out
    assert "seed 0" in output and "seed 1000" in output
    row = json.loads((tmp_path / "seeds" / "results.json").read_text())[0]
    assert [entry["verdict"] for entry in row["seeds"].values()] == ["pass", "pass"]


def test_version_and_help(run):
    assert run("--version").out == f"thalweg {thalweg.__version__}\n"
    assert "train" in run("--help").out
    assert run("--cmake-dir").out.strip() == thalweg.get_cmake_dir()


def test_output_into_a_closed_pipe(tmp_path):
    iris_like(tmp_path / "a.csv", 3000)
    thalweg_command(tmp_path, *TRAIN, "a.csv", "--target", "kind")
    command = f"{sys.executable} -m thalweg predict a.safetensors a.csv | head -1"
    done = subprocess.run(
        command, shell=True, cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "kind\n"
    assert "Traceback" not in done.stderr


# ---- parts --------------------------------------------------------------------------------------


def test_console_text():
    assert plural(1, "row") == "1 row"
    assert plural(2000, "class") == "2,000 classes"
    assert [quantity(v) for v in (0.0, 0.12345, 12345.6, 1e-7)] == [
        "0",
        "0.1235",
        "12,346",
        "1.000e-07",
    ]
    assert fields([("a", 1), ("long", "x")]) == "a     1\nlong  x"
    lines = table(("n", "value"), [("x", "1"), ("yy", "22")]).splitlines()
    assert lines == ["n   value", "---------", "x       1", "yy     22"]
