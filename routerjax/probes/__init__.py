"""Geometry of hidden states, layer by layer: Fisher separability, effective dimensionality."""
