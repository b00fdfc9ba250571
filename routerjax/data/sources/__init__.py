"""Layouts of outcome files: each module recognises one and yields rows of the JSONL format."""
