"""SharedTrunkNet: from features to P(correct) of every target, trained as an ensemble."""
