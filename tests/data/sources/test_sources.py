"""What each tool writes, in its real layout, with the traps of each."""

import json
import zipfile

import numpy as np
import pytest

from routerjax.data.readers import read_dataset

NAN = np.nan
DATE, LATER = "2026-01-02T03-04-05.678901", "2026-02-02T03-04-05.678901"


def _write(path, *values, lines=True):
    path.parent.mkdir(parents=True, exist_ok=True)
    end = "\n" if lines else ""
    path.write_text(
        "".join(json.dumps(value, indent=None if lines else 1) + end for value in values)
    )
    return path


# ---- lm-evaluation-harness


def _sample(i, score, **changes):
    """As the harness 0.4.13 writes it."""
    return {
        "doc_id": i, "doc": {"question": f"{i}+{i}?"}, "target": str(2 * i),
        "arguments": {"gen_args_0": {"arg_0": f"Q: {i}+{i}? A:", "arg_1": {"until": ["\n"]}}},
        "resps": [["lol"]], "filtered_resps": ["lol"], "filter": "none",
        "metrics": ["exact_match"], "doc_hash": f"{i}" * 64, "prompt_hash": "p", "target_hash": "t",
        "exact_match": score,
    } | changes  # fmt: skip


@pytest.fixture
def harness(tmp_path):
    """Writes samples of a model and a task into out/."""

    def written(*samples, model="org__m", task="toy", date=DATE, results=None):
        folder = tmp_path / "out" / model
        _write(folder / f"samples_{task}_{date}.jsonl", *samples)
        if results is not None:
            _write(folder / f"results_{date}.json", results, lines=False)
        return tmp_path / "out"

    return written


def test_lm_eval_joins_models_and_tasks(harness):
    harness(_sample(1, 1.0), _sample(2, 0.0), model="org__a")
    harness(_sample(2, 1.0), _sample(1, NAN), model="org__b")
    data = read_dataset(harness(_sample(1, 0.5), model="org__b", task="other_task"))
    data = data.select(
        ["toy/1111111111111111", "toy/2222222222222222", "other_task/1111111111111111"]
    )
    assert data.targets == ("org/a", "org/b")
    assert data.datasets == ("toy", "toy", "other_task")
    np.testing.assert_array_equal(data.y_NM, [[1, NAN], [0, 1], [NAN, 0.5]])
    assert data.queries[0] == data.queries[2] and data.groups[0] == data.groups[2]


@pytest.mark.parametrize(
    ("results", "name"),
    [
        ({"config": {"model": "hf", "model_args": "pretrained=org/x,dtype=float16"}}, "org/x"),
        ({"config": {"model": "vllm", "model_args": {"pretrained": "org/y"}}}, "org/y"),
        ({"config": {"model": "dummy", "model_args": {}}, "model_name": "named"}, "named"),
        ({"config": {}}, "org/m"),
        (None, "org/m"),
    ],
)
def test_lm_eval_names_the_model_by_its_results(harness, results, name):
    assert read_dataset(harness(_sample(1, 1.0), results=results)).targets == (name,)


def test_lm_eval_reads_one_filter_and_one_metric(harness, caplog):
    folder = harness(
        _sample(1, 1.0, filter="strict-match", metrics=["f1", "exact_match"], f1=0.2),
        _sample(1, 0.0, filter="flexible-extract", metrics=["f1", "exact_match"], f1=0.3),
    )
    data = read_dataset(folder)
    assert data.y_NM.tolist() == [[1]] and data.runs_NM is None
    assert "filter 'strict-match' is read, not flexible-extract" in caplog.text
    assert "metric 'exact_match' is read, not f1" in caplog.text


def test_lm_eval_reads_the_metric_and_the_filter_that_are_named(harness, caplog):
    folder = harness(
        _sample(1, 1.0, filter="strict-match", metrics=["f1", "exact_match"], f1=0.25),
        _sample(1, 0.0, filter="flexible-extract", metrics=["f1", "exact_match"], f1=0.5),
    )
    names = ("f1", "f1,flexible-extract", "exact_match,flexible-extract")
    read = {name: read_dataset(folder, metric=name).y_NM.item() for name in names}
    assert read == {"f1": 0.25, "f1,flexible-extract": 0.5, "exact_match,flexible-extract": 0}
    assert caplog.text.count("is read, not") == 1  # "f1" leaves the filter open.
    with pytest.raises(ValueError, match="no 'acc', there are f1, exact_match"):
        read_dataset(folder, metric="acc")
    with pytest.raises(ValueError, match="no filter 'none', there are strict-match, flexible-ext"):
        read_dataset(folder, metric="f1,none")


