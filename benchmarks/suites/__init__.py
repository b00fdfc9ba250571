"""The benchmark: contestants that run in rounds, suite by suite, and what is shown of them."""
