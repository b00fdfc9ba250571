"""Every jitted function lowers for TPU and GPU from here, and float32 asks for full precision.

JAX's default for float32 products is bfloat16 on TPU and TF32 on recent GPUs: what a CPU test
cannot see is read in the lowered text. Nothing is compiled. cuDNN's attention is chosen outside the
trace and is not looked at.
"""

import ast
import json
import pathlib
import re

import jax
import jax.numpy as jnp
import pytest

import routerjax
from routerjax.encoder.families.registry import read_config
from routerjax.encoder.models.attention import LONGEST_WHOLE
from tests.encoder.tiny_models import GOLDEN
from tests.encoder.variants import VARIANTS
from tests.lowering_cases import Case, cases, encoder_case

PACKAGE = pathlib.Path(routerjax.__file__).parent
PLATFORMS = ("tpu", "cuda")
_PRODUCTS = re.compile(r"(?:stablehlo|chlo)\.(?:dot_general|dot|ragged_dot|convolution)\b.*")
CASES = cases()


def jitted(source: str) -> list[str]:
    """The functions of a module that are jitted or mapped, or in which something is."""
    found: list[str] = []

    def visit(node: ast.AST, name: str) -> None:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            name = f"{name}.{node.name}" if name else node.name
        elif isinstance(node, ast.Assign) and not name and isinstance(node.targets[0], ast.Name):
            name = node.targets[0].id
        elif isinstance(node, ast.Attribute) and node.attr in ("jit", "pmap"):
            found.append(name)
        elif isinstance(node, ast.ImportFrom) and node.module in ("jax", "flax.nnx"):
            found.extend(f"from {node.module} import {a.name}" for a in node.names
                         if a.name in ("jit", "pmap"))  # fmt: skip
        for child in ast.iter_child_nodes(node):
            visit(child, name)

    visit(ast.parse(source), "")
    return found


def imprecise(text: str) -> list[str]:
    """Products of float32 in lowered text that do not ask for the highest precision."""
    return [
        product
        for product in _PRODUCTS.findall(text)
        if "f32>" in product.split(" : (")[-1].split("->")[0] and product.count("HIGHEST") != 2
    ]


def check(case: Case) -> int:
    """Lowers a case for both platforms; the number of its products."""
    traced = case.function.trace(*case.args, **case.options)
    texts = [traced.lower(lowering_platforms=(platform,)).as_text() for platform in PLATFORMS]
    for platform, text in zip(PLATFORMS, texts, strict=True):
        assert not imprecise(text), f"{platform}: {imprecise(text)[0]}"
    return len(_PRODUCTS.findall(texts[0]))


def test_the_table_names_every_jitted_function():
    found = {
        f"{path.relative_to(PACKAGE).as_posix()}:{name}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for name in jitted(path.read_text())
    }
    listed = {*CASES, "encoder/capture.py:capture"}
    assert found - listed == set(), "give each a line in tests/lowering_cases.py"
    assert listed - found == set(), "no longer jitted: take its line out of tests/lowering_cases.py"


def test_every_way_to_jit_is_found():
    source = """
import jax
from flax import nnx
from jax import pmap
@jax.jit
def a(x): return x
@functools.partial(jax.jit, static_argnames="n")
def b(x, n): return x
c = jax.jit(a)
def d(x):
    def e(x): return jax.pmap(x)
    return jax.jit(a)(x)
class G:
    @nnx.jit
    def h(self): pass
"""
    names = ["from jax import pmap", "a", "b", "c", "d.e", "d", "G.h"]
    assert jitted(source) == names


@pytest.mark.parametrize("name", CASES)
def test_it_lowers_for_every_platform_in_full_precision(name):
    for case in CASES[name]():
        check(case)


def _modules(name: str) -> tuple[object, ...]:
    """What decides which of the encoder's code a golden model runs."""
    path = GOLDEN / name / "config.json"
    config = read_config(json.loads(path.read_text()), str(path))
    rotary = config.follows_length, bool(config.soft_cap)
    return (
        config.family in ("bert", "roberta", "xlm-roberta"),
        frozenset(map(str, config.kinds)),
        *rotary,
    )


_CHOSEN = {_modules(name): name for name in reversed(VARIANTS)}
ENCODERS = [
    pytest.param(name, dtype, id=f"{name}-{dtype}",
                 marks=[] if dtype == "float32" and name in _CHOSEN.values() or name == "qwen3"
                 else [pytest.mark.slow])
    for name in VARIANTS for dtype in ("float32", "bfloat16")
]  # fmt: skip


@pytest.mark.parametrize(("name", "dtype"), ENCODERS)
def test_the_prefill_lowers_for_every_platform(name, dtype):
    assert check(encoder_case(name, jnp.dtype(dtype))) > 5


def test_the_prefill_of_long_prompts_lowers_for_every_platform():
    assert check(encoder_case("qwen3", jnp.dtype("float32"), LONGEST_WHOLE + 1)) > 5


@pytest.mark.parametrize(
    ("precision", "dtype", "wrong"),
    [(None, jnp.float32, 1), ("high", jnp.float32, 1), ("highest", jnp.float32, 0),
     (None, jnp.bfloat16, 0)],
)  # fmt: skip
def test_a_product_that_asks_for_less_is_seen(precision, dtype, wrong):
    x = jax.ShapeDtypeStruct((4, 4), dtype)

    def products(x):
        y = jnp.matmul(x, x, precision=precision)
        return jax.lax.ragged_dot(y, x[None], jnp.array([4]), precision=precision)

    for platform in PLATFORMS:
        text = jax.jit(products).trace(x).lower(lowering_platforms=(platform,)).as_text()
        assert len(imprecise(text)) == 2 * wrong and len(_PRODUCTS.findall(text)) == 2
