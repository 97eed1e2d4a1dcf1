"""What people call an option elsewhere, and what its types are called in English."""

import difflib
import re
from collections.abc import Collection, Iterable

from cifar_lit.recipes import RECIPES

FINDER = (
    "on 180 pictures its suggestions varied a hundredfold from seed to seed, and two of four trainings with them "
    "diverged: search with cifar-lit sweep --set model.lr=log:0.003:0.3"
)
"""What a learning-rate finder did, and what does better."""

UNKNOWN = {
    "--weights_only": "checkpoints are always read without running code in them",
    "--lr_finder": f"the search was removed, because {FINDER}",
    "--optimizer": "it is SGD, with Muon by --model.muon_lr; its options are those of --model",
    "--lr_scheduler": "give --model.schedule",
    "--trainer.resume_from_checkpoint": "give --ckpt_path",
    "--trainer.gpus": "give --trainer.accelerator gpu and --trainer.devices",
    "--trainer.amp_backend": "give --trainer.precision",
    "--trainer.progress_bar_refresh_rate": "give --trainer.callbacks+ TQDMProgressBar",
}
"""Options of Lightning that ``fit`` does not have, and what to give."""

_LATER = "in the run's folder, which is lightning_logs/version_N below --trainer.default_root_dir"
INSTEAD = {
    **dict.fromkeys(("workers", "num_workers", "j", "pin_memory"), "the images are in memory, which needs no workers"),
    **dict.fromkeys(("gpu", "gpus", "cuda", "cpu", "no_cuda", "mps"), "give --trainer.accelerator gpu, mps or cpu"),
    **dict.fromkeys(("fp16", "amp", "bf16", "half", "mixed_precision"), "give --trainer.precision bf16-mixed"),
    **dict.fromkeys(("optim", "optimizer", "adam", "sgd"), UNKNOWN["--optimizer"]),
    **dict.fromkeys(
        ("world_size", "rank", "local_rank", "dist_url"), "give --trainer.devices and --trainer.strategy ddp"
    ),
    **dict.fromkeys(("patience", "early_stopping"), "give --trainer.callbacks+ EarlyStopping and its options"),
    **dict.fromkeys(("ema", "swa"), "give --trainer.callbacks+ EMAWeightAveraging"),
    **dict.fromkeys(("augment", "aug", "augmentation"), "give --data.flip, --data.crop_padding and --data.cutout"),
    **dict.fromkeys(("auto_augment", "autoaugment", "randaugment", "aa"), "give --data.trivial_augment true"),
    **dict.fromkeys(("color_jitter", "colorjitter"), "give --data.brightness, --data.contrast and --data.saturation"),
    **dict.fromkeys(("eval", "evaluate", "test"), "cifar-lit test RUN scores a run"),
    **dict.fromkeys(("name", "experiment", "exp_name", "save_model"), f"everything is {_LATER}"),
    **dict.fromkeys(("quiet", "silent", "q"), "give --trainer.enable_progress_bar false"),
    **dict.fromkeys(("debug", "dry_run"), "give --trainer.fast_dev_run true"),
    **dict.fromkeys(("num_classes", "classes"), "the data says which classes there are"),
    **dict.fromkeys(
        ("tensorboard", "wandb", "mlflow", "csv"), "give --trainer.logger TensorBoardLogger, WandbLogger, ..."
    ),
    **dict.fromkeys(("trials", "n_trials", "num_trials"), "cifar-lit sweep has --trials"),
    **dict.fromkeys(("sampler", "weighted_sampler", "oversample"), "give --model.class_weights balanced"),
    "v": "cifar-lit --version shows the version",
    "pretrained": "give --model.weights and a run of yours, or a file; --ckpt_path resumes a run",
    "dropout": "it belongs to a network; its options are given as --model.net.NAME",
    "download": "the data is downloaded when it is needed",
    "verbose": "there is a line per epoch; --trainer.log_every_n_steps logs more",
    "version": "cifar-lit --version shows it",
    "normalize": "give --model.mean and --model.std",
}
"""What ``fit`` does instead of an option that it has not."""

