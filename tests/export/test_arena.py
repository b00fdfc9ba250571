"""router_arena: the files of a submission, checked as RouterArena's own check does."""

import json

import numpy as np
import pytest

import routerjax as rj
from routerjax.encoder.encoder import Encoder
from routerjax.features.recipe import Recipe
from routerjax.routing.policies import Argmax
from tests.export import by_hand


@pytest.fixture(scope="module")
def router(tiny_encoder_folder):
    encoder = Encoder.from_pretrained(tiny_encoder_folder)
    parts = [by_hand.part(np.random.default_rng(5), [(2, "last")], hidden=32)]
    return by_hand.router(parts, Recipe.layers([2], "last", 5), Argmax(), encoders=[encoder])


def entries(n, start=0):
    rng = np.random.default_rng(start)
    return [
        {"global index": f"MMLU_{i}", "prompt": "never read",
         "prompt_formatted": "".join(rng.choice(list("abcdefg "), 9)) + "?\nA. 4"}
        for i in range(start, start + n)
    ]  # fmt: skip


def test_a_submission_has_what_routerarena_checks(router, tmp_path):
    data, perturbed = entries(30), entries(6, 50)
    (tmp_path / "full.json").write_text(json.dumps(data))
    (tmp_path / "sub.jsonl").write_text("\n".join(map(json.dumps, data[4:9])))
    (tmp_path / "robust.json").write_text(json.dumps(perturbed))
    written = rj.export.router_arena(
        router, tmp_path / "full.json", tmp_path / "arena", "mine",
        optimality=tmp_path / "sub.jsonl", robustness=tmp_path / "robust.json",
    )  # fmt: skip
    root = tmp_path / "arena/router_inference"
    assert written == [
        str(root / name)
        for name in ("predictions/mine.json", "predictions/mine-robustness.json",
                     "config/mine.json")
    ]  # fmt: skip
    config = json.loads((root / "config/mine.json").read_text())
    models = list(by_hand.TARGETS)
    assert config == {"pipeline_params": {"router_name": "mine", "models": models}}
    rows = json.loads((root / "predictions/mine.json").read_text())
    regular = [row for row in rows if not row["for_optimality"]]
    prompts = [entry["prompt_formatted"] for entry in data]
    assert [row["global index"] for row in regular] == [entry["global index"] for entry in data]
    assert [row["prompt"] for row in regular] == prompts
    chosen = [decision.target for decision in router.route(prompts)]
    assert [row["prediction"] for row in regular] == chosen and len(set(chosen)) > 1
    for row in rows:
        assert row["generated_result"] is row["cost"] is row["accuracy"] is None
    # With the router's own choice every model has each query of the part.
    others = [row for row in rows if row["for_optimality"]]
    pairs = {(row["global index"], row["prediction"]) for row in others}
    assert len(others) == len(pairs) == 5 * (len(models) - 1)
    own = {(data[i]["global index"], chosen[i]) for i in range(4, 9)}
    assert pairs | own == {(e["global index"], m) for e in data[4:9] for m in models}
    robust = json.loads((root / "predictions/mine-robustness.json").read_text())
    assert [row["prompt"] for row in robust] == [entry["prompt_formatted"] for entry in perturbed]


def test_the_policy_of_the_call_and_plain_prompts(router, tmp_path):
    row = {"global index": "a", "prompt_formatted": None, "prompt": "abc?"}
    (tmp_path / "x.jsonl").write_text(json.dumps(row))
    rj.export.router_arena(router, tmp_path / "x.jsonl", tmp_path, "m", policy=rj.Tolerance(1.0))
    (row,) = json.loads((tmp_path / "router_inference/predictions/m.json").read_text())
    costs = router.route("abc?").costs
    assert row["prompt"] == "abc?" and row["prediction"] == min(costs, key=costs.get)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"global index": "a"}', r'x.jsonl:1: expected "global index" and "prompt_formatted"'),
        ('{"global index": 3, "prompt": "q"}', "two texts, got 3 and 'q'"),
        ('{"global index": "a", "prompt": "q"}\n' * 2, "x.jsonl:2: the global index 'a' has come"),
    ],
)
def test_rows_that_are_none_are_refused(router, tmp_path, text, message):
    (tmp_path / "x.jsonl").write_text(text)
    with pytest.raises(ValueError, match=message):
        rj.export.router_arena(router, tmp_path / "x.jsonl", tmp_path, "m")
    assert not (tmp_path / "router_inference").exists()


def test_names_with_spaces_and_strange_indices_are_refused(router, tmp_path):
    (tmp_path / "x.jsonl").write_text('{"global index": "a", "prompt": "abc?"}\n')
    (tmp_path / "y.jsonl").write_text('{"global index": "b", "prompt": "abc?"}\n')
    with pytest.raises(
        ValueError, match="name: RouterArena takes no spaces in names, got 'my own'"
    ):
        rj.export.router_arena(router, tmp_path / "x.jsonl", tmp_path, "my own")
    with pytest.raises(ValueError, match="optimality: 'b' of .*y.jsonl is not among"):
        rj.export.router_arena(
            router, tmp_path / "x.jsonl", tmp_path, "m", optimality=tmp_path / "y.jsonl"
        )
