"""A trained router in formats that other systems read."""

from routerjax.export.tensors import safetensors as safetensors
