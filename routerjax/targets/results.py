"""What collecting writes: answers, outcomes with their pool, and a summary with its lines."""

import collections
import itertools
import json
import math
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from routerjax.data.dataset import RoutingDataset
from routerjax.data.groups import group_rows
from routerjax.data.pool import write_pool
from routerjax.data.sources.texts import whole
from routerjax.data.writers import write_dataset
from routerjax.runtime.files import Folder
from routerjax.targets.asking import Asker
from routerjax.targets.endpoints import Target
from routerjax.targets.graders import agreement
from routerjax.targets.journal import Journal
from routerjax.targets.limits import BUDGET
from routerjax.targets.questions import Question
from routerjax.targets.wire import Reply

_CUT = "length"
_MOST_ERRORS = 5


class Answer(NamedTuple):
    """An answer without its text, which the journal has.

    Attributes:
      reply: Its text is empty here.
      usd: Its cost; None where it is unknown.
      grades: Scores by grader; None where one came to none.
    """

    reply: Reply
    usd: float | None
    grades: dict[str, float | None]


class Results:
    """Answers and grades of a job.

    Args:
      questions: All of them.
      journal: Has the texts, and why calls failed.

    Attributes:
      askers: Of the targets by name.
      judge: That of the judging model; None where none judges.
    """

    def __init__(self, questions: Sequence[Question], journal: Journal):
        self.askers: dict[str, Asker] = {}
        self.judge: Asker | None = None
        self._questions, self._journal = questions, journal
        self._answers: dict[tuple[str, str], Answer] = {}  # By target and question.
        self._refused: dict[tuple[str, str], str] = {}

    def add(
        self, asker: Asker, question: Question, reply: Reply, grades: dict[str, float | None]
    ) -> None:
        """Takes an answer and its grades."""
        bare = Reply(**vars(reply) | {"text": ""})
        answer = Answer(bare, reply.usd(asker.target), grades)
        self._answers[asker.target.name, question.id] = answer

    def refuse(self, asker: Asker, question: Question, why: str) -> None:
        """Takes that a target is not asked a question, by no run."""
        self._refused[asker.target.name, question.id] = why

    def write(
        self, folder: pathlib.Path, budget_usd: float | None, stopped: str | None
    ) -> dict[str, Any]:
        """Writes answers.jsonl, collect.json and, where anything was graded, outcomes and pool.

        Args:
          folder: Where they go.
          budget_usd: Of the job.
          stopped: Why it ended early; None where it did not.

        Returns:
          What collect.json holds.
        """
        self._write_answers(folder / "answers.jsonl")
        data = self._data()
        if data is not None:
            write_dataset(data, folder / "outcomes.jsonl")
            write_pool(data, folder / "pool.json")
        targets = {name: self._about(asker) for name, asker in self.askers.items()}
        summary = {
            "queries": len(self._questions),
            "outcomes": 0 if data is None else int(np.isfinite(data.y_NM).sum()),
            "to_go": sum(each["failed"] + each["not_asked"] for each in targets.values()),
            "stopped": stopped,
            "targets": targets,
            "judge": self.judge and {"name": self.judge.target.name} | self.judge.bill.to_json(),
            "agreement": self._agreement(),
            "spent_usd": self._journal.known_usd,
            "may_have_cost_usd": self._journal.worst_usd,
            "budget_usd": budget_usd,
        }
        Folder(folder).write_json("collect.json", summary)
        return summary

    def _write_answers(self, path: pathlib.Path) -> None:
        with whole(path) as file:
            for question in self._questions:
                for name, asker in self.askers.items():
                    row: dict[str, Any] = {"id": question.id, "target": name}
                    key = asker.key(question.query)
                    answer = self._answers.get((name, question.id))
                    if answer is not None:
                        reply = self._journal.answer(key)["reply"]
                        row |= {"answer": reply.pop("text")} | reply
                        row |= {"cost": answer.usd, "grades": answer.grades}
                    else:
                        refused = self._refused.get((name, question.id))
                        row["error"] = refused or self._journal.error(key) or "not asked"
                    file.write(json.dumps(row) + "\n")

    def _data(self) -> RoutingDataset | None:
        """The outcomes of the targets that have any; None where none has."""
        shape = len(self._questions), len(self.askers)
        fields = ("y", "output", "input", "cached", "usd")
        table = {field: np.full(shape, math.nan) for field in fields}
        for n, question in enumerate(self._questions):
            for m, name in enumerate(self.askers):
                answer = self._answers.get((name, question.id))
                if answer is None:
                    continue
                reply, score = answer.reply, answer.grades[question.graders[0]]
                values = (score, reply.output_tokens, reply.input_tokens,
                          reply.cached_input_tokens, answer.usd)  # fmt: skip
                for field, value in zip(fields, values, strict=True):
                    table[field][n, m] = math.nan if value is None else value
        seen_M = np.isfinite(table["y"]).any(axis=0)
        if not seen_M.any():
            return None
        targets = [asker.target for asker, seen in zip(self.askers.values(), seen_M, strict=True)
                   if seen]  # fmt: skip
        y_NM, output_NM, input_NM, cached_NM, usd_NM = (table[field][:, seen_M] for field in fields)
        datasets = [question.dataset for question in self._questions]
        queries = tuple(question.query for question in self._questions)
        return RoutingDataset(
            ids=tuple(question.id for question in self._questions),
            queries=queries,
            targets=tuple(target.name for target in targets),
            y_NM=y_NM.astype(np.float32),
            groups=group_rows(queries, [question.group for question in self._questions]),
            datasets=None if None in datasets else tuple(map(str, datasets)),
            output_tokens_NM=output_NM.astype(np.float32),
            input_tokens_NM=input_NM.astype(np.float32),
            cached_input_tokens_NM=cached_NM.astype(np.float32),
            costs_NM=usd_NM,
            **_pool(targets),
        )

    def _about(self, asker: Asker) -> dict[str, Any]:
        """Of one target."""
        name = asker.target.name
        mine = [self._answers.get((name, question.id)) for question in self._questions]
        scores, cut = [], 0
        errors: collections.Counter[str] = collections.Counter()
        not_asked = 0
        for question, answer in zip(self._questions, mine, strict=True):
            if (name, question.id) in self._refused:
                continue
            if answer is None:
                error = self._journal.error(asker.key(question.query))
                not_asked += error is None
                errors.update([error] if error else [])
                continue
            cut += answer.reply.finish_reason == _CUT
            score = answer.grades[question.graders[0]]
            scores += [score] if score is not None else []
        return {
            "graded": len(scores),
            "mean_score": float(np.mean(scores)) if scores else None,
            "failed": errors.total(),
            "not_asked": not_asked,
            "cannot_take": sum(target == name for target, _ in self._refused),
            "cut_short": cut,
            "gave_up": asker.gave_up,
            "errors": dict(errors.most_common(_MOST_ERRORS)),
        } | asker.bill.to_json()

    def _agreement(self) -> list[dict[str, Any]]:
        """Of each two graders on the answers that both graded."""
        pairs: dict[tuple[str, str], list[tuple[float, float]]] = {}
        for answer in self._answers.values():
            for a, b in itertools.combinations(answer.grades, 2):
                x, y = answer.grades[a], answer.grades[b]
                if x is not None and y is not None:
                    pairs.setdefault((a, b), []).append((x, y))
        return [{"graders": list(names)} | agreement(each) for names, each in pairs.items()]


