"""How documents become rows: windows of the stream, or whole documents packed by a recomputable plan."""