def _group(folder, model, seed):
    """A group of three tasks as lm-eval 0.4.13 writes it: samples, and its own means beside."""
    rng, results = np.random.default_rng(seed), {}
    for task, filters, names in (
        ("choices", ("none",), ("acc", "acc_norm")),
        ("texts", ("none",), ("exact_match",)),
        ("filtered", ("strict-match", "flexible-extract"), ("bleu", "exact_match")),
    ):
        lines, about = [], {"name": task, "alias": task, "sample_len": 9}
        for name in filters:
            score_9M = rng.integers(0, 2, (9, len(names))) * 1.0
            for i, scores in enumerate(score_9M):
                changes = {"metrics": list(names), **dict(zip(names, scores, strict=True))}
                if "exact_match" not in names:
                    options = {f"gen_args_{k}": {"arg_0": f"Q: {i}?", "arg_1": f" {text}"}
                               for k, text in enumerate(("yes", "no"))}  # fmt: skip
                    changes |= {"arguments": options, "target": "0", "exact_match": None,
                                "resps": [[["-0.2", "False"]], [["-0.9", "False"]]]}  # fmt: skip
                if "bleu" in names:
                    changes |= {"bleu": ["a", "lol"], "resps": [["lol", "lol", "lol"]]}
                lines.append(_sample(i, None, filter=name) | changes)
            means = zip(names, score_9M.mean(axis=0).tolist(), strict=True)
            about |= {f"{metric},{name}": mean for metric, mean in means}
        _write(folder / f"samples_{task}_{DATE}.jsonl", *lines)
        results[task] = about
    value = {"results": results | {"group": {"alias": "group", "acc,none": 0.5}},
             "config": {"model": "dummy", "model_args": {"pretrained": model}},
             "model_source": "dummy", "model_name": model}  # fmt: skip
    _write(folder / f"results_{DATE}.json", value, lines=False)
    return results


@pytest.mark.parametrize(
    ("metric", "keys"),
    [
        (None, ("acc,none", "exact_match,none", "exact_match,strict-match")),
        ("acc_norm", ("acc_norm,none", "exact_match,none", "exact_match,strict-match")),
        ("exact_match,flexible-extract",
         ("acc,none", "exact_match,none", "exact_match,flexible-extract")),
    ],
)  # fmt: skip
def test_lm_eval_groups_have_the_accuracies_that_the_harness_counts(tmp_path, caplog, metric, keys):
    own = {model: _group(tmp_path / model.replace("/", "__"), model, seed)
           for seed, model in enumerate(("org/a", "org/b"))}  # fmt: skip
    data = read_dataset(tmp_path, metric=metric)
    assert data.targets == ("org/a", "org/b") and len(data) == 27
    for m, results in enumerate(own.values()):
        for task, key in zip(("choices", "texts", "filtered"), keys, strict=True):
            rows = [name == task for name in data.datasets]
            assert data.y_NM[rows, m].mean() == pytest.approx(results[task][key])
    assert "choices" in caplog.text and "the options that were scored are not in" in caplog.text
    assert ("is read by another score" in caplog.text) == (metric is not None)
    with pytest.raises(ValueError, match="there is no 'f1', there are acc"):
        read_dataset(tmp_path, metric="f1")


def test_lm_eval_of_several_models_in_one_folder(tmp_path):
    """As `--output_path a.json` and `--output_path b.json` leave them."""
    for name, date, model in (("a", DATE, "org/a"), ("b", LATER, "")):
        _write(tmp_path / f"samples_toy_{date}.jsonl", _sample(1, float(name == "a")))
        results = {"config": {"model": "dummy", "model_args": {}}, "model_name": model}
        _write(tmp_path / f"{name}_{date}.json", results, lines=False)
    data = read_dataset(tmp_path)
    assert data.targets == ("org/a", "dummy") and data.y_NM.tolist() == [[1, 0]]


