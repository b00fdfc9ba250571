"""The job that asks every target every question and grades what it answers; stops and goes on."""

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import json
import os
import shlex
from collections.abc import Iterator, Sequence
from typing import Any

import httpx
from tqdm import tqdm

from routerjax.data.conversation import modalities_of
from routerjax.runtime.files import Folder, digest
from routerjax.runtime.resume import Stopped, log, progress_bar, stop_requested
from routerjax.targets.asking import Asker
from routerjax.targets.endpoints import Target, Targets
from routerjax.targets.graders import TEXT_GRADERS
from routerjax.targets.journal import Journal
from routerjax.targets.judge import RUBRIC, Judge
from routerjax.targets.limits import ASKED, Budget, Halt
from routerjax.targets.questions import CODE, JUDGE, Question, read_questions
from routerjax.targets.results import Results
from routerjax.targets.sandbox import Sandbox
from routerjax.targets.wire import Reply, request_of, worst_usd

# Seconds for the requests in hand after SIGTERM; clusters give a process 10 to 30.
_DRAIN_S = 5.0
_POLL_S = 0.1
# A connection that is not used for longer may be closed by the server just as it is used again.
_KEPT_CONNECTION_S = 4.0
_CONNECT_S = 10.0
# Each is a single answer of one text.
_NO_PARAMETERS = ("stream", "n")


@dataclasses.dataclass(frozen=True)
class CollectConfig:
    """How targets are asked and answers graded.

    Attributes:
      graders: Of rows that name none: exact, normalised, numeric, choice, regex, code, judge. The
        first one's score is the outcome; how all of them agree is reported.
      judge: The model that the grader judge asks; it has a bill of its own.
      rubric: What the judge is told to look for; None for whether the answer is correct.
      code_command: What the grader code runs, as a shell would split it; None: nothing is run.
      code_time_s: Seconds that a program may take.
      code_memory_mib: Its memory, MiB.
      budget_usd: The most that may be spent in this folder, earlier runs and the judge included.
      concurrency: Most requests in hand to each target that names no number.
      attempts: Of each call.
      timeout_s: Seconds for an answer, of targets that name no number.
      backoff_s: Seconds before the second attempt; twice as many before each further one.
    """

    graders: tuple[str, ...] = ()
    judge: Target | None = None
    rubric: str | None = None
    code_command: str | None = None
    code_time_s: float = 10.0
    code_memory_mib: int = 1024
    budget_usd: float | None = None
    concurrency: int = 8
    attempts: int = 6
    timeout_s: float = 300.0
    backoff_s: float = 1.0


def collect(
    data: str | os.PathLike[str],
    targets: Targets,
    workdir: str | os.PathLike[str],
    config: CollectConfig | None = None,
) -> dict[str, Any]:
    """Asks every target every question, grades the answers, and writes outcomes.

    What was answered stays in the journal: the same call goes on where an earlier one ended, by
    whatever, and asks only what has no answer. A failed call is no outcome, and the next run asks
    it again.

    Args:
      data: File of questions, see `read_questions`.
      targets: Who is asked.
      workdir: Folder of this machine for journal.jsonl, answers.jsonl, outcomes.jsonl, pool.json
        and collect.json.
      config: How; None for the defaults, where each row names its grader.

    Returns:
      What collect.json holds: of each target answers, failures, tokens, latencies and bill; the
      judge's bill; how graders agree; and "stopped", why it ended early, or None.

    Raises:
      ValueError: A file, a target or a grader is not as described, or no answer was graded.
      OSError: A file cannot be read or written.
      Stopped: SIGTERM came; results so far are written.
    """
    config = config or CollectConfig()
    questions = read_questions(data, config.graders)
    sandbox = _checked(questions, targets, config)
    folder = Folder(workdir).local_path()
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.closing(Journal(folder / "journal.jsonl")) as journal:
        job = _Job(questions, targets, config, journal, sandbox)
        try:
            _run(job)
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from group
        summary = job.results.write(folder, config.budget_usd, job.halt.why)
    if job.halt.why == ASKED:
        raise Stopped(f"Stopped with {summary['to_go']} of {job.total} calls to go.")
    if not summary["outcomes"] and not job.halt.why:
        errors = [
            f"{name}: {next(iter(each['errors']))}"
            for name, each in summary["targets"].items()
            if each["errors"]
        ]
        raise ValueError(f"no answer was graded: {'; '.join(errors) or 'no grader gave a score'}")
    return summary


