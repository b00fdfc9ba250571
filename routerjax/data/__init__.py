"""Queries, recorded outcomes and stored activations: what every other room reads."""