def _pool(targets: Sequence[Target]) -> dict[str, Any]:
    """What targets.json says of prices and limits, as fields of a data set."""

    def column(field: str) -> np.ndarray | None:
        values = [getattr(target, field) for target in targets]
        known = any(value is not None for value in values)
        return np.array(values, np.float64) if known else None

    prices = [(target.input_price, target.output_price) for target in targets]
    modalities = tuple(target.modalities or () for target in targets)
    return {
        "prices_M2": np.array(prices, np.float64),
        "cached_prices_M": column("cached_input_price"),
        "context_windows_M": column("context_window"),
        "modalities": modalities if any(modalities) else None,
    }


def collect_lines(summary: dict[str, Any]) -> list[str]:
    """What `collect` returned, as lines of text."""
    targets = summary["targets"]
    width = max(map(len, targets))
    lines = [f"{'':{width}}  answers  failed  not asked  score  in tokens  out tokens  "
             f"p50 s  p95 s         USD"]  # fmt: skip
    for name, each in targets.items():
        score = "" if each["mean_score"] is None else f"{each['mean_score']:.3f}"
        p50, p95 = ("", "") if each["latency_s"] is None else (
            f"{each['latency_s'][key]:.2f}" for key in ("p50", "p95"))  # fmt: skip
        lines.append(
            f"{name:{width}}  {each['answers']:7,}  {each['failed']:6,}  {each['not_asked']:9,}  "
            f"{score:>5}  {each['input_tokens']:9,}  {each['output_tokens']:10,}  {p50:>5}  "
            f"{p95:>5}  {_usd(each):>10}"
        )
    for name, each in targets.items():
        if each["graded"] < each["answers"]:
            lines.append(f"{name}: {each['answers'] - each['graded']:,} answers have no score")
        if each["cannot_take"]:
            lines.append(f"{name}: {each['cannot_take']:,} queries hold what it does not take")
        if each["cut_short"]:
            lines.append(
                f"{name}: {each['cut_short']:,} answers were cut short by the most tokens allowed"
            )
        for error, times in each["errors"].items():
            lines.append(f"{name}: {times:,} x {error}")
        if each["gave_up"]:
            lines.append(f"{name}: asked no more in this run: {each['gave_up']}")
    judge = summary["judge"]
    if judge:
        lines.append(f"judge {judge['name']}: {judge['answers']:,} verdicts, {_usd(judge)} USD")
    for each in summary["agreement"]:
        kappa = "none" if each["kappa"] is None else f"{each['kappa']:.3f}"
        lines.append(
            f"graders {' and '.join(each['graders'])} agree on {each['agree']:.1%} of "
            f"{each['n']:,} answers, Cohen's kappa {kappa}"
        )
    spent = f"spent {summary['spent_usd']:.4f} USD"
    if summary["may_have_cost_usd"]:
        spent += (
            f", and at most {summary['may_have_cost_usd']:.4f} USD for calls whose answer or "
            f"tokens never came"
        )
    lines.append(spent)
    if summary["stopped"] == BUDGET:
        lines.append(
            f"the budget of {summary['budget_usd']:g} USD could be passed by the next call: "
            f"{summary['to_go']:,} calls to go. Raise --budget_usd and run the same command again"
        )
    elif summary["to_go"]:
        lines.append(
            f"{summary['to_go']:,} calls have no answer, and so no outcome: the same command asks "
            f"them again"
        )
    return lines


def _usd(bill: dict[str, Any]) -> str:
    """A cost; "+?" where that of some answers is unknown."""
    if bill["usd_unknown"] == bill["answers"]:
        return "?" if bill["answers"] else "0"
    return f"{bill['usd']:.6f}" + ("+?" if bill["usd_unknown"] else "")
