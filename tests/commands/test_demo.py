"""The demo: its page shows the probabilities that predict prints, for images of any kind, in a browser too."""

import json
import shutil
import signal
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cifar_lit import ImageClassifier
from cifar_lit import Run as SavedRun
from cifar_lit.commands.demo import Tested, about, classify, errors_as, make_page, predict_test_images, write_examples
from cifar_lit.commands.serving import OwnHosts, own_names
from cifar_lit.data.decoding import read_image
from cifar_lit.main import main
from tests.helpers.images import TINY_CLASSES, tiny_image
from tests.helpers.processes import Run
from tests.helpers.runs import RUN, Refused

Page = tuple[Run, int]


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
"""Size, mode and ending of ten images; the last one has an EXIF orientation."""


def odd_images(folder: Path) -> list[Path]:
    """Write ten images of odd sizes and modes into the test split of a dataset."""
    shutil.copytree("tiny/train", folder / "train")
    paths = []
    for number, (size, mode, suffix) in enumerate(ODD):
        name = TINY_CLASSES[number % 3]
        image = tiny_image(name, 200 + number).resize(size)
        if mode == "I;16":
            image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
        else:
            image = image.convert(mode)
        if mode in ("RGBA", "LA"):
            image.putalpha(90)
        exif = Image.Exif()
        if number == len(ODD) - 1:
            exif[0x0112] = 6
        path = folder / "test" / name / f"{number}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, **({"exif": exif} if exif else {}))  # type: ignore[arg-type]
        paths.append(path)
    return paths


@pytest.fixture
def page(run: str) -> Iterator[Page]:
    """Serve the page of the tiny run in a process of its own: Gradio leaves sockets and threads behind."""
    pytest.importorskip("gradio")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # A proxy that does not answer: it must not be asked for a page of this machine.
    proxies = dict.fromkeys(("http_proxy", "HTTPS_PROXY", "ALL_PROXY"), "socks5://127.0.0.1:9")
    demo = Run(["demo", str(RUN), "--port", str(port), "--max_upload_mb", "0.5"], environment=proxies)
    for _ in range(600):
        if "Ctrl-C" in demo.out or not demo.process.is_alive():
            break
        time.sleep(0.1)
    assert f"http://127.0.0.1:{port}/" in demo.out, demo.err
    yield demo, port
    demo.kill(signal.SIGINT)
    assert demo.wait().code == 130
    assert "Traceback" not in demo.err


ENDS_AT_ONCE = SimpleNamespace(Event=lambda: SimpleNamespace(wait=lambda: None))


def predicted(paths: list[Path], capsys: pytest.CaptureFixture[str]) -> list[dict[str, float]]:
    """Return the probabilities that the command line prints for each image."""
    assert main(["predict", str(RUN), *map(str, paths), "--format", "json", "--top_k", "3"]) == 0
    found = json.loads(capsys.readouterr().out)
    return [{top["label"]: top["probability"] for top in one["top"]} for one in found]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*the test images are not those of the run")
def test_ten_odd_images_are_the_same_everywhere(page: Page, capsys: pytest.CaptureFixture[str]) -> None:
    paths = odd_images(Path("odd"))
    expected = predicted(paths, capsys)

    saved = SavedRun(RUN)
    data = saved.datamodule(root="odd")
    data.setup("test")
    assert data.test is not None
    model = saved.model()
    pixels = [image.tobytes() for image in data.test.images.numpy()]  # in an order of their own
    tested = dict(zip(pixels, model.predict(data.test.images.permute(0, 3, 1, 2)).tolist(), strict=True))
    assert len(tested) == len(paths)

    for path, probabilities in zip(paths, expected, strict=True):
        assert tested[read_image(path).tobytes()] == pytest.approx(
            [probabilities[name] for name in model.classes], abs=1e-6
        )
        label = ask(f"http://127.0.0.1:{page[1]}/gradio_api", path)
        shown = {entry["label"]: entry["confidence"] for entry in label["confidences"]}
        assert shown == pytest.approx(probabilities, abs=1e-6)
    secret = Path("tiny/test/dark/101.png").absolute()
    body = json.dumps({"data": [{"path": str(secret)}]}).encode()
    event = post(f"http://127.0.0.1:{page[1]}/gradio_api/call/predict", body, "application/json")["event_id"]
    with urllib.request.urlopen(f"http://127.0.0.1:{page[1]}/gradio_api/call/predict/{event}", timeout=30) as response:
        assert "is not a picture that was uploaded" in response.read().decode()  # no other file is read
    for header in ({"Host": "elsewhere.example"}, {"Origin": "http://elsewhere.example"}):
        request = urllib.request.Request(f"http://127.0.0.1:{page[1]}/gradio_api/info", headers=header)
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(request, timeout=30)
    listening = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    addresses = {words[1] for words in listening if words[3] == "0A" and words[1].endswith(f":{page[1]:04X}")}
    assert addresses == {f"0100007F:{page[1]:04X}"}  # this machine only


