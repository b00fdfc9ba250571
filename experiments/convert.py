"""Converts outcomes of any format that is read to one JSONL file.

    python -m experiments.convert --data=lm_eval_out --output=outcomes.jsonl
    python -m experiments.convert --data=queries.jsonl,swe_bench --output=outcomes.jsonl.gz \
        --pool=pool.json --exclude_targets=old-model

A file or folder is recognised by its content; --format names the format where that should not
decide. Several, separated by commas, are joined by id or by text.
"""

import dataclasses
import pathlib

import routerjax as rj
from experiments import options


@dataclasses.dataclass(frozen=True)
class Config(options.Outcomes):
    """The flags."""

    data: str
    output: str = options.flag(None, "The JSONL file to write, gzipped where it ends in .gz.")


options.define(Config)


def main() -> None:
    """Reads, writes, and says what was read."""
    config = options.read(Config)
    suffix = pathlib.Path(config.output).suffix
    if suffix in (".csv", ".tsv", ".parquet", ".xlsx"):
        raise ValueError(
            f"--output: expected a file to write JSON lines to, such as x.jsonl or x.jsonl.gz, got "
            f"the name of a table, {config.output}"
        )
    data, lines = options.read_data(config)
    pathlib.Path(config.output).parent.mkdir(parents=True, exist_ok=True)
    rj.write_dataset(data, config.output)
    print("\n".join([f"{config.output}:", *lines]))


if __name__ == "__main__":
    rj.run_script(main)
