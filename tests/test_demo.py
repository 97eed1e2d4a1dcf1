"""The demo: its page shows what predict says, for pictures of any kind, in a browser too."""

import gc
import json
import shutil
import signal
import socket
import time
import urllib.request
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cifar_lit.cli import main
from cifar_lit.datamodule import CIFAR10DataModule
from cifar_lit.demo import answers_at_hand, look_at, make_page, mistakes_as
from cifar_lit.module import ImageClassifier
from tests.conftest import RUN, TINY_CLASSES, tiny_picture
from tests.processes import Run

Page = tuple[Run, int]
Refused = Callable[[list[str]], tuple[int, str]]


ODD = [
    ((640, 480), "RGB", "jpg"),
    ((31, 33), "L", "png"),
    ((5, 200), "CMYK", "jpg"),
    ((32, 32), "RGBA", "png"),
    ((333, 1), "P", "png"),
    ((90, 60), "LA", "png"),
    ((64, 64), "1", "bmp"),
    ((48, 20), "RGBA", "webp"),
    ((70, 50), "I;16", "png"),
    ((40, 80), "RGB", "jpg"),
]
"""Size, mode and ending of ten pictures; the last one lies on its side and says so."""


def odd_pictures(folder: Path) -> list[Path]:
    """Write ten pictures of odd sizes and modes into the test part of a dataset."""
    shutil.copytree("tiny/train", folder / "train")
    paths = []
    for number, (size, mode, suffix) in enumerate(ODD):
        name = TINY_CLASSES[number % 3]
        picture = tiny_picture(name, 200 + number).resize(size)
        if mode == "I;16":
            picture = Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257)
        else:
            picture = picture.convert(mode)
        if mode in ("RGBA", "LA"):
            picture.putalpha(90)
        exif = Image.Exif()
        if number == len(ODD) - 1:
            exif[0x0112] = 6
        path = folder / "test" / name / f"{number}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path, **({"exif": exif} if exif else {}))  # type: ignore[arg-type]
        paths.append(path)
    return paths


@pytest.fixture
def page(run: str) -> Iterator[Page]:
    """Serve the page of the tiny run in a process of its own: Gradio leaves sockets and threads behind."""
    pytest.importorskip("gradio")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    demo = Run(["demo", str(RUN), "--port", str(port), "--max_upload_mb", "0.5"])
    for _ in range(600):
        if "Ctrl-C" in demo.out or not demo.process.is_alive():
            break
        time.sleep(0.1)
    assert f"http://127.0.0.1:{port}/" in demo.out, demo.err
    yield demo, port
    demo.kill(signal.SIGINT)
    assert demo.wait().code == 130
    assert "Traceback" not in demo.err


leaves_loops = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture
def gradio() -> Iterator[Any]:
    """Give Gradio, which leaves event loops behind in the process that makes a page."""
    yield pytest.importorskip("gradio")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


def predicted(paths: list[Path], capsys: pytest.CaptureFixture[str]) -> list[dict[str, float]]:
    """Give what the command line says: the probabilities of each picture."""
    with pytest.raises(SystemExit):
        main(["predict", str(RUN), *map(str, paths), "--format", "json", "--top_k", "3"])
    found = json.loads(capsys.readouterr().out)
    return [{top["label"]: top["probability"] for top in one["top"]} for one in found]


