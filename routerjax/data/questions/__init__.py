"""Kinds of questions, six levels each, for the simulated pool of targets."""
