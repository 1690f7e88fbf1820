"""The documentation says what the code does: pages, excerpts, docstrings, tables, links."""

from __future__ import annotations

import ast
import doctest
import importlib.util
import inspect
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import thalweg
from conftest import ROOT


def load(path: Path) -> ModuleType:
    """A module from a file outside the packages."""
    spec = importlib.util.spec_from_file_location(f"docs_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


snippets = load(ROOT / "docs" / "snippets.py")
generate = load(ROOT / "docs" / "generate.py")

PAGES: list[Path] = snippets.pages()
NAMES = [path.relative_to(ROOT).as_posix() for path in PAGES]
WALK_THROUGHS: list[Any] = snippets.blocks(ROOT / "CONTRIBUTING.md")


def test_pages_are_there() -> None:
    expected = {"README.md", "CONTRIBUTING.md", "docs/guide.md", "docs/methods.md", "docs/cpp.md"}
    expected |= {f"docs/{name}.md" for name in ("architecture", "decisions", "reliability")}
    assert expected <= set(NAMES)


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_code_of_a_page_does_what_the_page_says(page: Path) -> None:
    snippets.check(page)


@pytest.mark.parametrize(
    ("expected", "actual", "tolerance", "same"),
    [
        (["a 1.0"], ["a 1.0"], 0.0, True),
        (["a  1.0"], ["a 1.0"], 0.0, True),
        (["a 1.0"], ["a 1.01"], 0.0, False),
        (["a 1.0"], ["a 1.01"], 0.02, True),
        (["a 1.0"], ["a 1.03"], 0.02, False),
        (["1,000 b"], ["1,001 b"], 0.01, True),
        (["a ... c"], ["a b c"], 0.0, True),
        (["a ... c"], ["a b b c"], 0.0, False),
        (["a", "...", "d"], ["a", "b", "c", "d"], 0.0, True),
        (["a", "...", "d"], ["a", "b", "c"], 0.0, False),
        (["a"], [], 0.0, False),
        ([], ["a"], 0.0, False),
    ],
)
def test_comparison(expected: list[str], actual: list[str], tolerance: float, same: bool) -> None:
    assert snippets.same(expected, actual, tolerance) is same


def test_a_wrong_page_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snippets, "ROOT", tmp_path)
    (tmp_path / "code.h").write_text("int a;\nint b;\n")
    page = tmp_path / "page.md"
    for text in (
        "```python\nprint(1)\n```\n\n```text\n2\n```\n",
        "```python\nprint(1)\n```\n",
        "```cpp file=code.h\nint c;\n```\n",
        "```cpp file=code.h\nint b;\nint a;\n```\n",
        "```diff file=code.h\n int c;\n+int d;\n```\n",
        "```python\nprint(1)\n",
    ):
        page.write_text(text)
        with pytest.raises(snippets.Mismatch):
            snippets.check(page)


# ---- walk-throughs ------------------------------------------------------------------------------


def changed(name: str) -> str:
    """A file after all changes of the walk-throughs."""
    text = (ROOT / name).read_text(encoding="utf-8")
    for block in WALK_THROUGHS:
        if block.language == "diff" and block.option("file") == name:
            text = snippets.applied(block, text)
    return text


def numbers(program: Path) -> Iterator[npt.NDArray[np.float64]]:
    """The lines that a program prints."""
    printed = subprocess.run([str(program)], capture_output=True, text=True, check=True).stdout
    for line in printed.splitlines():
        yield np.array([float(word) for word in line.split()])


MAIN = """
#include <cstdio>
#include <initializer_list>

#include "math/activations.h"
#include "math/optimizers.h"

template <class F>
void print(F&& f) {
  for (int i = -8; i <= 8; ++i) std::printf("%.17g ", f(0.375 * i));
  std::printf("\\n");
}

int main() {
  using namespace thalweg;
  const int phi = activation_id("squared_relu");
  if (phi < 0) return 1;
  dispatch_activation(phi, [](auto a) {
    using A = decltype(a);
    print([](double z) { return A::value(z, 0.0); });
    print([](double z) { return A::derivative(A::value(z, 0.0), 0.0); });
    print([](double z) { return A::second_derivative(A::value(z, 0.0), 0.0); });
  });
  const int id = optimizer_id("adamax");
  if (id < 0) return 1;
  const double hyper[] = {0.25, 0.9, 0.99, 1e-3, 0.125};
  double c[kMaxCoefficients];
  double p = 1.0, s = 0.0, u = 0.0;
  std::int64_t t = 0;
  for (const double g : {0.5, -2.0, 0.0}) {
    optimizer_coefficients(id, hyper, hyper, ++t, c);
    AdaMax::Update<double>{c}(p, g, s, u);
    std::printf("%.17g %.17g %.17g\\n", p, s, u);
  }
  p = s = u = 0.0;
  AdaMax::Update<double>{c}(p, 0.0, s, u);
  std::printf("%.17g %.17g %.17g\\n", p, s, u);
}
"""


