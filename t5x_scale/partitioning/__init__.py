"""Floor 1: where arrays live. Knows axes, meshes and rules; knows no model."""
