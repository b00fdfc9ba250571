"""The target LLMs themselves: where they answer, asking them, grading their answers."""
