"""Asks targets the queries, grades what they answer, and writes outcomes.

    python -m experiments.collect --data=queries.jsonl --targets=targets.json --workdir=runs/mine \
        --grader=numeric --budget_usd=20
    python -m experiments.collect --data=queries.jsonl --targets=targets.json --workdir=runs/mine \
        --grader=normalised,judge --judge=judge.json --rubric=rubric.txt

docs/collecting.md has the files. Killed at any moment, the same command goes on. Writes
outcomes.jsonl and pool.json, which the other scripts take as --data and --pool, answers.jsonl and
collect.json. Needs `pip install 'routerjax[collect]'`.
"""

import dataclasses
import pathlib

import routerjax as rj
from experiments import options


@dataclasses.dataclass(frozen=True)
class Config:
    """The flags."""

    workdir: str
    data: str = options.flag(None, "Queries with the answers that they are graded by: JSON lines "
                             "or a table.")  # fmt: skip
    targets: str = options.flag(None, "JSON file of where targets answer, and their prices.")
    grader: list[str] = options.flag(
        [], "Graders, the first one's score the outcome: exact, normalised, numeric, choice, "
        "regex, code, judge. Rows may name their own."
    )  # fmt: skip
    judge: str | None = options.flag(None, "File as --targets, of the one model that judges.")
    rubric: str | None = options.flag(None, "Text file: what the judge is to look for.")
    code_command: str | None = options.flag(
        None, "What the grader code runs in a sandbox, such as 'python3 program'. Without it "
        "nothing that a target wrote is run."
    )  # fmt: skip
    code_time_s: float = options.flag(10.0, "Seconds that such a program may take.", 0.1)
    code_memory_mib: int = options.flag(1024, "MiB that such a program may take.", 16)
    budget_usd: float | None = options.flag(
        None, "The most that may be spent in this folder: by all runs, the judge included.", 0
    )
    concurrency: int = options.flag(8, "Most requests in hand to each target.", 1)
    attempts: int = options.flag(6, "Attempts of each call.", 1)
    timeout_s: float = options.flag(300.0, "Seconds for an answer.", 0.1)


options.define(Config)


def main() -> None:
    """Collects and prints what was answered."""
    config = options.read(Config)
    judges = () if config.judge is None else tuple(rj.read_targets(config.judge))
    if len(judges) > 1:
        raise ValueError(f"--judge: expected one model in {config.judge}, got {len(judges)}")
    named = {field.name for field in dataclasses.fields(rj.CollectConfig)}
    given = {name: value for name, value in vars(config).items() if name in named}
    given |= {
        "graders": tuple(config.grader),
        "judge": judges[0] if judges else None,
        "rubric": None if config.rubric is None else pathlib.Path(config.rubric).read_text(),
    }
    targets = rj.read_targets(config.targets)
    rj.write_config(config.workdir, config)
    summary = rj.collect(config.data, targets, config.workdir, rj.CollectConfig(**given))
    print("\n".join(rj.collect_lines(summary)))


if __name__ == "__main__":
    rj.run_script(main)
