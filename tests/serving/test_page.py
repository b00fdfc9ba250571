"""The page at / and the paths that it reads; the page itself in Chromium, where there is one."""

import dataclasses
import os
import pathlib

import httpx
import numpy as np
import pytest

from routerjax.encoder.encoder import Encoder
from routerjax.encoder.extraction.extract import extract
from routerjax.features.recipe import Recipe, RecipeSite
from routerjax.routing.fit import fit_router
from routerjax.routing.policies import Tolerance, Value
from routerjax.serving.answered import Answered
from routerjax.serving.choice import Chooser
from routerjax.serving.config import ServingConfig
from routerjax.serving.metrics import Metrics
from routerjax.serving.page import Page
from routerjax.serving.reader import Reader
from routerjax.trunk.config import TrunkConfig
from routerjax.trunk.trust import Metric, Trust
from tests.serving import browser


def test_a_query_is_explained(post, tiny_router):
    value = post("/v1/explain", {"query": "abc def?"}).json()
    decision = tiny_router.route("abc def?")
    assert [each["name"] for each in value["targets"]] == list(tiny_router.targets)
    for each in value["targets"]:
        assert each["probability"] == pytest.approx(decision.probabilities[each["name"]], abs=1e-5)
        assert each["expected_cost"] == pytest.approx(decision.costs[each["name"]])
    policies = {policy["name"]: policy for policy in value["policies"]}
    for name, settings in (("tolerance", [Tolerance(t) for t in (0, 0.07, 0.5, 1)]),
                           ("value", [Value(0), Value(0.001), Value(100)])):  # fmt: skip
        for policy in settings:
            at = policies[name]["settings"].index(str(policy))
            expected = tiny_router.route("abc def?", policy).target
            assert policies[name]["targets"][at] == expected
            assert policies[name]["reasons"][at] == policy.words
    assert policies["own"]["targets"] == [decision.target]


def test_each_setting_tells_the_means_that_it_comes_to(proxy, tiny_router):
    """Over the last queries and this one: what a budget or a quality of that size holds."""
    reader = proxy[1].state.engine._reader
    chooser, metrics = Chooser(tiny_router, None), Metrics()
    answered = Answered(tiny_router, metrics, None, False)
    page = Page(None, chooser, ServingConfig(), metrics, answered)
    queries = ["abc", "jjj + jjj", "aaa aaa" * 5, "abc def?"]
    for estimate in reader.estimate(queries[:-1]):
        answered.add(chooser.choose(estimate, tiny_router.policy), estimate.query)
    value = page._explained(reader.explain(queries[-1]))
    assert value["n_means"] == 4
    policies = {policy["name"]: policy for policy in value["policies"]}
    for policy in (Value(0.001), Tolerance(0.07)):
        shown = policies[policy.name]
        at, decisions = shown["settings"].index(str(policy)), tiny_router.route(queries, policy)
        for means, of in (("mean_costs", "costs"), ("mean_probabilities", "probabilities")):
            expected = np.mean([getattr(each, of)[each.target] for each in decisions])
            assert shown[means][at] == pytest.approx(expected, rel=1e-5)
    for means in ("mean_costs", "mean_probabilities"):
        assert np.diff(policies["value"][means]).min() >= 0 < np.ptp(policies["value"][means])


def test_without_a_layer_is_with_its_mean(proxy, tiny_router):
    """Also: of the only layer, nothing but means is left, whatever the query."""
    reader = proxy[1].state.engine._reader
    explanation = reader.explain("abc def?")
    assert explanation.layers == ((0, 1),)
    mean_1D = tiny_router.features.parts[0].mean_SD
    expected = tiny_router.predict(tiny_router.features.apply(mean_1D[None, None]))
    np.testing.assert_allclose(explanation.p_LM, expected, atol=1e-5)
    assert np.abs(explanation.p_LM[0] - explanation.estimate.p_M).max() > 1e-4


@pytest.mark.slow
def test_a_router_of_two_encoders_and_a_kernel_is_explained(
    tiny_encoder, tiny_encoder_folder, tiny_data, tmp_path
):
    other = Encoder.from_pretrained(tiny_encoder_folder, max_tokens=30)
    data = tiny_data.select(range(200))
    stores = [extract(encoder, data, tmp_path / f"{encoder.max_tokens}", poolings=("last", "mean"))
              for encoder in (tiny_encoder, other)]  # fmt: skip
    sites = [RecipeSite(0, 1, "mean", 4), RecipeSite(0, 1, "last", 4), RecipeSite(1, 3, "last", 4)]
    config = TrunkConfig(hidden=(8,), dropout=(0.0,), epochs=2, seeds=(1, 2), keep=2, kernel=True)
    router = fit_router(stores, data, Recipe.of_sites(sites), config)
    router.use_encoder([tiny_encoder, other])
    reader = Reader(router, 1)
    explanation = reader.explain("abc def?")
    assert explanation.layers == ((0, 1), (1, 3))
    expected = router.route("abc def?").probabilities
    np.testing.assert_allclose(explanation.estimate.p_M, list(expected.values()), atol=1e-5)
    states = reader._read(["abc def?"])[1]
    for row, (encoder, layer) in enumerate(explanation.layers):
        changed = [h_1LPD.copy() for h_1LPD in states]
        read = router.features.selection(encoder)
        for part in router.features.parts:
            for s, site in enumerate(part.sites):
                if (part.encoder, site[0]) == (encoder, layer):
                    at = read.layers.index(layer), read.poolings.index(site[1])
                    changed[encoder][0][at] = part.mean_SD[s]
        p_1M = router.predict(router.features.apply(changed))
        np.testing.assert_allclose(explanation.p_LM[row], p_1M[0], atol=1e-5)
    # With a trust it is the query's own, whatever is changed.
    metric = Metric.fit(np.random.default_rng(0).normal(size=(90, 12)), np.arange(90) % 3)
    trust = Trust(np.full(3, 0.5, np.float32), metric, ((-9.0, 9.0), (1.0, 0.0)), 3, 0.9, 0.1)
    router.predictor = dataclasses.replace(router.predictor, trust=trust)
    drawn = reader.explain("abc def?")
    assert drawn.estimate.trust == pytest.approx(router.route("abc def?").trust, abs=1e-5)
    t_L = np.full(2, drawn.estimate.trust, np.float32)
    np.testing.assert_allclose(drawn.p_LM, trust.draw(explanation.p_LM, t_L), atol=1e-6)


