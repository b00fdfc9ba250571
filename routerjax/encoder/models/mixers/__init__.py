"""What mixes a block's tokens, of each BlockKind.mixer: attentions, convolutions, memories."""
