"""Clusters of equal size."""

from __future__ import annotations

import numpy as np


def balanced_clusters(points: np.ndarray, clusters: int, seed: int, iterations: int = 20) -> np.ndarray:
    """k-means in which every cluster has as many points as the next.

    Each round gives the points to their nearest centres as far as there is room: of those that want a full cluster,
    the ones that would lose most by going elsewhere stay. It ends when no point moves.

    Args:
      points: float32 [n, d]; beside it, n x clusters distances are held.
      clusters: must divide n.
      seed: of the first centres.
      iterations: most rounds.

    Returns:
      The cluster of each point, int64 [n].
    """
    count = len(points)
    if count % clusters:
        raise ValueError(f"{count} points do not make {clusters} clusters of equal size")
    points = np.ascontiguousarray(points)
    centres = _first_centres(points, clusters, np.random.default_rng(seed))
    labels = np.full(count, -1)
    for _ in range(iterations):
        # Squared distances but for the point's own square, which changes no order.
        distances = np.square(centres).sum(axis=1) - 2.0 * (points @ centres.T)
        previous, labels = labels, _assign(distances, count // clusters)
        if np.array_equal(labels, previous):
            break
        centres = np.stack([points[labels == cluster].mean(axis=0) for cluster in range(clusters)])
    return labels


def _first_centres(points: np.ndarray, clusters: int, rng: np.random.Generator) -> np.ndarray:
    """Points far from each other: each with a probability that grows with the square of its distance (k-means++)."""
    chosen = [int(rng.integers(len(points)))]
    nearest = np.full(len(points), np.inf)
    for _ in range(clusters - 1):
        nearest = np.minimum(nearest, np.square(points - points[chosen[-1]]).sum(axis=1, dtype=np.float64))
        total = nearest.sum()
        chosen.append(int(rng.choice(len(points), p=nearest / total if total > 0 else None)))
    return points[chosen]


def _assign(distances: np.ndarray, room: int) -> np.ndarray:
    """The cluster of each point, `room` points in each. Every round closes at least one cluster."""
    left = distances.astype(np.float64)
    labels = np.full(len(left), -1)
    while (waiting := np.flatnonzero(labels < 0)).size:
        wanted = left[waiting].argmin(axis=1)
        for cluster in np.unique(wanted):
            points = waiting[wanted == cluster]
            free = room - np.count_nonzero(labels == cluster)
            if points.size >= free:
                points = points[np.argsort(-_regret(left[points], cluster), kind="stable")[:free]]
                left[:, cluster] = np.inf
            labels[points] = cluster
    return labels


def _regret(distances: np.ndarray, cluster: int) -> np.ndarray:
    """How much farther the next best open cluster is, [n]."""
    others = np.delete(distances, cluster, axis=1)
    return others.min(axis=1, initial=np.inf) - distances[:, cluster]
