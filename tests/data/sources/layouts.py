"""Writes a data set as each tool would, for what is read back; one function a layout."""

import csv
import hashlib
import json
import pathlib
import zipfile

import numpy as np

from routerjax.data.dataset import RoutingDataset
from routerjax.data.writers import write_dataset


def _cell(value):
    return "" if isinstance(value, float) and np.isnan(value) else value


def _csv(path: pathlib.Path, header, rows):
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows([[_cell(cell) for cell in row] for row in rows])
    return path


def _parquet(path: pathlib.Path, header, rows):
    import pyarrow
    import pyarrow.parquet

    columns = list(zip(*rows, strict=True))
    columns = [[None if _cell(c) == "" else c for c in column] for column in columns]
    pyarrow.parquet.write_table(pyarrow.table(dict(zip(header, columns, strict=True))), path)
    return path


def _wide_rows(data, named, counts):
    header = [named["id"], named["query"], named["dataset"]]
    header += [f"{t}{behind}" for t in data.targets for behind in ("", *counts)]
    tables = [data.y_NM, *counts.values()]
    rows = [
        [data.ids[i], data.queries[i], data.datasets[i]]
        + [float(table[i, m]) for m in range(len(data.targets)) for table in tables]
        for i in range(len(data))
    ]
    return header, rows


_WIDE = {"id": "id", "query": "query", "dataset": "dataset"}
_ROUTERBENCH = {"id": "sample_id", "query": "prompt", "dataset": "eval_name"}


def jsonl(data: RoutingDataset, folder):
    write_dataset(data, folder / "x.jsonl")
    return folder / "x.jsonl"


def jsonl_gz(data: RoutingDataset, folder):
    write_dataset(data, folder / "x.jsonl.gz")
    return folder / "x.jsonl.gz"


def wide_csv(data: RoutingDataset, folder):
    counts = {"|cost": data.costs_NM, "|output_tokens": data.output_tokens_NM,
              "|confidence": data.confidences_NM}  # fmt: skip
    return _csv(folder / "x.csv", *_wide_rows(data, _WIDE, counts))


def wide_parquet(data: RoutingDataset, folder):
    counts = {"|cost": data.costs_NM, "|input_tokens": data.input_tokens_NM}
    return _parquet(folder / "x.parquet", *_wide_rows(data, _WIDE, counts))


def routerbench_csv(data: RoutingDataset, folder):
    return _csv(folder / "x.csv", *_wide_rows(data, _ROUTERBENCH, {"|total_cost": data.costs_NM}))


def routerbench_parquet(data: RoutingDataset, folder):
    rows = _wide_rows(data, _ROUTERBENCH, {"|total_cost": data.costs_NM})
    return _parquet(folder / "x.parquet", *rows)


def routellm(data: RoutingDataset, folder):
    rows = [
        [data.queries[i], *("" if np.isnan(y) else str(y >= 0.5) for y in data.y_NM[i])]
        for i in range(len(data))
    ]
    return _csv(folder / "x.csv", ["prompt", *data.targets], rows)


def _answers(data):
    for i in range(len(data)):
        for m, target in enumerate(data.targets):
            yield i, m, target, float(data.y_NM[i, m])


def long_csv(data: RoutingDataset, folder):
    header = ["id", "question", "dataset", "model", "isCorrect",
              "output_tokens", "input_tokens", "cost", "confidence"]  # fmt: skip
    tables = (data.output_tokens_NM, data.input_tokens_NM, data.costs_NM, data.confidences_NM)
    rows = [
        [data.ids[i], data.queries[i], data.datasets[i], target, y]
        + [float(table[i, m]) for table in tables]
        for i, m, target, y in _answers(data)
    ]
    return _csv(folder / "x.csv", header, rows)


def embedllm(data: RoutingDataset, folder):
    header = ["prompt_id", "model_id", "prompt", "label", "category", "model_name"]
    rows = [
        [data.ids[i], m, data.queries[i], y, data.datasets[i], target]
        for i, m, target, y in _answers(data)
    ]
    return _csv(folder / "test.csv", header, rows)


def _number(table, i, m):
    return None if np.isnan(table[i, m]) else float(table[i, m])


