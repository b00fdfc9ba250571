"""Collecting from real servers on this machine: what is written, faults, limits, going on."""

import asyncio
import json
import pathlib
import subprocess
import sys
import time

import numpy as np
import pytest
from starlette.responses import JSONResponse, Response

from routerjax.data.readers import read_dataset
from routerjax.runtime import resume
from routerjax.targets.collect import CollectConfig, collect
from routerjax.targets.endpoints import Targets
from routerjax.targets.results import collect_lines

ROOT = pathlib.Path(__file__).parents[2]
PRICES = {"input_price": 2.0, "output_price": 10.0, "cached_input_price": 1.0,
          "parameters": {"max_tokens": 20}}  # fmt: skip
# What the stub's usage costs at PRICES.
USD = (6 * 2 + 4 * 1 + 5 * 10) / 1e6


def config(**fields):
    return CollectConfig(**{"graders": ("numeric",), "backoff_s": 0.01} | fields)


def answers(folder):
    return [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]


def test_outcomes_tokens_and_bills_are_read_back(stub, other, questions, tmp_path):
    other.answer = lambda text, times: "It is 3, I think."
    targets = Targets([
        stub.target("a", **PRICES, context_window=1000, modalities=["text"]),
        other.target("b", model="real-b"),
    ])  # fmt: skip
    summary = collect(questions(dataset="sums"), targets, tmp_path / "w", config())
    data = read_dataset(tmp_path / "w/outcomes.jsonl", tmp_path / "w/pool.json")
    assert data.ids == tuple(f"q{i}" for i in range(6)) and set(data.datasets) == {"sums"}
    np.testing.assert_array_equal(data.y_NM[:, 0], np.ones(6))
    np.testing.assert_array_equal(data.y_NM[:, 1], [0, 0, 0, 1, 0, 0])
    assert (data.input_tokens_NM == 10).all() and (data.output_tokens_NM == 5).all()
    assert (data.cached_input_tokens_NM == 4).all()
    np.testing.assert_allclose(data.costs_NM[:, 0], USD)
    assert np.isnan(data.costs_NM[:, 1]).all()
    np.testing.assert_array_equal(data.prices_M2[0], [2, 10])
    assert data.context_windows_M[0] == 1000 and data.modalities == (("text",), ())
    messages = [{"role": "user", "content": "Say 0"}]
    assert {"model": "a", "max_tokens": 20, "messages": messages} in stub.bodies
    assert other.bodies[0]["model"] == "real-b"
    first = answers(tmp_path / "w")[0]
    assert first["latency_s"] > 0 and first["grades"] == {"numeric": 1.0}
    assert first["answer"] == "The answer is 0" and first["cost"] == pytest.approx(USD)
    assert summary["targets"]["a"]["usd"] == pytest.approx(6 * USD) == summary["spent_usd"]
    assert json.loads((tmp_path / "w/collect.json").read_text()) == summary
    lines = collect_lines(summary)
    assert lines[1].split() == ["a", "6", "0", "0", "1.000", "60", "30", *lines[1].split()[-3:]]
    assert lines[2].split()[-1] == "?"


async def slowly(text):
    await asyncio.sleep(3)
    return text


@pytest.mark.parametrize(
    ("fault", "billed"),
    [
        (lambda: JSONResponse({}, 429, {"retry-after": "0.2"}), False),
        (lambda: JSONResponse({"error": {"message": "boom"}}, 500), False),
        (lambda: Response("Bad gateway", 502), True),
        (lambda: Response(b'{"choices": [', media_type="application/json"), True),
        (lambda: JSONResponse({"choices": []}), True),
        (lambda: JSONResponse({"error": {"message": "upstream"}}), True),
        (lambda: Response(b"{", headers={"content-length": "10"}), True),
        (lambda: slowly("late"), True),
    ],
    ids=["429", "500", "502", "malformed", "no choice", "error in 200", "broken off", "slow"],
)  # fmt: skip
def test_a_fault_is_tried_again(stub, questions, tmp_path, fault, billed, request):
    plain = stub.answer
    stub.answer = lambda text, times: fault() if times == 1 else plain(text, times)
    timeout_s = 1.0 if request.node.callspec.id == "slow" else 30.0
    settings = config(timeout_s=timeout_s)
    summary = collect(questions(1), Targets([stub.target(**PRICES)]), tmp_path / "w", settings)
    assert summary["targets"]["a"]["mean_score"] == 1 and stub.asked["Say 0"] == 2
    assert (summary["may_have_cost_usd"] > 0) == billed
    assert summary["spent_usd"] == pytest.approx(USD)
    waited = stub.at[1] - stub.at[0]
    assert waited >= (0.2 if request.node.callspec.id == "429" else 0.005)


