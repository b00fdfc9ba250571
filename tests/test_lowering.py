"""Every jitted function lowers for TPU and GPU from here, and float32 asks for full precision.

JAX's default for float32 products is bfloat16 on TPU and TF32 on recent GPUs: what a CPU test
cannot see is read in the lowered text. Nothing is compiled. Each program is traced with its
platform's Tuning, which alone may decide by platform, so that it is the one an accelerator traces;
only cuDNN's attention, for which JAX asks a GPU while it traces, has a test of its own.
"""

import ast
import dataclasses
import json
import pathlib
import re

import jax
import jax.numpy as jnp
import pytest
from jax._src.cudnn import fused_attention_stablehlo as fused_attention

import routerjax
from routerjax.encoder.capture import Graph
from routerjax.encoder.families.registry import read_config
from routerjax.encoder.models.attention import attend_cudnn
from routerjax.encoder.models.products import FLOAT8
from routerjax.encoder.weights.loading import abstract_model
from routerjax.runtime.devices import make_mesh
from routerjax.runtime.tuning import Tuning
from tests.encoder.tiny_models import GOLDEN
from tests.encoder.variants import VARIANTS
from tests.lowering_cases import Case, array, cases, encoder_case, whole

PACKAGE = pathlib.Path(routerjax.__file__).parent
PLATFORMS = {"tpu": Tuning.tpu(), "cuda": Tuning.gpu()}
_PRODUCTS = re.compile(r"(?:stablehlo|chlo)\.(?:dot_general|dot|ragged_dot|convolution)\b.*")
TABLES = {platform: cases(tuning) for platform, tuning in PLATFORMS.items()}
CASES = TABLES["tpu"]


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


def lowered(case: Case, platform: str) -> str:
    traced = case.function.trace(*case.args, **case.options)
    return traced.lower(lowering_platforms=(platform,)).as_text()


def check(case: Case, platform: str) -> int:
    """Lowers a case for a platform; the number of its products."""
    text = lowered(case, platform)
    assert not imprecise(text), f"{platform}: {imprecise(text)[0]}"
    return len(_PRODUCTS.findall(text))


def asks_for_the_platform(source: str) -> list[str]:
    """The lines in which a module asks what it runs on, or is lowered for."""
    asks = ("default_backend", "platform_dependent", "platform", "device_kind")
    return [
        f"{node.lineno}: {name}"
        for node in ast.walk(ast.parse(source))
        for name in (getattr(node, "attr", getattr(node, "id", None)),
                     *(alias.name for alias in getattr(node, "names", ())
                       if isinstance(alias, ast.alias)))
        if name in asks
    ]  # fmt: skip


def test_the_table_names_every_jitted_function():
    found = {
        f"{path.relative_to(PACKAGE).as_posix()}:{name}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for name in jitted(path.read_text())
    }
    listed = {*CASES, "encoder/capture.py:capture"}
    assert found - listed == set(), "give each a line in tests/lowering_cases.py"
    assert listed - found == set(), "no longer jitted: take its line out of tests/lowering_cases.py"


def test_the_tuning_alone_asks_for_the_platform():
    """Else a program traced here for an accelerator would not be the accelerator's own."""
    # An error names the kind of the devices, and a result records it.
    told = {"runtime/devices.py": 1, "runtime/provenance.py": 1}
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).as_posix()
        asked = asks_for_the_platform(path.read_text())
        if name != "runtime/tuning.py":
            assert len(asked) == told.get(name, 0), f"{name} asks for the platform: {asked}"


@pytest.mark.parametrize(
    ("place", "branch"),
    [
        ("if tuning.expert_tiles:", 'if jax.default_backend() == "cpu":'),
        ("if tuning.expert_tiles:", 'if jax.devices()[0].platform == "cpu":'),
        ("products(x_ND,", "jax.lax.platform_dependent(x_ND,"),
        ("import jax\n", "import jax\nfrom jax import default_backend as kind\n"),
    ],
)
def test_a_branch_on_the_platform_is_seen(place, branch):
    source = (PACKAGE / "encoder/models/moe.py").read_text()
    assert source.count(place) == 1 and not asks_for_the_platform(source)
    assert len(asks_for_the_platform(source.replace(place, branch))) == 1


