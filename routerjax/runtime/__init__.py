"""Files, devices, processes, and what every job needs: the room that all others stand on."""
