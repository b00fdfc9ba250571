"""From probabilities to decisions: routers, policies and costs."""
