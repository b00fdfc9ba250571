"""proxy: passes requests on to the targets that are chosen for them, byte for byte."""