def test_lm_eval_reads_the_newest_date_and_single_files(harness, caplog):
    harness(_sample(1, 0.0))
    folder = harness(_sample(1, 1.0), date=LATER)
    assert read_dataset(folder).y_NM.tolist() == [[1]]
    assert "files of an older date, left out: 1" in caplog.text
    single = folder / "org__m" / f"samples_toy_{DATE}.jsonl"
    assert read_dataset(single).y_NM.tolist() == [[0]]


def test_lm_eval_of_equal_documents_and_older_arguments(harness):
    data = read_dataset(harness(
        _sample(1, 1.0), _sample(2, 0.0, doc_hash="1" * 64, arguments=[["Q: 1+1? A:", {}]])
    ))  # fmt: skip
    assert data.y_NM.tolist() == [[1], [0]] and len(set(data.groups)) == 1


def test_lm_eval_prompts_of_chats_are_conversations(harness):
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+2?"}]
    arguments = {"gen_args_0": {"arg_0": [json.dumps(turns)], "arg_1": {}}}
    (query,) = read_dataset(harness(_sample(1, 1.0, arguments=arguments))).queries
    assert query.turns == (("system", "Be brief."), ("user", "2+2?"))


# ---- inspect_ai


def _log(model="openai/gpt-x", task="toy", **header):
    return {"version": 2, "status": "success", "eval": {"model": model, "task": task} | header}


def _answer(name, value, epoch=1, **changes):
    usage = {"openai/gpt-x": {"input_tokens": 7, "output_tokens": 3, "total_tokens": 12,
                              "input_tokens_cache_read": 2, "total_cost": 0.25}}  # fmt: skip
    return {
        "id": name, "epoch": epoch, "input": f"What is {name}?", "target": "2",
        "scores": {"includes": {"value": value, "answer": "2"}, "match": {"value": "I"}},
        "model_usage": usage,
    } | changes  # fmt: skip


def test_inspect_averages_epochs_and_reads_letters(tmp_path, caplog):
    samples = [_answer(1, "C"), _answer("b", "P"), _answer(3, "N"), _answer(4, 0.75),
               _answer(1, "I", 2), _answer(5, NAN), _answer(6, "C", error="timeout")]  # fmt: skip
    data = read_dataset(_write(tmp_path / "x.json", _log() | {"samples": samples}, lines=False))
    assert data.ids == ("toy/1", "toy/b", "toy/3", "toy/4", "toy/5", "toy/6")
    np.testing.assert_array_equal(data.y_NM[:, 0], [0.5, 0.5, 0, 0.75, NAN, NAN])
    assert data.runs_NM[:, 0].tolist() == [2, 1, 1, 1, 0, 0]
    assert data.input_tokens_NM[0, 0] == 9 and data.cached_input_tokens_NM[0, 0] == 2
    assert data.output_tokens_NM[0, 0] == 3 and data.costs_NM[0, 0] == 0.25
    assert "scorer 'includes' is read, not match" in caplog.text
    assert "samples that ended in an error, no outcome: 1" in caplog.text


def test_inspect_names_scores_that_are_no_outcome(tmp_path, caplog):
    samples = [_answer(1, "C"), _answer(2, "correct"), _answer(3, {"acc": 1}), _answer(4, NAN)]
    data = read_dataset(_write(tmp_path / "x.json", _log() | {"samples": samples}, lines=False))
    np.testing.assert_array_equal(data.y_NM, [[1], [NAN], [NAN], [NAN]])
    assert "neither a number nor C, P, I or N, no outcome: 'correct', {'acc': 1}" in caplog.text


def test_inspect_reads_the_scorer_that_is_named(tmp_path, caplog):
    samples = [_answer(1, "C"), _answer(2, "C", error="timeout", scores={})]
    path = _write(tmp_path / "x.json", _log() | {"samples": samples}, lines=False)
    np.testing.assert_array_equal(read_dataset(path, metric="match").y_NM, [[0], [NAN]])
    assert "is read, not" not in caplog.text
    with pytest.raises(ValueError, match=r"samples\[0\]: metric: .* there are includes, match"):
        read_dataset(path, metric="judge")


