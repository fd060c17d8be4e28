"""Floor 6: from a prompt to its completion. Takes tokens and gives tokens; files belong to the command."""
