"""Open-weight encoders in JAX: from a Hugging Face folder to pooled hidden states."""