@pytest.mark.parametrize("layout", ["json", "eval", "eval before choices were in summaries"])
def test_inspect_reads_logs_of_several_tasks(tmp_path, caplog, layout):
    """As inspect_ai 0.3.285 wrote them with mockllm: a choice, and a task of two scorers."""
    choice = {"choice": {"value": "C", "answer": "A", "explanation": "ANSWER: A", "history": []}}
    picked = [_answer(i, "C", input="Which is true?", choices=[f"{i}", "x"], scores=choice)
              for i in range(2)]  # fmt: skip
    for task, samples in (("picks", picked), ("sums", [_answer(1, "C"), _answer("s/2", "I")])):
        header = _log(task=task)
        if layout == "json":
            _write(tmp_path / f"{task}.json", header | {"samples": samples}, lines=False)
            continue
        drop = {"choices"} if "before" in layout else set()
        summaries = [{k: v for k, v in each.items() if k not in drop} for each in samples]
        with zipfile.ZipFile(tmp_path / f"{task}.eval", "w") as archive:
            archive.writestr("header.json", json.dumps(header))
            archive.writestr("summaries.json", json.dumps(summaries))
            for each in samples:
                archive.writestr(f"samples/{each['id']}_epoch_1.json", json.dumps(each))
    data = read_dataset(tmp_path)
    assert data.ids == ("picks/0", "picks/1", "sums/1", "sums/s/2")
    assert data.queries[:2] == ("Which is true?\n\nA) 0\nB) x", "Which is true?\n\nA) 1\nB) x")
    assert data.y_NM.tolist() == [[1], [1], [1], [0]]
    assert "scorer 'includes' is read, not match" in caplog.text
    assert read_dataset(tmp_path, metric="match").y_NM.tolist() == [[1], [1], [0], [0]]
    assert "what has no 'match' is read by another score" in caplog.text
    with pytest.raises(ValueError, match="no scorer 'judge', there are choice"):
        read_dataset(tmp_path, metric="judge")


def test_a_metric_is_of_sources_that_have_several(tmp_path):
    path = _write(tmp_path / "x.json", _log() | {"samples": [_answer(1, "C")]}, lines=False)
    more = tmp_path / "more.jsonl"
    more.write_text('{"id": "toy/1", "correct": {"b": 1}}\n')
    data = read_dataset([path, more], metric="match")
    assert data.y_NM.tolist() == [[0, 1]]
    with pytest.raises(ValueError, match="metric: .* one score each.*lm_eval and inspect_ai"):
        read_dataset(more, metric="match")


def test_inspect_counts_tokens_of_the_model_alone(tmp_path):
    usage = {"openai/grader": {"input_tokens": 99, "output_tokens": 99},
             "openai/gpt-x": {"input_tokens": 7, "output_tokens": 3}}  # fmt: skip
    samples = [_answer(1, "C", model_usage=usage)]
    data = read_dataset(_write(tmp_path / "x.json", _log() | {"samples": samples}, lines=False))
    assert data.output_tokens_NM.tolist() == [[3]] and data.costs_NM is None


@pytest.mark.parametrize("finished", [True, False])
def test_inspect_archives_are_read_whole(tmp_path, finished):
    """Summaries cut long texts and drop what is no text: those samples are read themselves."""
    cut = "x " * 20 + "...\n(content truncated)..."
    turns = [{"id": "r1", "role": "system", "content": "Be brief."},
             {"id": "r2", "role": "user",
              "content": [{"type": "text", "text": "2+2?"},
                          {"type": "image", "image": "data:,"}]}]  # fmt: skip
    thinned = [turns[0], turns[1] | {"content": [{"type": "text", "text": "2+2?"}]}]
    summaries = [_answer(1, "C"), _answer("b", "I", input=thinned), _answer(3, "C", input=cut)]
    path = tmp_path / "x.eval"
    with zipfile.ZipFile(path, "w") as archive:
        if finished:
            archive.writestr("header.json", json.dumps(_log()))
            archive.writestr("summaries.json", json.dumps(summaries))
        else:
            archive.writestr("_journal/start.json", json.dumps(_log()))
            for i, summary in enumerate(summaries, 9):
                archive.writestr(f"_journal/summaries/{i}.json", json.dumps([summary]))
        archive.writestr("samples/b_epoch_1.json", json.dumps(_answer("b", "I", input=turns)))
        archive.writestr("samples/3_epoch_1.json", json.dumps(_answer(3, "C", input="x " * 6000)))
    data = read_dataset(path)
    assert data.ids == ("toy/1", "toy/b", "toy/3") and data.y_NM.tolist() == [[1], [0], [1]]
    assert data.queries[1].modalities == ("image",) and data.queries[1].turns[0][0] == "system"
    assert len(data.queries[2]) == 12000


