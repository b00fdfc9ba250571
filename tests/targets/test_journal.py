"""The journal after a kill at any moment: what it held is there, half a line is not."""

import json

import hypothesis
import hypothesis.strategies as st
import pytest

from routerjax.targets.journal import Journal


def write(path, n=5):
    """Answers n calls, of which every third fails first; returns the journal's bytes."""
    journal = Journal(path)
    for i in range(n):
        if i % 3 == 0:
            journal.failed(journal.asked(1.0), f"k{i}", None, "lost ü", target="a")
        journal.answered(journal.asked(1.0), f"k{i}", 0.25, reply={"text": f"é\ud800 {i}"})
    journal.graded("g", 0.5)
    journal.close()
    return path.read_bytes()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "journal.jsonl"
    return write(path)


def test_what_was_written_is_read(whole, tmp_path):
    (tmp_path / "j").write_bytes(whole)
    journal = Journal(tmp_path / "j")
    assert [journal.has_answer(f"k{i}") for i in range(6)] == [True] * 5 + [False]
    assert journal.answer("k3")["reply"] == {"text": "é\ud800 3"}
    assert (journal.known_usd, journal.worst_usd) == (1.25, 2.0)  # Two were lost.
    assert journal.score("g") == 0.5 and not journal.has_score("k0")
    assert journal.failures == {"k0": 1, "k3": 1} and journal.error("k3") is None
    assert journal.asked(0.5) == 8 and journal.worst_usd == 2.5
    journal.close()


@hypothesis.settings(max_examples=40)
@hypothesis.given(st.data())
def test_cut_anywhere_it_goes_on(whole, tmp_path_factory, data):
    ends = [at for at, byte in enumerate(whole) if byte == ord("\n")]
    end = data.draw(st.integers(0, len(whole)) | st.sampled_from(ends))
    path = tmp_path_factory.mktemp("cut") / "journal.jsonl"
    path.write_bytes(whole[:end])
    lines = [line for line in whole.splitlines(keepends=True)]
    kept, size = [], 0
    for line in lines:
        # A line that lacks nothing but its end is whole.
        if size + len(line) - 1 <= end:
            kept.append(json.loads(line))
        size += len(line)
    journal = Journal(path)
    answered = {value["key"] for value in kept if value["event"] == "answered"}
    assert {f"k{i}" for i in range(5) if journal.has_answer(f"k{i}")} == answered
    assert journal.known_usd == 0.25 * len(answered)
    # Whatever is not known to have cost less counts with its worst.
    assert journal.worst_usd == sum(v["event"] == "asked" for v in kept) - len(answered)
    journal.answered(journal.asked(None), "more", 0.0, reply={})
    journal.close()
    again = Journal(path)
    assert again.has_answer("more") and again.known_usd == 0.25 * len(answered)
    again.close()


def test_a_damaged_line_is_named(whole, tmp_path):
    path = tmp_path / "j"
    path.write_bytes(whole.replace(b'{"event": "answered"', b'{"event": "answ', 1))
    with pytest.raises(ValueError, match=r"j:4: not a line that collecting wrote .* take the line"):
        Journal(path)


def test_a_cut_line_is_told(whole, tmp_path, caplog):
    (tmp_path / "j").write_bytes(whole[:-5])
    Journal(tmp_path / "j").close()
    assert "cut off while it was written" in caplog.text


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (
            {"event": "answered", "call": 1, "key": "k", "usd": 1.0},
            "call 1 has ended in a line bef",
        ),
        ({"event": "failed", "call": 1, "key": "k", "usd": 0, "error": ""}, "call 1 has ended in"),
        (
            {"event": "asked", "call": 9, "usd": float("nan")},
            "usd: expected a number >= 0, got nan",
        ),
        ({"event": "asked", "call": 9, "usd": -1}, "usd: expected a number >= 0, got -1"),
        ([[]] * 3, "not a line that collecting wrote"),
    ],
)
def test_no_line_pays_twice_or_less_than_nothing(tmp_path, line, text):
    path = tmp_path / "journal.jsonl"
    whole = write(path)
    path.write_bytes(whole + json.dumps(line).encode() + b"\n" + whole.splitlines()[-1] + b"\n")
    with pytest.raises(ValueError, match=text):
        Journal(path)
    path.write_bytes(b"[" * 100_000 + b"\n" + whole)
    with pytest.raises(ValueError, match=r"journal\.jsonl:1: not a line that collecting wrote"):
        Journal(path)
