"""Generates what the documentation takes from the code.

    python docs/generate.py            fill the tables of the pages, check docstrings, and
                                       build the API reference in docs/api/ (needs pdoc)
    python docs/generate.py --check    only say what is stale or undocumented
    python docs/generate.py --results FILE...
                                       before that, take rows of `thalweg reproduce` over into
                                       docs/experiments.json

Tables stand between `<!-- generated: NAME -->` and `<!-- end -->`. They come from the lists of the
engine (csrc/math/*.inc), the descriptions in python/thalweg and docs/experiments.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import inspect
import json
import pkgutil
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import thalweg
from thalweg import _core, init, losses, nn, optim, schedules
from thalweg.experiments import CORE

ROOT = Path(__file__).resolve().parent.parent
METHODS = ROOT / "docs" / "methods.md"
EXPERIMENTS = ROOT / "docs" / "experiments.md"
RESULTS = ROOT / "docs" / "experiments.json"
PAGES = (METHODS, EXPERIMENTS)
API = ROOT / "docs" / "api"

_MARK = re.compile(r"(<!-- generated: (\w+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
# Not meant to be imported: the command line is documented in the guide.
_NOT_API = ("thalweg.cli", "thalweg.experiments")


# ---- tables --------------------------------------------------------------------------------------


def _number(value: float) -> str:
    return f"{value:g}".replace("e-0", "e-").replace("e+0", "e")


def _summary(cls: type) -> str:
    """First paragraph of the docstring, as a table cell."""
    paragraph = inspect.cleandoc(cls.__doc__ or "").split("\n\n")[0]
    return " ".join(paragraph.split()).replace("|", "\\|")


def _call(module: ModuleType, cls: type) -> str:
    """How to write the object: its name and arguments with defaults."""
    arguments: list[str] = []
    for parameter in inspect.signature(cls).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and "*" not in arguments:
            arguments.append("*")
        if parameter.kind is parameter.VAR_POSITIONAL:
            arguments.append(f"*{parameter.name}")
        elif parameter.default is parameter.empty:
            arguments.append(parameter.name)
        else:
            default = parameter.default
            shown = _number(default) if type(default) is float else repr(default)
            arguments.append(f"{parameter.name}={shown}")
    return f"`{module.__name__.rpartition('.')[2]}.{cls.__name__}({', '.join(arguments)})`"


def _described(module: ModuleType) -> dict[str, type]:
    """The description classes of a module by their type name, in its order."""
    classes: dict[str, type] = cast(Any, module)._BY_TYPE
    return classes


def _rows(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [list(header), *map(list, rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _hyper(rows: Mapping[str, Mapping[str, Any]]) -> str:
    cells = []
    for name, row in rows.items():
        flag = row["kind"] == "flag"
        cells.append(f"{name}={bool(row['default']) if flag else _number(row['default'])}")
    return ", ".join(f"`{cell}`" for cell in cells)


def _activations() -> str:
    rows = []
    for name, entry in _core.activations().items():
        cls = _described(nn)[name]
        he = "He" if entry["he_family"] else "Glorot"
        call, text, needs = _call(nn, cls), _summary(cls), entry["backward_needs"]
        rows.append([f"`{name}`", call, text, he, "y" if needs == "output" else "z"])
    header = ["name", "Python", "definition", '`init="auto"` before it', "backward keeps"]
    return _rows(header, rows)


def _losses() -> str:
    targets = {"real": "numbers", "unit_interval": "in [0, 1]", "sign": "-1 or +1"}
    table = _core.losses()
    rows = []
    for name, cls in _described(losses).items():
        target = targets[table[name]["target"]] if name in table else "labels or probabilities"
        rows.append([f"`{name}`", _call(losses, cls), _summary(cls), target])
    return _rows(["name", "Python", "definition", "targets"], rows)


def _optimizers() -> str:
    rows = []
    for name, entry in _core.optimizers().items():
        slots = ", ".join(f"`{slot}`" for slot in entry["slots"]) or "none"
        stored = "theta + momentum v" if entry["look_ahead"] else "theta"
        python = f"`optim.{_described(optim)[name].__name__}`"
        rows.append([f"`{name}`", python, _hyper(entry["parameters"]), slots, stored])
    return _rows(["name", "Python", "hyper-parameters and defaults", "state", "stores"], rows)


def _methods() -> str:
    rows = []
    for name, cls in optim._METHODS.items():
        entry = _core.methods()[name]
        needs = "curvature" if entry["needs_curvature"] else "value, gradient"
        if entry["needs_path_scales"]:
            needs = "gradient, path sums"
        cells = []
        for key, row in entry["parameters"].items():
            value = row["choices"][int(row["default"])] if row["choices"] else row["default"]
            if row["kind"] in ("flag", "integer"):
                value = (bool if row["kind"] == "flag" else int)(value)
            cells.append(f"`{key}={_number(value) if type(value) is float else repr(value)}`")
        rows.append([f"`{name}`", f"`optim.{cls.__name__}`", ", ".join(cells) or "none", needs])
    return _rows(["name", "Python", "parameters and defaults", "needs"], rows)


def _simple(module: ModuleType) -> str:
    rows = [
        [f"`{name}`", _call(module, cls), _summary(cls)] for name, cls in _described(module).items()
    ]
    return _rows(["name", "Python", "definition"], rows)


def _results() -> dict[str, dict[str, Any]]:
    """The kept rows of experiments, by id."""
    return {row["id"]: row for row in json.loads(RESULTS.read_text(encoding="utf-8"))}


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _experiments() -> str:
    results = _results()
    rows = []
    for experiment in CORE:
        row = results.get(experiment.id)
        if row is None:
            continue
        verdicts = row["seeds"].values()
        passed = f"{sum(v == 'pass' for v in verdicts)} of {len(verdicts)}"
        if row["verdict"] == "report":
            passed = "report"
        cells = (experiment.title, row["measured"], experiment.threshold, passed)
        seconds = f"{row['seconds']:.1f} s"
        rows.append([experiment.id, *map(_cell, cells), seconds, f"`{row['commit']}`"])
    header = ["id", "claim", "measured", "threshold", "seeds passed", "time", "commit"]
    return _rows(header, rows)


def _settings() -> str:
    rows = [
        [experiment.id, *map(_cell, (experiment.claim, experiment.setting, experiment.source))]
        for experiment in CORE
    ]
    return _rows(["id", "claim in full", "setting", "source"], rows)


def take_results(paths: Iterable[str]) -> None:
    """Keep the rows of files of `thalweg reproduce` in place of older ones."""
    results = _results()
    for path in paths:
        for row in json.loads(Path(path).read_text(encoding="utf-8")):
            kept = ("id", "claim", "setting", "threshold", "measured", "verdict")
            results[row["id"]] = {key: row[key] for key in kept} | {
                "seeds": {seed: found["verdict"] for seed, found in row["seeds"].items()},
                "seconds": round(row["seconds"], 1),
                "version": row["version"],
                "commit": row["commit"],
            }
    rows = [results[experiment.id] for experiment in CORE if experiment.id in results]
    RESULTS.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def tables() -> dict[str, str]:
    """Every generated table by its name."""
    return {
        "activations": _activations(),
        "losses": _losses(),
        "optimizers": _optimizers(),
        "methods": _methods(),
        "initializers": _simple(init),
        "schedules": _simple(schedules),
        "experiments": _experiments(),
        "settings": _settings(),
    }


def filled(text: str) -> str:
    """A page with its tables as they should be."""
    made = tables()
    return _MARK.sub(lambda match: f"{match[1]}\n{made[match[2]]}\n{match[4]}", text)


# ---- checks --------------------------------------------------------------------------------------


def _defaults(cls: type) -> dict[str, Any]:
    return {field.name: field.default for field in dataclasses.fields(cast(Any, cls))}


def list_problems() -> Iterator[str]:
    """Where the engine's lists, the Python descriptions and docs/methods.md disagree."""
    engine = {nn: _core.activations(), losses: _core.losses(), optim: _core.optimizers()}
    for module, table in engine.items():
        for name, entry in table.items():
            cls = _described(module).get(name)
            if cls is None:
                yield f"{module.__name__}: no description for {name!r} of the engine's list"
                continue
            defaults = _defaults(cls)
            for key, row in entry["parameters"].items():
                if key not in defaults or defaults[key] != row["default"]:
                    yield f"{module.__name__}.{cls.__name__}: {key} differs from the engine's"
    prose = _MARK.sub("", METHODS.read_text(encoding="utf-8"))
    for module in (nn, losses, optim, init, schedules):
        methods = optim._METHODS if module is optim else {}
        for cls in (*_described(module).values(), *methods.values()):
            if not re.search(rf"(^### .*\b{cls.__name__}\b|\*\*{cls.__name__}\*\*)", prose, re.M):
                yield f"docs/methods.md: nothing about {module.__name__}.{cls.__name__}"