def test_the_program_that_is_lowered_is_the_platforms_own():
    """Not the host's: experts by ragged products, and attention of 512 tokens in one piece."""
    texts = {
        platform: lowered(encoder_case("qwen3_moe", jnp.float32, tuning, 512), platform)
        for platform, tuning in {**PLATFORMS, "cpu": Tuning.cpu()}.items()
    }
    for platform, text in texts.items():
        assert ("ragged_dot" in text) == (platform != "cpu"), platform
        assert bool(re.search(r"x(512|1024)x512xf32", text)) == (platform != "cpu"), platform


@pytest.mark.parametrize(("E", "n_before"), [(128, 0), (256, 3)])
def test_cudnn_gets_lengths_and_causality_and_no_mask(E, n_before, monkeypatch):
    """As a Hopper with cuDNN 9.10 would get it; what JAX asks the GPU for is answered here."""
    monkeypatch.setattr(fused_attention, "check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(fused_attention, "check_compute_capability", lambda least: True)
    q_BTHE, k_BSGE = (array(2, n, heads, E, dtype=jnp.bfloat16)
                      for n, heads in ((16, 4), (n_before + 16, 2)))  # fmt: skip
    case = Case(jax.jit(attend_cudnn), (q_BTHE, k_BSGE, k_BSGE, whole(2)))
    text = lowered(case, "cuda")
    (call,) = (line for line in text.splitlines() if "__cudnn$fmha" in line)
    assert "__cudnn$fmhaSoftmax(" in call and "PADDING_CAUSAL" in call
    # Queries, keys, values, and the lengths of queries and of keys.
    shapes = call.split(" : (")[-1].split(") -> ")[0].split(", ")
    bf16 = f"tensor<2x{n_before + 16}x{{}}x{E}xbf16>"
    assert shapes == [bf16.format(n) for n in (4, 2, 2)] + ["tensor<2xi32>"] * 2
    assert "select" not in text and "xi1>" not in text


def test_the_blocks_products_are_of_float8_and_add_up_in_float32():
    """Seven a block on a GPU; where float8 is not multiplied, the same numbers in bfloat16."""
    gpu = Tuning.gpu()
    for tuning, dtype, precision in (
        (gpu, "f8E4M3FN", "HIGHEST"),
        (dataclasses.replace(gpu, float8_products=False), "bf16", "DEFAULT"),
    ):
        products = _PRODUCTS.findall(lowered(encoder_case("qwen3", FLOAT8, tuning), "cuda"))
        # Both sides along their last axis; those of attention are batches of heads.
        linear = [product for product in products if "contracting_dims = [2] x [1], " in product
                  and "batching_dims" not in product]  # fmt: skip
        assert len(linear) == 7 and len(products) == 9
        for product in linear:
            sides, _, sums = product.partition(" : ")[2].partition(" -> ")
            assert sides.count(f"x{dtype}>") == 2 and sums.endswith("xf32>"), product
            assert product.count(precision) == 2, "cuBLAS would add up in less than float32"
        assert not any("f8E4M3FN" in product for product in set(products) - set(linear))


def test_tunings_of_equal_fields_share_a_program():
    one, other = Tuning.cpu(), Tuning.of(jax.devices())
    assert one == other and one is not other and hash(one) == hash(other)
    assert len({one, Tuning.gpu(), Tuning.tpu(), Tuning.of(make_mesh("data:2"))}) == 3
    exact = jax.lax.Precision.HIGHEST
    path = GOLDEN / "qwen3/config.json"
    config = read_config(json.loads(path.read_text()), str(path))
    graphs = [Graph(abstract_model(config, jnp.float32, exact, t)[0]) for t in (one, other)]
    assert graphs[0] == graphs[1] and hash(graphs[0]) == hash(graphs[1])


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
    for platform, table in TABLES.items():
        for case in table[name]():
            check(case, platform)


def _modules(name: str) -> tuple[object, ...]:
    """What decides which of the encoder's code a golden model runs."""
    path = GOLDEN / name / "config.json"
    config = read_config(json.loads(path.read_text()), str(path))
    rotary = config.follows_length, bool(config.soft_cap), config.routing is not None
    rotary += (config.n_distances > 0, config.disentangled is not None)
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
    for platform, tuning in PLATFORMS.items():
        assert check(encoder_case(name, jnp.dtype(dtype), tuning), platform) > 5


def test_the_prefill_of_long_prompts_lowers_for_every_platform():
    for platform, tuning in PLATFORMS.items():
        case = encoder_case("qwen3", jnp.dtype("float32"), tuning, tuning.longest_causal + 1)
        assert check(case, platform) > 5


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
