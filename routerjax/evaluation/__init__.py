"""What a router is worth on rows that it was not trained on."""
