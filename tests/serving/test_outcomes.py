"""/v1/outcomes: what is written, who may be scored, and a file that is always whole."""

import asyncio
import concurrent.futures
import resource
import signal

import httpx
import pytest

from routerjax.data.readers import read_dataset
from routerjax.serving import outcomes
from routerjax.serving.config import ServingConfig
from routerjax.serving.errors import Problem
from routerjax.serving.outcomes import Outcomes, append_line

TARGETS = ("cheap", "middle", "dear")
MESSAGES = [{"role": "user", "content": "abc?"}, {"role": "assistant", "content": "x"},
            {"role": "user", "content": "and d?"}]  # fmt: skip


def score(url, request_id, score=1.0, **more):
    value = {"request_id": request_id, "score": score} | more
    return httpx.post(f"{url}/v1/outcomes", json=value)


@pytest.fixture
def served_log(proxy, tmp_path, monkeypatch):
    """log(log_queries) -> (URL of the proxy, file): the proxy of all tests, with a log of its own.

    A server of its own would be compiled for it.
    """
    handler = proxy[1].state.outcomes

    def log(log_queries):
        own = Outcomes(tmp_path / "log.jsonl", TARGETS, log_queries)
        for name, value in vars(own).items():
            monkeypatch.setattr(handler, name, value)
        return proxy[0], tmp_path / "log.jsonl"

    return log


def test_outcomes_of_decisions_and_answers_are_data(served_log, stubs, caplog):
    url, path = served_log(log_queries=True)
    decision = httpx.post(f"{url}/v1/route", json={"query": "abc?"}).json()
    answer = httpx.post(
        f"{url}/v1/chat/completions", json={"model": "middle", "messages": MESSAGES}
    )
    ids = [decision["metadata"]["request_id"], answer.headers["x-routerjax-request-id"]]
    assert score(url, ids[0], 0.25, target="dear").json() == {
        "request_id": ids[0], "target": "dear", "score": 0.25
    }  # fmt: skip
    assert score(url, ids[0], 1).json()["target"] == decision["target"]
    assert score(url, ids[1], 0).status_code == 200
    data = read_dataset(path)
    assert "not read" not in caplog.text, "the ids of requests are of the server's log"
    assert data.queries[0] == "abc?" and data.queries[1].messages == tuple(MESSAGES)
    rows = [dict(zip(data.targets, y_M.tolist(), strict=True)) for y_M in data.y_NM]
    assert rows[0]["dear"] == 0.25 and rows[0][decision["target"]] == 1
    assert rows[1]["middle"] == 0


def test_a_log_without_texts_is_joined_to_them(served_log, tmp_path):
    url, path = served_log(log_queries=False)
    for value in (1, 0):  # Of one query: runs, of which data have the mean.
        decision = httpx.post(f"{url}/v1/route", json={"query": "abc?", "model": "dear"}).json()
        assert score(url, decision["metadata"]["request_id"], value).status_code == 200
    assert "abc" not in path.read_text()
    texts = tmp_path / "texts.jsonl"
    texts.write_text('{"query": "jjj", "correct": {}}\n{"query": "abc?", "correct": {}}\n')
    data = read_dataset([texts, path])
    assert data.queries == ("jjj", "abc?") and data.y_NM[1].tolist() == [0.5]


def test_a_mistake_is_told(served_log):
    url, path = served_log(log_queries=True)
    decision = httpx.post(f"{url}/v1/route", json={"query": "abc?"}).json()
    request_id = decision["metadata"]["request_id"]
    assert score(url, request_id, target="cheap").status_code == 200
    for answer, status, message in (
        (score(url, request_id, target="cheap"), 409, "an outcome of 'cheap' already"),
        (score(url, request_id, target="gpt"), 400, "expected one of cheap, middle, dear"),
        (score(url, "nobody's"), 404, "request_id: expected .*nobody's"),
        (score(url, request_id, 1.5), 400, "score: .*less than or equal to 1"),
        (score(url, request_id, tokens=3), 400, "tokens: Extra"),
    ):
        assert answer.status_code == status
        with pytest.raises(ValueError, match=message):
            raise ValueError(answer.json()["error"]["message"])
    assert path.read_text().count("\n") == 1


