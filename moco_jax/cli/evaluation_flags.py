"""The flags and help of each evaluation; `evaluations/NAME.py` does its work.

The docstring of a function in `EVALUATIONS` is what `python -m moco_jax.evaluate NAME --help`
prints first; its body defines the flags that this evaluation has beside those of all.
"""

from collections.abc import Callable

from absl import flags

from moco_jax.cli import host_flags, number_flags, shared_flags
from moco_jax.config import registry
from moco_jax.config.settings.kinds import LARGEST, Range


def encoder(given: flags.FlagValues) -> None:
    """Define the flags of all evaluations: which encoder, and where the result is written."""
    flags.DEFINE_string("workdir", None, "Folder of the run; the result is written there.", given)
    shared_flags.encoder_of_a_run(given)
    flags.DEFINE_string(
        "weights",
        "",
        "In place of --workdir: a file or folder of weights, of any library that docs/weights.md "
        "names.",
        given,
    )
    flags.DEFINE_string("out", "", "Folder of the result; left out: the workdir.", given)
    number_flags.DEFINE_whole(
        "image_size", 0, "Side of images in pixels; 0: the run's or the file's.", 0, 8192, given
    )
    flags.DEFINE_list(
        "mean",
        [],
        "Mean per channel of images scaled to 0..1; left out: the run's or the file's.",
        given,
    )
    flags.DEFINE_list("std", [], "Standard deviation per channel, as --mean.", given)
    flags.DEFINE_string(
        "stem",
        "",
        "Stem of a ResNet in --weights; left out: 'imagenet' or 'cifar', by its kernel.",
        given,
    )
    flags.DEFINE_bool(
        "untrained", False, "Also evaluate the encoder as it was before training.", given
    )
    host_flags.define(given)


def labelled_images(given: flags.FlagValues) -> None:
    """Define the flags that name labelled images, to learn from and to test on."""
    flags.DEFINE_string("dataset", "", "Data set, as --config.dataset; left out: the run's.", given)
    flags.DEFINE_string(
        "data_dir", "", "Folder, list or shards of its images, as --config.data_dir.", given
    )
    flags.DEFINE_string("train_split", "", "Split to train on; left out: the run's own.", given)
    flags.DEFINE_string(
        "test_split",
        "",
        "Split to test on; left out: the run's eval_split, or else a tenth of the training images.",
        given,
    )
    flags.DEFINE_string(
        "test_data_dir",
        "",
        "Folder, list or shards of the images to test on, if they are in another place.",
        given,
    )


def features(given: flags.FlagValues, left_out: str) -> None:
    """Define --features, with what is used when it is `left_out`."""
    flags.DEFINE_enum(
        "features",
        None,
        registry.FEATURES(),
        f"Pooled features, or those after the head. Left out: {left_out}.",
        given,
    )


def beside(given: flags.FlagValues) -> None:
    """Define --beside."""
    flags.DEFINE_list(
        "beside",
        [],
        "Files or folders of weights to evaluate beside the encoder, on the same images, each at "
        "its own size and by its own mean and deviation: an ImageNet encoder of someone else, or "
        "another run.",
        given,
    )


def batch_size(given: flags.FlagValues) -> None:
    """Define --batch_size."""
    number_flags.DEFINE_whole(
        "batch_size", 0, "Images in a batch of a training; 0: the protocol's own.", 0, 2**20, given
    )


def training(given: flags.FlagValues) -> None:
    """Define the flags of trainings on crops: epochs, batch and augmentation."""
    number_flags.DEFINE_whole(
        "epochs", 0, "Epochs of a training; 0: the protocol's own.", 0, 10**6, given
    )
    batch_size(given)
    flags.DEFINE_enum(
        "augment", "linear", registry.VIEWS(), "Crops to train on; 'linear' is the papers'.", given
    )


def knn(given: flags.FlagValues) -> None:
    """Classify test images by the votes of the nearest training images.

    Several k and temperatures are tried in one pass.

    python -m moco_jax.evaluate knn --workdir=runs/mine --untrained --beside=r18_imagenet.pth
    python -m moco_jax.evaluate knn --weights=r50.pth --out=results --dataset=folder \\
        --data_dir=FOLDER
    """
    labelled_images(given)
    features(given, "as the run's monitor has it")
    beside(given)
    number_flags.DEFINE_numbers(
        "k",
        [],
        "Numbers of neighbours to try; all together cost what the largest costs.",
        int,
        Range(1, 2**31 - 1),
        given,
    )
    number_flags.DEFINE_numbers(
        "temperature", [], "Temperatures of the votes.", float, Range(1e-6, LARGEST), given
    )


