"""``cifar-lit fit --help``: the options that people use, then the names of all others. Imports no torch."""

import textwrap
from collections.abc import Iterable

from cifar_lit.recipes import RECIPES

EXAMPLES = """\
examples:
  cifar-lit fit
  cifar-lit fit --recipe tuned --seed_everything 1
  cifar-lit fit --trainer.max_epochs 3 --model.lr 0.05
  cifar-lit fit --recipe small --data.source images --data.root pictures
  cifar-lit fit --recipe quick
  cifar-lit fit --ckpt_path last
"""
USED = {
    "--recipe NAME": ("settings to start from", "tutorial"),
    "--config FILE": ("settings from a YAML file of yours", None),
    "--data.source NAME": ("cifar10, images, torchvision, ...", "cifar10"),
    "--data.root PATH": ("folder or archive of the images", "data"),
    "--data.image_size N": ("height and width of the images", 32),
    "--data.val_size N": ("held out for validation: images or a share", None),
    "--data.batch_size N": ("images in each step", 64),
    "--data.flip MODE": ("mirror: none, random, alternating", "none"),
    "--data.crop_padding N": ("shift images by up to N pixels", 0),
    "--model.net CLASS": ("FastCNN, ResNet18, ... or yours", "TutorialCNN"),
    "--model.lr RATE": ("learning rate, or its peak", 0.01),
    "--model.momentum M": ("of SGD, from 0 to below 1", 0.0),
    "--model.weight_decay D": ("L2 penalty on the weights", 0.0),
    "--model.schedule NAME": ("of lr: constant, linear, cosine", "constant"),
    "--trainer.max_epochs N": ("length of the training", 20),
    "--trainer.accelerator NAME": ("cpu, gpu, mps", "auto"),
    "--trainer.precision P": ("bf16-mixed, ...; auto: the faster", "32-true"),
    "--trainer.default_root_dir DIR": ("where lightning_logs is written", None),
    "--seed_everything N": ("seed of weights and order", 0),
    "--ckpt_path RUN": ("resume a run; last: the one saved last", None),
    "--no_report": ("do not write report.html", None),
    "--print_config": ("show all settings, train nothing", None),
    "--help_all": ("explain every option", None),
}
"""The options that people use, with a text and the default (of the default recipe)."""
OTHERS = {
    "--": "checkpoint.every_n_minutes checkpoint.every_n_steps checkpoint.monitor trust_run",
    "--data.": "brightness cache_dir contrast cutmix cutout dataset duplicates erasing image_sizes mirror mixup resize "
    "saturation split_seed trivial_augment",
    "--model.": "class_weights compile freeze freeze_epochs kernels label_smoothing mean muon_lr muon_momentum "
    "nesterov std tta warmup_epochs weights",
    "--trainer.": "accumulate_grad_batches benchmark callbacks check_val_every_n_epoch detect_anomaly deterministic "
    "devices enable_autolog_hparams enable_checkpointing enable_model_summary enable_progress_bar fast_dev_run "
    "gradient_clip_algorithm gradient_clip_val inference_mode limit_test_batches limit_train_batches limit_val_batches "
    "log_every_n_steps logger max_steps max_time min_epochs min_steps num_nodes num_sanity_val_steps plugins profiler "
    "strategy sync_batchnorm val_check_interval",
}
"""The names of all others, by the beginning of the option."""


def format_help() -> str:
    """Return the text, in 80 columns."""
    rows = [
        f"  {option:<31} {text}" + ("" if default is None else f" [{default}]")
        for option, (text, default) in USED.items()
    ]
    return "\n".join(
        (
            "usage: cifar-lit fit [options]\n",
            "Train, and test the checkpoint that is best on validation, or the last, once.\n",
            *rows,
            "",
            *_fill(f"recipes: {', '.join(RECIPES)}. In [...] is the default, of the recipe tutorial."),
            *_fill("The network's own options follow --model.net, as in --model.net.width 64."),
            "\nall others, which --help_all explains:",
            *(line for start, names in OTHERS.items() for line in _fill(f"{start} {names}", indent=12)),
            "",
            EXAMPLES,
        )
    )


def _fill(text: str, indent: int = 0) -> Iterable[str]:
    start, _, rest = text.partition(" ")
    if indent:
        return textwrap.wrap(rest, 78, initial_indent=f"  {start:<{indent}}", subsequent_indent=" " * (indent + 2))
    return textwrap.wrap(text, 78)
