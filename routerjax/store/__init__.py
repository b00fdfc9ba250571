"""Hidden states on disk: layout, shards, rows, identity."""
