"""routerjax."""
