"""Files from elsewhere: what a run, a checkpoint or an export may do, and what is refused in one line."""

import copy
import hashlib
import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from cifar_lit.checkpoint import load_checkpoint, save_safetensors
from cifar_lit.cli.trust import check_config_of_run
from cifar_lit.data.cifar10 import CLASSES
from cifar_lit.data.listing import say
from cifar_lit.errors import UserError
from cifar_lit.main import main
from cifar_lit.module import ImageClassifier
from cifar_lit.results import Results
from cifar_lit.run import Run
from tests.helpers.runs import RUN, Refused

MODEL = ImageClassifier(classes=["a", "b"])
DATA = {"source": "synthetic", "root": "data", "seed": 0, "batch_size": 4}
NET = "cifar_lit.networks.TutorialCNN"
RESULTS = Results(
    source="images", title="t", num_train=4, num_val=3, num_test=2, num_classes=2, network="Net", num_parameters=1
)


def stored() -> dict[str, Any]:
    options = {**MODEL.hparams, "classes": ["a", "b"]}
    parts: dict[str, Any] = {"hyper_parameters": copy.deepcopy(options), "datamodule_hyper_parameters": {**DATA}}
    return {"state_dict": dict(MODEL.state_dict()), **parts, "epoch": 1, "global_step": 3, "callbacks": {}, "loops": {}}


def save(checkpoint: dict[str, Any]) -> Path:
    RUN.joinpath("checkpoints").mkdir(parents=True, exist_ok=True)
    torch.save(checkpoint, RUN / "checkpoints/last.ckpt")
    return RUN / "checkpoints/last.ckpt"


# What a file may not do.


