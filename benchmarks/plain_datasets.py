"""What the package uses of `datasets` for data in memory, for machines that lack it: `install()` before the package.

Lists of rows with typed columns; no files, no Hub, no streams.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any, NamedTuple


class Image(NamedTuple):
    decode: bool = True


class Value(NamedTuple):
    dtype: str


class Features(dict):
    """{column: Image or Value}."""


class Dataset:
    """Rows in memory. A picture is {"path", "bytes"}, undecoded."""

    def __init__(self, rows: list[dict[str, Any]], features: Mapping[str, Any]):
        self.rows, self.features = rows, Features(features)

    @classmethod
    def from_list(cls, rows: Iterable[Mapping[str, Any]], features: Mapping[str, Any]) -> Dataset:
        def cell(name: str, value: Any) -> Any:
            picture = isinstance(features[name], Image) and isinstance(value, str)
            return {"path": value, "bytes": None} if picture else value

        return cls([{name: cell(name, row[name]) for name in features} for row in rows], features)

    @classmethod
    def from_dict(cls, columns: Mapping[str, list], features: Mapping[str, Any]) -> Dataset:
        rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        return cls.from_list(rows, features)

    @property
    def column_names(self) -> list[str]:
        return list(self.features)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: int | str) -> Any:
        if isinstance(key, str):
            return [row[key] for row in self.rows]
        return {name: self.rows[key][name] for name in self.features}

    def __iter__(self):
        return (self[i] for i in range(len(self)))

    def with_format(self, _: None) -> Dataset:
        return self

    def cast_column(self, name: str, feature: Any) -> Dataset:
        return Dataset(self.rows, self.features | {name: feature})

    def remove_columns(self, name: str) -> Dataset:
        return Dataset(self.rows, {each: kind for each, kind in self.features.items() if each != name})


class IterableDataset:
    """Only a type to tell streams by."""


def install(always: bool = False) -> bool:
    """Make this module stand for `datasets`, where that is missing or `always`; whether it does now."""
    if not always and find_spec("datasets") is not None:
        return False
    module, errors = ModuleType("datasets"), ModuleType("datasets.exceptions")
    errors.DatasetGenerationError = type("DatasetGenerationError", (Exception,), {})
    for kind in (Image, Value, Features, Dataset, IterableDataset):
        setattr(module, kind.__name__, kind)
    module.exceptions, module.__version__ = errors, "0"
    for each in (module, errors):
        each.__spec__ = ModuleSpec(each.__name__, None)
        sys.modules[each.__name__] = each
    return True