def test_an_explanation_compiles_nothing(post, proxy):
    before = proxy[1].state.metrics.compiled_after_ready
    assert post("/v1/explain", {"query": "abc " * 9}).status_code == 200
    assert proxy[1].state.metrics.compiled_after_ready == before


def test_mistakes_are_told(post):
    for value, message in (({"query": ["a", "b"]}, "one query"), ({}, "messages")):
        answer = post("/v1/explain", value)
        assert answer.status_code == 400 and message in answer.json()["error"]["message"]


def test_the_last_requests_are_listed_without_their_texts(post, proxy):
    before = httpx.get(f"{proxy[0]}/v1/recent").json()["estimated_usd"]
    decision = post("/v1/route", {"query": "abc?"}).json()
    post("/v1/route", {"query": "abc?", "model": "dear"})
    value = httpx.get(f"{proxy[0]}/v1/recent").json()
    pinned, routed = value["requests"][:2]
    assert routed["request_id"] == decision["metadata"]["request_id"]
    assert routed["expected_cost"] == decision["expected_costs"][decision["target"]]
    assert routed["query"] is None
    assert (pinned["target"], pinned["probability"]) == ("dear", None)
    spent = value["estimated_usd"]["routed"] - before["routed"]
    assert spent == pytest.approx(routed["expected_cost"])


def test_the_page_loads_nothing_from_elsewhere(proxy):
    answer = httpx.get(proxy[0])
    assert answer.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert "http:" not in answer.text and "https:" not in answer.text


@pytest.fixture
def opened(tmp_path):
    if browser.PATH is None:
        pytest.skip("no chromium on this machine")
    opened = browser.Browser(tmp_path / "profile")
    yield opened
    opened.close()


@pytest.mark.slow
@pytest.mark.parametrize("width", [1200, 390])
def test_the_page_by_keys_alone(proxy, opened, post, tmp_path, width):
    """The pictures stay in $ROUTERJAX_PICTURES where that is set."""
    post("/v1/route", {"query": "What is 17 * 23?"})
    opened.open(f"{proxy[0]}/", width, 1600)
    opened.press("Tab")
    assert opened.run("document.activeElement.id") == "query"
    opened.write("abc def? <b>")
    opened.press("Enter", browser.CTRL)
    opened.until("!document.getElementById('result').hidden")
    focus = "document.activeElement.id"
    for _ in range(2):
        opened.press("Tab")
    assert opened.run(focus) == "policy"
    opened.press("Tab")
    assert opened.run(focus) == "setting"
    seen = set()
    for key in ["Home", *["ArrowRight"] * 100]:
        opened.press(key)
        words = opened.run("document.getElementById('choice').textContent")
        seen.add(words.partition(" answers")[0])
        chosen = opened.run("document.querySelector('tr.chosen th').textContent")
        assert words.startswith(chosen.removeprefix("➤\u00a0"))
    assert "cheap" in seen and words.endswith("cheapest within 1 of the best (tolerance:1)")
    assert len(seen) > 1, "the slider chooses between targets"
    for policy, unit in (("budget", "USD per 1000)"), ("quality", "%)")):
        opened.run(f"document.getElementById('policy').value = '{policy}'")
        opened.run("document.getElementById('policy').dispatchEvent(new Event('change'))")
        assert opened.run("document.getElementById('choice').textContent").endswith(unit)
    means = opened.run("document.getElementById('means').textContent")
    assert "that were read and this one: " in means
    assert opened.run("document.querySelectorAll('#layers tr').length") == 1
    opened.until("document.querySelectorAll('#requests tr').length > 0")
    assert opened.run("document.documentElement.scrollWidth") <= width
    pictures = pathlib.Path(os.environ.get("ROUTERJAX_PICTURES", tmp_path))
    opened.picture(pictures / f"page-{width}.png")
    assert not opened.troubles()


@pytest.mark.slow
def test_the_page_asks_for_the_token(start_app, opened):
    url, _ = start_app(ServingConfig(token="secret", max_batch=1))
    opened.open(url)
    opened.until("document.getElementById('error').textContent.includes('needs a token')")
    assert opened.run("document.getElementById('token-line').hidden") is False
    opened.run("document.getElementById('token').focus()")
    opened.write("secret")
    opened.press("Enter")
    opened.until("document.getElementById('spend').textContent === 'None yet.'")