def test_a_failed_call_is_missing_never_wrong(stub, other, questions, tmp_path):
    stub.answer = lambda text, times: (
        JSONResponse({"error": {"message": "too long"}}, 400) if text == "Say 2" else text
    )
    other.answer = lambda text, times: JSONResponse({}, 503)
    up = [stub.target("a"), other.target("b")]
    down = stub.target("down").model_copy(update={"base_url": "http://127.0.0.1:1/v1"})
    summary = collect(questions(4), Targets([*up, down]), tmp_path / "w", config(attempts=2))
    data = read_dataset(tmp_path / "w/outcomes.jsonl")
    assert data.targets == ("a",)
    np.testing.assert_array_equal(data.y_NM[:, 0], [1, 1, np.nan, 1])
    assert stub.asked["Say 2"] == 1 and other.asked["Say 2"] == 2
    assert summary["to_go"] == 1 + 4 + 4
    assert summary["targets"]["a"]["errors"] == {"status 400: too long": 1}
    assert "cannot be reached" in next(iter(summary["targets"]["down"]["errors"]))
    by_pair = {(row["id"], row["target"]): row for row in answers(tmp_path / "w")}
    assert by_pair["q2", "a"] == {"id": "q2", "target": "a", "error": "status 400: too long"}
    # The next run asks for what is missing and nothing else.
    stub.answer = other.answer = lambda text, times: text
    stub.asked.clear()
    again = collect(questions(4), Targets(up), tmp_path / "w", config())
    assert again["to_go"] == 0 and stub.asked == {"Say 2": 1}
    data = read_dataset(tmp_path / "w/outcomes.jsonl")
    assert data.targets == ("a", "b") and (data.y_NM == 1).all()


def test_a_target_that_fails_every_call_is_left_alone(stub, other, questions, tmp_path):
    stub.answer = lambda text, times: JSONResponse({"error": {"message": "no such key"}}, 401)
    other.answer = lambda text, times: JSONResponse({"error": "unknown parameter"}, 400)
    targets = Targets([stub.target("a"), other.target("b")])
    with pytest.raises(ValueError, match="no answer was graded: a: status 401: no such key; b: "):
        collect(questions(50), targets, tmp_path / "w", config(concurrency=1))
    assert sum(stub.asked.values()) == 1 and sum(other.asked.values()) == 10
    about = json.loads((tmp_path / "w/collect.json").read_text())["targets"]
    assert about["b"]["gave_up"].startswith("10 calls in a row failed: status 400: unknown")
    assert about["b"]["not_asked"] == 40
    # The next run begins with those that have not failed.
    other.answer = lambda text, times: text
    collect(questions(50), Targets([other.target("b")]), tmp_path / "w", config(concurrency=1))
    assert [body["messages"][0]["content"] for body in other.bodies[10:12]] == ["Say 10", "Say 11"]


def test_quota_and_long_waits_end_a_target_for_this_run(stub, other, questions, tmp_path):
    quota = {"error": {"message": "pay", "code": "insufficient_quota"}}
    stub.answer = lambda text, times: JSONResponse(quota, 429)
    other.answer = lambda text, times: Response("slower", 429, {"retry-after": "7200"})
    targets = Targets([stub.target("a"), other.target("b")])
    with pytest.raises(ValueError, match="no answer"):
        collect(questions(5), targets, tmp_path / "w", config(concurrency=1))
    assert sum(stub.asked.values()) == sum(other.asked.values()) == 1
    about = json.loads((tmp_path / "w/collect.json").read_text())["targets"]
    assert about["b"]["gave_up"] == "status 429: slower; it asks to wait for 7,200 s"