def ask(api: str, path: Path) -> Any:
    """Upload an image and return its probabilities, as the page does."""
    line = b"--line\r\n"
    head = f'Content-Disposition: form-data; name="files"; filename="{path.name}"\r\n\r\n'.encode()
    form = line + head + path.read_bytes() + b"\r\n--line--\r\n"
    (uploaded,) = post(f"{api}/upload", form, "multipart/form-data; boundary=line")
    body = json.dumps({"data": [{"path": uploaded, "meta": {"_type": "gradio.FileData"}}]}).encode()
    event = post(f"{api}/call/predict", body, "application/json")["event_id"]
    with urllib.request.urlopen(f"{api}/call/predict/{event}", timeout=30) as response:
        event_text = response.read().decode()
    assert event_text.startswith("event: complete"), event_text
    return json.loads(event_text.partition("data: ")[2])[1]


def post(url: str, body: bytes, kind: str) -> Any:
    """Post something, and return the response."""
    with urllib.request.urlopen(urllib.request.Request(url, body, {"Content-Type": kind}), timeout=30) as response:
        return json.loads(response.read())


@pytest.fixture
def tested(run: str) -> tuple[ImageClassifier, Tested]:
    """Return the model of the tiny run, and its predictions for the test images."""
    model = SavedRun(RUN).model()
    return model, predict_test_images(SavedRun(RUN), model, {})


def test_errors_are_those_of_the_class(tested: tuple[ImageClassifier, Tested]) -> None:
    model, (predictions, images) = tested
    predicted = predictions.predicted
    for label, name in enumerate(TINY_CLASSES):
        shown = errors_as(name, model.classes, (predictions, images))
        assert len(shown["value"]) == min(10, int((~predictions.correct & (predicted == label)).sum()))
        assert all(not caption.startswith(name) for _, caption in shown["value"])
    assert sum(len(errors_as(name, model.classes, (predictions, images))["value"]) for name in TINY_CLASSES) > 0
    assert errors_as("dark", model.classes, None) == {"value": None, "label": ""}


def test_the_page_says_what_the_model_is_and_how_good(tested: tuple[ImageClassifier, Tested]) -> None:
    model, predictions = tested
    saved = SavedRun(RUN)
    assert saved.results is not None
    text = about(model, saved, predictions)
    assert text.startswith("TutorialCNN was trained for 2 epochs on images from ")
    assert f" It classifies {100 * saved.results.metrics['Accuracy/test']:.1f} % of 24 test images correctly (" in text
    assert text.endswith("\n\nClasses: bright, dark, green")
    last = SavedRun(RUN / "checkpoints/last.ckpt")  # not the checkpoint of the results
    correct = 100 * float(predictions[0].correct.double().mean())
    assert about(model, last, predictions).startswith(f"It classifies {correct:.1f} % of 24 test images correctly.\n")
    changed = SavedRun(RUN)
    changed.checkpoint["global_step"] += 1  # it was replaced since by that of a longer training
    assert about(model, changed, None) == "Classes: bright, dark, green"
    model.classes = ["<b>", "*two*\nlines\x1b", "c"]
    assert about(model, last, None) == r"Classes: \<b\>, \*two\* lines\x1b, c"


def test_the_examples_are_a_test_image_of_each_class(tested: tuple[ImageClassifier, Tested], tmp_path: Path) -> None:
    model, (predictions, images) = tested
    paths = write_examples(model.classes, (predictions, images), tmp_path)
    shown = [np.asarray(Image.open(path)) for path in paths]
    labels = [[int(predictions.labels[i]) for i in range(24) if np.array_equal(images[i], one)] for one in shown]
    assert labels == [[0], [1], [2]]
    assert write_examples(model.classes, None, tmp_path) == []