def linear(given: flags.FlagValues) -> None:
    """Train a linear classifier on frozen features.

    It follows a paper's protocol, or many settings are trained together and the best is chosen.

    python -m moco_jax.evaluate linear --workdir=runs/mine
    python -m moco_jax.evaluate linear --workdir=runs/mine --protocol=paper
    """
    labelled_images(given)
    features(given, "'backbone'")
    beside(given)
    training(given)
    flags.DEFINE_enum(
        "protocol",
        "fast",
        ["fast", "paper", "v3"],
        "'fast': one set of features, many settings at once; 'paper': training on crops as in "
        "MoCo v1 and v2; 'v3': as in MoCo v3.",
        given,
    )
    number_flags.DEFINE_whole(
        "crops", 1, "fast: sets of crops beside the centre crops.", 0, 1000, given
    )
    rates, decays = registry.GRID_RATES(), registry.GRID_DECAYS()
    number_flags.DEFINE_numbers(
        "rates", rates, "fast: learning rates.", float, Range(1e-9, LARGEST), given
    )
    number_flags.DEFINE_numbers(
        "decays", decays, "fast: weight decays.", float, Range(0, LARGEST), given
    )


def finetune(given: flags.FlagValues) -> None:
    """Train all weights on some of the labels, with --scratch also from scratch.

    python -m moco_jax.evaluate finetune --workdir=runs/mine --labels=1,10
    """
    labelled_images(given)
    training(given)
    number_flags.DEFINE_numbers(
        "labels",
        [],
        "Shares of the labels in per cent, one training for each; left out: 1,10,100, or --subset.",
        float,
        Range(0, 100, above=True),
        given,
    )
    flags.DEFINE_list(
        "subset",
        [],
        "Text files that name training images; each file is a training of its own.",
        given,
    )
    number_flags.DEFINE_whole(
        "subset_seed",
        0,
        "Seed by which --labels draws images; one seed draws the same for all runs.",
        0,
        2**63 - 1,
        given,
    )
    flags.DEFINE_enum(
        "recipe",
        None,
        registry.FINETUNE_RECIPES(),
        "Recipe of the training; left out: 'deit' for a ViT, 'sgd' for a ResNet.",
        given,
    )
    flags.DEFINE_bool(
        "scratch",
        False,
        "Also train from random weights; --untrained means the same.",
        given,
    )
    _rates_of_fine_tuning(given)
    number_flags.DEFINE_whole(
        "tests",
        20,
        "How many times a training is tested, its end included.",
        1,
        10**6,
        given,
    )
    flags.DEFINE_string(
        "save",
        "",
        "A .safetensors file for the fine-tuned network, encoder and classifier under timm's "
        "names.",
        given,
    )


def _rates_of_fine_tuning(given: flags.FlagValues) -> None:
    own = "left out: the recipe's"
    number_flags.DEFINE_number(
        "backbone_lr", None, f"Learning rate of the backbone; {own}.", 0, LARGEST, given
    )
    number_flags.DEFINE_number(
        "classifier_lr", None, f"Learning rate of the classifier; {own}.", 0, LARGEST, given
    )
    number_flags.DEFINE_number(
        "scratch_lr", None, f"Learning rate from random weights; {own}.", 0, LARGEST, given
    )
    number_flags.DEFINE_number(
        "weight_decay", None, f"Weight decay of the training; {own}.", 0, 100, given
    )
    number_flags.DEFINE_number(
        "layer_decay",
        1.0,
        "For a ViT: learning rate of each layer, as a share of the next layer's.",
        1e-3,
        1.0,
        given,
    )


def segmentation(given: flags.FlagValues) -> None:
    """Fine-tune an FCN on labelled pixels, and score its segmentation.

    As in MoCo v1, section 4.2.3 and appendix A.5.

    python -m moco_jax.evaluate segmentation --workdir=runs/mine --data_dir=VOC2012
    """
    flags.DEFINE_string(
        "data_dir", "", "Folder of PASCAL VOC or Cityscapes, see docs/evaluation.md.", given
    )
    flags.DEFINE_string(
        "train_split", "", "Split to train on; left out: the protocol's own.", given
    )
    flags.DEFINE_string("test_split", "", "Split to test on; left out: 'val'.", given)
    batch_size(given)
    number_flags.DEFINE_whole(
        "iterations", 0, "Steps of the training; 0: the protocol's own.", 0, 2**31 - 1, given
    )
    number_flags.DEFINE_number(
        "rate", 0.0, "Learning rate; 0: the protocol's own.", 0, LARGEST, given
    )
    number_flags.DEFINE_whole(
        "crop", 0, "Side of training crops in pixels; 0: the protocol's own.", 0, 8192, given
    )


# What `python -m moco_jax.evaluate` can be told to do; a new evaluation is a row.
EVALUATIONS: dict[str, Callable[[flags.FlagValues], None]] = {
    "knn": knn,
    "linear": linear,
    "finetune": finetune,
    "segmentation": segmentation,
}
