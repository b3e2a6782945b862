"""Scores of clusters by hand."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from aae_ray.evaluation import clustering_metrics as clusters

LABELS = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2, 2])


@given(
    found=st.lists(st.integers(0, 4), min_size=2, max_size=30),
    classes=st.integers(1, 5),
    seed=st.integers(0, 99),
)
def test_agreement_is_that_of_scikit_learn(found: list[int], classes: int, seed: int) -> None:
    labels_N = torch.randint(classes, (len(found),), generator=torch.Generator().manual_seed(seed))
    for own, theirs in (
        (clusters.normalized_mutual_information, normalized_mutual_info_score),
        (clusters.adjusted_rand_index, adjusted_rand_score),
    ):
        assert own(torch.tensor(found), labels_N) == pytest.approx(theirs(labels_N, found), abs=1e-9)
        assert own(labels_N, labels_N) <= 1.0


def test_a_permutation_of_the_classes_is_perfect() -> None:
    found = (LABELS + 1) % 3
    assert clusters.hungarian_accuracy(found, LABELS) == 1
    assert clusters.normalized_mutual_information(found, LABELS) == pytest.approx(1)
    assert clusters.adjusted_rand_index(found, LABELS) == pytest.approx(1)


def test_random_clusters_agree_with_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    found, labels = (torch.randint(10, (20_000,), generator=generator) for _ in range(2))
    assert clusters.normalized_mutual_information(found, labels) < 0.01
    assert abs(clusters.adjusted_rand_index(found, labels)) < 0.01
    assert clusters.hungarian_accuracy(found, labels) < 0.15


def test_hungarian_accuracy_takes_one_cluster_for_a_class() -> None:
    split = torch.tensor([0, 0, 1, 2, 2, 2, 3, 3, 4, 5])  # class 0 in two clusters, class 2 in three
    assert clusters.hungarian_accuracy(split, LABELS) == pytest.approx((2 + 3 + 2) / 10)
    merged = torch.zeros(10, dtype=torch.long)
    assert clusters.hungarian_accuracy(merged, LABELS) == pytest.approx(4 / 10)


def test_the_papers_rule_names_a_cluster_after_its_surest_image() -> None:
    probabilities_NK = torch.tensor([[0.9, 0.1, 0.0], [0.8, 0.2, 0.0], [0.1, 0.6, 0.3], [0.3, 0.3, 0.4]])
    labels_N = torch.tensor([7, 3, 5, 3])
    assert clusters.assign_by_confidence(probabilities_NK.log(), labels_N).tolist() == [7, 5, 3]


def test_the_surest_image_is_found_among_probabilities_that_round_to_one() -> None:
    logits_NK = torch.tensor([[40.0, 0.0, -3.0], [90.0, 0.0, -3.0], [60.0, 0.0, -3.0], [0.0, 50.0, 50.0]])
    assert (logits_NK.softmax(1)[:3, 0] == 1).all()
    labels_N = torch.tensor([1, 2, 3, 4])
    assert clusters.assign_by_confidence(logits_NK, labels_N).tolist() == [2, 4, 4]


def test_images_that_score_clusters_do_not_name_them() -> None:
    """An image a cluster: named by itself it would always be right."""
    labels_N = torch.arange(10) % 5
    assert (clusters.assign_by_confidence(torch.eye(10), labels_N) == labels_N).all()
    wrong = [
        (clusters.named_by_the_other_half(torch.randn(400, 300, generator=generator), labels_N) != labels_N).double()
        for generator in [torch.Generator().manual_seed(0)]
        for labels_N in [torch.randint(10, (400,), generator=generator)]
    ]
    assert wrong[0].mean() > 0.85


def test_every_second_image_names_the_clusters_of_the_others() -> None:
    logits_NK = torch.tensor([[9.0, 0.0], [8.0, 0.0], [0.0, 7.0], [0.0, 6.0], [5.0, 0.0]])
    labels_N = torch.tensor([1, 2, 3, 4, 1])
    assert clusters.named_by_the_other_half(logits_NK, labels_N).tolist() == [2, 1, 4, 3, 2]
    assert clusters.named_by_the_other_half(logits_NK[:1], labels_N[:1]).tolist() == [1]


def test_empty_clusters_are_counted_and_entropy_tells_how_even_the_others_are() -> None:
    found = torch.tensor([0, 0, 3, 3])
    assert clusters.clusters_used(found, 5) == 2
    assert clusters.usage_entropy(found, 5) == pytest.approx(math.log(2))
    assert clusters.usage_entropy(torch.zeros(9, dtype=torch.long), 5) == 0


def test_a_majority_names_a_cluster_and_its_surest_image_an_empty_one() -> None:
    """Cluster 0 holds three images of class 1 and a very sure one of class 2; nothing lies in cluster 2."""
    logits_N3 = torch.tensor([[9.0, 0, 0], [1, 0, 0], [1, 0, 0], [1, 0, 0], [0, 1, 0], [0, 2, 1]])
    labels_N = torch.tensor([2, 1, 1, 1, 0, 0])
    assert clusters.assign_by_confidence(logits_N3, labels_N).tolist() == [2, 0, 0]
    assert clusters.assign_by_majority(logits_N3, labels_N).tolist() == [1, 0, 0]


def test_images_that_score_clusters_do_not_name_them_by_majority_either() -> None:
    """As many clusters as images: each would be right about its own name."""
    labels_N = torch.arange(40) % 4
    logits_NN = torch.eye(40)
    naming = clusters.assign_by_majority
    assert torch.equal(naming(logits_NN, labels_N)[logits_NN.argmax(1)], labels_N)
    named_N = clusters.named_by_the_other_half(logits_NN, labels_N, naming)
    assert (named_N != labels_N).double().mean() > 0.4
