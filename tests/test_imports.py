"""Imports between modules: one direction, at the top of the file, nothing slow before its use."""

import ast

from conftest import ROOT, run_command

FILES = sorted((ROOT / "orc_jax").rglob("*.py"))


def imported(nodes) -> set[str]:
    """The modules of ours that statements import."""
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {name for name in names if name.startswith("orc_jax.")}


def below(package) -> set[str]:
    """What the modules of a package import."""
    files = (ROOT / "orc_jax" / package).rglob("*.py")
    return set().union(*(imported(ast.walk(ast.parse(file.read_text()))) for file in files))


def test_data_knows_nothing_of_the_program_around_it():
    others = {name for name in below("data") if not name.startswith("orc_jax.data")}
    assert {name.split(".")[1] for name in others} == {"errors", "extension"}


def test_what_runs_on_top_is_not_imported_from_below():
    above = {"checks", "prepare", "training", "evaluation", "trained", "insight", "commands"}
    for package in ("data", "runtime", "methods"):
        assert not {name.split(".")[1] for name in below(package)} & above, package


def test_no_module_of_ours_is_imported_within_a_function():
    for file in FILES:
        tree = ast.parse(file.read_text())
        at_the_top = imported(node for node in tree.body)
        assert imported(ast.walk(tree)) == at_the_top, file


def test_slow_packages_are_imported_where_they_are_used():
    slow = {"sklearn", "tensorflow_datasets", "grain", "tensorflow", "torch", "matplotlib"}
    code = f"import sys, orc_jax; print(*{slow!r} & sys.modules.keys())"
    assert run_command("-c", code).stdout.split() == []
