"""Cross-validated AUC of every layer, pooling and width, and what recipes choose by it."""