def test_ten_odd_pictures_are_the_same_everywhere(page: Page, capsys: pytest.CaptureFixture[str]) -> None:
    paths = odd_pictures(Path("odd"))
    expected = predicted(paths, capsys)

    data = CIFAR10DataModule(source="images", root="odd")
    data.setup("test")
    assert data.test is not None
    names = sorted(paths, key=lambda path: (path.parent.name, path.name))
    model = ImageClassifier.from_run(RUN)
    tested = dict(zip(names, model.predict(data.test.images).tolist(), strict=True))

    for path, probabilities in zip(paths, expected, strict=True):
        assert tested[path] == pytest.approx([probabilities[name] for name in model.classes], abs=1e-6)
        label = ask(f"http://127.0.0.1:{page[1]}/gradio_api", path)
        shown = {entry["label"]: entry["confidence"] for entry in label["confidences"]}
        assert shown == pytest.approx(probabilities, abs=1e-6)
    secret = Path("tiny/test/dark/101.png").absolute()
    body = json.dumps({"data": [{"path": str(secret)}]}).encode()
    event = post(f"http://127.0.0.1:{page[1]}/gradio_api/call/predict", body, "application/json")["event_id"]
    with urllib.request.urlopen(f"http://127.0.0.1:{page[1]}/gradio_api/call/predict/{event}", timeout=30) as answer:
        assert "is not a picture that was uploaded" in answer.read().decode()  # only what was uploaded is looked at
    listening = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    addresses = {words[1] for words in listening if words[3] == "0A" and words[1].endswith(f":{page[1]:04X}")}
    assert addresses == {f"0100007F:{page[1]:04X}"}  # this machine alone


def ask(api: str, path: Path) -> Any:
    """Upload a picture and ask for its probabilities, as the page does."""
    line = b"--line\r\n"
    head = f'Content-Disposition: form-data; name="files"; filename="{path.name}"\r\n\r\n'.encode()
    form = line + head + path.read_bytes() + b"\r\n--line--\r\n"
    (uploaded,) = post(f"{api}/upload", form, "multipart/form-data; boundary=line")
    body = json.dumps({"data": [{"path": uploaded, "meta": {"_type": "gradio.FileData"}}]}).encode()
    event = post(f"{api}/call/predict", body, "application/json")["event_id"]
    with urllib.request.urlopen(f"{api}/call/predict/{event}", timeout=30) as answer:
        said = answer.read().decode()
    assert said.startswith("event: complete"), said
    return json.loads(said.partition("data: ")[2])[1]


def post(url: str, body: bytes, kind: str) -> Any:
    """Post something, and read the answer."""
    with urllib.request.urlopen(urllib.request.Request(url, body, {"Content-Type": kind}), timeout=30) as answer:
        return json.loads(answer.read())


def test_mistakes_are_those_of_the_class(run: str) -> None:
    model = ImageClassifier.from_run(RUN)
    answers = answers_at_hand(model, RUN / "checkpoints/best.ckpt", {})
    assert answers is not None
    wrong = answers.probabilities.argmax(1) != answers.labels
    for label, name in enumerate(TINY_CLASSES):
        shown = mistakes_as(name, answers)
        assert len(shown["value"]) == min(10, int((wrong & (answers.probabilities.argmax(1) == label)).sum()))
        assert all(not caption.startswith(name) for _, caption in shown["value"])
    assert sum(len(mistakes_as(name, answers)["value"]) for name in TINY_CLASSES) > 0


