"""What each layer of a network does to the shape of an image, and what it costs, with the numbers filled in."""

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cifar_lit.evaluation.formulas import Shape, Window, size_rows
from cifar_lit.networks import evaluation_mode


@dataclass(frozen=True)
class Layer:
    """A layer with the shapes of one image: ``(channels, height, width)`` or ``(features,)``.

    Attributes:
        name: Its name in the network.
        settings: Its class and settings, as PyTorch writes them.
        shape_in: What it was given.
        shape_out: What it returned; None for a layer that does not fit.
        rows: Titles and the calculations behind them.
        num_parameters: Parameters, each counted at the first layer that has it.
        multiplications: Multiplications for one image; 0 for layers other than convolutions and linear layers.
        problem: Why it does not fit; empty for a layer that does.
    """

    name: str
    settings: str
    shape_in: Shape
    shape_out: Shape | None
    rows: tuple[tuple[str, str], ...]
    num_parameters: int
    multiplications: int
    problem: str = ""


def explain_layers(net: nn.Module, images: Tensor) -> list[Layer]:
    """Run images ``(N, 3, height, width)`` through a network, and return its layers in the order of their calls.

    A layer is a module without children, or one with parameters of its own. A layer that does not fit is the last of
    the list, with its ``problem``; an error outside of any layer passes through.
    """
    layers: list[Layer] = []
    open_calls: list[tuple[str, nn.Module, Shape]] = []
    seen: set[int] = set()

    def enter(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            open_calls.append((name, module, _shape(args[0] if args else None)))

        return hook

    def leave(module: nn.Module, _args: Any, output: Any) -> None:
        name, _, shape_in = open_calls.pop()
        layers.append(_describe(name, module, shape_in, _shape(output), seen))

    hooks = []
    for name, module in net.named_modules():
        if not any(module.children()) or any(True for _ in module.parameters(recurse=False)):
            hooks += [module.register_forward_pre_hook(enter(name)), module.register_forward_hook(leave)]
    try:
        with torch.no_grad(), evaluation_mode(net):
            net(images)
    except (RuntimeError, ValueError, IndexError) as error:
        layers.append(_misfit(error, open_calls, layers, seen, images.dtype))
    finally:
        for hook in hooks:
            hook.remove()
    return layers


def _misfit(error: Exception, calls: Sequence[Any], layers: Sequence[Layer], seen: set[int], dtype: Any) -> Layer:
    """Return the layer that an error comes from; an error of another kind is raised, with a note on what was given."""
    if not calls:
        error.add_note(_source(layers).lstrip(":, "))
        raise error
    name, module, shape_in = calls[-1]
    if problem := _why(module, shape_in, layers) or _why_type(module, dtype):
        return _describe(name, module, shape_in, None, seen, problem)
    error.add_note(f"the layer {name} gets {'x'.join(map(str, shape_in)) or 'no batch'}{_source(layers)}")
    raise error


def _shape(value: Any) -> Shape:
    """Return the shape of one image; empty for what is not a batch of tensors."""
    return tuple(value.shape[1:]) if isinstance(value, Tensor) else ()


def _describe(
    name: str, module: nn.Module, shape_in: Shape, shape_out: Shape | None, seen: set[int], problem: str = ""
) -> Layer:
    own = [(key, value) for key, value in module.named_parameters(recurse=False) if id(value) not in seen]
    seen.update(id(value) for _, value in own)
    num_parameters = sum(value.numel() for _, value in own)
    rows = [*size_rows(module, shape_in)]
    if own:
        rows.append(("parameters", _sum_of_products([tuple(value.shape) for _, value in own])))
    elif any(True for _ in module.parameters(recurse=False)):
        rows.append(("parameters", "shared with a layer above, counted there"))
    factors = _factors(module, shape_in, shape_out) if shape_out is not None else ()
    multiplications = math.prod(factors) if factors else 0
    if factors:
        rows.append(("multiplications", _sum_of_products([factors])))
    settings = repr(module) if not any(module.children()) else type(module).__name__
    return Layer(
        name, " ".join(settings.split()), shape_in, shape_out, tuple(rows), num_parameters, multiplications, problem
    )


def _sum_of_products(products: Sequence[Sequence[int]]) -> str:
    """Return ``32*3*5*5 + 32 = 2,432``."""
    total = f"{sum(map(math.prod, products)):,}"
    text = " + ".join("*".join(map(str, product)) for product in products)
    return total if text == total else f"{text} = {total}"


def _factors(module: nn.Module, shape_in: Shape, shape_out: Shape) -> tuple[int, ...]:
    """Return the numbers whose product is the multiplications of a layer for one image."""
    match module:
        case nn.Conv2d():
            return (*shape_out, module.in_channels // module.groups, *module.kernel_size)
        case nn.ConvTranspose2d():
            return (*shape_in, module.out_channels // module.groups, *module.kernel_size)
        case nn.Linear():
            return (*shape_in, module.out_features)
    return ()


def _why(module: nn.Module, shape_in: Shape, before: Sequence[Layer]) -> str:
    """Return why a layer does not fit what it was given; empty if that is not known."""
    given = "x".join(map(str, shape_in))
    match module:
        case nn.Conv2d() | nn.ConvTranspose2d() if len(shape_in) != 3:
            return f"expects channels x height x width, and gets {given or 'no batch of images'}"
        case nn.Conv2d() | nn.ConvTranspose2d() if shape_in[0] != module.in_channels:
            return f"expects {module.in_channels} channels, and gets {shape_in[0]}{_source(before)}"
        case nn.Linear() if len(shape_in) > 1 and math.prod(shape_in) == module.in_features:
            return f"expects {module.in_features:,} features, and gets {given}: flatten it before, as with nn.Flatten()"
        case nn.Linear() if shape_in and shape_in[-1] != module.in_features:
            return f"expects {module.in_features:,} features, and gets {shape_in[-1]:,}{_source(before)}"
        case nn.BatchNorm2d() | nn.BatchNorm1d() if shape_in and shape_in[0] != module.num_features:
            return f"expects {module.num_features:,} channels, and gets {shape_in[0]:,}{_source(before)}"
    sizes = size_rows(module, shape_in) if isinstance(module, Window) else []
    if any(int(text.rpartition("= ")[2]) < 1 for _, text in sizes):
        return f"has a window larger than its input {given}, padding included"
    return ""


def _why_type(module: nn.Module, dtype: torch.dtype) -> str:
    """Return why a layer does not fit images of a type; empty if its weights have this type, or it has none."""
    others = [part.dtype for part in module.parameters(recurse=False) if part.dtype != dtype]
    return f"has weights of {others[0]}, and the images are of {dtype}: leave the weights so" if others else ""


def _source(before: Sequence[Layer]) -> str:
    """Return where the input of a layer comes from: the last layer before it that has channels, and its shape."""
    of_images = [layer for layer in before if layer.shape_out and len(layer.shape_out) == 3]
    if not before:
        return ", from the image"
    if not (last := before[-1]).shape_out:
        return ""
    text = f": {last.name} gives {'x'.join(map(str, last.shape_out))}"
    if len(last.shape_out) == 1 and of_images and math.prod(of_images[-1].shape_out or ()) == last.shape_out[0]:
        source = of_images[-1]
        text += f", from {source.name}'s {'x'.join(map(str, source.shape_out or ()))}"
    return text


def format_layers(layers: Sequence[Layer], shape: Shape, num_parameters: int = 0) -> str:
    """Return the layers of a network as text for a terminal of 80 columns.

    ``shape`` is that of one image, ``num_parameters`` the number of the whole network, if known.
    """
    lines = [f"image {_text(shape)}"]
    previous = shape
    for layer in layers:
        if layer.shape_in != previous:
            lines += ["", f"between the layers: {_text(previous)} -> {_text(layer.shape_in)}"]
        lines += ["", *_wrap(f"{layer.name}: {layer.settings}", indent="  ")]
        for title, calculation in layer.rows:
            lines += _wrap(f"  {title:<16}{calculation}", indent=" " * 18)
        if layer.problem:
            return "\n".join([*lines, *_wrap(f"  does not fit: it {layer.problem}", indent=" " * 4)])
        lines.append(f"  {'output':<16}{_text(layer.shape_out or ())}")
        previous = layer.shape_out or ()
    counted, products = (sum(getattr(x, n) for x in layers) for n in ("num_parameters", "multiplications"))
    if num_parameters > counted:
        lines += ["", f"{num_parameters - counted:,} parameters of modules that are not called"]
    text = f"{max(counted, num_parameters):,} parameters, {products:,} multiplications per image"
    return "\n".join([*lines, "", text])


def _text(shape: Shape) -> str:
    return " x ".join(map(str, shape)) or "?"


def _wrap(text: str, *, indent: str, width: int = 80) -> list[str]:
    first = text[: len(text) - len(text.lstrip())]
    return textwrap.wrap(text.lstrip(), width, initial_indent=first, subsequent_indent=indent, break_on_hyphens=False)