# ---- LLMRouterBench


def _records(*scores, **more):
    records = [
        {"index": i, "origin_query": f"q{i}?", "prompt": f"Answer: q{i}?", "prediction": "a",
         "ground_truth": "a", "score": score, "prompt_tokens": 10 + i, "completion_tokens": 5,
         "cost": 0.001, "raw_output": "a"}
        for i, score in enumerate(scores)
    ]  # fmt: skip
    return {
        "performance": 0.5,
        "time_taken": 1.0,
        "counts": len(records),
        "records": records,
    } | more


def test_llmrouterbench_folders(tmp_path, caplog):
    bench = tmp_path / "results" / "bench"
    _write(bench / "gsm8k/test/model-a/20250101_000000.json", _records(0, 0), lines=False)
    _write(bench / "gsm8k/test/model-a/20250202_000000.json", _records(1, 0), lines=False)
    _write(bench / "gsm8k/test/model-b/20250101_000000.json", _records(1.0, 0.5, 1), lines=False)
    _write(bench / "mmlu/test/model-b/20250101_000000.json", _records(0), lines=True)
    data = read_dataset(tmp_path / "results")
    assert data.ids == ("gsm8k/test/0", "gsm8k/test/1", "gsm8k/test/2", "mmlu/test/0")
    assert data.targets == ("model-a", "model-b")
    np.testing.assert_array_equal(data.y_NM, [[1, 1], [0, 0.5], [NAN, 1], [NAN, 0]])
    assert data.input_tokens_NM[0].tolist() == [10, 10] and data.costs_NM[0, 0] == 0.001
    assert data.queries[0] == "q0?" and data.groups[0] == data.groups[3]
    assert "files of an older time, left out: 1" in caplog.text
    only = read_dataset(tmp_path / "results", targets=("model-b",))
    assert only.targets == ("model-b",)
    assert "targets that are left out: 'model-a'" in caplog.text


# ---- tables


def test_routerbench_tables(tmp_path, caplog):
    (tmp_path / "x.csv").write_text(
        "sample_id,prompt,eval_name,m/a,m/b,m/a|model_response,m/b|model_response,"
        "m/a|total_cost,m/b|total_cost,oracle_model_to_route_to\n"
        'mmlu.1,"[\'q?\']",mmlu,0.0,1.0,no,"yes, it is",0.0001,0.002,m/b\n'
        "gsm.1,r?,gsm,0.25,,no,,0.0002,,no_model_correct\n"
    )
    data = read_dataset(tmp_path / "x.csv")
    assert data.ids == ("mmlu.1", "gsm.1") and data.targets == ("m/a", "m/b")
    np.testing.assert_array_equal(data.y_NM, [[0, 1], [0.25, NAN]])
    np.testing.assert_array_equal(data.costs_NM, [[0.0001, 0.002], [0.0002, NAN]])
    assert data.datasets == ("mmlu", "gsm") and not caplog.records


def test_embedllm(tmp_path):
    (tmp_path / "test.csv").write_text(
        "prompt_id,model_id,prompt,label,category,model_name\n"
        "7,0,q?,1,mmlu,org/a\n7,1,q?,0,mmlu,org/b\n8,0,q?,0,mmlu,org/a\n"
    )
    data = read_dataset(tmp_path / "test.csv")
    assert data.ids == ("7", "8") and data.targets == ("org/a", "org/b")
    np.testing.assert_array_equal(data.y_NM, [[1, 0], [0, NAN]])
    assert len(set(data.groups)) == 1