def test_walk_throughs_compile_and_agree_with_their_references(
    tmp_path: Path, compiler: str
) -> None:
    """The formulas that CONTRIBUTING.md adds, over the real lists, against its references."""
    overlay = tmp_path / "csrc"
    for block in WALK_THROUGHS:
        for name in (block.option("new"), block.option("file")):
            if name is not None and name.startswith("csrc/math/"):
                path = tmp_path / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(block.text if block.option("new") else changed(name))
    (tmp_path / "main.cpp").write_text(MAIN)
    program = tmp_path / "program"
    flags = ["-std=c++20", "-O1", "-Wall", "-Wextra", "-Werror", "-ffp-contract=off"]
    folders = [f"-I{overlay}", f"-I{ROOT / 'csrc'}"]
    source = str(tmp_path / "main.cpp")
    subprocess.run([compiler, *flags, *folders, source, "-o", str(program)], check=True)
    lines = numbers(program)

    (tmp_path / "changed_reference.py").write_text(changed("tests/reference.py"))
    reference = load(tmp_path / "changed_reference.py")
    z = 0.375 * np.arange(-8, 9)
    squared = reference.ACTIVATIONS["squared_relu"]
    for rule in (squared.value, squared.derivative, squared.second_derivative):
        np.testing.assert_allclose(next(lines), rule(z, 0.0), rtol=1e-14, atol=1e-15)

    rule = reference.OPTIMIZERS["adamax"]
    hyper = {"lr": 0.25, "beta1": 0.9, "beta2": 0.99, "delta": 1e-3}
    p, slots = np.array([1.0]), (np.zeros(1), np.zeros(1))
    for t, g in enumerate((0.5, -2.0, 0.0), 1):
        coupled = np.array([g]) + 0.125 * p
        p, slots = rule.update(p, coupled, slots, hyper, hyper, t)
        np.testing.assert_allclose(next(lines), [p[0], slots[0][0], slots[1][0]], rtol=1e-14)
    assert not next(lines).any()  # zeros stay zeros


@pytest.mark.parametrize("name", ["python/thalweg/nn.py", "python/thalweg/optim.py"])
def test_walk_throughs_of_descriptions_are_python(name: str) -> None:
    tree = ast.parse(changed(name))
    classes = {node.name for node in tree.body if isinstance(node, ast.ClassDef)}
    assert {"python/thalweg/nn.py": "SquaredReLU", "python/thalweg/optim.py": "AdaMax"}[
        name
    ] in classes


# ---- docstrings and tables -----------------------------------------------------------------------

MODULES: list[ModuleType] = generate.public_modules()


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_docstring_examples(
    module: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = doctest.testmod(module)
    assert result.failed == 0


def test_documentation_is_complete_and_generated() -> None:
    assert not generate.problems()


@pytest.mark.filterwarnings("ignore:Error parsing type annotation")
def test_the_reference_has_a_page_for_every_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pdoc")
    monkeypatch.setattr(generate, "API", tmp_path)
    generate.build_api()
    found = {path.stem for path in (tmp_path / "thalweg").rglob("*.html")}
    modules = {name for name in thalweg.__all__ if inspect.ismodule(getattr(thalweg, name))}
    # And no other: a module must not hide a function of the same name.
    assert found == modules | ({"sklearn"} if importlib.util.find_spec("sklearn") else set())
    for name in ("Model", "Objective", "Population", "minimize"):
        assert f'<section id="{name}">' in (tmp_path / "thalweg.html").read_text(encoding="utf-8")


def test_the_reference_says_what_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate, "API", tmp_path)
    monkeypatch.setitem(sys.modules, "pdoc", None)
    with pytest.raises(SystemExit, match=r"needs pdoc: pip install thalweg\[dev\]"):
        generate.build_api()


def test_results_of_experiments_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = tmp_path / "experiments.json"
    kept.write_text("[]")
    monkeypatch.setattr(generate, "RESULTS", kept)
    assert len(list(generate.experiment_problems())) == len(generate.CORE)
    experiment = next(experiment for experiment in generate.CORE if experiment.id == "e15")
    row = {
        "id": "e15",
        **{key: getattr(experiment, key) for key in ("claim", "source", "setting", "threshold")},
        "measured": "a|b",
        "verdict": "fail",
        "values": {},
        "seconds": 1.25,
        "version": "1.0",
        "commit": "abc",
        "seeds": {"0": {"verdict": "pass"}, "1000": {"verdict": "fail"}},
    }
    results = tmp_path / "results.json"
    for setting in (row["setting"], "another"):
        results.write_text(json.dumps([{**row, "setting": setting}]))
        generate.take_results([str(results)])
        table = generate.tables()["experiments"].splitlines()
        assert len(table) == 3
        assert "| a\\|b |" in table[2]
        assert table[2].endswith("| 1 of 2 | 1.2 s | `abc` |")
        found = [text for text in generate.experiment_problems() if "e15" in text]
        assert found == ["docs/experiments.json: e15 was measured with another setting"] * (
            setting == "another"
        )


def test_references_resolve() -> None:
    """Links between pages, their anchors, and the tests and files that pages name."""
    wrong = []
    for page in PAGES:
        text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            if "://" in target:
                continue
            name, _, anchor = target.partition("#")
            path = (page.parent / name).resolve() if name else page
            if not path.exists() or (anchor and anchor not in anchors(path)):
                wrong.append(f"{page.name}: {target}")
        for name, _, test in re.findall(r"`(tests/[\w/]+\.(?:py|cpp))(::(\w+))?`", text):
            path = ROOT / name
            if not path.is_file() or (test and f" {test}(" not in path.read_text("utf-8")):
                wrong.append(f"{page.name}: {name} {test}")
    assert not wrong


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.M)
    kept = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {heading.replace(" ", "-") for heading in kept}
