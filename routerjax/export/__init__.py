"""A trained router in formats that other systems read."""

from routerjax.export.arena import router_arena as router_arena
from routerjax.export.blueprint_file import blueprint as blueprint
from routerjax.export.program import stablehlo as stablehlo
from routerjax.export.switchyard_file import switchyard as switchyard
from routerjax.export.tensors import safetensors as safetensors
