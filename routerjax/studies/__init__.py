"""Comparisons and what-if studies over many routers and baselines."""
