"""Floor 0: what every other room may lean on. Touches no device and imports nothing above itself."""