def experiment_problems() -> Iterator[str]:
    """Experiments without a row of results, or with one of another claim, setting or threshold."""
    results = _results()
    for experiment in CORE:
        row = results.get(experiment.id)
        if row is None:
            yield f"docs/experiments.json: nothing about {experiment.id}"
            continue
        for key in ("claim", "setting", "threshold"):
            if row[key] != getattr(experiment, key):
                yield f"docs/experiments.json: {experiment.id} was measured with another {key}"


def public_modules() -> list[ModuleType]:
    """Modules that users import; those whose requirements are missing are left out."""
    names = ["thalweg"]
    for info in pkgutil.walk_packages(thalweg.__path__, "thalweg."):
        if "._" not in info.name and ".__" not in info.name and not info.name.startswith(_NOT_API):
            names.append(info.name)
    found = []
    for name in names:
        try:
            found.append(importlib.import_module(name))
        except ImportError as error:
            if "thalweg" not in str(error):
                raise
    return found


def _documented(*docstrings: str | None) -> set[str]:
    """Names that docstrings explain: entries of a section, or words of a module docstring."""
    names: set[str] = set()
    for text in docstrings:
        for line in (text or "").splitlines():
            entry = re.match(r"^\s*((?:\*{0,2}\w+, )*\*{0,2}\w+)(?: : .*| ``\[.*)?$", line)
            if entry:
                names.update(name.strip("* ") for name in entry[1].split(","))
    return names


