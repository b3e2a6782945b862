"""How well clusters agree with classes, and how evenly they are used.

Shapes: N images, K clusters, C classes. Agreement is computed from the table of counts: scikit-learn's own forms check
and sort all labels anew, which takes longer than all else that is measured of an epoch of the digits.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Naming = Callable[[Tensor, Tensor], Tensor]  # logits_NK and labels_N -> the label of each cluster, (K,)


def assign_by_confidence(logits_NK: Tensor, labels_N: Tensor) -> Tensor:
    """The label of each cluster, (K,): that of the image which is most surely in it (Makhzani et al., section 6).

    Compared are log-odds, log q(y|x) - log(1 - q(y|x)): in single precision many probabilities of a trained label head
    are exactly one, and the first of these images would name the cluster.
    """
    logits_NK = logits_NK.double()
    top_N1 = logits_NK.argmax(1, keepdim=True)
    rest_N1 = logits_NK.scatter(1, top_N1, -torch.inf).logsumexp(1, keepdim=True)
    log_q_NK = logits_NK.log_softmax(1)
    odds_NK = log_q_NK - torch.log1p(-log_q_NK.exp())  # exact but for the top, where q may round to one
    return labels_N[odds_NK.scatter(1, top_N1, logits_NK.gather(1, top_N1) - rest_N1).argmax(0)]


def assign_by_majority(logits_NK: Tensor, labels_N: Tensor) -> Tensor:
    """The label of each cluster, (K,): the most frequent one in it, the smallest of equals.

    It hangs on more than one image, so it differs less from run to run than the paper's rule, which names the clusters
    that are empty.
    """
    clusters, classes = logits_NK.shape[1], int(labels_N.max()) + 1
    cells_N = logits_NK.argmax(1) * classes + labels_N
    counts_KC = torch.bincount(cells_N, minlength=clusters * classes).view(clusters, classes)
    return torch.where(counts_KC.sum(1) > 0, counts_KC.argmax(1), assign_by_confidence(logits_NK, labels_N))


def named_by_the_other_half(logits_NK: Tensor, labels_N: Tensor, naming: Naming = assign_by_confidence) -> Tensor:
    """The label that each image gets from its cluster, (N,), when every second image names the clusters of the others.

    Images that score clusters must not name them: of many small clusters each would be right about its own name. An
    image alone has no other half, and names its cluster itself.
    """
    answers_N, named_N = logits_NK.argmax(1), labels_N.clone()
    for half, other in ((0, 1), (1, 0)):
        if len(labels_N[other::2]):
            names_K = naming(logits_NK[other::2], labels_N[other::2])
            named_N[half::2] = names_K[answers_N[half::2]]
    return named_N


def contingency(clusters_N: Tensor, labels_N: Tensor) -> Tensor:
    """How many images lie in each cluster and class, (K, C)."""
    clusters, classes = int(clusters_N.max()) + 1, int(labels_N.max()) + 1
    return torch.bincount(clusters_N * classes + labels_N, minlength=clusters * classes).view(clusters, classes)


def hungarian_accuracy(clusters_N: Tensor, labels_N: Tensor) -> float:
    """Share of images that are right when every class has at most one cluster and the pairing is the best one."""
    from scipy.optimize import linear_sum_assignment

    counts_KC = contingency(clusters_N, labels_N).numpy()
    return float(counts_KC[linear_sum_assignment(counts_KC, maximize=True)].sum()) / len(labels_N)


def normalized_mutual_information(clusters_N: Tensor, labels_N: Tensor) -> float:
    """Mutual information over the mean of both entropies; 1: the same partition, 0: independent."""
    share_KC = contingency(clusters_N, labels_N).double() / len(labels_N)
    cluster_K, class_C = share_KC.sum(1), share_KC.sum(0)
    entropies = [float(-torch.special.xlogy(share, share).sum()) for share in (cluster_K, class_C, share_KC)]
    mean = (entropies[0] + entropies[1]) / 2
    return min(max(entropies[0] + entropies[1] - entropies[2], 0.0) / mean, 1.0) if mean else 1.0


def adjusted_rand_index(clusters_N: Tensor, labels_N: Tensor) -> float:
    """Agreement on pairs of images, corrected for chance; 1: the same partition, about 0: random."""

    def pairs(counts: Tensor) -> float:
        counts = counts.double()
        return float((counts * (counts - 1) / 2).sum())

    counts_KC = contingency(clusters_N, labels_N)
    together, clustered, classed = pairs(counts_KC), pairs(counts_KC.sum(1)), pairs(counts_KC.sum(0))
    every = len(labels_N) * (len(labels_N) - 1) / 2
    expected, most = clustered * classed / max(every, 1), (clustered + classed) / 2
    return 1.0 if most == expected else (together - expected) / (most - expected)


def clusters_used(clusters_N: Tensor, clusters: int) -> int:
    """Clusters that hold at least one image."""
    return int((torch.bincount(clusters_N, minlength=clusters) > 0).sum())


def usage_entropy(clusters_N: Tensor, clusters: int) -> float:
    """Entropy of the clusters' shares in nats; log K when all are used alike, 0 when one holds everything."""
    share_K = torch.bincount(clusters_N, minlength=clusters).double() / len(clusters_N)
    return float(-torch.special.xlogy(share_K, share_K).sum())