def test_limits_of_a_target_hold(stub, other, questions, tmp_path):
    async def answer(text, times):
        for _ in range(50):
            await asyncio.sleep(0.02)
            if stub.most >= 3:
                break
        return text

    stub.answer = answer
    targets = Targets([
        stub.target("a", max_concurrency=3),
        other.target("b", requests_per_minute=1200),
    ])  # fmt: skip
    collect(questions(12), targets, tmp_path / "w", config())
    assert stub.most == 3
    assert other.at[-1] - other.at[0] >= 0.35  # 11 times 0.05, if the first was not late.


def test_the_budget_is_never_passed_and_a_larger_one_goes_on(stub, questions, tmp_path):
    # At most 20 output tokens and as many input tokens as the request has bytes.
    targets = Targets([stub.target(**PRICES)])
    path, limit = questions(40), 30 * USD
    summary = collect(path, targets, tmp_path / "w", config(budget_usd=limit))
    answered = sum(stub.asked.values())
    assert summary["stopped"] == "budget" and answered * USD <= limit
    # Near its end fewer are in hand, so that little is left over.
    assert summary["spent_usd"] == pytest.approx(answered * USD) and answered >= 15
    assert "Raise --budget_usd" in collect_lines(summary)[-1]
    same = collect(path, targets, tmp_path / "w", config(budget_usd=limit))
    assert same["to_go"] == summary["to_go"] and sum(stub.asked.values()) == answered
    more = collect(path, targets, tmp_path / "w", config(budget_usd=1.0))
    assert more["to_go"] == 0 and more["stopped"] is None
    assert max(stub.asked.values()) == 1 and len(stub.asked) == 40


def test_what_may_have_been_billed_counts_against_the_budget(stub, questions, tmp_path):
    stub.answer = lambda text, times: Response(b"not json")
    summary = collect(
        questions(40), Targets([stub.target(**PRICES)]), tmp_path / "w",
        config(budget_usd=0.01, attempts=1),
    )  # fmt: skip
    # Each cost at most (its bytes + 256) x 2 + 20 x 10 millionths: about 0.0009.
    assert summary["stopped"] == "budget" and summary["spent_usd"] == 0
    assert 0.009 < summary["may_have_cost_usd"] <= 0.01
    assert sum(stub.asked.values()) < 12


@pytest.mark.parametrize(
    "fields",
    [
        {"input_price": 1},
        {"output_price": 1, "parameters": {"max_tokens": 5}},
        {"input_price": 1, "output_price": 1},
    ],
)
def test_a_budget_needs_to_know_the_worst(stub, questions, tmp_path, fields):
    with pytest.raises(ValueError, match=r"budget_usd: what 'a' costs at most is not known"):
        collect(
            questions(), Targets([stub.target(**fields)]), tmp_path / "w", config(budget_usd=1.0)
        )


def test_sigterm_keeps_what_was_answered_and_asks_nothing_twice(
    stub, questions, tmp_path, monkeypatch
):
    async def answer(text, times):
        if len(stub.asked) == 5:
            resume._stop.set()
        await asyncio.sleep(0.05)
        return text

    stub.answer = answer
    targets, path = Targets([stub.target(**PRICES)]), questions(30)
    monkeypatch.setattr(resume, "_stop", type(resume._stop)())
    with pytest.raises(resume.Stopped, match=r"Stopped with \d+ of 30 calls to go"):
        collect(path, targets, tmp_path / "w", config(concurrency=4))
    answered = sum(stub.asked.values())
    assert 5 <= answered <= 12
    # Those in hand came to their end.
    data = read_dataset(tmp_path / "w/outcomes.jsonl")
    assert np.isfinite(data.y_NM).sum() == answered
    resume._stop.clear()
    stub.answer = lambda text, times: text
    summary = collect(path, targets, tmp_path / "w", config())
    assert summary["to_go"] == 0 and summary["may_have_cost_usd"] == 0
    assert max(stub.asked.values()) == 1 and len(stub.asked) == 30


