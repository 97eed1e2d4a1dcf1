"""The words of the report: the headline, the classes from the worst on, the most frequent confusions."""

from dataclasses import replace

import numpy as np
import pytest

from cifar_lit.evaluation.summary import class_rows, confusions, headline, most_confused, percent
from tests.helpers.results import make_results

CLASSES = ["cat", "dog", "ship"]
MATRIX = [[30, 20, 0], [1, 49, 0], [0, 0, 0]]
METRICS = {
    "Accuracy/test": 0.79,
    "AccuracyInterval/test": [0.7001, 0.8583],
    "Accuracy/val": 0.8,
    "Confusion/test": MATRIX,
    **{f"Recall/test/{name}": value for name, value in zip(CLASSES, (0.6, 0.98, 0.0), strict=True)},
}
KNOWN = make_results(METRICS, title="CIFAR-10", num_train=45_000, num_val=20, num_test=100, epochs=20)


def test_the_headline_says_what_was_trained_on_what_and_how_good_it_is() -> None:
    assert headline(KNOWN) == (
        "TutorialCNN was trained for 20 epochs on CIFAR-10 (45,000 images). It classifies 79.0 % of 100 test images "
        "correctly (95 % interval: 70.0 to 85.8 %). Best class: dog (98.0 %); worst: cat (60.0 %)."
    )
    part = replace(KNOWN, num_test=1, total_test=100, epochs=1, num_train=1)
    assert "for 1 epoch on CIFAR-10 (1 image). It classifies 79.0 % of 1 of the 100 test images" in headline(part)


def test_the_headline_leaves_out_what_is_not_known() -> None:
    untested = replace(KNOWN, num_test=0, epochs=None, num_train=0, metrics={"Accuracy/val": 0.8})
    assert headline(untested) == (
        "TutorialCNN was trained on CIFAR-10. It classifies 80.0 % of 20 validation images correctly; "
        "it was not tested."
    )
    assert headline(replace(untested, title="", metrics={})) == ""


def test_classes_that_are_equally_good_are_counted() -> None:
    recalls = {f"Recall/test/{name}": value for name, value in zip("abcd", (1.0, 1.0, 0.5, 1.0), strict=True)}
    assert headline(replace(KNOWN, metrics=recalls)).endswith(
        "Best class: a and 2 others (100.0 %); worst: c (50.0 %)."
    )
    assert "Best" not in headline(replace(KNOWN, metrics=dict.fromkeys(recalls, 0.5)))


def test_the_worst_class_comes_first_and_one_without_images_last() -> None:
    assert [(row.name, row.recall, row.num_images) for row in class_rows(KNOWN)] == [
        ("cat", 0.6, 50),
        ("dog", 0.98, 50),
        ("ship", 0.0, 0),
    ]


def test_the_most_frequent_confusions_are_in_words() -> None:
    found = confusions(MATRIX, 5)
    assert [confusion.text(CLASSES) for confusion in found] == [
        "cat taken for dog 20 times (40 % of its 50 images)",
        "dog taken for cat once (2 % of its 50 images)",
    ]
    assert confusions(MATRIX, 1) == found[:1]
    assert confusions([[3, 0], [0, 1]], 5) == []
    assert MATRIX[0][0] == 30


def test_of_many_classes_those_in_the_most_errors_are_chosen() -> None:
    matrix = np.diag([9] * 200)
    matrix[150, 3], matrix[20, 150] = 5, 4
    assert most_confused(matrix, 2) == [3, 150]
    assert most_confused(matrix, 200) == list(range(200))


@pytest.mark.parametrize(
    ("share", "text"),
    [(0.939, "93.9 %"), (1, "100.0 %"), (0, "0.0 %"), (0.9998, "99.98 %"), (0.0001, "0.01 %"), (1e-9, "0.0000 %")],
)
def test_a_share_never_reads_as_all_or_nothing_by_rounding(share: float, text: str) -> None:
    assert percent(share) == text
