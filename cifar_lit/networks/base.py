"""The base class of all networks, and their description in a checkpoint."""

import abc
import contextlib
import functools
import inspect
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from cifar_lit.errors import UserError
from cifar_lit.networks.finding import NAMED, find_network, is_network, is_ours


class Network(nn.Module):
    """Base class of this project's networks: images ``(N, 3, size, size)``, float32, normalised, to logits.

    Any other ``nn.Module`` does, too. A constructor that has an argument ``num_classes`` is given the number of
    classes, and one that has ``image_size`` the height and width of the images. Its other arguments are options of
    plain types (numbers, strings, lists of these). They are saved in the checkpoint, and the network is built from them
    again.

    Attributes:
        initialised: Names of the parameters that ``load_weights`` left initialised at random.
    """

    initialised: Sequence[str] = ()

    def prepare(self, images: Tensor) -> None:
        """Initialise from training images, once before training (data-dependent initialisation); by default nothing.

        The images are ``(n, 3, size, size)``, float32, normalised; the same on every rank.
        """

    def untrained(self, epoch: int) -> Sequence[nn.Parameter]:
        """Return the parameters that rest in an epoch, from 0, and are trained in others: some; by default none."""
        return ()

    def load_weights(self) -> str:
        """Load the weights that a new training starts from, and return what was loaded; by default nothing."""
        return ""


def load_once(net: Network, trainer: Any) -> None:
    """Load the weights that a network starts from; the first process of each machine alone downloads them."""
    if trainer.local_rank:
        trainer.strategy.barrier()
    if text := net.load_weights():
        rank_zero_info(text)
    if not trainer.local_rank:
        trainer.strategy.barrier()


class AnyNetwork(abc.ABC):  # noqa: B024
    """The type of ``--model.net``: any ``nn.Module``, of which those of this project alone are found by their name."""

    @classmethod
    def __subclasshook__(cls, kind: type) -> bool:
        return issubclass(kind, nn.Module)

    @classmethod
    def __subclasses__(cls) -> list[type]:  # what jsonargparse searches for a name without a module
        return [Network]


if TYPE_CHECKING:
    NetworkFactory = Callable[..., nn.Module]
else:

    class NetworkFactory(Protocol):
        """Builds a network for a number of classes and a size: a class of networks, or a ``functools.partial`` of one.

        jsonargparse takes all arguments of a network but these for options.
        """

        def __call__(self, num_classes: int, image_size: int) -> AnyNetwork: ...  # noqa: D102


def describe_network(net: NetworkFactory | Mapping[str, Any]) -> dict[str, Any]:
    """Return how a network is built: ``{"class_path": "module.Class", "init_args": {...}}``, without ``num_classes``.

    ``net`` is a class of networks, a ``functools.partial`` of one, or such a description. The options are plain values,
    which a checkpoint can hold; anything else is a ``UserError``.
    """
    match net:
        case {"class_path": str() as class_path, "init_args": {**init_args}}:
            return {"class_path": class_path, "init_args": init_args}
    parts: list[Any] = [net]
    options: dict[str, Any] = {}
    if isinstance(net, functools.partial):
        # jsonargparse passes a partial of its own instantiator, with the class among the arguments.
        parts, options = [net.func, *net.args], net.keywords
    if not is_network(parts[-1]):
        raise UserError(_no_class(net, parts))
    kind = parts[-1]
    class_path = f"{kind.__module__}.{kind.__qualname__}"
    if getattr(sys.modules.get(kind.__module__), kind.__qualname__, None) is not kind:
        raise UserError(
            f"`net` is {class_path}, and no checkpoint's reader finds it under this name: define the class outside of "
            "functions and other classes"
        )
    NAMED.add(kind)
    options = {name: list(value) if isinstance(value, tuple) else value for name, value in options.items()}
    options = without_odd_defaults(kind, options)
    for name, value in options.items():
        if type(value) not in PLAIN:
            raise UserError(f"`net`: its {name} is {value!r}: must be a plain number, string or list")
    return {"class_path": class_path, "init_args": options}


PLAIN = (bool, int, float, str, list, dict, type(None))


