"""Checkpoints of the neighbours: read as INTEGRATIONS.md describes them, and refusals."""

import dataclasses
import types

import numpy as np
import pytest
from tokenizers import processors

import routerjax as rj
from routerjax.encoder.encoder import Encoder
from routerjax.encoder.selection import Selection
from routerjax.features.fit import fit_features
from routerjax.features.recipe import Recipe
from routerjax.routing.costs import CostModel
from routerjax.trunk.calibrate import Curve
from tests.export import by_hand

torch = pytest.importorskip("torch")
from tests.export.neighbours_reader import read_blueprint, read_switchyard  # noqa: E402

PLAIN = (Curve("none"),) * by_hand.M
LAST = Recipe.layers([2], "last", 5)


@pytest.fixture(scope="module")
def encoder(tiny_encoder_folder):
    return Encoder.from_pretrained(tiny_encoder_folder)  # 3 blocks, 32 wide.


def single(encoder, layer=2, pooling="last", **changes):
    """A router of one layer."""
    parts = [by_hand.part(np.random.default_rng(5), [(layer, pooling)], hidden=32)]
    given = {"curves": PLAIN, "encoders": [encoder], "recipe": LAST, "n_members": 3} | changes
    return by_hand.router(parts, **given)


def priced(router):
    """The router with a price for every target."""
    prices_M2 = np.array([[0.1, 0.2], [0.5, 1.0], [3.0, 9.0], [0.7, 1.0]])
    router.costs = CostModel(prices_M2, np.array([90.0, 80, 70, 60]), np.ones(by_hand.M, bool))
    return router


def expected(router, states):
    return router.predict(router.features.apply(states))


# ---- Switchyard


def test_switchyard_reads_a_single_layer(encoder, tmp_path):
    router = single(encoder)
    (h_NLPD,) = states = by_hand.states(router)
    notes = rj.export.switchyard(router, tmp_path / "router.pt")
    checkpoint, p_NM = read_switchyard(tmp_path / "router.pt", {2: h_NLPD[:, 0, 0]})
    np.testing.assert_allclose(p_NM, expected(router, states), atol=1e-5)
    assert np.ptp(p_NM, axis=0).min() > 0.1
    assert checkpoint["models"] == list(by_hand.TARGETS)
    name = encoder.identity["encoder_id"]
    assert checkpoint["encoder"] == {
        "name": name, "n_layers": 3, "hidden_dim": 32, "view": "task_prompt_only"}  # fmt: skip
    assert len(notes) == 2 and "tolerance:0.2" in notes[0]


@pytest.mark.parametrize("constant", [False, True])
def test_switchyard_reads_the_mean_of_layers(encoder, fake_store, fake_data, tmp_path, constant):
    """Trained features; one column constant in one layer at training, and not any more later."""
    rng = np.random.default_rng(0)
    h_NLPD = rng.normal(size=(120, 4, 1, 32)).astype(np.float32)
    h_NLPD += h_NLPD[:, :1]
    seen_NLPD = h_NLPD.copy()
    if constant:
        seen_NLPD[:, 1, 0, 7] = 2.0
    ids = [f"q{n}" for n in range(120)]
    recipe = Recipe.averaged_layers([1, 3], "last", 6)
    fitted = fit_features(
        recipe, fake_store(seen_NLPD, ids, poolings=("last",)),
        fake_data(ids, rng.integers(0, 2, (120, 3))),
    )  # fmt: skip
    router = by_hand.router(list(fitted.parts), recipe, curves=PLAIN, encoders=[encoder])
    rj.export.switchyard(router, tmp_path / "router.pt")
    checkpoint, p_NM = read_switchyard(tmp_path / "router.pt", {i: h_NLPD[:, i, 0] for i in (1, 3)})
    assert checkpoint["feature_pipeline"]["selected_layers"] == [1, 3]
    np.testing.assert_allclose(p_NM, expected(router, [h_NLPD[:, [1, 3]]]), atol=1e-5)
    assert np.ptp(p_NM, axis=0).min() > 0.1
    # Saved and loaded, it is the same router.
    router.save(tmp_path / "router")
    again = rj.Router.load(tmp_path / "router", encoder)
    assert again.features.recipe == recipe
    np.testing.assert_array_equal(
        expected(again, [h_NLPD[:, [1, 3]]]), expected(router, [h_NLPD[:, [1, 3]]])
    )


