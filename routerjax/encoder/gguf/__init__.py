"""GGUF: checkpoints as llama.cpp writes them, with the config and the tokenizer in the file."""
