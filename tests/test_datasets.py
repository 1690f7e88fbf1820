"""Data sets and readers: what they read, and that malformed files end in typed errors only."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import random
import zipfile

import numpy as np
import pytest
from thalweg import datasets
from thalweg.datasets import DataError, Preprocessing, read_csv
from thalweg.datasets.tables import read_names


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def idx_bytes(array, code):
    header = bytes([0, 0, code, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    return header + array.astype(array.dtype.newbyteorder(">")).tobytes()


# ---- built in -----------------------------------------------------------------------------------


def test_digits_are_the_fixed_split():
    x_train, y_train, x_test, y_test = datasets.load_digits()
    assert x_train.shape == (1200, 64)
    assert x_test.shape == (597, 64)
    assert x_train.dtype == np.float32
    assert y_train.dtype == np.int64
    assert set(np.unique(np.concatenate([y_train, y_test]))) == set(range(10))
    assert x_train.min() == 0
    assert x_train.max() == 1
    levels = (np.concatenate([x_train, x_test]) * 16).astype(np.uint8)
    assert hashlib.sha256(levels.tobytes()).hexdigest() == (
        "41f1cde3d1230a38e792f9a5b7538d701dc4c6b5f65fa9e2628873d25280409c"
    )
    labels = np.concatenate([y_train, y_test]).astype(np.uint8)
    assert hashlib.sha256(labels.tobytes()).hexdigest() == (
        "99c3fa75ee18cae97ff47da2ffc12fc2b86fb210c20b266cdf6a1fad9496e10b"
    )


@pytest.mark.oracle
def test_digits_are_those_of_scikit_learn():
    source = pytest.importorskip("sklearn.datasets").load_digits()
    order = np.random.default_rng(0).permutation(1797)
    x_train, y_train, x_test, y_test = datasets.load_digits()
    np.testing.assert_array_equal(np.concatenate([x_train, x_test]), source.data[order] / 16)
    np.testing.assert_array_equal(np.concatenate([y_train, y_test]), source.target[order])


def test_mnist_needs_a_folder(monkeypatch):
    monkeypatch.delenv("THALWEG_DATA", raising=False)
    with pytest.raises(DataError, match="THALWEG_DATA"):
        datasets.load_mnist()
    with pytest.raises(ValueError, match="dtype"):
        datasets.load_mnist(dtype="float16")


# ---- NumPy files --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "array",
    [
        np.arange(12, dtype="<f4").reshape(3, 4),
        np.arange(12, dtype=">f8").reshape(3, 4),
        np.asfortranarray(np.arange(12, dtype=np.int16).reshape(3, 4)),
        np.array([True, False]),
        np.array(["cat", "dog"]),
        np.float16(3.5),
        np.empty((0, 5), np.uint8),
    ],
    ids=str,
)
def test_npy_equals_numpy(tmp_path, array):
    np.save(tmp_path / "a.npy", array)
    read = datasets.read_npy(tmp_path / "a.npy")
    np.testing.assert_array_equal(read, array)
    assert read.shape == np.shape(array)
    assert read.dtype == np.asarray(array).dtype.newbyteorder("=")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_equals_numpy(tmp_path, save):
    x, y = np.random.default_rng(0).standard_normal((5, 3)), np.arange(5)
    save(tmp_path / "a.npz", x=x, y=y)
    arrays = datasets.read_npz(tmp_path / "a.npz")
    assert sorted(arrays) == ["x", "y"]
    np.testing.assert_array_equal(arrays["x"], x)
    with pytest.raises(DataError, match="expected the arrays z"):
        datasets.read_npz(tmp_path / "a.npz", ("z",))


@pytest.mark.parametrize(
    ("array", "match"),
    [
        (np.array([object()], dtype=object), "numbers or texts|real numbers"),
        (np.zeros(3, np.complex64), "real numbers"),
        (np.zeros(3, [("a", "f4")]), "numbers or texts"),
        (np.zeros(3, "datetime64[s]"), "real numbers|numbers or texts"),
    ],
)
def test_npy_refuses_other_types(tmp_path, array, match):
    np.save(tmp_path / "a.npy", array, allow_pickle=True)
    with pytest.raises(DataError, match=match):
        datasets.read_npy(tmp_path / "a.npy")


def test_npy_with_a_false_shape_allocates_nothing(tmp_path):
    data = io.BytesIO()
    np.save(data, np.zeros(4))
    for shape in ("(9999999999999,)", "(4, 999999999999)", "(99999999999999999999999,)"):
        old = b"(4,), }" + b" " * (len(shape) - 4)
        assert old in data.getvalue()
        text = data.getvalue().replace(old, shape.encode() + b", }")
        (tmp_path / "a.npy").write_bytes(text)
        with pytest.raises(DataError):
            datasets.read_npy(tmp_path / "a.npy")


# ---- IDX ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "code"), [("u1", 8), ("i1", 9), ("i2", 11), ("i4", 12), ("f4", 13), ("f8", 14)]
)
@pytest.mark.parametrize("compress", [False, True])
def test_idx_round_trip(tmp_path, dtype, code, compress):
    array = np.arange(24).reshape(2, 3, 4).astype(dtype)
    data = idx_bytes(array, code)
    (tmp_path / "a-idx").write_bytes(gzip.compress(data) if compress else data)
    read = datasets.read_idx(tmp_path / "a-idx")
    np.testing.assert_array_equal(read, array)
    assert read.dtype == np.dtype(dtype)


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"", "an empty file"),
        (b"\x00\x00\x07\x01\x00\x00\x00\x00", "element type"),
        (b"\x00\x00\x08\x00", "dimensions"),
        (b"\x00\x00\x08\x02\x00\x00", "header"),
        (b"\x00\x00\x08\x01\x00\x00\x00\x05abc", "expected 5 bytes"),
        (b"\x00\x00\x08\x01\x00\x00\x00\x02abc", "got more"),
        (b"\x00\x00\x0e\x04" + b"\xff" * 16, "expected"),
        (b"\x01\x02\x03\x04", "magic"),
        (gzip.compress(b"\x00\x00\x08\x01\x00\x00\x00\x05abcde")[:-9], "gzip"),
    ],
)
def test_idx_malformed(tmp_path, data, match):
    (tmp_path / "a").write_bytes(data)
    with pytest.raises(DataError, match=match):
        datasets.read_idx(tmp_path / "a")


def idx_folder(folder, rows=6):
    rng = np.random.default_rng(0)
    for part in ("train", "t10k"):
        images = rng.integers(0, 256, (rows, 4, 4)).astype(np.uint8)
        labels = (np.arange(rows) % 3).astype(np.uint8)
        (folder / f"{part}-images-idx3-ubyte").write_bytes(idx_bytes(images, 8))
        (folder / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx_bytes(labels, 8)))


def test_idx_folder(tmp_path):
    idx_folder(tmp_path)
    data = datasets.read_idx_folder(tmp_path)
    assert data.x_train.shape == (6, 16)
    assert data.y_test.tolist() == [0, 1, 2, 0, 1, 2]
    (tmp_path / "train-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DataError, match="train-labels"):
        datasets.read_idx_folder(tmp_path)


# ---- mutants ------------------------------------------------------------------------------------


def mutants(data, count, seed):
    """Truncations, flipped bits, overwritten runs, insertions and repeated parts."""
    rng = random.Random(seed)
    for _ in range(count):
        mutant = bytearray(data)
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(len(mutant) + 1)
            kind = rng.randrange(5)
            if kind == 0:
                del mutant[at:]
            elif kind == 1 and at < len(mutant):
                mutant[at] ^= 1 << rng.randrange(8)
            elif kind == 2:
                mutant[at : at + 4] = rng.choice((b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff"))
            elif kind == 3:
                mutant[at:at] = rng.choice((b'"', b",", b"\n", b"\r", b"\0", b"\xff", b"1e999"))
            else:
                mutant[at:at] = mutant[: rng.randrange(64)]
        yield bytes(mutant)


def example_files():
    x, y = np.arange(12, dtype=np.float32).reshape(6, 2), np.array([0, 1, 0, 1, 0, 1])
    npy, npz = io.BytesIO(), io.BytesIO()
    np.save(npy, x)
    np.savez_compressed(npz, x=x, y=y)
    idx = idx_bytes(np.arange(24, dtype=np.uint8).reshape(2, 3, 4), 8)
    table = b'a,"b ""x""",c\r\n' + b"".join(b"%d,u%d,2.5\r\n" % (i, i % 3) for i in range(9))
    numbers = b"".join(b"%d;%d\n" % (i, i * i) for i in range(9))
    return {
        "npy": (npy.getvalue(), datasets.read_npy),
        "npz": (npz.getvalue(), datasets.read_npz),
        "idx": (idx, datasets.read_idx),
        "idx.gz": (gzip.compress(idx, mtime=0), datasets.read_idx),
        "csv": (table, read_csv),
        "numbers.csv": (numbers, read_csv),
    }