def _callable_problems(place: str, function: Any, *context: str | None) -> Iterator[str]:
    if not inspect.getdoc(function):
        yield f"{place}: no docstring"
        return
    try:
        parameters = inspect.signature(function).parameters
    except ValueError:
        return
    names = [name for name in parameters if name not in ("self", "cls")]
    if len(names) == 1:  # the sentence says what it takes
        return
    own = inspect.getdoc(function)
    known = _documented(own, *context) | set(re.findall(r"`(\w+)`", own or ""))
    known |= set(re.findall(r"\w+", context[-1] or ""))
    for name in names:
        if name not in known:
            yield f"{place}: parameter {name} is not documented"


def docstring_problems() -> Iterator[str]:
    """Public names without a docstring, and parameters that none explains."""
    for module in public_modules():
        examples = ">>> " in (module.__doc__ or "")
        for name in getattr(module, "__all__", ()):
            value = getattr(module, name)
            place = f"{module.__name__}.{name}"
            if inspect.isclass(value) and value.__module__.startswith("thalweg"):
                doc = inspect.getdoc(value)
                examples = examples or ">>> " in (doc or "")
                if not issubclass(value, BaseException):
                    yield from _callable_problems(place, value, module.__doc__)
                for member, attribute in vars(value).items():
                    where = f"{place}.{member}"
                    if member.startswith("_"):
                        continue
                    if isinstance(attribute, property) and not attribute.__doc__:
                        yield f"{where}: no docstring"
                    function = getattr(attribute, "__func__", attribute)
                    if inspect.isfunction(function):
                        yield from _callable_problems(where, function, doc, module.__doc__)
            elif inspect.isfunction(value):
                examples = examples or ">>> " in (value.__doc__ or "")
                yield from _callable_problems(place, value, module.__doc__)
        if getattr(module, "__all__", ()) and not examples and module.__name__ != "thalweg.errors":
            yield f"{module.__name__}: no example in any docstring"


def problems() -> list[str]:
    """Everything that is wrong, in words."""
    found = [*list_problems(), *experiment_problems(), *docstring_problems()]
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        if filled(text) != text:
            name = page.relative_to(ROOT).as_posix()
            found.append(f"{name}: tables are stale; run python docs/generate.py")
    return found


# ---- API reference -------------------------------------------------------------------------------


def build_api() -> None:
    """Write the API reference to docs/api/."""
    try:
        import pdoc
        import pdoc.render
    except ImportError:
        raise SystemExit(
            "[generate] the tables are written; the API reference needs pdoc: "
            "pip install thalweg[dev]"
        ) from None

    pdoc.render.configure(docformat="numpy", search=True, footer_text=thalweg.__version__)
    for name in thalweg.__all__:  # what is imported on first use becomes visible
        setattr(thalweg, name, getattr(thalweg, name))
    names = {module.__name__ for module in public_modules()}
    # Pages for what the package names; its scikit-learn part is named where that is installed.
    pages = ["thalweg", *(names & {"thalweg.sklearn"})]
    pdoc.pdoc(*pages, *(f"!{name}" for name in _NOT_API), output_directory=API)


def main() -> int:
    """Generate, or only check."""
    parser = argparse.ArgumentParser(description="Generate the tables and the API reference.")
    parser.add_argument("--check", action="store_true", help="change nothing")
    parser.add_argument("--results", nargs="+", default=[], metavar="FILE", help="results.json")
    options = parser.parse_args()
    check = options.check
    if options.results:
        take_results(options.results)
    if not check:
        for page in PAGES:
            page.write_text(filled(page.read_text(encoding="utf-8")), encoding="utf-8")
    found = problems()
    print("\n".join(found) or "every public name is documented and every table is current")
    if not check and not found:
        build_api()
        print(f"wrote {API.relative_to(ROOT)}/")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
