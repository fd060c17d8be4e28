"""Floor 3: decoders made of layers, and the interface through which everything else uses them."""
