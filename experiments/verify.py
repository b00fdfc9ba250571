"""Reads what jobs wrote and compares it with its digests: what is damaged, and what to do.

    python -m experiments.verify --workdir=runs/a
    python -m experiments.verify --store=gs://bucket/store --router=runs/a/router

Of a workdir the stores, routers, tables, finished parts and checkpoints in it are checked. A line
on standard output for each file that is damaged or missing; exit code 1 where there is one. Writes
nothing. As long as reading the files takes, a store about a second a GB and core.
"""

import dataclasses

import routerjax as rj
from experiments import options


@dataclasses.dataclass(frozen=True)
class Config:
    """The flags."""

    workdir: str | None
    store: str | None
    router: str | None


options.define(Config)


def main() -> None:
    """Prints what is wrong."""
    config = options.read(Config)
    n_files, problems = rj.find_damage(config.store, config.router, config.workdir)
    print("\n".join([*problems, f"{n_files} files, {len(problems)} problems"]))
    if problems:
        raise ValueError(f"{len(problems)} of {n_files} files are damaged or missing, see above")


if __name__ == "__main__":
    rj.run_script(main)