def test_without_the_test_images_it_classifies_all_the_same(
    run: str, gradio: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.move("tiny", "gone")
    monkeypatch.setattr(gradio.Blocks, "launch", lambda *_, **__: (None, "http://127.0.0.1:1/", None))
    monkeypatch.setattr("cifar_lit.commands.demo.threading", ENDS_AT_ONCE)
    assert main(["demo", str(RUN)]) == 0
    assert "no errors are shown, because the test images are missing: --data.root" in capsys.readouterr().out
    assert main(["demo", str(RUN), "--data.root", "gone"]) == 0
    assert "no errors are shown" not in capsys.readouterr().out
    _, probabilities = classify(SavedRun(RUN).model(), Path("gone/test/dark/101.png"))
    assert sum(probabilities.values()) == pytest.approx(1, abs=1e-5)


@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")  # Gradio's, of the port that is taken
def test_bad_arguments_end_in_one_line(run: str, refused: Refused, gradio: Any) -> None:
    taken = socket.create_server(("127.0.0.1", 0))
    port = str(taken.getsockname()[1])
    for args, expected in (
        (["nothing"], "nothing: no such checkpoint"),
        ([str(RUN), "--max_upload_mb", "0"], "--max_upload_mb is 0.0: must be above 0"),
        ([str(RUN), "--max_upload_mb", "inf"], "--max_upload_mb is inf: must be above 0"),
        ([str(RUN), "--port", "80000"], "--port is 80000: must be from 1 to 65535"),
        ([str(RUN), "--host", "a" * 70 + ".b"], "no such address"),
        ([str(RUN), "--host", "nowhere.invalid"], "--host is nowhere.invalid: no such address"),
        ([str(RUN), "--port", port], f"--host is 127.0.0.1, --port is {port}: nothing can be served there"),
    ):
        code, line = refused(["demo", *args])
        assert code == 2
        assert expected in line
    taken.close()


def test_who_can_reach_it_is_said(
    run: str, gradio: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    launched: dict[str, Any] = {}

    def launch(page: Any, **options: Any) -> tuple[None, str, None]:
        launched.update(options)
        return None, "http://0.0.0.0:1/", None

    monkeypatch.setattr(gradio.Blocks, "launch", launch)
    monkeypatch.setattr("cifar_lit.commands.demo.threading", ENDS_AT_ONCE)
    assert main(["demo", str(RUN), "--host", "0.0.0.0", "--max_upload_mb", "2"]) == 0
    assert (launched["server_name"], launched["max_file_size"], launched["share"]) == ("0.0.0.0", 2 * 2**20, False)
    (guard,) = launched["app_kwargs"]["middleware"]
    assert (guard.cls, guard.kwargs) == (OwnHosts, {"names": own_names("0.0.0.0")})
    assert "--host 0.0.0.0: everybody who can reach this machine can use the page" in capsys.readouterr().out


def test_the_page_classifies_what_was_uploaded_and_reads_no_other_file(
    tested: tuple[ImageClassifier, Tested], gradio: Any
) -> None:
    model, predictions = tested
    page = make_page(model, "tiny", predictions, Path.cwd())
    (event,) = (one for one in page.fns.values() if one.api_name == "predict")
    seen, probabilities, errors = event.fn({"path": "tiny/test/dark/101.png"})
    assert seen.shape == (256, 256, 3)
    label = max(probabilities, key=lambda name: probabilities[name])
    assert errors["label"] == f"test images wrongly predicted as {label}"
    assert event.fn(None)[:2] == (None, None)
    Path("text.jpg").write_text("no image")
    for payload, expected in (
        ({"path": "text.jpg"}, "This is not an image."),
        ({"path": "/etc/passwd"}, "This is not a picture that was uploaded."),
        ({"path": "tiny/../../../etc/passwd"}, "This is not a picture that was uploaded."),
        ({"path": None, "url": "http://localhost/a.png"}, "This is not a picture that was uploaded."),
        ("tiny/test/dark/101.png", "This is not a picture that was uploaded."),
    ):
        with pytest.raises(gradio.Error, match=expected):
            event.fn(payload)


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


@pytest.mark.slow
def test_an_image_is_dropped_in_a_browser(browser: Any, page: Page, capsys: pytest.CaptureFixture[str]) -> None:
    url = f"http://127.0.0.1:{page[1]}/"
    path = odd_images(Path("odd"))[2]
    (expected,) = predicted([path], capsys)
    Path("text.jpg").write_text("no image")
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
        wait_for("body", "Classes: bright, dark, green")
        browser.find_element("css selector", "input[type=file]").send_keys(str(path.absolute()))

    upload(path)
    shown = wait_for("#probabilities", "%").split()
    label = max(expected, key=lambda name: expected[name])
    assert shown[1] == label
    assert shown[shown.index(label, 2) + 1] == f"{expected[label]:.0%}"
    assert f"predicted as {label}" in wait_for("#errors", "predicted as")
    assert browser.find_elements("css selector", "#seen img")
    upload(Path("text.jpg"))
    wait_for(".toast-wrap", "This is not an image.")
    upload(Path("large.png"))
    wait_for(".toast-wrap", "exceed the maximum allowed size")
    outside = browser.execute_script("return performance.getEntriesByType('resource').map(entry => entry.name)")
    assert all(name.startswith((url, "data:")) for name in outside)  # nothing is fetched from elsewhere
