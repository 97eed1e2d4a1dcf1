"""A network of the user's: found in the working folder, and checked with one batch before anything starts."""

import contextlib
import inspect
import re
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace
from lightning.pytorch.utilities import rank_zero_warn
from torch import nn

import cifar_lit.networks
from cifar_lit.callbacks.exact_resume import get_random_state, set_random_state
from cifar_lit.errors import UserError, is_out_of_memory, suggest
from cifar_lit.evaluation.layers import explain_layers
from cifar_lit.module import ImageClassifier
from cifar_lit.networks import Network, check_logits, evaluation_mode
from cifar_lit.networks.base import build_network, needed_trust, without_odd_defaults
from cifar_lit.networks.finding import describe, find_network, import_network, is_network, is_of_user, place_of
from cifar_lit.schema import check_yaml, read_yaml

SIZES = (8, 16, 24, 32, 48, 64, 96, 128, 192, 256)
OPTIONS = ("--model.net", "--model.net.class_path")


def import_named(args: Sequence[str], configs: Sequence[str | Path] = ()) -> None:
    """Import the networks that a command line and its configuration files name: the working folder is searched, too."""
    named = []
    for config in configs:
        check_yaml(Path(config))
        with contextlib.suppress(UserError, AttributeError):  # what else is wrong with it is said when it is parsed
            net = read_yaml(Path(config)).get("model", {}).get("net")
            named.append(net.get("class_path") if isinstance(net, dict) else net)
    for word, following in zip(args, [*args, ""][1:], strict=True):
        option, is_joined, value = word.partition("=")
        if option in OPTIONS:
            named.append(value if is_joined else following)
    for name in named:
        if isinstance(name, str) and re.fullmatch(r"[^\s{\[]+", name):
            _import(name)


def _import(name: str) -> None:
    ours = [key for key, value in vars(cifar_lit.networks).items() if is_network(value) and value is not Network]
    file = Path(name if name.endswith(".py") else f"{name}.py")
    if file.is_file():
        found = re.findall(r"(?m)^class (\w+)\(", _text(file)) or ["MyNet"]
        raise UserError(f"--model.net is {name}: give the class in it, too, as {file.stem}.{found[-1]}")
    if name in ours or Path(name).is_file():  # a file with settings
        return
    if "." in name:
        try:
            import_network(name)
        except UserError as error:
            raise UserError(f"--model.net is {name}: {error}") from error
        return
    head = re.compile(rf"(?m)^class {re.escape(name)}\b")
    own = [f"{path.stem}.{name}" for path in Path().glob("*.py") if head.search(_text(path))]
    near = f"; did you mean {own[0]}?" if own else suggest(name, ours)
    raise UserError(
        f"--model.net is {name}: there are {', '.join(sorted(ours))}; give one of your own with its module, as "
        f"my_net.MyNet{near}"
    )


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


@contextlib.contextmanager
def own_code() -> Iterator[None]:
    """Show an error of the user's network as one line, with its place in the user's file; one of ours passes."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        place = place_of(error) if _is_of_network(error) and not is_out_of_memory(error) else ""
        if not place:
            raise
        raise UserError(f"`net`: {place}: {describe(error)}") from error


def _is_of_network(error: BaseException) -> bool:
    """Return whether an error was raised in a method of a network, and not of a callback, say, beside it."""
    frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__))
    return any(isinstance(frame.f_locals.get("self"), nn.Module) and is_of_user(frame) for frame in frames)


def check_forward(net: nn.Module) -> None:
    """Refuse a network that cannot be called with images alone."""
    name = type(net).__name__
    if type(net).forward is nn.Module.forward:
        raise UserError(f"`net`: {name} has no method forward{suggest('forward', vars(type(net)))}")
    try:
        inspect.signature(net.forward).bind(None)
    except TypeError as error:
        raise UserError(f"`net`: forward of {name} must take the images, and nothing else: {error}") from error


def check_network(model: ImageClassifier, sizes: Sequence[int]) -> None:
    """Refuse a network that does not compute logits of two images; of a layer that does not fit, say why."""
    net, name, size = model.net, type(model.net).__name__, model.image_size
    check_forward(net)
    try:
        model.check_network()
    except UserError:
        raise
    except (RuntimeError, ValueError, IndexError) as error:
        fits, problem = _fitting(model), ""
        try:
            layers = explain_layers(net, torch.zeros(2, 3, size, size))
            if layers and layers[-1].problem:
                problem = f"its layer {layers[-1].name} {layers[-1].problem}"
        except (RuntimeError, ValueError, IndexError) as outside:  # of a layer
            if not fits:
                raise
            problem = describe(outside)
        if not problem:
            raise
        others = f"; `image_size` is {size}, and it takes {fits}" if fits else ""
        raise UserError(f"`net` is {name}: {problem}{others}; cifar-lit explain shows all layers") from error
    if needed_trust(net):
        _check_training(model)
    for other in set(sizes):
        try:
            with torch.no_grad(), evaluation_mode(net):
                net(torch.zeros(1, 3, other, other))
        except RuntimeError as error:
            raise UserError(f"`image_sizes` has {other}, which {name} does not take: leave it out") from error


def _fitting(model: ImageClassifier) -> str:
    """Return those of the usual image sizes that the network takes, if it is built for them; perhaps none."""
    fits = []
    for size in SIZES:
        with contextlib.suppress(Exception), torch.no_grad():  # of the user's network, which may raise anything
            net = build_network(model.hparams["net"], num_classes=len(model.classes), image_size=size)
            check_logits(net.eval()(torch.zeros(2, 3, size, size)), net, 2, len(model.classes))
            fits.append(str(size))
    return ", ".join(fits)


def _check_training(model: ImageClassifier) -> None:
    """Refuse a network that gives something else in training, or logits that nothing in it is trained by."""
    net: Any = model.net
    random_state, buffers = get_random_state(), [(buffer, buffer.clone()) for buffer in net.buffers()]
    modes = [(part, part.training) for part in net.modules()]
    try:
        logits = net.train()(torch.zeros(2, 3, model.image_size, model.image_size))
        check_logits(logits, net, 2, len(model.classes))
        if not logits.requires_grad:
            raise UserError(f"`net`: no parameter of {type(net).__name__} is trained by its logits")
        if (logits >= 0).all() and torch.allclose(logits.sum(1), logits.new_ones(2), atol=1e-3):
            name = type(net).__name__
            rank_zero_warn(f"{name} gives probabilities, and the loss expects logits: leave out the softmax at its end")
    finally:
        set_random_state(random_state)
        for part, was_training in modes:
            part.training = was_training
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)


def drop_odd_defaults(net: Any) -> None:
    """Take from a parsed network the options that are only defaults and that no file can hold."""
    if isinstance(net, Namespace) and (options := net.get("init_args")):
        kind = find_network(net["class_path"])
        kept = without_odd_defaults(kind, vars(options)) if is_network(kind) else vars(options)
        for name in options.keys() - kept.keys():
            del options[name]