@pytest.mark.slow
def test_transformers_reads_the_queries_alike(encoder, tiny_encoder_folder, tmp_path):
    """The whole of Switchyard's forward pass, padding on either side, beside `router.route`."""
    transformers = pytest.importorskip("transformers")
    router, queries = single(encoder), ["abc def?", "j", "what is 7 + 5, and why?"]
    rj.export.switchyard(router, tmp_path / "router.pt")
    name = torch.load(tmp_path / "router.pt", weights_only=True)["encoder"]["name"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(name)
    tokenizer.pad_token = "<unk>"
    model = transformers.AutoModelForCausalLM.from_pretrained(name).base_model.eval()
    texts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": query}], tokenize=False, add_generation_prompt=True
        )
        for query in queries
    ]
    decisions = router.route(queries)
    wanted = [[decision.probabilities[t] for t in router.targets] for decision in decisions]
    for side in ("left", "right"):
        tokenizer.padding_side = side
        inputs = tokenizer(texts, return_tensors="pt", padding=True)
        with torch.inference_mode():
            states = model(**inputs, output_hidden_states=True, use_cache=False).hidden_states
        real = inputs["attention_mask"].bool()
        last = [int(torch.nonzero(row).max()) for row in real]
        h = np.stack([states[2][n, t].numpy() for n, t in enumerate(last)])
        _, p_NM = read_switchyard(tmp_path / "router.pt", {2: h})
        np.testing.assert_allclose(p_NM, wanted, atol=1e-5)


def test_the_calibration_of_one_member_is_folded(encoder, tmp_path):
    curves = (Curve("temperature", 1.7), Curve("platt", 0.6, -0.4), Curve("none"), Curve("none"))
    router = single(encoder, curves=curves, n_members=1)
    (h_NLPD,) = states = by_hand.states(router)
    rj.export.switchyard(router, tmp_path / "router.pt")
    _, p_NM = read_switchyard(tmp_path / "router.pt", {2: h_NLPD[:, 0, 0]})
    np.testing.assert_allclose(p_NM, expected(router, states), atol=1e-5)


def test_a_calibration_that_cannot_be_held_is_left_out_only_where_asked(encoder, tmp_path):
    router = single(encoder, curves=by_hand.CURVES)
    path = tmp_path / "router.pt"
    with pytest.raises(ValueError, match="middle by temperature, dear by platt.*uncalibrated=True"):
        rj.export.switchyard(router, path)
    isotonic = single(encoder, curves=by_hand.CURVES[3:] * by_hand.M, n_members=1)
    with pytest.raises(ValueError, match="cheap by isotonic.*mean of 1 sigmoids"):
        rj.export.switchyard(isotonic, path)
    assert not path.exists()
    notes = rj.export.switchyard(router, path, uncalibrated=True)
    assert "uncalibrated probabilities; the router calibrates middle by temperature" in notes[0]
    (h_NLPD,) = states = by_hand.states(router)
    _, p_NM = read_switchyard(path, {2: h_NLPD[:, 0, 0]})
    plain_NM = router.predict(router.features.apply(states), calibrated=False)
    np.testing.assert_allclose(p_NM, plain_NM, atol=1e-5)


# ---- the blueprint