SYNONYMS = {
    **dict.fromkeys(("epochs", "epoch", "num_epochs", "n_epochs", "nepochs", "ep", "e"), "max_epochs"),
    **dict.fromkeys(("steps", "iterations", "iters", "num_steps", "max_iter"), "max_steps"),
    **dict.fromkeys(("learning_rate", "rate", "base_lr", "max_lr", "lrate"), "lr"),
    **dict.fromkeys(("seed", "random_seed", "manual_seed", "rng", "s"), "seed_everything"),
    **dict.fromkeys(("batch", "bs", "b", "train_batch_size", "batchsize"), "batch_size"),
    **dict.fromkeys(("data", "data_set", "dataset_name"), "source"),
    **dict.fromkeys(("data_dir", "data_path", "data_root", "dataroot", "datadir", "train_dir", "path", "dir"), "root"),
    **dict.fromkeys(("arch", "network", "architecture", "backbone", "model_name", "a"), "net"),
    **dict.fromkeys(("resume", "checkpoint_path", "ckpt", "load", "resume_from", "from_checkpoint"), "ckpt_path"),
    **dict.fromkeys(
        ("out", "output", "output_dir", "out_dir", "save_dir", "logdir", "log_dir", "o"), "default_root_dir"
    ),
    **dict.fromkeys(("l2", "wd", "decay"), "weight_decay"),
    **dict.fromkeys(("init_from", "init_weights", "finetune", "pretrained_weights"), "weights"),
    **dict.fromkeys(("freeze_backbone", "freeze_body", "linear_probe"), "freeze"),
    **dict.fromkeys(("val_split", "valid_size", "val_frac", "validation_split", "val_fraction"), "val_size"),
    **dict.fromkeys(("scheduler", "lr_scheduler", "lr_schedule", "sched", "annealing"), "schedule"),
    **dict.fromkeys(("warmup", "warm_up", "warmup_steps"), "warmup_epochs"),
    **dict.fromkeys(("smoothing", "ls"), "label_smoothing"),
    **dict.fromkeys(("grad_clip", "clip", "clip_grad", "clip_grad_norm", "max_grad_norm"), "gradient_clip_val"),
    **dict.fromkeys(("grad_accum", "accumulate", "gradient_accumulation_steps"), "accumulate_grad_batches"),
    **dict.fromkeys(("log_interval", "print_freq", "log_freq", "log_every"), "log_every_n_steps"),
    **dict.fromkeys(("save_every", "save_freq", "save_interval"), "every_n_steps"),
    **dict.fromkeys(("img_size", "imgsz", "input_size", "resolution"), "image_size"),
    **dict.fromkeys(("class_weight", "cls_weights", "loss_weights", "pos_weight", "balanced"), "class_weights"),
    **dict.fromkeys(("metric", "eval_metric", "metric_for_best_model", "best_metric", "save_best"), "monitor"),
    **dict.fromkeys(("dedup", "deduplicate", "remove_duplicates", "drop_duplicates", "near_duplicates"), "duplicates"),
    **dict.fromkeys(("preset", "r"), "recipe"),
    **dict.fromkeys(("cfg", "conf", "config_file"), "config"),
    **dict.fromkeys(("n_trials", "num_trials", "n"), "trials"),
    **dict.fromkeys(("topk", "top", "k"), "top_k"),
    **{"nodes": "num_nodes", "num_gpus": "devices", "n_gpus": "devices", "accelerator": "device", "time": "max_time"},
    **dict.fromkeys(("device", "gpu", "gpus", "cuda", "cpu", "mps"), "accelerator"),
    **{"random_erasing": "erasing", "random_erase": "erasing", "reprob": "erasing"},
    **{"mixup_alpha": "mixup", "cutmix_alpha": "cutmix", "ta_wide": "trivial_augment"},
    **{"horizontal_flip": "flip", "hflip": "flip", "crop": "crop_padding", "padding": "crop_padding"},
    **{"server_port": "port", "server_name": "host", "address": "host", "format": "to"},
    **{"torch_compile": "compile", "study_name": "study", "db": "storage"},
    **{
        "trust": "trust_run",
        "trust_remote_code": "trust_run",
        "no_validation": "val_size",
        "clip_norm": "gradient_clip_val",
    },
}
"""What an argument is called elsewhere, and here."""


