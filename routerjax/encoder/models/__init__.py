"""The modules that an encoder is made of."""
