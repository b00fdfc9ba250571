"""docs/guarantees.md: every test that it names is there."""

import ast
import pathlib
import re

ROOT = pathlib.Path(__file__).parents[1]


def test_every_promise_names_a_test_that_is_there():
    rows = [
        line
        for line in (ROOT / "docs/guarantees.md").read_text().splitlines()
        if line.startswith("| ") and not line.startswith(("| promise", "| ---"))
    ]
    named = [re.fullmatch(r"\| .+ \| `(tests/\S+\.py)::(test_\w+)` \|", row) for row in rows]
    assert len(rows) > 25 and all(named), [r for r, n in zip(rows, named, strict=True) if not n]
    for found in named:
        tree = ast.parse((ROOT / found[1]).read_text())
        assert found[2] in {node.name for node in ast.walk(tree) if hasattr(node, "name")}, found[0]