@pytest.mark.parametrize("kind", list(example_files()))
def test_mutants_end_in_typed_errors(tmp_path, kind):
    data, read = example_files()[kind]
    path = tmp_path / "mutant"
    refused = 0
    for mutant in mutants(data, 400, seed=1):
        path.write_bytes(mutant)
        try:
            read(path)
        except DataError:
            refused += 1
    # Without refusals the mutation would test nothing; plain numbers often stay a valid table.
    assert refused >= 20


def test_zip_bomb_is_refused(tmp_path):
    path = tmp_path / "bomb.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", b"\x93NUMPY")
    data = bytearray(path.read_bytes())
    at = data.rfind(b"PK\x01\x02")
    data[at + 24 : at + 28] = (1 << 31).to_bytes(4, "little")
    path.write_bytes(data)
    with pytest.raises(DataError):
        datasets.read_npz(path)


# ---- CSV ----------------------------------------------------------------------------------------


def test_csv_kinds_and_missing_values(tmp_path):
    path = write(
        tmp_path / "a.csv",
        'age, city ,"a, b"\n1,Rome,x\n 2.5 ,"New York",\n?,Rome,"say ""hi"""\n\n-4e1,,x\n',
    )
    table = read_csv(path)
    assert table.rows == 4
    assert table.has_header
    assert list(table.columns) == ["age", "city", "a, b"]
    age, city = table.columns["age"], table.columns["city"]
    np.testing.assert_array_equal(age.values, [1, 2.5, np.nan, -40])
    assert age.first_missing == 4
    assert city.categories == ("?", "New York", "Rome")
    assert table.columns["a, b"].categories == ("?", 'say "hi"', "x")


