"""Buffers are put back as the last finished step left them."""

import torch
from torch import Tensor, nn

from cifar_lit.callbacks.buffers import Buffers


class Replacing(nn.Module):
    """Has a new tensor for its running mean after each step."""

    running: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(2)
        self.register_buffer("running", torch.zeros(2))
        self.register_buffer("unused", None)

    def forward(self, batch: Tensor) -> Tensor:
        self.running = 0.9 * self.running + 0.1 * batch.mean(0)
        normalised: Tensor = self.norm(batch)
        return normalised


def test_a_buffer_is_put_back_whether_it_was_changed_or_replaced() -> None:
    net = Replacing()
    kept = Buffers(net)
    for batch in torch.randn(3, 4, 2):
        net(batch)
        kept.keep()
    expected = {name: buffer.clone() for name, buffer in net.state_dict().items()}
    net(torch.randn(4, 2))
    assert not torch.equal(net.state_dict()["running"], expected["running"])
    kept.restore()
    for name, buffer in net.state_dict().items():
        assert torch.equal(buffer, expected[name]), name
