"""The house: no two modules import each other, no room or file outgrows what one reads at a time.

Which room may import which is the contract in setup.cfg that `lint-imports` checks.
"""

import ast
import pathlib

import grimp
import pytest

import routerjax

PACKAGE = pathlib.Path(routerjax.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))


def mutual(imports: dict[str, set[str]]) -> list[tuple[str, str]]:
    """Pairs of modules of which each imports the other."""
    return [(a, b) for a in imports for b in imports[a] if a < b and a in imports.get(b, set())]


def test_no_two_modules_import_each_other():
    graph = grimp.build_graph("routerjax", include_external_packages=False, cache_dir=None)
    imports = {m: set(graph.find_modules_directly_imported_by(m)) for m in graph.modules}
    assert sum(map(len, imports.values())) > 500, "the graph is that of the whole package"
    assert mutual(imports) == []


def test_two_that_import_each_other_are_seen():
    assert mutual({"a": {"b", "c"}, "b": {"a"}, "c": {"d"}, "d": set()}) == [("a", "b")]


@pytest.mark.parametrize("folder", sorted({file.parent for file in FILES}), ids=lambda f: f.name)
def test_a_folder_is_seen_at_a_glance(folder):
    assert len([f for f in folder.glob("*.py") if f.name != "__init__.py"]) <= 16


def test_a_file_is_read_at_a_sitting():
    lines = {str(f.relative_to(PACKAGE)): f.read_text().count("\n") for f in FILES}
    assert {name: n for name, n in lines.items() if n > 400} == {}


def test_every_module_says_what_it_is():
    silent = [f for f in FILES if not ast.get_docstring(ast.parse(f.read_text()))]
    assert silent == []
