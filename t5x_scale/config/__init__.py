"""Floor 9: gin files and flags become one checked configuration. The only room, with `main`, that knows gin."""