def test_the_oldest_requests_are_forgotten(tmp_path, monkeypatch):
    log = Outcomes(tmp_path / "log.jsonl", TARGETS, log_queries=True)
    monkeypatch.setattr(outcomes, "_MOST_REQUESTS", 3)
    for i in range(5):
        log.open(f"{i}", f"query {i}", "cheap")
    log.open("image", "", "cheap")
    assert list(log._open) == ["2", "3", "4"]
    monkeypatch.setattr(outcomes, "_MOST_BYTES", 1000)
    log.open("long", "x" * 800, "cheap")
    assert "long" in log._open and log._n_bytes <= 1000
    assert log._n_bytes == sum(len(each.start) for each in log._open.values())


def _append(path, name):
    for i in range(100):
        append_line(path, f"{name} {'x' * 9000} {i}\n".encode())


def test_lines_of_several_writers_are_whole(tmp_path):
    """Each opens the file anew, as processes do."""
    path = tmp_path / "log"
    with concurrent.futures.ThreadPoolExecutor() as pool:
        list(pool.map(_append, [path] * 3, "abc"))
    lines = path.read_text().splitlines()
    for name in "abc":
        own = [line for line in lines if line.startswith(name)]
        assert own == [f"{name} {'x' * 9000} {i}" for i in range(100)]
    assert len(lines) == 300


def test_a_torn_line_breaks_neither_reading_nor_writing(tmp_path, caplog):
    path = tmp_path / "log.jsonl"
    row = b'{"id": "1", "query": "a", "correct": {"cheap": 1}, "request_id": "r"}\n'
    append_line(path, row)
    torn = path.read_bytes() + row[:40]
    path.write_bytes(torn)
    assert len(read_dataset(path).ids) == 1
    assert "the last line is not whole" in caplog.text
    append_line(path, row.replace(b"1", b"2", 1))
    assert path.read_bytes() == row + row.replace(b"1", b"2", 1)
    path.write_bytes(row + row[:40] + b"\n")
    with pytest.raises(ValueError, match=r"log\.jsonl:2: not valid JSON"):
        read_dataset(path)
    path.write_bytes(torn.replace(b"request_id", b"other_name"))
    with pytest.raises(ValueError, match=r"log\.jsonl:2: not valid JSON"):
        read_dataset(path)


def test_a_full_disk_leaves_no_half_a_line(tmp_path):
    path = tmp_path / "log"
    append_line(path, b"first\n")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        with pytest.raises(OSError, match="cannot write .*/log: .*No space left"):
            append_line(path, b"x" * 200 + b"\n")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert path.read_bytes() == b"first\n"


def test_an_outcome_that_cannot_be_kept_is_refused_in_a_line_and_may_come_again(tmp_path, caplog):
    path, body = tmp_path / "log", b'{"request_id": "r", "score": 1}'
    own = Outcomes(path, TARGETS, False)
    own.open("r", "abc?", "cheap")
    path.unlink()
    path.mkdir()
    with pytest.raises(Problem, match="send it again later") as refused:
        asyncio.run(own(None, body))
    assert refused.value.status == 503 and "log" in caplog.text and "Traceback" not in caplog.text
    path.rmdir()
    assert asyncio.run(own(None, body)).status_code == 200


def test_a_file_that_cannot_be_written_is_told_at_the_start(tmp_path):
    with pytest.raises(FileNotFoundError, match="none"):
        Outcomes(tmp_path / "none" / "log", TARGETS, False)
    with pytest.raises(ValueError, match="log_queries: .*name a file"):
        ServingConfig(log_queries=True)


def test_a_row_without_its_line_end_and_another_file_are_left_whole(tmp_path):
    path, row = tmp_path / "log.jsonl", b'{"id": "1", "correct": {"cheap": 1}}'
    path.write_bytes(row)
    append_line(path, b"")
    append_line(path, row + b"\n")
    assert path.read_bytes() == (row + b"\n") * 2
    for other in (b'[{"id": "1", "correct": {"cheap": 1}}]', b"query,cheap\nwhat?,1"):
        path.write_bytes(other)
        with pytest.raises(ValueError, match=r"log\.jsonl: expected a file of outcomes, got one"):
            Outcomes(path, TARGETS, False)
        assert path.read_bytes() == other
