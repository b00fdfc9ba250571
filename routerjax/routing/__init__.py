"""From probabilities to decisions: policies, what they are worth, and the report."""