def lm_eval(data: RoutingDataset, folder):
    for m, target in enumerate(data.targets):
        own = folder / "out" / target.replace("/", "__")
        own.mkdir(parents=True)
        (own / "results_2026-01-02T03-04-05.678.json").write_text(
            json.dumps({"config": {"model": "hf", "model_args": f"pretrained={target},x=1"}})
        )
        for name in sorted(set(data.datasets)):
            with (own / f"samples_{name}_2026-01-02T03-04-05.678.jsonl").open("w") as file:
                for i in range(len(data)):
                    if data.datasets[i] != name:
                        continue
                    sample = {
                        "doc_id": i, "doc": {"q": data.queries[i]}, "target": "x",
                        "arguments": {"gen_args_0": {"arg_0": data.queries[i], "arg_1": {}}},
                        "resps": [["a"]], "filtered_resps": ["a"], "filter": "none",
                        "metrics": ["exact_match"],
                        "doc_hash": hashlib.sha256(data.ids[i].encode()).hexdigest(),
                        "exact_match": float(data.y_NM[i, m]),
                    }  # fmt: skip
                    file.write(json.dumps(sample) + "\n")
    return folder / "out"


def _inspect(data, m, name):
    samples = []
    for i in range(len(data)):
        if data.datasets[i] != name:
            continue
        y = _number(data.y_NM, i, m)
        counts = {
            "input_tokens": _number(data.input_tokens_NM, i, m),
            "output_tokens": _number(data.output_tokens_NM, i, m),
            "total_cost": _number(data.costs_NM, i, m),
        }
        counts = {key: value for key, value in counts.items() if value is not None}
        scores = {} if y is None else {"match": {"value": y, "answer": "a"}}
        samples.append({
            "id": data.ids[i], "epoch": 1, "input": data.queries[i], "target": "x",
            "scores": scores, "model_usage": {data.targets[m]: counts},
        })  # fmt: skip
    return {"eval": {"model": data.targets[m], "task": name}, "status": "success"}, samples


def inspect_json(data: RoutingDataset, folder):
    for m in range(len(data.targets)):
        for k, name in enumerate(sorted(set(data.datasets))):
            header, samples = _inspect(data, m, name)
            value = header | {"samples": samples}
            (folder / f"log{m}-{k}.json").write_text(json.dumps(value, indent=2))
    return folder


def inspect_eval(data: RoutingDataset, folder):
    try:
        from backports.zstd import zipfile as archives
    except ImportError:
        archives = zipfile
    for m in range(len(data.targets)):
        for k, name in enumerate(sorted(set(data.datasets))):
            header, samples = _inspect(data, m, name)
            path = folder / f"log{m}-{k}.eval"
            with archives.ZipFile(path, "w", archives.ZIP_ZSTANDARD) as archive:
                archive.writestr("header.json", json.dumps(header))
                archive.writestr("summaries.json", json.dumps(samples))
    return folder


def llmrouterbench(data: RoutingDataset, folder):
    for m, target in enumerate(data.targets):
        for name in sorted(set(data.datasets)):
            records = [
                {"index": i, "origin_query": data.queries[i], "prompt": "P: " + data.queries[i],
                 "score": _number(data.y_NM, i, m), "raw_output": "a",
                 "prompt_tokens": _number(data.input_tokens_NM, i, m),
                 "completion_tokens": _number(data.output_tokens_NM, i, m),
                 "cost": _number(data.costs_NM, i, m)}
                for i in range(len(data)) if data.datasets[i] == name
            ]  # fmt: skip
            own = folder / "bench" / name / "test" / target.replace("/", "_")
            own.mkdir(parents=True)
            value = {"performance": 0.5, "counts": len(records), "records": records,
                     "model_name": target}  # fmt: skip
            (own / "20260102_030405.json").write_text(json.dumps(value, indent=1))
    return folder / "bench"


