"""Imports between modules: one direction, at the top of the file, nothing slow before its use."""

import ast
import pkgutil
from importlib import import_module
from types import FunctionType

from conftest import ROOT, run_command, tiny_config, tiny_data

import orc_jax

PACKAGE = ROOT / "orc_jax"
# The rooms of the package, from the ground up: each imports from those in lines above its own.
FLOORS = (
    ("errors", "start"),
    ("compiler", "extension", "losses", "mesh", "optimizers"),
    ("data", "models"),
    ("peers",),
    ("methods", "passes"),
    ("state", "teachers"),
    ("step",),
    ("config",),
    ("checks", "pretraining", "recipes"),
    ("runtime",),
    ("prepare",),
    ("evaluation", "introduction", "trained"),
    ("insight", "loop"),
    ("training",),
    ("commands",),
    ("evaluate", "export", "gradcam", "import_torch", "main", "predict", "report", "__main__"),
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
# Besides errors.py, all that these rooms know of the package.
ALONE = {"data": {"extension"}, "models": {"extension"}, "losses": set(), "mesh": set()}


def room_of(file) -> str:
    """The first part of a file's path in the package, e.g. "models"."""
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(tree) -> set[str]:
    """The rooms that a file's statements import from; "orc_jax" for the package itself."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == "orc_jax":
            names |= {f"orc_jax.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module)
    parts = [name.split(".") for name in names if name.split(".")[0] == "orc_jax"]
    return {names[1] if len(names) > 1 else "orc_jax" for names in parts}


FILES = {
    file: ast.parse(file.read_text())
    for file in sorted(PACKAGE.rglob("*.py"))
    if file != PACKAGE / "__init__.py"
}


def test_every_room_has_a_floor():
    assert {room_of(file) for file in FILES} == set(FLOOR)


def test_imports_point_one_way():
    for file, tree in FILES.items():
        room = room_of(file)
        for other in imported(tree) - {room}:
            if file.parent == PACKAGE / "models" and file.name == "__main__.py":
                continue  # `python -m orc_jax.models`, a command
            allowed = FLOOR[room] > FLOOR.get(other, -1 if other == "orc_jax" else 99)
            assert allowed, f"{file.relative_to(ROOT)} imports {other}, which is not below it"


def test_rooms_that_know_nothing_of_the_program_around_them():
    """Data and networks print nothing and know no other processes."""
    for room, known in ALONE.items():
        for file, tree in FILES.items():
            if room_of(file) == room and file.name != "__main__.py":
                assert imported(tree) - {room, "errors"} <= known, file
                assert "print" not in {
                    node.func.id
                    for node in ast.walk(tree)
                    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
                }, file


def test_no_module_of_ours_is_imported_within_a_function():
    for file, tree in FILES.items():
        for function in ast.walk(tree):
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                assert not imported(ast.Module(function.body, [])), (file, function.name)


def test_slow_packages_are_imported_where_they_are_used():
    slow = {"sklearn", "tensorflow_datasets", "grain", "tensorflow", "torch", "matplotlib"}
    code = f"import sys, orc_jax; print(*{slow!r} & sys.modules.keys())"
    assert run_command("-c", code).stdout.split() == []


def test_importing_every_module_hides_no_function(tmp_path):
    """Files of the same names as functions stand beside them: evaluate.py, for example."""
    for module in pkgutil.walk_packages(orc_jax.__path__, "orc_jax."):
        if not module.name.endswith("__main__"):
            import_module(module.name)
    for function in (orc_jax.evaluate, orc_jax.train):
        assert isinstance(function, FunctionType)
    config = tiny_config(("pixels", "pixels"), "dml")
    config.epochs = 1
    result = orc_jax.train(config, tmp_path / "run", tiny_data())
    test = orc_jax.evaluate(tmp_path / "run", data=tiny_data())
    assert test["top1"] == result.metrics["test"]["top1"]