def test_the_network_of_another_package_needs_trust(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("foreign_network.py").write_text(
        "import pathlib\npathlib.Path('imported').touch()\n"
        "from cifar_lit.networks import TutorialCNN\nclass Net(TutorialCNN): pass"
    )
    monkeypatch.syspath_prepend(".")
    checkpoint = stored()
    checkpoint["hyper_parameters"]["net"] = {"class_path": "foreign_network.Net", "init_args": {}}
    path = save(checkpoint)
    shutil.copy(path, "second.ckpt")
    for args in (["test", str(path)], ["predict", str(path), "a.jpg"], ["compare", str(path), "second.ckpt"]):
        code, line = refused(args)
        assert code == 2
        assert "foreign_network.Net is of another package: give --trust_run, if you trust this file, or import" in line
    assert not Path("imported").exists()
    assert type(Run(path, trust=True).model().net).__name__ == "Net"
    assert Path("imported").exists()
    assert Run(path).model()  # now it is imported


def test_data_settings_that_reach_the_network_or_write_elsewhere_are_the_users(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    say.cache_clear()
    Path("work").mkdir()
    os.chdir("work")
    checkpoint = stored()
    elsewhere = str(tmp_path / "elsewhere")
    settings = {"source": "cifar10", "root": elsewhere, "mirror": "http://127.0.0.1:9/x", "cache_dir": elsewhere}
    checkpoint["datamodule_hyper_parameters"] |= settings
    checkpoint["hyper_parameters"]["classes"] = CLASSES
    path = save(checkpoint)
    options = Run(path).datamodule().hparams
    assert options["mirror"] is None
    assert options["cache_dir"] != elsewhere
    with pytest.raises(UserError, match=r"`root` .*elsewhere lacks CIFAR-10, and only a file names that folder"):
        Run(path).datamodule().prepare_data()
    assert not Path(elsewhere).exists()
    assert Run(path, trust=True).datamodule().hparams["mirror"] == settings["mirror"]
    line = f"the run's cache_dir {elsewhere} is not used, as only a file names it: give --trust_run or, to fit, test, "
    assert capsys.readouterr().err == f"{line}validate and compare, --data.cache_dir\n"
    say.cache_clear()
    given = Run(path).datamodule(root="mine", mirror="http://127.0.0.1:9/y", cache_dir=elsewhere)
    assert capsys.readouterr().err == ""
    assert (given.hparams["mirror"], given.hparams["cache_dir"]) == ("http://127.0.0.1:9/y", elsewhere)
    assert given.source.may_write  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", [".lock", ".probe", "hparams.yaml", "results.json", "checkpoints", "checkpoints/.x"])
def test_a_folder_with_a_link_is_not_written(name: str) -> None:
    (RUN / "config.yaml").parent.mkdir(parents=True)
    (RUN / "config.yaml").touch()
    (RUN / "checkpoints").mkdir()
    (RUN / "checkpoints/last.ckpt").touch()
    assert Run(RUN).folder_to_write == RUN
    Path("elsewhere").mkdir()
    if name == "checkpoints":
        (RUN / name).rename("elsewhere/checkpoints")
    (RUN / name).symlink_to(Path("elsewhere", name).absolute())
    with pytest.raises(UserError, match=f"{name} is a link to .*: nothing is written in there"):
        _ = Run(RUN).folder_to_write
    assert Run(RUN, trust=True).folder_to_write == RUN
    (RUN / name).unlink()
    os.mkfifo(RUN / "fifo")
    with pytest.raises(UserError, match="fifo is neither a file nor a folder"):
        Run(find_any(RUN)).folder_to_write  # noqa: B018


def find_any(run: Path) -> Path:
    (run / "checkpoints").mkdir(parents=True, exist_ok=True)
    (run / "checkpoints/last.ckpt").touch()
    return run


@pytest.mark.parametrize("spelling", ["{run}", "{run}/checkpoints/../checkpoints/last.ckpt", "link", "deep/last.ckpt"])
def test_a_run_has_one_folder_in_any_spelling(spelling: str) -> None:
    RUN.mkdir(parents=True)
    (RUN / "config.yaml").touch()
    find_any(RUN)
    Path("link").symlink_to(RUN)
    Path("deep").symlink_to(RUN / "checkpoints")
    folder = Run(spelling.format(run=RUN)).folder
    assert folder is not None
    assert folder.resolve() == RUN.resolve()
    os.chdir(RUN / "checkpoints")
    folder = Run("last.ckpt").folder
    assert folder is not None
    assert folder.resolve() == Path("..").resolve()


# What is refused in one line.


def set_in(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    *parts, last = name.split("/")

    def change(checkpoint: dict[str, Any]) -> None:
        for part in parts:
            checkpoint = checkpoint[part]
        checkpoint[last] = value

    return change


LOOP: list[Any] = []
LOOP.append(LOOP)
DEEP: list[Any] = []
for _ in range(40):
    DEEP = [DEEP]
KEY = "state_dict/net.layers.linear2.bias"
BAD = {
    "sparse": (set_in(KEY, torch.zeros(2).to_sparse()), "net.layers.linear2.bias is a sparse, quantised or empty"),
    "meta": (set_in(KEY, torch.empty(2, device="meta")), "is a sparse, quantised or empty"),
    "huge": (set_in(KEY, torch.zeros(1).expand(10**12)), "has the shape (1000000000000,), and not the values for it"),
    "no tensor": (set_in(KEY, 3), "its weights are not tensors with names"),
    "a loop": (set_in("callbacks/mine", LOOP), "nested too deeply"),
    "depth": (set_in("callbacks/mine", DEEP), "nested too deeply"),
    "epoch": (set_in("epoch", -1), "is damaged: its epoch is not a int"),
    "callbacks": (set_in("callbacks", []), "is damaged: its callbacks is not a dict"),
    "outside": (set_in("callbacks/C", {"best_k_models": {"/run/../home": 0}}), "names '/run/../home' in the state"),
    "machine": (set_in("callbacks/C", {"kth_best_model_path": "s3://x/y"}), "names 's3://x/y' in the state"),
    "class numbers": (set_in("hyper_parameters/classes", [1, 2]), "settings of another type: its classes"),
    "one class": (set_in("hyper_parameters/classes", ["a"]), "`classes` must be 2 to 10,000 different names"),
    "twice": (set_in("hyper_parameters/classes", ["a", "a"]), "it has 2, of which 1 differ"),
    "no name": (set_in("hyper_parameters/classes", ["a", ""]), "its classes must be names"),
    "million": (set_in("hyper_parameters/classes", [str(i) for i in range(10**5)]), "it has 100,000, of which"),
    "rate": (set_in("hyper_parameters/lr", "much"), "settings of another type: its lr:"),
    "null": (set_in("hyper_parameters/lr", None), "its lr is null"),
    "tensor": (set_in("hyper_parameters/momentum", torch.zeros(2)), "settings of another type: its momentum"),
    "net": (set_in("hyper_parameters/net", "os.system"), "`net` is 'os.system'"),
    "convs": (
        set_in("hyper_parameters/net", {"class_path": "cifar_lit.networks.FastCNN", "init_args": {"num_convs": 10**9}}),
        "`num_convs` is 1000000000: must be a whole number from 1 to 64",
    ),
    "width": (
        set_in(
            "hyper_parameters/net", {"class_path": "cifar_lit.networks.FastCNN", "init_args": {"widths": [60_000] * 5}}
        ),
        "must be one to five whole numbers from 1 to 4096",
    ),
    "number as name": (lambda c: c["hyper_parameters"].update({3: 4}), "does not know: 3"),
    "size": (set_in("datamodule_hyper_parameters/batch_size", [4]), "settings of another type: its batch_size"),
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", list(BAD))
def test_a_checkpoint_of_another_form_is_one_line(name: str) -> None:
    checkpoint = stored()
    change, expected = BAD[name]
    change(checkpoint)
    path = save(checkpoint)
    with pytest.raises(UserError) as refused:
        Run(path).model()
    assert expected in str(refused.value)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 500


def test_a_checkpoint_that_unpacks_to_more_than_it_has_is_not_read() -> None:
    import zipfile

    with zipfile.ZipFile("bomb.ckpt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(50_000_000))
    with pytest.raises(UserError, match=r"bomb.ckpt is not .*: it is compressed, to 50,000,000 bytes"):
        load_checkpoint(Path("bomb.ckpt"))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_train", True),
        ("num_test", -1),
        ("versions", {"torch": 2}),
        ("Accuracy/test", "much"),
        ("Accuracy/test", [0.5]),
        ("Accuracy/test", 10**400),
        ("AccuracyInterval/test", 0.5),
        ("AccuracyInterval/test", [0.5, None]),
        ("Confusion/test", [[1], 2]),
        ("ClassAccuracy/test/a", {"a": 1}),
        ("Loss/val", float("nan")),
    ],
)
def test_results_of_another_form_are_one_line(name: str, value: object) -> None:
    text = json.dumps({**json.loads(RESULTS.to_json()), name: value})
    with pytest.raises(UserError, match=f"^results.json is damaged: {name} is .*of another type; delete it"):
        Results.from_json(text, origin="results.json")


def test_files_that_are_too_large_or_none_are_not_read() -> None:
    find_any(RUN)
    with (RUN / "results.json").open("wb") as file:
        file.truncate(10**10)
    (RUN / "config.yaml").touch()
    with pytest.raises(UserError, match=r"results.json has 10,000,000,000 bytes: at most 67,108,864 are read"):
        _ = Run(RUN).results
    os.mkfifo("fifo.ckpt")
    Path("loop.ckpt").symlink_to("loop.ckpt")
    for name in ("fifo.ckpt", "loop.ckpt", "x" * 5000, "a\0b"):
        with pytest.raises(UserError, match="no such checkpoint"):
            Run(name)


# A fuzzer.

VALUES: list[Any] = [
    *[
        None,
        True,
        -1,
        0,
        10**30,
        1e300,
        float("nan"),
        float("inf"),
        "",
        "a",
        "../../x",
        "os.system",
        "a\0b",
        "x" * 3000,
    ],
    *[[], [[]], [1], ["a", "a"], [None], {}, {"a": 1}, {"class_path": "os.system"}, {1: 2}],
]
TENSORS: list[Any] = [
    *[torch.zeros(2), torch.tensor(1), torch.zeros(2, 2).to_sparse(), torch.empty(2, device="meta")],
    *[torch.zeros(1).expand(10**9), torch.zeros(2, dtype=torch.complex64), torch.zeros(0), torch.zeros(2).half()],
]


def places(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if place:
        yield place
    for key, part in value.items() if isinstance(value, dict) else enumerate(value if isinstance(value, list) else ()):
        yield from places(part, (*place, key))


def mutated(value: Any, values: list[Any], rng: random.Random) -> Any:
    """Return a copy in which one part is missing, has another name or another value."""
    value = part = copy.deepcopy(value)
    *parents, last = rng.choice(list(places(value)))
    for key in parents:
        part = part[key]
    match rng.randrange(5):
        case 0:
            del part[last]
        case 1 if isinstance(part, dict):
            part[rng.choice(["zz", "a/b", 3])] = part.pop(last)
        case _:
            part[last] = rng.choice(values)
    return value


def garbled(data: bytes, rng: random.Random) -> bytes:
    """Return data with a few other bytes, cut, or empty."""
    place = rng.choice([rng.randrange(9), rng.randrange(len(data))])
    return rng.choice([data[:place], data[:place] + rng.randbytes(3) + data[place + 3 :], data + b"]", b""])


def fuzz_checkpoint(rng: random.Random) -> None:
    run = Run(save(mutated(stored(), VALUES + TENSORS, rng)))
    run.model()
    run.datamodule()


def fuzz_results(rng: random.Random) -> None:
    metrics = {"Accuracy/test": 0.5, "AccuracyInterval/test": [0.4, 0.6], "Confusion/test": [[1, 2], [3, 4]]}
    content = {**json.loads(RESULTS.to_json()), **metrics, "versions": {"torch": "2"}}
    text = json.dumps(mutated(content, VALUES, rng)).encode()
    text = garbled(text, rng) if rng.random() < 0.3 else text
    Results.from_json(text.decode(errors="replace"), origin="results.json").to_json()


def fuzz_config(rng: random.Random) -> None:
    config: dict[str, Any] = {"trainer": {"callbacks": [{"class_path": "EarlyStopping", "init_args": {"patience": 3}}]}}
    config |= {"model": {"net": {"class_path": NET}, "mean": [0.5, 0.5]}, "data": {"root": "x", "mirror": None}}
    text = yaml.safe_dump(mutated(config, VALUES, rng)).encode()
    RUN.mkdir(parents=True, exist_ok=True)
    (RUN / "config.yaml").write_bytes(garbled(text, rng) if rng.random() < 0.5 else text)
    check_config_of_run(RUN / "config.yaml", ())


def fuzz_export(rng: random.Random) -> None:
    path, config = Path("export/model.safetensors"), Path("export/config.json")
    path.parent.mkdir(exist_ok=True)
    save_safetensors(path, stored()["hyper_parameters"], MODEL.state_dict())
    described = json.loads(config.read_text())
    if rng.random() < 0.5:
        described = mutated(described, VALUES, rng)
    else:
        path.write_bytes(garbled(path.read_bytes(), rng))
        described["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    text = json.dumps(described).encode()
    config.write_bytes(garbled(text, rng) if rng.random() < 0.1 else text)
    Run(path).model()


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("fuzz", [fuzz_checkpoint, fuzz_results, fuzz_config, fuzz_export])
def test_no_mutation_of_a_file_ends_in_another_error(fuzz: Callable[[random.Random], None]) -> None:
    if fuzz is fuzz_export:
        pytest.importorskip("safetensors")
    for seed in range(50):
        try:
            fuzz(random.Random(seed))
        except UserError as error:
            if "\n" in str(error) or len(str(error)) > 1000:
                pytest.fail(f"seed {seed}: {error}")
        except Exception as error:
            pytest.fail(f"seed {seed}: {error!r}")


@pytest.mark.parametrize("command", ["test", "validate", "compare", "predict", "demo", "export"])
def test_each_command_that_reads_a_run_can_be_told_to_trust_it(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, "--help"]) == 0
    assert "--trust_run" in capsys.readouterr().out
