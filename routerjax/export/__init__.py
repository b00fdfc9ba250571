"""A trained router in formats that other systems read."""

from routerjax.export.program import stablehlo as stablehlo
from routerjax.export.tensors import safetensors as safetensors