def without_odd_defaults(kind: type[nn.Module], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options without what jsonargparse adds: defaults that are not plain, and None where there is none."""
    parameters = {name: one.default for name, one in inspect.signature(kind).parameters.items()}
    added = [
        name
        for name, value in options.items()
        if (type(value) not in PLAIN and parameters.get(name, value) is value)
        or (value is None and parameters.get(name) is inspect.Parameter.empty)
    ]
    return {name: value for name, value in options.items() if name not in added}


def _no_class(net: object, parts: list[Any]) -> str:
    """Return why something does not describe a network."""
    if isinstance(net, nn.Module):
        name = type(net).__name__
        return f"`net` is an object of {name}: give the class, of which a checkpoint's reader makes another: net={name}"
    if any(map(is_network, parts)):
        return f"`net` is {net!r:.200}: give the options of the network by name, as width=64"
    return f"`net` is {net!r:.200}: must be a subclass of torch.nn.Module, or a functools.partial of one"


def needed_trust(net: nn.Module) -> str:
    """Return the option that commands need to read a run of this network, as the end of a command line."""
    return "" if is_ours(f"{type(net).__module__}.{type(net).__qualname__}") else " --trust_run"


def build_network(spec: Mapping[str, Any], *, num_classes: int, image_size: int = 32) -> nn.Module:
    """Build a network, with its initial weights, from what ``describe_network`` returns.

    It is given ``num_classes`` and ``image_size`` if its constructor takes them.

    A class or options that do not exist are a ``UserError``. So is a class of another package that is not imported: the
    description may come from anywhere. Errors raised in the network's own code pass through.
    """
    class_path, options = spec["class_path"], dict(spec["init_args"])
    kind: Any = find_network(class_path)
    base = Network if is_ours(class_path) else nn.Module
    if not (isinstance(kind, type) and issubclass(kind, base)):
        raise UserError(f"the network {class_path} is not a subclass of {base.__name__}")
    if "num_classes" in options:
        raise UserError(f"`net`: num_classes of {kind.__name__} is that of the data: leave it out")
    if takes_num_classes(kind):
        options["num_classes"] = num_classes
    if kind.__hash__ is None:
        raise UserError(f"`net`: {kind.__name__} has no hash, which torch needs: write @dataclass(eq=False) above it")
    if takes_num_classes(kind, "image_size"):
        options.setdefault("image_size", image_size)  # an option of a network's own in older checkpoints
    signature = inspect.signature(kind)
    try:
        signature.bind(**options)
    except TypeError as error:
        if missing := re.fullmatch("missing a required .*argument: '(.*)'", str(error)):
            raise UserError(
                f"`net`: {kind.__name__} has no default for {missing[1]}: give `net`.{missing[1]}"
            ) from error
        raise UserError(f"`net`: wrong options for {kind.__name__}: {error}") from error
    network: nn.Module = kind(**options)
    return network


def takes_num_classes(kind: type[nn.Module], name: str = "num_classes") -> bool:
    """Return whether a constructor has an argument of this name, perhaps handed on as one of its ``**kwargs``."""
    for base in kind.__mro__:
        if "__init__" in vars(base):
            parameters = inspect.signature(base.__init__).parameters  # type: ignore[misc]
            if name in parameters:
                return True
            if not any(one.kind == one.VAR_KEYWORD for one in parameters.values()):
                return False
    return False


def lay_out(net: nn.Module, image_size: int = 32) -> bool:
    """Put a network into the layout channels_last, which is faster on a CPU, and return whether it computes so.

    One that does not, as by ``view`` after a convolution, stays as it is; so does one that computes nothing, of which
    ``check_network`` says why. A network with lazy layers gets their parameters here.
    """
    if any(map(_crashes, net.modules())):
        return False
    images = torch.zeros(2, 3, image_size, image_size)
    if needed_trust(net):
        try:
            with torch.no_grad(), evaluation_mode(net):
                net(images)
                net.to(memory_format=torch.channels_last)
                net(images.to(memory_format=torch.channels_last))
        except Exception:
            net.to(memory_format=torch.contiguous_format)
            return False
    net.to(memory_format=torch.channels_last)
    return True


def _crashes(layer: nn.Module) -> bool:
    """Return whether the backward pass of torch 2.14 writes past its memory for a layer in channels_last (AVX2)."""
    if not isinstance(layer, nn.Conv2d):
        return False
    return set(layer.kernel_size) == {1} and set(layer.stride) != {1} and layer.in_channels < 8


def check_logits(logits: Any, net: nn.Module, num_images: int, num_classes: int) -> None:
    """Raise a ``UserError`` unless a network gives one logit for each image and class."""
    name, expected = type(net).__name__, (num_images, num_classes)
    if isinstance(logits, tuple | list):
        parts = (tuple(part.shape) if isinstance(part, Tensor) else type(part).__name__ for part in logits)
        given = ", ".join(map(str, parts))
        raise UserError(
            f"`net`: {name} returns a {type(logits).__name__} of {given}: must return logits {expected} alone"
        )
    given = str(tuple(logits.shape)) if isinstance(logits, Tensor) else type(logits).__name__
    if given == str(expected):
        return
    hint = ""
    if isinstance(logits, Tensor) and logits.ndim == 2 and len(logits) == num_images:
        does = "" if takes_num_classes(type(net)) else "let its constructor take num_classes, and "
        hint = f", for {num_classes} classes; {does}use num_classes for its last layer"
    raise UserError(f"`net`: {name} gives {given} for {num_images} images: must give {expected}{hint}")


@contextlib.contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Put a module into evaluation mode, and each part back into its own mode afterwards."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, was_training in modes:
            part.training = was_training