def test_without_the_images_it_does_without_mistakes(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.move("tiny", "gone")
    model = ImageClassifier.from_run(RUN)
    assert answers_at_hand(model, RUN / "checkpoints/best.ckpt", {}) is None
    assert "the test images are not at hand: --data.root" in capsys.readouterr().out
    assert answers_at_hand(model, RUN / "checkpoints/best.ckpt", {"root": "gone"}) is not None
    _, probabilities = look_at(model, "gone/test/dark/101.png")
    assert sum(probabilities.values()) == pytest.approx(1, abs=1e-5)


@leaves_loops
def test_bad_arguments_end_in_one_line(run: str, refused: Refused, gradio: Any) -> None:

    taken = socket.create_server(("127.0.0.1", 0))
    port = str(taken.getsockname()[1])
    for args, expected in (
        (["nothing"], "nothing is neither a checkpoint nor a run's folder"),
        ([str(RUN), "--max_upload_mb", "0"], "--max_upload_mb is 0.0: give a number above 0"),
        ([str(RUN), "--max_upload_mb", "inf"], "--max_upload_mb is inf: give a number above 0"),
        ([str(RUN), "--port", "80000"], "--port is 80000: give a number from 1 to 65535"),
        ([str(RUN), "--host", "nowhere.invalid"], "--host is nowhere.invalid: there is no such address"),
        ([str(RUN), "--port", port], f"--host is 127.0.0.1, --port is {port}: nothing can be served there"),
    ):
        code, line = refused(["demo", *args])
        assert code == 2
        assert expected in line
    taken.close()


@leaves_loops
def test_who_can_reach_it_is_said(
    run: str, gradio: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    launched: dict[str, Any] = {}

    def launch(page: Any, **options: Any) -> tuple[None, str, None]:
        launched.update(options)
        return None, "http://0.0.0.0:1/", None

    monkeypatch.setattr(gradio.Blocks, "launch", launch)
    monkeypatch.setattr("cifar_lit.demo.threading", SimpleNamespace(Event=lambda: SimpleNamespace(wait=lambda: None)))
    with pytest.raises(SystemExit) as stopped:
        main(["demo", str(RUN), "--host", "0.0.0.0", "--max_upload_mb", "2"])
    assert stopped.value.code == 0
    assert (launched["server_name"], launched["max_file_size"], launched["share"]) == ("0.0.0.0", 2 * 2**20, False)
    assert "--host 0.0.0.0: whoever reaches this machine can use the page" in capsys.readouterr().out


@leaves_loops
def test_the_page_answers(run: str, gradio: Any) -> None:
    model = ImageClassifier.from_run(RUN)
    page = make_page(model, "tiny", answers_at_hand(model, RUN / "checkpoints/best.ckpt", {}), Path.cwd())
    (event,) = page.fns.values()
    seen, probabilities, mistakes = event.fn("tiny/test/dark/101.png")
    assert seen.shape == (256, 256, 3)
    label = max(probabilities, key=lambda name: probabilities[name])
    assert mistakes["label"] == f"test images that it takes for {label}, and what they are"
    assert event.fn(None)[:2] == (None, None)
    Path("text.jpg").write_text("no picture")
    for path, expected in (("text.jpg", "is not a picture"), ("/etc/passwd", "is not a picture that was uploaded")):
        with pytest.raises(gradio.Error, match=f"This {expected}"):
            event.fn(path)


@pytest.fixture
def browser() -> Iterator[Any]:
    """Start a headless Chromium, or skip."""
    webdriver = pytest.importorskip("selenium.webdriver")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.skip("chromium and chromedriver are not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in ("headless=new", "no-sandbox", "disable-gpu", "disable-background-networking", "no-first-run"):
        options.add_argument(f"--{flag}")
    started = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield started
    started.quit()


def test_a_picture_is_dropped_in_a_browser(page: Page, browser: Any, capsys: pytest.CaptureFixture[str]) -> None:
    url = f"http://127.0.0.1:{page[1]}/"
    path = odd_pictures(Path("odd"))[2]
    (expected,) = predicted([path], capsys)
    Path("text.jpg").write_text("no picture")
    Path("large.png").write_bytes(bytes(2**20))

    def wait_for(selector: str, text: str) -> str:
        for _ in range(150):
            found = " ".join(element.text for element in browser.find_elements("css selector", selector))
            if text in found:
                return found
            time.sleep(0.1)
        raise AssertionError(f"no {text} in {selector}: {found}")

    def upload(path: Path) -> None:
        browser.get(url)
        wait_for("body", "Drop a picture of any size: bright, dark, green.")
        browser.find_element("css selector", "input[type=file]").send_keys(str(path.absolute()))

    upload(path)
    shown = wait_for("#probabilities", "%").split()
    label = max(expected, key=lambda name: expected[name])
    assert shown[1] == label
    assert shown[shown.index(label, 2) + 1] == f"{expected[label]:.0%}"
    assert f"takes for {label}" in wait_for("#mistakes", "takes for")
    assert browser.find_elements("css selector", "#seen img")
    upload(Path("text.jpg"))
    wait_for(".toast-wrap", "This is not a picture.")
    upload(Path("large.png"))
    wait_for(".toast-wrap", "exceed the maximum allowed size")
    outside = browser.execute_script("return performance.getEntriesByType('resource').map(entry => entry.name)")
    assert all(name.startswith((url, "data:")) for name in outside)  # nothing is fetched from elsewhere