def option_names(options: Iterable[str]) -> dict[str, str]:
    """Map the name of each argument to its option: ``batch_size`` to ``--data.batch_size``."""
    return {option.removeprefix("--").rpartition(".")[2]: option for option in options if option.startswith("--")}


def suggest_option(word: str, options: Collection[str]) -> str:
    """Return ``; did you mean --OPTION?``: of the same name in another group, of a synonym, or else close to it."""
    known = option_names(option for option in options if not option.endswith((".help", "+")))
    if not word.startswith("-") and "=" not in word and "--recipe" in known.values():
        kind = "--recipe" if word in RECIPES else "--config" if word.endswith((".yaml", ".yml")) else ""
        if kind:
            return f"; did you mean {kind} {word}?"
    if "." in word and (same := difflib.get_close_matches(word, known.values(), n=1, cutoff=0.94)):
        return f"; did you mean {same[0]}?"  # a letter is wrong, and the group is right
    name = _name(word)
    close = difflib.get_close_matches(name, [*known, *SYNONYMS], n=1, cutoff=0.75)
    synonym = SYNONYMS.get(name, name)
    candidates = [synonym, name, SYNONYMS.get(synonym), *(SYNONYMS.get(one, one) for one in close)]
    found = [known[one] for one in candidates if one in known]
    return f"; did you mean {found[0]}?" if found else ""


def instead_of(word: str) -> str:
    """Return what ``fit`` does instead of an option that it has not; empty for an option that nobody knows."""
    for option, instead in UNKNOWN.items():
        if word == option or word.startswith(f"{option}."):
            return instead
    return INSTEAD.get(_name(word), "")


def is_of_fit(word: str) -> bool:
    """Return whether an option, of any spelling, is about a training; one for a place may be about anything."""
    name = _name(word)
    return SYNONYMS.get(name) != "default_root_dir" and name in {*SYNONYMS, *SYNONYMS.values(), *INSTEAD}


def _name(word: str) -> str:
    """Return the name of the argument that somebody means: ``batch_size`` of ``--Data.batch-size``."""
    return word.rpartition(".")[2].lstrip("-").replace("-", "_").lower()


TYPES = {
    **{"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text", "null": "null"},
    **{"NoneType": "null", "list": "a list", "tuple": "a list", "Sequence": "a list", "Iterable": "a list"},
    **{"dict": "a mapping", "Mapping": "a mapping", "path": "a file", "timedelta": "a time, as 00:01:30:00"},
}


def in_english(types: Iterable[str]) -> str:
    """Return what a value must be, from the types that jsonargparse names: ``one of a, b, or null``."""
    choices: list[str] = []
    words: list[str] = []
    for text in types:
        text = re.sub(r"^Expected an? |\. Got value: .*|<class '(.*)'>", r"\1", text, flags=re.DOTALL).strip()
        if found := re.fullmatch(r"(?:typing\.Literal)?\[(.*)\]", text):
            choices += [choice.strip(" '\"") for choice in found[1].split(",")]
        elif found := re.fullmatch(r"tuple with (\d+) elements", text):
            words.append(f"a list of {found[1]} values")
        else:
            kind = text.rpartition(".")[2]
            words.append(TYPES.get(kind, TYPES.get(kind.partition("[")[0], text)))
    if "a number" in words or any(choice.isdecimal() for choice in choices):  # all whole numbers are among them
        words = [word for word in words if word != "a whole number"]
    if choices:
        others = {"true or false": ("true", "false"), "null": ("null",)}
        choices += [choice for word in words for choice in others.get(word, ())]
        left = [word for word in dict.fromkeys(words) if word not in others]
        return " or ".join([f"one of {', '.join(dict.fromkeys(choices))}", *left])
    return " or ".join(dict.fromkeys(words))


def kind_in_english(kind: str) -> str:
    """Return the text of a type, such as ``Union[int, float, null]``, as ``in_english`` says it."""
    inner = re.sub(r"^(Union|Optional)\[(.*)\]$", r"\2", kind)
    parts = re.findall(r"(?:Literal)?\[[^][]*\]|(?:\w+\[.*?\]+)|\w+", inner)
    return in_english(
        [*(part.removeprefix("Literal") for part in parts), *(["null"] if kind.startswith("Opt") else [])]
    )
