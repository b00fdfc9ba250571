"""The benchmark: its suites, and results that were measured with them."""