class _Job:
    """One run.

    Attributes:
      results: What was answered and graded, filled while it runs.
      halt: Why it ended early, if it did.
      total: Pairs of a question and a target.
    """

    def __init__(
        self,
        questions: Sequence[Question],
        targets: Targets,
        config: CollectConfig,
        journal: Journal,
        sandbox: Sandbox | None,
    ):
        self.halt = Halt()
        self.total = len(questions) * len(targets.names)
        self.results = Results(questions, journal)
        self._questions, self._targets, self._config = questions, targets, config
        self._journal, self._sandbox = journal, sandbox
        self._programs = asyncio.Semaphore(os.cpu_count() or 1)
        self._judge: Judge | None = None

    async def run(self) -> None:
        """Asks and grades until nothing is left, or something says stop."""
        if self._sandbox is not None and not await self._sandbox.isolates():
            log("code_command: the network of programs cannot be cut off on this machine")
            self._sandbox = dataclasses.replace(self._sandbox, isolate=False)
        budget = Budget(self._config.budget_usd, self._journal)
        limits = httpx.Limits(max_connections=None, keepalive_expiry=_KEPT_CONNECTION_S)
        timeout = httpx.Timeout(None, connect=_CONNECT_S)
        async with httpx.AsyncClient(limits=limits, timeout=timeout) as client:

            def asker(target: Target) -> Asker:
                config = self._config
                return Asker(
                    target, client, self._journal, budget, self.halt,
                    concurrency=target.max_concurrency or config.concurrency,
                    attempts=config.attempts, timeout_s=config.timeout_s,
                    backoff_s=config.backoff_s,
                )  # fmt: skip

            if self._config.judge is not None:
                judging = self.results.judge = asker(self._config.judge)
                self._judge = Judge(judging, self._config.rubric or RUBRIC)
            self.results.askers = {target.name: asker(target) for target in self._targets}
            with progress_bar(self.total, 0, "calls", "collect") as bar:
                async with asyncio.TaskGroup() as group:
                    workers = [
                        group.create_task(self._work(each, pending, bar))
                        for each in self.results.askers.values()
                        for pending in [self._in_order(each)]
                        for _ in range(self._n_workers(each.target))
                    ]
                    watcher = group.create_task(self._watch(workers))
                    await asyncio.wait(workers)
                    watcher.cancel()

    def _n_workers(self, target: Target) -> int:
        """One for each request in hand, and as many that grade meanwhile."""
        slow = any({CODE, JUDGE} & set(question.graders) for question in self._questions)
        return (target.max_concurrency or self._config.concurrency) * (2 if slow else 1)

    def _in_order(self, asker: Asker) -> Iterator[Question]:
        """The questions; those that failed before come last, so that they stop no others."""
        failures = self._journal.failures
        return iter(sorted(self._questions, key=lambda each: failures[asker.key(each.query)]))

    async def _work(self, asker: Asker, pending: Iterator[Question], bar: tqdm) -> None:
        # Whoever is free takes the next question. Once the job is to end nothing more is asked, but
        # what was answered before is graded.
        for question in pending:
            lacking = _lacking(asker.target, question.query)
            if lacking:
                self.results.refuse(asker, question, f"takes no {lacking}")
                reply = None
            else:
                reply = await asker.ask(question.query, id=question.id)
            if reply is not None:
                grades = {name: await self._grade(name, question, reply)
                          for name in question.graders}  # fmt: skip
                self.results.add(asker, question, reply, grades)
            if self.halt.why is None:
                bar.update()
            await asyncio.sleep(0)  # Answers of the journal keep nobody waiting.

    async def _grade(self, name: str, question: Question, reply: Reply) -> float | None:
        """The score of an answer by one grader; None where it comes to none."""
        if name in TEXT_GRADERS:
            grader = TEXT_GRADERS[name]
            return float(any(
                grader.is_right(reply.text, grader.prepare(reference))
                for reference in question.references
            ))  # fmt: skip
        if name == JUDGE:
            assert self._judge is not None
            return await self._judge.score(
                question.query, reply.text, "\n\nor:\n\n".join(question.references)
            )
        assert self._sandbox is not None
        rules = dataclasses.asdict(dataclasses.replace(self._sandbox, isolate=True))
        key = digest(json.dumps([rules, reply.text, question.references], sort_keys=True))
        if not self._journal.has_score(key):
            if self.halt.why is not None:
                return None
            passes = False
            for reference in question.references or ("",):
                async with self._programs:
                    passes = passes or await self._sandbox.passes(reply.text, reference)
            self._journal.graded(key, float(passes))
        return self._journal.score(key)

    async def _watch(self, workers: Sequence[asyncio.Task[None]]) -> None:
        """Ends the job after SIGTERM; requests in hand get a little time, as they may be billed."""
        while not stop_requested():
            await asyncio.sleep(_POLL_S)
        self.halt.now(ASKED)
        await asyncio.wait(workers, timeout=_DRAIN_S)
        for worker in workers:
            worker.cancel()


def _lacking(target: Target, query: str) -> str:
    """What a query holds that a target does not take, as targets.json says."""
    if target.modalities is None:
        return ""
    return ", ".join(name for name in modalities_of(query) if name not in target.modalities)


def _run(job: _Job) -> None:
    """Runs a job, in a thread of its own where this one has a loop of events: in a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        asyncio.run(job.run())
        return
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        thread.submit(asyncio.run, job.run()).result()


def _checked(
    questions: Sequence[Question], targets: Targets, config: CollectConfig
) -> Sandbox | None:
    """Refuses what could not be asked, graded or paid before anything is asked."""
    graders = {name for question in questions for name in question.graders}
    if JUDGE in graders and config.judge is None:
        raise ValueError("judge: the grader judge needs a model that judges: --judge=judge.json")
    if CODE in graders and config.code_command is None:
        raise ValueError(
            "code_command: the grader code runs what targets wrote, which is off: say by "
            "--code_command what is to be run, such as 'python3 program'"
        )
    for target in [*targets, *([config.judge] if config.judge and JUDGE in graders else [])]:
        for name in _NO_PARAMETERS:
            if name in target.parameters:
                raise ValueError(f"targets: {target.name!r}: parameters: leave {name!r} out")
        for question in questions if config.budget_usd is not None else ():
            if worst_usd(target, request_of(target, question.query), question.query) is None:
                raise ValueError(
                    f"budget_usd: what {target.name!r} costs at most is not known: give it "
                    f"input_price, output_price and, in its parameters, max_tokens or "
                    f"max_completion_tokens (and context_window for queries with more than text)"
                )
    if CODE not in graders or config.code_command is None:
        return None
    command = tuple(shlex.split(config.code_command))
    return Sandbox(command, config.code_time_s, config.code_memory_mib)
