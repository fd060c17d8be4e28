"""Floor 2: Linen modules and the functions they are made of. They know logical axes, never mesh axes.

Suffixes name dimensions: B batch, L query length, S key length, D embed, F mlp, N heads, K kv heads,
G heads per kv head, H head size, V vocabulary.
"""
