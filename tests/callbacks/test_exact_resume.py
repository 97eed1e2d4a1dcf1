"""A resumed training ends with the bits of one that was not stopped, or is refused by name before its first step."""

import shutil
import signal

import pytest
import torch

from cifar_lit.callbacks.exact_resume import ExactResume, get_random_state, set_random_state
from cifar_lit.callbacks.steps import StepCurve
from cifar_lit.main import main
from tests.helpers.processes import LAST, at_step, curves, state_of
from tests.helpers.runs import EPOCHS, RUN, Refused, callback, read_metrics, read_results

WAYS = {
    "accumulation that grows": [
        *["--model.net", "tests.helpers.networks.NoisyNet"],
        *callback("GradientAccumulationScheduler", scheduling="{0: 1, 1: 2}"),
    ],
    "64-true": ["--trainer.precision", "64-true"],
    "part of the batches": ["--trainer.limit_train_batches", "0.67", *callback("EMAWeightAveraging", decay=0.9)],
    "accumulation and an average": [
        *["--trainer.accumulate_grad_batches", "4"],
        *callback("EMAWeightAveraging", decay=0.9),
    ],
    "all that is done to images": [
        *["--data.crop_padding", "2", "--data.flip", "alternating", "--data.trivial_augment", "true"],
        *["--data.mixup", "0.4", "--data.cutmix", "1", "--data.erasing", "0.5", "--data.saturation", "0.5"],
    ],
    "a limit on the time": callback("Timer", duration="00:01:00:00"),
}
SLOW = list(WAYS)[2:]


class BugError(Exception):
    """Something that nobody thought of."""


def fail() -> None:
    raise BugError


