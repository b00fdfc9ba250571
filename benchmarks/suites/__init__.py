"""The benchmark: contestants that run in turn, suite by suite, and what is shown of them."""
