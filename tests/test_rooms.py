"""Rooms of the package that know nothing of the others, read from their imports."""

import ast
from pathlib import Path

import pytest

import corrmatch_hf

PACKAGE = Path(corrmatch_hf.__file__).parent
ROOMS = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}


def imported(file: Path) -> set[str]:
    """Modules of the package, by their full names."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parents = file.relative_to(PACKAGE.parent).with_suffix("").parts[: -node.level or None]
            base = ".".join([*(parents if node.level else ()), *([node.module] if node.module else [])])
            found |= {f"{base}.{alias.name}" for alias in node.names}
    return {name for name in found if name.startswith("corrmatch_hf.")}


@pytest.mark.parametrize("room", ["model", "ops", "data"])
def test_a_room_does_not_know_the_others(room):
    files = sorted((PACKAGE / room).glob("*.py"))
    seen = {(file.name, name) for file in files for name in imported(file)}
    assert seen, "nothing was read"
    assert not {(file, name) for file, name in seen if name.split(".")[1] in ROOMS - {room}}
