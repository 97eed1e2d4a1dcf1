"""Plots whose numbers were computed by hand."""

import numpy as np
import pytest
import torch
from matplotlib.patches import Rectangle

from cifar_lit.evaluation.plots import draw_reliability
from cifar_lit.metrics import Predictions


def test_a_reliability_diagram_has_the_accuracy_and_the_number_of_each_range_of_confidence() -> None:
    # Of fifteen ranges: two images between 7/15 and 8/15, one of them correct, and one from 10/15 on, which is wrong;
    # four in the last, three of them correct, of which one has the confidence 1.
    confidence = torch.tensor([0.48, 0.52, 0.7, 0.94, 0.96, 0.99, 1.0])
    is_correct = torch.tensor([1, 0, 0, 1, 1, 0, 1])
    probabilities = torch.stack([confidence, (1 - confidence) / 2, (1 - confidence) / 2], 1)
    figure = draw_reliability(Predictions(probabilities.log(), 1 - is_correct, torch.arange(7)))
    bars = [[part for part in axes.patches if isinstance(part, Rectangle)] for axes in figure.axes]
    accuracies, counts = ([bar.get_height() for bar in of_axes] for of_axes in bars)
    assert accuracies == pytest.approx([*[0] * 7, 1 / 2, 0, 0, 0, 0, 0, 0, 3 / 4])
    assert counts == [*[0] * 7, 2, 0, 0, 1, 0, 0, 0, 4]
    middles = [bar.get_x() + bar.get_width() / 2 for bar in bars[0]]
    assert middles == pytest.approx([(number + 0.5) / 15 for number in range(15)])
    (diagonal,) = figure.axes[0].lines
    assert [np.asarray(ends).tolist() for ends in (diagonal.get_xdata(), diagonal.get_ydata())] == [[0, 1], [0, 1]]
