"""Simulated questions and a pool of targets whose true P(correct) is known."""
