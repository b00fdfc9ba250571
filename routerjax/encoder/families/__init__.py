"""Readers from a checkpoint's config.json to one description of an encoder."""
