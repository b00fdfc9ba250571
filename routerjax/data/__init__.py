"""Queries and recorded outcomes: data sets, label files, groups of rows, simulated data."""
