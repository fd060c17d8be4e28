"""From a budget to a run: the laws' decisions with their reasons, a machine, gin files, and what to expect.

Knows shapes and machines as numbers only; imports neither jax nor gin, so that an answer takes no time.
"""
