"""``cifar-lit fit`` with pictures of one's own, in folders of their classes and nothing else."""

from pathlib import Path

import pytest

from cifar_lit.main import main
from tests.helpers.images import encode, put, tiny_files, tiny_image, write_files
from tests.helpers.runs import RUN, Refused, read_results, table_of

SHORT = ["--trainer.max_epochs", "1", "--no_report", "--trainer.logger", "false"]


def test_the_first_command_with_pictures_of_ones_own_succeeds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], refused: Refused
) -> None:
    files = {name.replace("train/", "./pets/"): content for name, content in tiny_files(40, 0).items()}
    root = put("tar", tmp_path, files)
    assert main(["fit", "--data.source", "images", "--data.root", str(root), *SHORT]) == 0
    fitted = capsys.readouterr()
    results = read_results()
    sizes = [results[name] for name in ("num_train", "num_val", "num_test")]
    assert sum(sizes) == 120
    assert min(sizes) >= 3
    assert f"data        images from {root}: {sizes[0]} train, {sizes[1]} validation, {sizes[2]} test\n" in fitted.out
    assert f"no test folder in {root}: {sizes[2]} of 120 pictures, chosen by their content" in fitted.err
    assert main(["test", str(RUN)]) == 0
    assert table_of(capsys.readouterr().out) == table_of(fitted.out)

    more = {f"./pets/dark/more{i}.png": encode(tiny_image("dark", 500 + i), ".png") for i in range(30)}
    put("tar", tmp_path, files | more)
    code, line = refused(["fit", "--ckpt_path", str(RUN), "--trainer.max_epochs", "2"])
    assert code == 2
    assert "the training images are not those of the run" in line


def test_runs_may_lie_beside_the_classes_hidden_or_beside_the_splits(
    tmp_path: Path, tiny_root: Path, refused: Refused
) -> None:
    own = [(f"{name}/{number}.png", tiny_image(name, number)) for name in ("dark", "bright") for number in range(30)]
    classes = write_files(tmp_path / "own", {name: encode(image, ".png") for name, image in own})
    fit = ["fit", "--data.source", "images", "--trainer.max_epochs=1", "--data.batch_size=4", "--data.root"]
    code, line = refused([*fit, str(classes), "--trainer.default_root_dir", str(classes / "out")])
    expected = f"--trainer.default_root_dir {classes}/out lies among the images of --data.root {classes}: give another"
    assert (code, expected in line) == (2, True)
    saver = ["--trainer.callbacks+", "ModelCheckpoint", "--trainer.callbacks.dirpath", str(classes / "ck")]
    code, line = refused([*fit, str(classes), *saver])
    assert (code, f"{classes}/ck lies among the images" in line) == (2, True)
    assert main([*fit, str(classes), "--trainer.default_root_dir", str(classes)]) == 0
    assert main(["test", str(classes / "lightning_logs/version_0")]) == 0
    assert main([*fit, str(tiny_root), "--trainer.default_root_dir", str(tiny_root / "out")]) == 0
    assert main(["test", str(tiny_root / "out/lightning_logs/version_0")]) == 0
