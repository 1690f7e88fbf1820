"""What all descriptions share: frozen values that become the JSON model description and back."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, TypeVar, cast

from thalweg import _check, _core

D = TypeVar("D", bound="Description")


class Description:
    """A frozen value with a type name in the model description.

    Subclasses are frozen dataclasses whose fields are the keys of the description.
    """

    type: ClassVar[str]
    type_key: ClassVar[str] = "type"

    def _set(self, name: str, value: object) -> None:
        """Store the checked form of a field; for `__post_init__` only."""
        object.__setattr__(self, name, value)

    def to_dict(self) -> dict[str, Any]:
        """The description as plain values.

        Returns
        -------
        dict
            Numbers, strings, booleans, lists and dicts only; `json.dumps` takes it.
        """
        fields = dataclasses.fields(cast(Any, self))
        values = {field.name: plain(getattr(self, field.name)) for field in fields}
        return {self.type_key: self.type, **values}


def plain(value: Any) -> Any:
    """`value` with every description replaced by its dict and every tuple by a list."""
    if isinstance(value, Description):
        return value.to_dict()
    if isinstance(value, (tuple, list)):
        return [plain(entry) for entry in value]
    return value


def by_type(classes: Iterable[type[D]]) -> dict[str, type[D]]:
    """Classes by their type name."""
    return {cls.type: cls for cls in classes}


def build(where: str, classes: Mapping[str, type[D]], value: Mapping[str, Any]) -> D:
    """The object that `value`, a dict with a type, describes."""
    fields = _check.mapping(where, value)
    key = next(iter(classes.values())).type_key
    if key not in fields:
        raise ValueError(
            f"[{where}] expected a dict with the key {key!r}, got keys {sorted(fields)}"
        )
    cls = classes[_check.choice(where, key, fields.pop(key), classes)]
    known = {field.name for field in dataclasses.fields(cast(Any, cls))}
    unknown = sorted(fields.keys() - known)
    if unknown:
        raise ValueError(
            f"[{where}] expected keys of {cls.type!r} ({sorted(known)}), got unknown {unknown}"
        )
    return cls(**fields)


@functools.cache
def activation_table() -> dict[str, Any]:
    """Activations of the engine by name."""
    return _core.activations()


@functools.cache
def loss_table() -> dict[str, Any]:
    """Elementwise losses of the engine by name."""
    return _core.losses()


@functools.cache
def optimizer_table() -> dict[str, Any]:
    """Optimizers of the engine by name."""
    return _core.optimizers()


@functools.cache
def method_table() -> dict[str, Any]:
    """Minimization methods of the engine by name."""
    return _core.methods()


def check_parameters(description: Description, rows: Mapping[str, Mapping[str, Any]]) -> None:
    """Check the fields of `description` that an engine table lists, and store them converted."""
    where = type(description).__name__
    for name, row in rows.items():
        value = getattr(description, name)
        if row["kind"] == "flag":
            description._set(name, _check.flag(where, name, value))
        elif row["kind"] == "choice":
            description._set(name, _check.choice(where, name, value, row["choices"]))
        elif row["kind"] == "integer":
            count = _check.integer(where, name, value, int(row["lowest"]))
            if count > row["highest"]:
                raise ValueError(f"[{where}] expected {name} <= {row['highest']:g}, got {count}")
            description._set(name, count)
        else:
            number = _check.real(where, name, value, row["lowest"], row["highest"])
            description._set(name, number)
