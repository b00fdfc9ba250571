"""From stored hidden states to features: streaming moments, standardise + PCA, recipes."""
