"""The rooms of the package form floors: a room imports only from lower floors, and no two modules import each other."""

import ast
import sys
from pathlib import Path

import pytest

import corrmatch_hf

PACKAGE = Path(corrmatch_hf.__file__).parent
FLOORS = (  # from the top; the modules beside the rooms (errors, options, text, ...) are below all of them
    {"commands"},
    {"training"},
    {"methods", "hub"},
    {"data", "evaluation", "pictures", "official", "ops"},
    {"model"},
)
FLOOR = {room: len(FLOORS) - i for i, rooms in enumerate(FLOORS) for room in rooms}
TRAVELS = {
    "PIL",
    "huggingface_hub",
    "numpy",
    "timm",
    "torch",
    "torchvision",
    "transformers",
}  # requirements.txt


def imports(file: Path, at_once: bool = False) -> set[str]:
    """Full names of the imported modules, or of names in them; `at_once`: by importing the file."""
    found = set()
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in tree.body if at_once else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parents = file.relative_to(PACKAGE.parent).with_suffix("").parts[: -node.level or None]
            base = ".".join([*(parents if node.level else ()), *([node.module] if node.module else [])])
            found |= {f"{base}.{alias.name}" for alias in node.names}
    return found


def room_of(name: str) -> str | None:
    """The room of a module by its full name, None for a module outside all rooms."""
    package, room, *_ = [*name.split("."), ""]
    return room if package == "corrmatch_hf" and room in FLOOR else None


def test_every_room_has_a_floor():
    assert {path.parent.name for path in PACKAGE.glob("*/__init__.py")} == FLOOR.keys()


@pytest.mark.parametrize("room", sorted(FLOOR))
def test_a_room_imports_only_from_its_own_and_lower_floors(room):
    files = sorted((PACKAGE / room).rglob("*.py"))
    seen = {(file.name, name, room_of(name)) for file in files for name in imports(file)}
    assert not {(file, name) for file, name, other in seen if other and FLOOR[other] > FLOOR[room]}


def test_rooms_do_not_import_each_other():
    known = {room: set() for room in FLOOR}
    for room in FLOOR:
        for file in (PACKAGE / room).rglob("*.py"):
            known[room] |= {other for other in map(room_of, imports(file)) if other not in (None, room)}
    while free := [room for room, others in known.items() if not others]:
        known = {room: others - set(free) for room, others in known.items() if room not in free}
    assert not known, "these rooms import each other in a circle"


def test_what_lies_beside_the_rooms_imports_none():
    files = [file for file in PACKAGE.glob("*.py") if file.name not in ("__init__.py", "__main__.py")]
    assert files and not {(file.name, name) for file in files for name in imports(file) if room_of(name)}


def test_the_model_travels_without_the_package():
    """Hub repositories contain the files of this room: they import each other and what requirements.txt installs."""
    for file in (PACKAGE / "model").glob("*_corrmatch.py"):
        roots = {name.split(".")[0] for name in imports(file) if not name.startswith("corrmatch_hf.model.")}
        assert roots - set(sys.stdlib_module_names) <= TRAVELS, file.name


def test_the_evaluate_library_is_imported_on_demand_only():
    """In a script of examples/, `import evaluate` finds examples/evaluate.py."""
    found = {
        file.name
        for file in PACKAGE.rglob("*.py")
        for name in imports(file, at_once=True)
        if name.split(".")[0] == "evaluate" or name.endswith((".metric", ".MeanIoU"))
    }
    assert found == {"metric.py"}