def test_other_graders_and_new_targets_ask_nothing_again(stub, other, questions, tmp_path):
    path = questions(5)
    collect(path, Targets([stub.target("a")]), tmp_path / "w", config())
    targets = Targets([stub.target("a"), other.target("b")])
    summary = collect(path, targets, tmp_path / "w", config(graders=("exact", "numeric")))
    assert summary["targets"]["a"]["mean_score"] == 0  # "The answer is 3" is not "3".
    assert max(stub.asked.values()) == 1 and sum(other.asked.values()) == 5
    assert summary["agreement"] == [
        {"graders": ["exact", "numeric"], "n": 10, "agree": 0.0, "kappa": 0.0}
    ]
    # Another parameter is another question.
    targets = Targets([stub.target("a", parameters={"temperature": 0})])
    collect(path, targets, tmp_path / "w", config())
    assert set(stub.asked.values()) == {2}


def test_a_judge_grades_and_has_its_own_bill(stub, other, questions, tmp_path):
    # It sees question, reference and answer, and is asked once for equal ones.
    other.answer = lambda text, times: f"Fine.\n**Score: {int('is 3' in text)}**"
    targets = Targets([stub.target("a"), stub.target("b")])
    settings = config(
        graders=("judge", "numeric"),
        judge=other.target("j", max_concurrency=1, **PRICES),
        rubric="Only 3 is right.",
    )
    summary = collect(questions(4, grader="judge,numeric"), targets, tmp_path / "w", settings)
    assert len(other.asked) == 4 == sum(other.asked.values()) and other.most == 1
    prompt = next(text for text in other.asked if "answer is 3" in text)
    assert prompt.startswith("Only 3 is right.") and "\nSay 3\n" in prompt and "\n3\n" in prompt
    assert summary["targets"]["a"]["mean_score"] == 0.25
    assert summary["judge"]["answers"] == 4
    assert summary["judge"]["usd"] == pytest.approx(4 * USD) == summary["spent_usd"]
    assert summary["agreement"][0] == {
        "graders": ["judge", "numeric"], "n": 8, "agree": 0.25, "kappa": 0.0}  # fmt: skip
    assert "judge j: 4 verdicts" in "\n".join(collect_lines(summary))


def test_it_runs_where_a_loop_of_events_does_and_reads_any_text(stub, other, questions, tmp_path):
    stub.answer = lambda text, times: Response(
        b'{"choices": [{"message": {"content": "half \\ud83d of 3"}}]}'
    )
    other.answer = lambda text, times: "Score: 0.5"

    async def notebook():
        settings = config(graders=("judge",), judge=other.target("j"))
        return collect(questions(2), Targets([stub.target("a")]), tmp_path / "w", settings)

    summary = asyncio.run(notebook())
    assert summary["targets"]["a"]["mean_score"] == 0.5
    assert answers(tmp_path / "w")[0]["answer"] == "half ? of 3"
    assert summary["targets"]["a"]["usd_unknown"] == 2  # It tells no tokens.


def test_a_target_is_not_asked_what_it_does_not_take(stub, other, tmp_path, caplog):
    other.answer = stub.answer = lambda text, times: "3"
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
    content = [{"type": "text", "text": "How many?"}, picture]
    rows = [{"id": "p", "messages": [{"role": "user", "content": content}], "answer": 3},
            {"id": "t", "query": "1 + 2", "answer": 3, "dataset": "sums"}]  # fmt: skip
    (tmp_path / "q").write_text("".join(json.dumps(row) + "\n" for row in rows))
    targets = Targets([
        stub.target("a", modalities=["text"]), other.target("b", modalities=["text", "image"]),
    ])  # fmt: skip
    summary = collect(tmp_path / "q", targets, tmp_path / "w", config())
    assert [body["messages"][0]["content"] for body in stub.bodies] == ["1 + 2"]
    assert content in [body["messages"][0]["content"] for body in other.bodies]
    assert summary["to_go"] == 0 and summary["targets"]["a"]["cannot_take"] == 1
    assert answers(tmp_path / "w")[0] == {"id": "p", "target": "a", "error": "takes no image"}
    data = read_dataset(tmp_path / "w/outcomes.jsonl")
    np.testing.assert_array_equal(data.y_NM, [[np.nan, 1], [1, 1]])
    assert data.datasets is None
    assert "datasets are left out: 1 of 2 rows name none" in caplog.text
    # A picture has as many tokens as fit a window: without one no budget can be kept.
    priced = Targets([other.target("b", **PRICES)])
    with pytest.raises(ValueError, match="and context_window for queries with more than text"):
        collect(tmp_path / "q", priced, tmp_path / "w2", config(budget_usd=1.0))


