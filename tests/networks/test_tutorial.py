"""The tutorial's network: both forms of the tutorial, sizes, learning."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cifar_lit.networks import TutorialCNN


class Attributes(nn.Module):
    """The first form: layers as attributes, called one by one."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 32, 5, padding=2)
        self.second = nn.Conv2d(32, 32, 5, padding=2)
        self.third = nn.Conv2d(32, 64, 5, padding=2)
        self.hidden = nn.Linear(1024, 64)
        self.last = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.first(x), 2)
        x = F.max_pool2d(self.second(x), 2)
        x = F.max_pool2d(self.third(x), 2)
        x = self.hidden(torch.flatten(x, 1))
        logits: Tensor = self.last(x)
        return logits


def sequential() -> nn.Sequential:
    """Build the second form: a Sequential."""
    convolutions: list[nn.Module] = []
    for num_in, num_out in ((3, 32), (32, 32), (32, 64)):
        convolutions += [nn.Conv2d(num_in, num_out, 5, padding=2), nn.MaxPool2d(2)]
    return nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(1024, 64), nn.Linear(64, 10))


def with_weights_of(net: nn.Module, form: nn.Module) -> nn.Module:
    """Copy the weights of our network to one of the two forms, in the order of the layers."""
    form.load_state_dict(dict(zip(form.state_dict(), net.state_dict().values(), strict=True)))
    return form


def test_it_has_the_tutorials_number_of_parameters() -> None:
    assert sum(parameter.numel() for parameter in TutorialCNN().parameters()) == 145_578


def test_both_written_forms_give_the_same_logits() -> None:
    torch.manual_seed(0)
    net, images = TutorialCNN(), torch.rand(5, 3, 32, 32)
    logits = net(images)
    assert logits.shape == (5, 10)
    for form in (Attributes(), sequential()):
        assert torch.equal(with_weights_of(net, form)(images), logits)


def test_each_layers_output_size_is_what_the_formula_says() -> None:
    def formula(size: int, layer: nn.Conv2d | nn.MaxPool2d) -> int:
        def one(value: int | tuple[int, ...] | str) -> int:
            assert not isinstance(value, str)
            return value if isinstance(value, int) else value[0]

        kernel, stride, padding = one(layer.kernel_size), one(layer.stride), one(layer.padding)
        return (size + 2 * padding - one(layer.dilation) * (kernel - 1) - 1) // stride + 1

    x, size, sizes = torch.rand(2, 3, 32, 32), 32, []
    for layer in TutorialCNN().layers:
        x = layer(x)
        if isinstance(layer, nn.Conv2d | nn.MaxPool2d):
            size = formula(size, layer)
            assert x.shape[2:] == (size, size)
            sizes.append(size)
    assert sizes == [32, 16, 16, 8, 8, 4]
    assert x.shape == (2, 10)


def test_the_initialisation_is_the_default_one() -> None:
    torch.manual_seed(3)
    ours = TutorialCNN().state_dict().values()
    torch.manual_seed(3)
    assert all(torch.equal(a, b) for a, b in zip(ours, sequential().state_dict().values(), strict=True))


def test_gradients_reach_every_parameter_and_it_overfits_32_images() -> None:
    torch.manual_seed(0)
    net, images, labels = TutorialCNN(7), torch.rand(32, 3, 32, 32), torch.arange(32) % 7
    optimizer = torch.optim.SGD(net.parameters(), lr=0.02, momentum=0.9)
    for _ in range(100):
        optimizer.zero_grad()
        F.cross_entropy(net(images), labels).backward()  # type: ignore[no-untyped-call]
        assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in net.parameters())
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
    assert torch.equal(net(images).argmax(1), labels)