@pytest.mark.parametrize(
    ("text", "delimiter"),
    [("1,2\n3,4\n", ","), ("1\t2\n3\t4\n", "\t"), ("1;2\n3;4\n", ";"), ("1|2\n3|4\n", "|")],
)
def test_csv_without_header(tmp_path, text, delimiter):
    table = read_csv(write(tmp_path / "a", text))
    assert not table.has_header
    assert table.delimiter == delimiter
    np.testing.assert_array_equal(table.columns["column 2"].values, [2, 4])


def test_csv_reads_byte_order_mark_and_old_line_ends(tmp_path):
    (tmp_path / "a.csv").write_bytes("\ufeffa,b\r\n1,2\r\n".encode())
    assert list(read_csv(tmp_path / "a.csv").columns) == ["a", "b"]


def test_csv_options(tmp_path):
    path = write(tmp_path / "a.csv", "a,b\nc,d\n")
    assert read_csv(path, header=False).rows == 2
    path = write(tmp_path / "b.csv", "x,code\n1,10\n2,9\n")
    assert read_csv(path, kinds={"code": "categorical"}).columns["code"].categories == ("9", "10")
    assert list(read_csv(path, kinds={"code": "skip"}).columns) == ["x"]
    assert read_names(path) == ["x", "code"]
    with pytest.raises(DataError, match="expected a column 'z'"):
        read_csv(path, kinds={"z": "skip"})
    with pytest.raises(DataError, match="delimiter"):
        read_csv(path, delimiter=",,")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "empty file"),
        ("\n\n", "empty file"),
        ("a,b\n", "rows below the header"),
        ("a,b\n1,2\n3\n", "line 3 .*expected 2 fields.*got 1: '3'"),
        ("a,b\n1,2\n3,4,5\n", "line 3 .*got 3"),
        ("a,a\n1,2\n", "two columns|column"),
        ("a,b\n1,2\n2,foo\n3,4\n", "line 3 .*column 'b': expected a number, got 'foo'"),
        ("a,b\n1,2\n2,inf\n3,4\n", "line 3 .*column 'b': expected a finite number, got 'inf'"),
        ("a,b\n1,2\n2,1_000\n3,4\n", "line 3 .*expected a number, got '1_000'"),
        ('a,b\n"1,2\n', "unexpected end of data"),
        (",a\n0,1\n1,2\n", "line 1 .*names of the columns.*header=True"),
        ("|comment\n1,2\n3,4\n", "expected 1 field as in the first line, got 2.*comment"),
        ("a;b\n1;0,5\n2;1,5\n", "line 2 .*'b'.*decimal point.*got '0,5'.*categorical"),
        ('a,b\n1,"1,234.5"\n2,"2,000"\n', "line 2 .*'b'.*group separators"),
        ("a,b\n" + "".join(f"{i},t{i}\n" for i in range(1001)), "at most 1000 different texts"),
    ],
)
def test_csv_malformed(tmp_path, text, match):
    with pytest.raises(DataError, match=match):
        read_csv(write(tmp_path / "a.csv", text), header=True if text[:3] == "a,a" else None)


