"""One absl-flag script per job: `python -m experiments.NAME --helpfull`."""

import sys

from routerjax.runtime import early

if sys.argv[0] == "-m":  # So it is while `python -m` looks for the script.
    early.begin()