@pytest.mark.parametrize("layers", [(0, 1, 2), (1,)])
@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_the_blueprint_reads_layers_of_one_pooling(encoder, tmp_path, layers, pooling):
    pytest.importorskip("sklearn")
    parts = [by_hand.part(np.random.default_rng(5), [(i, pooling) for i in layers], hidden=32)]
    router = priced(by_hand.router(parts, curves=PLAIN, encoders=[encoder]))
    (h_NLPD,) = states = by_hand.states(router)
    notes = rj.export.blueprint(router, tmp_path / "router.pt")
    sites = {(layer, pooling): h_NLPD[:, j, 0] for j, layer in enumerate(layers)}
    checkpoint, p_NM = read_blueprint(tmp_path / "router.pt", sites)
    np.testing.assert_allclose(p_NM, expected(router, states), atol=1e-5)
    assert np.ptp(p_NM, axis=0).min() > 0.1
    assert checkpoint["cost_table"]["middle"] == {"median_output_tokens": 80}
    assert checkpoint["pool_config"]["targets"][2] == {
        "name": "dear",
        "cost_per_m_input_tokens": 3.0,
        "cost_per_m_output_tokens": 9.0,
    }
    transform = checkpoint["transforms"]["cheap"]
    assert transform["chat_template_kwargs"] == {} and transform["mode"] == pooling
    assert transform["encoder"] == encoder.identity["encoder_id"]
    assert len(notes) == 2


@pytest.mark.parametrize("chosen", [True, False])
def test_the_blueprint_reads_a_layer_for_each_target(encoder, tmp_path, chosen):
    """Two targets share a layer; the last was added later and chose none."""
    pytest.importorskip("sklearn")
    sites = [(0, 1, "mean", 5), (0, 2, "last", 4), (0, 2, "mean", 3)]
    rng = np.random.default_rng(5)
    parts = [by_hand.part(rng, [site[1:3]], width=site[3], hidden=32) for site in sites]
    router = by_hand.router(parts, Recipe.of_sites(sites), curves=PLAIN, encoders=[encoder])
    priced(router)
    own = {"cheap": (2, "mean"), "middle": (1, "mean"), "dear": (2, "last")}
    choices = [
        {"target": target, "encoder": 0, "layer": layer, "pooling": pooling, "pca_dim": 5}
        for target, (layer, pooling) in own.items()
    ]
    if chosen:
        router.trained = dataclasses.replace(router.trained, notes={"choices": choices})
    (h_NLPD,) = states = by_hand.states(router)
    read = router.features.selection()
    h_of_site = {
        (layer, pooling): h_NLPD[:, i, j]
        for i, layer in enumerate(read.layers) for j, pooling in enumerate(read.poolings)
    }  # fmt: skip
    rj.export.blueprint(router, tmp_path / "router.pt")
    checkpoint, p_NM = read_blueprint(tmp_path / "router.pt", h_of_site)
    np.testing.assert_allclose(p_NM, expected(router, states), atol=1e-5)
    assert checkpoint["trunk_config"]["feature_layout"] == "per_target"
    found = {name: (each["layer"], each["mode"])
             for name, each in checkpoint["transforms"].items()}  # fmt: skip
    assert len(found) == 4 and ({name: found[name] for name in own} == own) == chosen


# ---- refusals


def refusal(router, to):
    with pytest.raises(ValueError) as caught:
        getattr(rj.export, to)(router, "/nowhere/router.pt")
    return str(caught.value)


def test_all_reasons_are_told_at_once_and_the_recipe_that_maps():
    router = by_hand.router(kernel=True, hidden=(5, 4, 3))
    for to, recipe in (
        ("switchyard", "Recipe.averaged_layers([1, 3], 'last')"),
        ("blueprint", "Recipe.layers([1, 3], 'mean')"),
    ):
        text = refusal(router, to)
        assert text.startswith(f"{to}: this router does not map onto the format:\n- features: ")
        assert recipe in text and "4 pooled states (pooling last and mean, recipe layers)" in text
        for reason in ("- trunk: ", "- kernel: ", "- calibration: "):
            assert reason in text
        assert ("- prices: " in text) == (to == "blueprint")
    assert "--recipe=averaged_layers:1+3 --pooling=last" in refusal(router, "switchyard")


