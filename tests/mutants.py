"""Planted faults: texts of source files in which some places are wrong, on demand or for good."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from conftest import ROOT

CSRC = ROOT / "csrc"


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """One planted fault."""

    name: str
    fault: str  # what kind of fault it is
    file: str  # below csrc/
    old: str  # occurs once in the file
    new: str
    kind: str = "statement"  # or "expression", or "text": whatever else


# Included before everything else: THALWEG_MUTANT chooses which of the faults to make.
SWITCH_HEADER = """
#include <cstdlib>
inline const int thalweg_chosen_mutant =
    std::getenv("THALWEG_MUTANT") ? std::atoi(std::getenv("THALWEG_MUTANT")) : -1;
inline bool thalweg_mutant(int number) { return number == thalweg_chosen_mutant; }
"""


def switch(mutant: Mutant, number: int) -> str:
    """The text that stands for `mutant.old` and makes the fault on demand."""
    active = f"thalweg_mutant({number})"
    if mutant.kind == "expression":
        return f"({active} ? ({mutant.new}) : ({mutant.old}))"
    return f"if ({active}) {{ {mutant.new} }} else {{ {mutant.old} }}"


def planted(mutants: Iterable[tuple[int, Mutant]]) -> dict[str, str]:
    """Text of every file that the numbered mutants change, with all of them in it."""
    texts: dict[str, str] = {}
    for number, mutant in mutants:
        original = (CSRC / mutant.file).read_text(encoding="utf-8")
        assert original.count(mutant.old) == 1, (
            f"{mutant.name}: expected the text once in {mutant.file}, "
            f"got {original.count(mutant.old)} times: {mutant.old}"
        )
        text = texts.setdefault(mutant.file, original)
        assert text.count(mutant.old) == 1, f"{mutant.name}: overlaps another mutant"
        new = mutant.new if mutant.kind == "text" else switch(mutant, number)
        texts[mutant.file] = text.replace(mutant.old, new)
    return texts