@pytest.mark.parametrize("way", [pytest.param(way, marks=[pytest.mark.slow] * (way in SLOW)) for way in WAYS])
def test_a_training_resumes_exactly(way: str, tiny_args: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    options = ["fit", *tiny_args, *EPOCHS, *WAYS[way], "--trainer.enable_model_summary", "false"]
    assert main(options) == 0
    undisturbed = state_of(), read_metrics()
    shutil.rmtree("lightning_logs")
    with monkeypatch.context() as patch:
        at_step(10, lambda: signal.raise_signal(signal.SIGTERM), patch)
        assert main(options) == 143
    assert main(["fit", "--ckpt_path", "last"]) == 0
    assert (state_of(), read_metrics()) == undisturbed


def test_after_an_exception_all_random_numbers_are_those_before_the_step(
    tiny_args: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.helpers.networks import NoisyNet

    states = []
    forward = NoisyNet.forward

    def patched(net: NoisyNet, images: torch.Tensor) -> torch.Tensor:
        if net.training:
            states.append(get_random_state()[1])
        logits = forward(net, images)
        return fail() or logits if len(states) == 4 else logits  # type: ignore[func-returns-value]

    monkeypatch.setattr(NoisyNet, "forward", patched)
    with pytest.raises(BugError):
        main(["fit", *tiny_args, *EPOCHS, "--model.net", "tests.helpers.networks.NoisyNet"])
    saved = torch.load(LAST, weights_only=True)["callbacks"]["Saver"]["random_python"]
    assert (saved[0], tuple(saved[1].tolist()), saved[2]) == states[3]


@pytest.mark.parametrize(
    ("accumulated", "batch"),
    [(2, 9), pytest.param(1, 8, marks=pytest.mark.slow), pytest.param(1, 12, marks=pytest.mark.slow)],
    ids=["within an accumulated step", "within an epoch", "in the last step of an epoch"],
)
def test_an_exception_and_then_a_stop_leave_no_trace(
    accumulated: int, batch: int, tiny_args: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["fit", *tiny_args, *EPOCHS, "--trainer.accumulate_grad_batches", str(accumulated)]
    assert main(options) == 0
    undisturbed = state_of(), curves(), read_metrics()
    shutil.rmtree("lightning_logs")
    with monkeypatch.context() as patch:
        at_step(batch, fail, patch)
        with pytest.raises(BugError):
            main(options)
    assert torch.load(LAST, weights_only=True)["global_step"] == (batch - 1) // accumulated
    with monkeypatch.context() as patch:
        at_step(2, lambda: signal.raise_signal(signal.SIGTERM), patch)
        assert main(["fit", "--ckpt_path", "last"]) == 143
    assert main(["fit", "--ckpt_path", "last"]) == 0
    assert (state_of(), curves(), read_metrics()) == undisturbed


@pytest.mark.parametrize(
    ("hook", "accumulated"),
    [("on_train_batch_end", 2), pytest.param("on_before_optimizer_step", 1, marks=pytest.mark.slow)],
    ids=["after the first of two batches", "before its optimizer"],
)
def test_a_callback_that_fails_within_a_step_leaves_the_save_before(
    hook: str, accumulated: int, tiny_args: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["fit", *tiny_args, *EPOCHS, "--trainer.accumulate_grad_batches", str(accumulated)]
    options += ["--trainer.log_every_n_steps", "1"]  # by a callback before ours
    calls: list[int] = []

    def patched(*args: object) -> None:
        calls.append(0)
        if len(calls) == 9:
            fail()

    assert main(options) == 0
    undisturbed = state_of(), curves()["Loss/train"]
    shutil.rmtree("lightning_logs")
    with monkeypatch.context() as patch:
        patch.setattr(StepCurve, hook, patched)
        with pytest.raises(BugError):
            main(options)
    assert main(["fit", "--ckpt_path", "last"]) == 0
    assert (state_of(), curves()["Loss/train"]) == undisturbed


def test_the_random_numbers_of_a_gpu_are_kept_too(monkeypatch: pytest.MonkeyPatch) -> None:
    states = [torch.tensor([1])]  # of a GPU, before the step and in it
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.is_initialized", lambda: True)
    monkeypatch.setattr("torch.cuda.get_rng_state", lambda: states[-1])
    monkeypatch.setattr("torch.cuda.set_rng_state", states.append)
    kept = get_random_state(of_torch_only=True)
    states.append(torch.tensor([2]))
    assert int(ExactResume().state_dict()["random_cuda"]) == 2
    set_random_state(kept)
    assert int(ExactResume().state_dict()["random_cuda"]) == 1


def test_a_checkpoint_of_a_callback_of_the_users_knows_that_the_training_was_stopped_early(
    tiny_args: list[str],
) -> None:
    own = callback("ModelCheckpoint", filename="own", save_on_train_epoch_end="true")
    stops = callback("EarlyStopping", monitor="Accuracy/train", mode="min", patience=1)
    assert main(["fit", *tiny_args, *EPOCHS, "--trainer.max_epochs", "9", *own, *stops]) == 0
    num_steps = torch.load(LAST, weights_only=True)["global_step"]
    (RUN / "results.json").unlink()
    assert main(["fit", "--ckpt_path", str(LAST.with_name("own.ckpt"))]) == 0
    assert torch.load(LAST, weights_only=True)["global_step"] == num_steps


def test_a_training_is_not_resumed_within_a_step(
    tiny_args: list[str], refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        at_step(9, fail, patch)  # after two batches of the second epoch
        with pytest.raises(BugError):
            main(["fit", *tiny_args, *EPOCHS, "--trainer.accumulate_grad_batches", "2"])
    code, line = refused(["fit", "--ckpt_path", "last", "--trainer.accumulate_grad_batches", "3"])
    assert code == 2
    assert line == (
        "error: --trainer.accumulate_grad_batches: the checkpoint was saved after 2 batches of an epoch, within a step "
        "of 3, whose gradients it has not: give last.ckpt, or as many as before"
    )


def test_a_schedule_is_not_resumed_with_another_length(tiny_args: list[str], refused: Refused) -> None:
    options = ["--trainer.max_epochs", "1", "--data.batch_size", "8", "--no_report"]
    assert main(["fit", *tiny_args, *options, "--model.schedule", "linear"]) == 0
    before = LAST.read_bytes()
    code, line = refused(["fit", "--ckpt_path", "last", "--trainer.max_epochs", "2"])
    assert code == 2
    assert "error: the --model.schedule of the checkpoint was laid out for 6 steps, and these" in line
    assert LAST.read_bytes() == before


def test_a_run_that_was_stopped_early_says_how_it_is_trained_longer(tiny_args: list[str], refused: Refused) -> None:
    stops = callback("EarlyStopping", monitor="Accuracy/train", mode="min", patience=1)
    assert main(["fit", *tiny_args, *EPOCHS, "--trainer.max_epochs", "9", *stops]) == 0
    before, num_epochs = (RUN / "results.json").read_bytes(), read_results()["epochs"]
    assert num_epochs < 9
    code, line = refused(["fit", "--ckpt_path", "last"])
    assert code == 2
    assert "has nothing left to train, and stays as it is; it was stopped early: leave out what stopped it" in line
    assert (RUN / "results.json").read_bytes() == before
    longer = ["--trainer.callbacks", "null", "--trainer.max_steps", "20"]
    with pytest.warns(UserWarning, match="EarlyStopping"):
        assert main(["fit", "--ckpt_path", "last", *longer]) == 0
    assert read_results()["epochs"] > num_epochs
    code, line = refused(["fit", "--ckpt_path", "last", *longer])
    assert "--trainer.max_steps is 20, and it has finished them: give more" in line
