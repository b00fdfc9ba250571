"""Pictures, tables and text of results."""
