"""Floor 3: schedules, optimisers, groups and guards. Sees logical axes, never the names of layers."""