def test_routellm(tmp_path):
    (tmp_path / "x.csv").write_text(
        ",prompt,gpt-4-1106-preview,mistralai/Mixtral-8x7B-Instruct-v0.1\n"
        "0,q?,True,False\n1,r?,False,False\n"
    )
    data = read_dataset(tmp_path / "x.csv")
    assert data.targets == ("gpt-4-1106-preview", "mistralai/Mixtral-8x7B-Instruct-v0.1")
    assert data.y_NM.tolist() == [[1, 0], [0, 0]]


def test_llmrouters_lines(tmp_path):
    rows = [{"query": q, "task_name": "gsm8k", "ground_truth": "1", "metric": "em",
             "model_name": m, "response": "r", "performance": y, "response_time": 0.1,
             "token_num": 12, "input_tokens": 10, "output_tokens": 2}
            for q, m, y in (("q?", "a", 1), ("q?", "b", 0.5), ("r?", "b", 0))]  # fmt: skip
    data = read_dataset(_write(tmp_path / "x.jsonl", *rows))
    np.testing.assert_array_equal(data.y_NM, [[1, 0.5], [NAN, 0]])
    assert data.datasets == ("gsm8k", "gsm8k") and data.input_tokens_NM[0, 0] == 10


def test_a_table_may_hold_conversations(tmp_path):
    import pyarrow
    import pyarrow.parquet

    turns = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    table = pyarrow.table({"id": ["1"], "messages": [turns], "a": [1.0]})
    pyarrow.parquet.write_table(table, tmp_path / "x.parquet")
    (query,) = read_dataset(tmp_path / "x.parquet").queries
    assert query.turns == (("system", "s"), ("user", "u"))


def test_the_nvidia_toolkits_csv(tmp_path):
    (tmp_path / "x.csv").write_text(
        "question,model,isCorrect,output_tokens\nq?,a,True,212.0\nq?,b,False,\n"
    )
    data = read_dataset(tmp_path / "x.csv")
    assert data.y_NM.tolist() == [[1, 0]] and data.output_tokens_NM[0, 0] == 212


# ---- no texts: joined by id

TASKS = [{"id": f"org__repo-{i}", "query": f"Fix bug {i}."} for i in range(5)]


def test_swe_bench_reports(tmp_path, caplog):
    queries = _write(tmp_path / "q.jsonl", *TASKS)
    ids = [task["id"] for task in TASKS]
    run = {"total_instances": 5, "resolved_ids": ids[:1], "unresolved_ids": ids[1:2],
           "empty_patch_ids": ids[2:3], "error_ids": ids[3:4], "schema_version": 2}  # fmt: skip
    report = _write(tmp_path / "reports/org__model-v1.5.run1.json", run, lines=False)
    for name, resolved in ((ids[0], False), (ids[4], True)):
        about = {"patch_is_None": False, "patch_exists": True, "resolved": resolved}
        _write(tmp_path / "logs/other" / name / "report.json", {name: about}, lines=False)
    data = read_dataset([report, queries, tmp_path / "logs"])
    assert data.targets == ("org/model-v1.5", "other")
    np.testing.assert_array_equal(
        data.select(ids).y_NM, [[1, 0], [0, NAN], [0, NAN], [NAN, NAN], [NAN, 1]]
    )
    assert "instances that ended in an error, no outcome: 1" in caplog.text
    with pytest.raises(ValueError, match="no texts of queries: give the file that has them too"):
        read_dataset(report)


def test_batch_outputs_tell_tokens(tmp_path, caplog):
    queries = _write(
        tmp_path / "q.jsonl", *(task | {"correct": {"gpt-x": 1, "gpt-y": 0}} for task in TASKS)
    )
    ids = [task["id"] for task in TASKS]

    def line(name, model, usage, **more):
        body = {"id": "r", "model": model, "choices": [], "usage": usage}
        response = {"status_code": 200, "request_id": "r", "body": body}
        return {"id": "b", "custom_id": name, "response": response, "error": None} | more

    chat = {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120,
            "prompt_tokens_details": {"cached_tokens": 64}}  # fmt: skip
    respond = {"input_tokens": 30, "output_tokens": 4, "input_tokens_details": {"cached_tokens": 0}}
    batch = _write(
        tmp_path / "out.jsonl", line(ids[0], "gpt-x", chat), line(ids[1], "gpt-y", respond),
        line(ids[2], "gpt-x", None, response=None, error={"code": "batch_expired"}),
    )  # fmt: skip
    data = read_dataset([queries, batch])
    np.testing.assert_array_equal(data.input_tokens_NM[:2], [[100, NAN], [NAN, 30]])
    np.testing.assert_array_equal(data.cached_input_tokens_NM[:2], [[64, NAN], [NAN, 0]])
    np.testing.assert_array_equal(data.output_tokens_NM[:2], [[20, NAN], [NAN, 4]])
    assert "calls that failed, left out: 1" in caplog.text