def test_csv_not_utf8(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"a,b\n1,\xe9\n")
    with pytest.raises(DataError, match=r"UTF-8.*0xe9"):
        read_csv(tmp_path / "a.csv")


def test_csv_comma_numbers_may_be_declared(tmp_path):
    path = write(tmp_path / "a.csv", "a;b\n1;0,5\n2;1,5\n")
    assert read_csv(path, kinds={"b": "categorical"}).columns["b"].categories == ("0,5", "1,5")
    assert list(read_csv(path, kinds={"b": "skip"}).columns) == ["a"]
    path = write(tmp_path / "b.csv", "a;b\n1;red, green\n2;1,5\n")
    assert read_csv(path).columns["b"].categories == ("1,5", "red, green")


def test_csv_without_a_column_left(tmp_path):
    with pytest.raises(DataError, match="all of them left out"):
        read_csv(write(tmp_path / "a.csv", "a\n1\n"), kinds={"a": "skip"})


# ---- preprocessing ------------------------------------------------------------------------------


def pets(tmp_path):
    rows = [(1.0, "Rome", "cat"), (3.0, "Oslo", "dog"), (5.0, "Rome", "dog"), (90.0, "Bern", "cat")]
    text = "kg,city,kind\n" + "".join(f"{kg},{city},{kind}\n" for kg, city, kind in rows)
    return read_csv(write(tmp_path / "pets.csv", text))


def test_table_preprocessing(tmp_path):
    table = pets(tmp_path)
    fitted = Preprocessing.fit_table(table, "kind", np.array([0, 1, 2]))
    assert fitted.task == "classification"
    assert fitted.classes == ["cat", "dog"]
    assert fitted.in_features == 4
    x = fitted.inputs_of_table(table)
    assert x.dtype == np.float32
    np.testing.assert_allclose(x[:3, 0].mean(), 0, atol=1e-6)
    np.testing.assert_allclose(x[:3, 0].std(), 1, atol=1e-6)
    np.testing.assert_array_equal(x[:, 1:], [[0, 0, 1], [0, 1, 0], [0, 0, 1], [1, 0, 0]])
    assert fitted.targets_of_column(table.columns["kind"]).tolist() == [0, 1, 1, 0]

    path = Preprocessing.path_for(tmp_path / "model.safetensors")
    fitted.split = {"rows": 4, "held_out": 1, "seed": 0}
    fitted.save(path)
    assert Preprocessing.load(path) == fitted
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.preprocess.json", "pets.csv"]

    other = read_csv(write(tmp_path / "new.csv", "city,kg\nParis,3\nRome,1\n"))
    np.testing.assert_array_equal(fitted.inputs_of_table(other)[:, 1:], [[0, 0, 0], [0, 0, 1]])
    with pytest.raises(DataError, match="expected the column 'city'"):
        fitted.inputs_of_table(read_csv(write(tmp_path / "new.csv", "kg,x\n3,1\n1,2\n")))


