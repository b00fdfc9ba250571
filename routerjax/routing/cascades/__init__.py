"""Asking one target after another, by how sure each is of its answer."""