def test_a_trust_is_refused_or_left_out_on_demand(encoder, tmp_path):
    router = single(encoder, trust=True)
    assert "- trust: the format has none" in refusal(router, "switchyard")
    notes = rj.export.switchyard(router, tmp_path / "router.pt", uncalibrated=True)
    assert "The file holds no trust" in notes[0]


@pytest.mark.parametrize(
    ("to", "pooling", "message"),
    [
        ("switchyard", "mean", "1 pooled state (pooling mean, recipe layers)"),
        ("blueprint", "max", "1 pooled state (pooling max, recipe layers)"),
    ],
)
def test_other_poolings_do_not_map(encoder, to, pooling, message):
    assert message in refusal(priced(single(encoder, pooling=pooling)), to)


def test_two_parts_and_the_last_state_do_not_map(encoder):
    rng = np.random.default_rng(0)
    parts = [by_hand.part(rng, [(layer, "last")], hidden=32) for layer in (1, 2)]
    two = by_hand.router(parts, Recipe.of_sites([(0, 1, "last", 5), (0, 2, "last", 5)]),
                         curves=PLAIN, encoders=[encoder])  # fmt: skip
    assert "2 pooled states (pooling last, recipe blocks)" in refusal(two, "switchyard")
    mixed = by_hand.router([parts[0], by_hand.part(rng, [(1, "last")], 1, hidden=32)],
                           Recipe.all_layers(), curves=PLAIN)  # fmt: skip
    for to in ("switchyard", "blueprint"):
        assert "2 pooled states of 2 encoders (pooling last" in refusal(mixed, to)
    sites = Selection((1, 3), ("mean",)).sites
    deep = by_hand.router([by_hand.part(rng, sites, hidden=32)], curves=PLAIN, encoders=[encoder])
    text = refusal(priced(deep), "blueprint")
    assert "hidden states 0 to 2" in text and "--recipe=layers:1, or on a store" in text


def test_an_encoder_that_the_readers_would_read_otherwise_is_refused(
    encoder, tiny_encoder_folder, tmp_path, monkeypatch
):
    router = single(encoder)
    prompter = encoder.prompter

    def refused(**changes):
        monkeypatch.setattr(rj.Router, "encoders", [types.SimpleNamespace(**{
            "config": encoder.config, "identity": encoder.identity, "prompter": prompter} | changes
        )])  # fmt: skip
        return refusal(router, "switchyard")

    sees = dataclasses.replace(encoder.config, bidirectional=True)
    assert "sees later tokens too" in refused(config=sees)
    (tmp_path / "x.gguf").touch()
    for name in ("org/x.gguf", tmp_path):
        assert "is GGUF" in refused(identity=encoder.identity | {"encoder_id": name})
    bare = types.SimpleNamespace(templated=False)
    assert "has no chat template" in refused(prompter=bare)
    brief = Encoder.from_pretrained(tiny_encoder_folder, chat_template_kwargs={"brief": True})
    monkeypatch.undo()
    assert "no place for {'brief': True}" in refusal(single(brief), "switchyard")


def test_a_tokenizer_that_adds_a_second_bos_is_refused(tiny_encoder_folder):
    encoder = Encoder.from_pretrained(tiny_encoder_folder)
    backend = encoder.prompter.tokenizer.backend_tokenizer
    backend.post_processor = processors.TemplateProcessing(
        single="<user> $A", special_tokens=[("<user>", 1)]
    )
    text = refusal(single(encoder), "switchyard")
    assert "tokens where the states were extracted from" in text and "second BOS" in text
    encoder.prompter.tokenizer.chat_template = "{{ raise_exception('only parts') }}"
    assert "gives 0 tokens" in refusal(single(encoder), "switchyard")


def test_a_folder_is_no_file(encoder):
    with pytest.raises(ValueError, match="path: expected that of a file"):
        rj.export.switchyard(single(encoder), "somewhere/")