@pytest.mark.filterwarnings("error")
def test_numbers_too_large_to_standardize(tmp_path):
    rows = np.arange(2)
    table = read_csv(write(tmp_path / "a.csv", "a,y\n1e300,0\n-1e301,1\n"))
    with pytest.raises(DataError, match=r"column 'a': .*got up to 1e\+301"):
        Preprocessing.fit_table(table, "y", rows)
    with pytest.raises(DataError, match=r"column 'x\[:, 1\]'"):
        Preprocessing.fit_arrays(np.array([[0, 1e300], [1, 0]]), rows, rows)


def test_missing_numbers(tmp_path):
    table = read_csv(write(tmp_path / "a.csv", "a,b,y\n1,5,0\n?,6,1\n3,7,0\n"))
    rows = np.arange(3)
    with pytest.raises(DataError, match=r"line 3, column 'a'.*impute"):
        Preprocessing.fit_table(table, "y", rows)
    fitted = Preprocessing.fit_table(table, "y", rows, impute=True)
    assert fitted.inputs_of_table(table)[1, 0] == 0
    with pytest.raises(DataError, match="target column 'a' has missing values, first in line 3"):
        Preprocessing.fit_table(table, "a", rows)
    with pytest.raises(DataError, match="expected a target column 'z', got a, b, y"):
        Preprocessing.fit_table(table, "z", rows)


@pytest.mark.parametrize(
    ("y", "task", "classes"),
    [
        (np.array([3, 1, 3, 1]), "classification", ["1", "3"]),
        (np.array([0.0, 1.0, 2.0, 1.0]), "classification", ["0", "1", "2"]),
        (np.array(["b", "a", "b", "a"]), "classification", ["a", "b"]),
        (np.array([0.5, 1.0, 2.0, 1.0]), "regression", []),
        (np.ones((4, 2)) * np.arange(4)[:, None], "regression", []),
        (np.array([7, 7, 8, 8]), "regression", []),
    ],
)
def test_array_preprocessing(y, task, classes):
    x = np.random.default_rng(0).standard_normal((4, 3)) * [1, 10, 0] + [0, 1e6, 5]
    wanted = task if y.ndim == 1 and y[0] == 7 else None
    fitted = Preprocessing.fit_arrays(x, y, np.arange(4), task=wanted)
    assert fitted.task == task
    assert fitted.classes == classes
    inputs = fitted.inputs_of_matrix(x)
    np.testing.assert_allclose(inputs.mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(inputs.std(axis=0), [1, 1, 0], atol=1e-6)
    targets = fitted.targets_of_array(y)
    if task == "regression":
        np.testing.assert_allclose(fitted.values(targets), y.reshape(4, -1), rtol=1e-5, atol=1e-6)
    else:
        assert [fitted.classes[i] for i in targets] == [str(v).removesuffix(".0") for v in y]


def test_pixels_are_scaled_by_255():
    x = np.array([[0, 255], [51, 102]], np.uint8)
    fitted = Preprocessing.fit_arrays(x, np.array([0, 1]), np.arange(2))
    np.testing.assert_allclose(fitted.inputs_of_matrix(x), [[0, 1], [0.2, 0.4]], rtol=1e-6)


def test_one_class_is_refused():
    with pytest.raises(DataError, match="at least two classes"):
        Preprocessing.fit_arrays(np.ones((2, 1)), np.array([1, 1]), np.arange(2))


def test_unknown_label_is_refused():
    fitted = Preprocessing.fit_arrays(np.eye(2), np.array([0, 1]), np.arange(2))
    with pytest.raises(DataError, match="expected one of the classes 0, 1, got '5'"):
        fitted.targets_of_array(np.array([5]))


def test_damaged_preprocessing_files(tmp_path):
    fitted = Preprocessing.fit_table(pets(tmp_path), "kind", np.arange(4))
    path = tmp_path / "p.json"
    fitted.save(path)
    data = path.read_bytes()
    refused = 0
    for mutant in mutants(data, 300, seed=2):
        path.write_bytes(mutant)
        try:
            Preprocessing.load(path)
        except DataError:
            refused += 1
    assert refused > 200
    for change in ({"mean": [1.0]}, {"in_features": 9}, {"task": "sorting"}, {"columns": [1]}):
        path.write_text(json.dumps({**json.loads(data), **change}))
        with pytest.raises(DataError):
            Preprocessing.load(path)
