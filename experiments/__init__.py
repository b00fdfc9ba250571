"""One absl-flag script per job: `python -m experiments.NAME --helpfull`."""