def jsonl_parquet(data: RoutingDataset, folder):
    import pyarrow
    import pyarrow.parquet

    lines = jsonl(data, folder).read_text().split("\n")[:-1]
    # Parquet has no objects without names, and each column in every row.
    rows = [{k: v for k, v in json.loads(line).items() if v != {}} for line in lines]
    names = dict.fromkeys(name for row in rows for name in row)
    columns = {name: [row.get(name) for row in rows] for name in names}
    pyarrow.parquet.write_table(pyarrow.table(columns), folder / "x.parquet")
    return folder / "x.parquet"


def llmrouter(data: RoutingDataset, folder):
    with (folder / "x.jsonl").open("w") as file:
        for i, m, target, y in _answers(data):
            answer = {
                "query": data.queries[i], "task_name": data.datasets[i], "model_name": target,
                "performance": None if np.isnan(y) else y, "metric": "em", "response": "a",
                "input_tokens": _number(data.input_tokens_NM, i, m),
                "output_tokens": _number(data.output_tokens_NM, i, m),
            }  # fmt: skip
            file.write(json.dumps(answer) + "\n")
    return folder / "x.jsonl"


def _queries(data, folder, with_outcomes):
    """The rows of a data set without tokens and costs, and perhaps without outcomes."""
    with (folder / "queries.jsonl").open("w") as file:
        for i in range(len(data)):
            row = {"id": data.ids[i], "query": data.queries[i], "dataset": data.datasets[i]}
            if with_outcomes:
                known = zip(data.targets, data.y_NM[i].tolist(), strict=True)
                row["correct"] = {name: y for name, y in known if y == y}
            file.write(json.dumps(row) + "\n")
    return folder / "queries.jsonl"


def swe_bench(data: RoutingDataset, folder):
    (folder / "reports").mkdir()
    for m, target in enumerate(data.targets):
        of_ids = list(zip(data.ids, data.y_NM[:, m].tolist(), strict=True))
        report = {"resolved_ids": [name for name, y in of_ids if y >= 0.5],
                  "unresolved_ids": [name for name, y in of_ids if y < 0.5],
                  "error_ids": [name for name, y in of_ids if y != y]}  # fmt: skip
        path = folder / "reports" / f"{target.replace('/', '__')}.run.json"
        path.write_text(json.dumps(report, indent=1))
    return [folder / "reports", _queries(data, folder, with_outcomes=False)]


def openai_batch(data: RoutingDataset, folder):
    with (folder / "out.jsonl").open("w") as file:
        for i, m, target, _ in _answers(data):
            usage = {"prompt_tokens": _number(data.input_tokens_NM, i, m),
                     "completion_tokens": _number(data.output_tokens_NM, i, m)}  # fmt: skip
            response = {"status_code": 200, "body": {"model": target, "usage": usage}}
            line = {"custom_id": data.ids[i], "response": response, "error": None}
            file.write(json.dumps(line) + "\n")
    return [_queries(data, folder, with_outcomes=True), folder / "out.jsonl"]


EVERY = ("output", "input", "cost", "confidence")
# (the writer, the tables that it keeps, whether ids are kept, scores of 0 and 1 alone)
LAYOUTS = {
    "jsonl": (jsonl, EVERY, True, False),
    "jsonl_gz": (jsonl_gz, EVERY, True, False),
    "jsonl_parquet": (jsonl_parquet, EVERY, True, False),
    "wide_csv": (wide_csv, ("output", "cost", "confidence"), True, False),
    "wide_parquet": (wide_parquet, ("input", "cost"), True, False),
    "long_csv": (long_csv, EVERY, True, False),
    "embedllm": (embedllm, (), True, False),
    "routerbench_csv": (routerbench_csv, ("cost",), True, False),
    "routerbench_parquet": (routerbench_parquet, ("cost",), True, False),
    "routellm": (routellm, (), False, True),
    "lm_eval": (lm_eval, (), False, False),
    "inspect_json": (inspect_json, ("output", "input", "cost"), False, False),
    "inspect_eval": (inspect_eval, ("output", "input", "cost"), False, False),
    "llmrouterbench": (llmrouterbench, ("output", "input", "cost"), False, False),
    "llmrouter": (llmrouter, ("output", "input"), False, False),
    "swe_bench": (swe_bench, (), True, True),
    "openai_batch": (openai_batch, ("output", "input"), True, False),
}
