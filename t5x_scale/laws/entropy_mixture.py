"""Mixtures by entropy (Ge et al. 2024, 2405.14908): a domain gets a share by how hard it is to predict.

r_i = exp(H_i)/Σ exp(H_j), with H_i the entropy of a token given the one before, from counts of pairs. No training is
needed, so it is where a sweep of mixtures can begin. Entropies are in nats. A domain is a sequence of arrays of token
ids, one a document: no pair spans two of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from t5x_scale.core.errors import UserError

Documents = Sequence[np.ndarray]


def entropy(counts: np.ndarray) -> float:
    """Entropy of the distribution that counts of anything, [kinds], stand for."""
    counts = np.asarray(counts, dtype=float)
    if counts.size == 0 or np.any(counts < 0) or not counts.sum() > 0:
        raise UserError("an entropy needs counts of something, none of them negative")
    shares = counts[counts > 0] / counts.sum()
    return float(-np.sum(shares * np.log(shares)))


def token_entropy(documents: Documents) -> float:
    """H(X), of single tokens (the paper's Shannon variant)."""
    return entropy(np.unique(np.concatenate([np.ravel(d) for d in documents]), return_counts=True)[1])


def joint_entropy(documents: Documents) -> float:
    """H(X, Y), of pairs of neighbours (the paper's joint variant)."""
    return entropy(_pair_counts(documents)[1])


def conditional_entropy(documents: Documents) -> float:
    """H(Y|X) = H(X, Y) - H(X), of a token given the one before; X are the tokens that have a next one."""
    first, counts = _pair_counts(documents)
    return entropy(counts) - entropy(np.bincount(np.unique(first, return_inverse=True)[1], weights=counts))


def von_neumann_entropy(features: np.ndarray) -> float:
    """-Σ λ ln λ over the eigenvalues of the kernel of unit rows of `features` [documents, features], of trace 1.

    The paper names the variant; which features it took is not known to us.
    """
    rows = np.asarray(features, dtype=float)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    if rows.size == 0 or np.any(lengths == 0):
        raise UserError("a von Neumann entropy needs rows of features, none of them zero")
    values = np.linalg.svd(rows / lengths, compute_uv=False) ** 2 / len(rows)
    return entropy(values)


def entropy_shares(entropies: Mapping[str, float]) -> dict[str, float]:
    """r_i = exp(H_i)/Σ exp(H_j) by name of the domain."""
    if not entropies:
        raise UserError("a mixture needs a domain")
    values = np.array(list(entropies.values()), dtype=float)
    shares = np.exp(values - values.max())
    return dict(zip(entropies, map(float, shares / shares.sum()), strict=True))


def _pair_counts(documents: Documents) -> tuple[np.ndarray, np.ndarray]:
    """([pairs] first tokens, [pairs] counts) of the different pairs of neighbours."""
    arrays = [np.ravel(document).astype(np.int64) for document in documents]
    if not any(len(array) > 1 for array in arrays):
        raise UserError("an entropy of pairs needs a document of at least two tokens")
    first = np.concatenate([array[:-1] for array in arrays])
    second = np.concatenate([array[1:] for array in arrays])
    if min(first.min(), second.min()) < 0:
        raise UserError("token ids are not negative")
    width = int(second.max()) + 1
    pairs, counts = np.unique(first * width + second, return_counts=True)
    return pairs // width, counts