# ---- refusals: (file, content, start of the error behind the path, reason)

REFUSED = {
    "lm_eval: a broken line": (
        "samples_t.jsonl", json.dumps(_sample(1, 1.0)) + '\n{"doc_id"', ":2: ", "not valid JSON"),
    "lm_eval: out of range": (
        "samples_t.jsonl", "\n".join(json.dumps(_sample(i, float(i))) for i in (1, 2)), ":2: ",
        r"correct\['.*'\]: expected a number in \[0, 1\].*got 2.0"),
    "lm_eval: no outcome": (
        "samples_t.jsonl", json.dumps(_sample(1, 1.0, metrics=["ppl"], ppl=3.0)), ":1: ",
        r"no metric with a value in \[0, 1\] among \['ppl'\]"),
    "lm_eval: no prompt": (
        "samples_t.jsonl", json.dumps(_sample(1, 1.0, arguments={})), ":1: ", "expected a prompt"),
    "inspect: no id": (
        "x.json", json.dumps(_log() | {"samples": [{"input": "q?"}]}), " samples[0]: ",
        "expected a sample with an id"),
    "inspect: out of range": (
        "x.json", json.dumps(_log() | {"samples": [_answer(1, 7)]}), " samples[0]: ", "got 7"),
    "llmrouterbench: out of range": (
        "x.json", json.dumps(_records(0, 3)), " records[1]: ", "got 3"),
    "llmrouterbench: no query": (
        "x.json", json.dumps({"records": [{"index": 0, "score": 1}]}), " records[0]: ",
        "query: expected a text"),
    "embedllm: a label": (
        "x.csv", "prompt,model_name,label\nq?,a,1\nq?,b,yes\n", ":3: ", "label: .*got 'yes'"),
    "routerbench: a score": (
        "x.csv", "sample_id,prompt,eval_name,a\n1,q?,d,1\n2,r?,d,7\n", ":3: ", "a: .*got '7'"),
    "routerbench: a cost": (
        "x.csv", "sample_id,prompt,eval_name,a,a|total_cost\n1,q?,d,1,-1\n", ":2: ",
        "total_cost: expected USD >= 0, got '-1'"),
    "routellm: a number": ("x.csv", "prompt,a\nq?,7\n", ":1: ", "expected the columns"),
    "routellm: a word": (
        "x.csv", "prompt,a\nq?,True\nr?,maybe\n", ":3: ", "a: .*got 'maybe'"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_name_file_and_line(tmp_path, case):
    name, content, place, reason = REFUSED[case]
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(ValueError, match=reason) as error:
        read_dataset(path)
    assert str(error.value).startswith(f"{path}{place}")


@pytest.mark.parametrize("name", ["x.parquet", "x.eval"])
def test_files_cut_off_are_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"PAR1" + b"\0" * 50 if name == "x.parquet" else b"PK\3\4" * 9)
    with pytest.raises(ValueError, match=rf"{name}: not a whole (parquet file|zip archive)"):
        read_dataset(tmp_path / name)


def test_a_format_can_be_named(tmp_path):
    (tmp_path / "x.csv").write_text("prompt,a\nq?,1\n")
    assert read_dataset(tmp_path / "x.csv", format="routellm").targets == ("a",)
    for name in ("wide", "long", "embedllm"):
        with pytest.raises(ValueError, match="x.csv:1: expected (a|the) column"):
            read_dataset(tmp_path / "x.csv", format=name)
    for name in ("jsonl", "lm_eval", "inspect_ai", "llmrouterbench", "swe_bench", "openai_batch"):
        with pytest.raises(ValueError, match="x.csv"):
            read_dataset(tmp_path / "x.csv", format=name)