def test_one_process_at_a_time(stub, questions, tmp_path):
    from routerjax.targets.journal import Journal

    (tmp_path / "w").mkdir()
    held = Journal(tmp_path / "w/journal.jsonl")
    with pytest.raises(ValueError, match="another process is collecting into it"):
        collect(questions(), Targets([stub.target()]), tmp_path / "w", config())
    held.close()
    collect(questions(), Targets([stub.target()]), tmp_path / "w", config())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"graders": ("judge",)}, "the grader judge needs a model"),
        ({"graders": ("code",)}, "runs what targets wrote, which is off"),
        ({"graders": ("code",), "code_command": "no_such_program x"}, "that is installed"),
        ({"graders": ()}, r"queries.jsonl:1: the row names no grader"),
        ({"graders": ("numerical",)}, "grader: expected some of exact, .*got 'numerical'"),
    ],
)
def test_what_cannot_be_graded_is_told_before_anything_is_asked(
    stub, questions, tmp_path, fields, message
):
    with pytest.raises(ValueError, match=message):
        collect(questions(), Targets([stub.target()]), tmp_path / "w", config(**fields))
    assert not stub.asked
    with pytest.raises(ValueError, match="'a': parameters: leave 'stream' out"):
        streams = stub.target(parameters={"stream": True})
        collect(questions(), Targets([streams]), tmp_path / "w", config())


@pytest.mark.slow
def test_killed_twice_it_asks_nothing_again_that_was_answered(stub, questions, tmp_path):
    async def answer(text, times):
        await asyncio.sleep(0.02)
        return text

    stub.answer = answer
    path, journal = questions(80), tmp_path / "w/journal.jsonl"
    (tmp_path / "t.json").write_text(json.dumps(
        {"targets": [{"name": "a", "base_url": stub.url} | PRICES]}))  # fmt: skip
    command = [sys.executable, "-m", "experiments.collect", f"--workdir={tmp_path}/w",
               f"--data={path}", f"--targets={tmp_path}/t.json", "--grader=numeric",
               "--concurrency=4"]  # fmt: skip

    def answered():
        lines = journal.read_text().splitlines() if journal.exists() else []
        return {line for line in lines if '"answered"' in line and line.endswith("}")}

    for least in (10, 40):
        job = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
        while len(answered()) < least:
            assert job.poll() is None
            time.sleep(0.01)
        job.kill()
        job.wait()
    kept = {json.loads(line)["id"] for line in answered()}
    once = {text: times for text, times in stub.asked.items() if f"q{text.split()[-1]}" in kept}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert {text: stub.asked[text] for text in once} == once
    # Only what was in hand at a kill was asked again.
    assert len(stub.asked) == 80 and sum(stub.asked.values()) <= 80 + 2 * 4
    assert (read_dataset(tmp_path / "w/outcomes.jsonl").y_NM == 1).all()
    about = json.loads((tmp_path / "w/collect.json").read_text())
    assert about["spent_usd"] == pytest.approx(80 * USD)
    # What was written down and never answered may have cost money, whether or not it was sent
    # before the kill; every request beyond the 80 is one of these.
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    ended = {line["call"] for line in lines if line["event"] == "answered"}
    lost = {line["call"]: line["usd"] for line in lines if line["event"] == "asked"}
    lost = {call: usd for call, usd in lost.items() if call not in ended}
    assert sum(stub.asked.values()) - 80 <= len(lost) <= 2 * 4
    assert about["may_have_cost_usd"] == pytest.approx(sum(lost.values()))
