"""Loads encoders from a workdir or a file of weights, and saves them in any known format.

Between the two stands `Pretrained`, to which every format is read and from which it is written.
"""

import dataclasses
from typing import Any

import numpy as np
from flax import traverse_util

from moco_jax.base import files
from moco_jax.base.errors import UserError
from moco_jax.base.text import printable
from moco_jax.data.views import recipes
from moco_jax.weights import (
    detectron2,
    heads,
    huggingface,
    layouts,
    moco,
    timm,
    torchvision,
    torchvision_vit,
    workdir,
)
from moco_jax.weights import files as weight_files
from moco_jax.weights.pretrained import Pretrained, Variables, joined, part, template

FORMATS = ("torchvision", "timm", "moco", "detectron2", "huggingface")


def is_run(place: str) -> bool:
    """Return whether the folder `place` is a run's workdir, and no folder of Hugging Face."""
    found = files.absolute(place)
    # Of a bucket that cannot be reached `is_dir` alone says False.
    return found.exists() and found.is_dir() and not huggingface.weights_in(place)


def load(place: str, arch: str = "", stem: str = "") -> Pretrained:
    """Load the encoders in `place`, a workdir or a file or folder of weights.

    Args:
        place: a workdir, a file of weights in any layout of `layouts.LAYOUTS`, or a folder of
            Hugging Face's.
        arch: a key of `BACKBONES` that it must be; '': as the weights say.
        stem: of a ResNet in a file, where the size of its kernel does not say it.

    Raises:
        UserError: nothing readable there, another architecture, or entries missing, unexpected
            or misshapen.
    """
    if not files.absolute(place).exists():
        raise UserError(
            f"{printable(place)} is not there; give a workdir, or a file or folder of weights"
        )
    if is_run(place):
        return _from_workdir(place, arch, stem)
    in_folder = huggingface.weights_in(place)
    read = weight_files.contents(in_folder or place)
    try:
        arrays = layouts.bare(read.arrays)
        pretrained = _encoders(arrays, arch, stem, place if in_folder else "")
        taken = {name: arrays[name] for name in arrays if name not in set(pretrained.left_out)}
        check_values(taken)
    except UserError as error:  # of names and values, without the file
        prefix = "" if str(place) in str(error) else f"{place}: "
        raise UserError(printable(f"{prefix}{error}")) from error
    if in_folder:
        huggingface.check(place, pretrained)
    remarks = tuple(map(printable, (*pretrained.remarks, *read.remarks)))
    return dataclasses.replace(pretrained, remarks=remarks)


def check_values(arrays: layouts.Arrays) -> None:
    """Refuse weights that are not finite, or whose variances are negative.

    Features made with such weights would be no numbers, whatever warning stood beside them.

    Raises:
        UserError: an entry has NaN, infinity or numbers beyond float32, or a variance is
            negative.
    """
    most = np.finfo(np.float32).max
    for name, array in arrays.items():
        if array.dtype.kind != "f" or not array.size:
            continue
        lowest, highest = float(array.min()), float(array.max())
        if not (-most <= lowest and highest <= most):  # NaN is neither
            with np.errstate(over="ignore"):
                count = array.size - np.isfinite(array.astype(np.float32)).sum()
            raise UserError(
                f"{name} is not finite: {count:,} of its {array.size:,} values are NaN, infinite or"
                " beyond float32, and so would all features be; use weights that were saved"
                " earlier"
            )
        if name.endswith("running_var") and lowest < 0:
            raise UserError(f"{name} has a variance of {lowest:g}, and none is below 0")


def check_run(place: str, step: int, variables: Variables) -> None:
    """Refuse a run's checkpoint of `step` in the workdir `place` if its weights are not finite.

    Raises:
        UserError: as `check_values`, with step and workdir named.
    """
    try:
        check_values(traverse_util.flatten_dict(variables, sep="/"))
    except UserError as error:
        raise UserError(f"step {step} of {printable(place)}: {error}") from error


def _encoders(arrays: layouts.Arrays, arch: str, stem: str, folder: str) -> Pretrained:
    """Read the encoders in `arrays`, whose names are as `layouts.bare` gives them.

    `folder` is the model folder of Hugging Face that the arrays come from, '' for other files.
    """
    layout = layouts.recognise(arrays)
    if layout.name.startswith("MoCo"):
        return moco.load(arrays, arch, stem)
    query, key = (
        layouts.plain(layouts.under(arrays, prefix)) if prefix is not None else {}
        for prefix in (layout.query, layout.key)
    )
    options = layouts.architecture(query, arch, _stem(arrays, layout, stem))
    first = query.get("conv1.weight", query.get("patch_embed.proj.weight"))
    channels = 3 if first is None else first.shape[1]
    preprocessing = moco.preprocessing_of(query)
    if folder:
        preprocessing = huggingface.preprocessing(folder) | preprocessing
    size = preprocessing.get("image_size", moco.image_size_of(query))
    shapes = part(template(options, moco.image_size_of(query), channels), "backbone")
    query, turned = timm.rows_first(query)
    key, _ = timm.rows_first(key)
    on_top = heads.load(arrays, layout, options, moco.image_size_of(query), channels, bool(key))
    if turned:
        on_top = on_top.reading_exchanged_features()
    return Pretrained(
        options=options | on_top.options,
        query=joined(backbone=moco.load_backbone(query, shapes), **on_top.query),
        key=joined(backbone=moco.load_backbone(key, shapes), **on_top.key) if key else None,
        queue=on_top.queue,
        image_size=size,
        channels=channels,
        left_out=_left_out(arrays, layout, on_top.taken),
        remarks=(*on_top.remarks, *_remarks(layout, options, turned, bool(folder))),
        preprocessing=preprocessing,
    )


def _stem(arrays: layouts.Arrays, layout: layouts.Layout, stem: str) -> str:
    """Resolve which stem the network has, from the setting `stem` and from the entries' names.

    Raises:
        UserError: the two disagree, or neither tells two kinds of stem apart.
    """
    from_names = layouts.stem_of(arrays, layout)
    if from_names and stem not in ("", from_names):
        raise UserError(
            f"{layout.name}'s network has stem={from_names!r}; with stem={stem!r} it is another"
        )
    kernel = layouts.under(arrays, layout.query).get("conv1.weight", np.zeros((1, 1, 7, 7)))
    if layout.name == "solo-learn" and not from_names and not stem and kernel.shape[-1] == 3:
        raise UserError(
            f"nothing says which 3x3 stem this is: --stem=cifar_pad2 if {layout.query} is"
            " solo-learn's, which pads by two pixels, --stem=cifar if it pads by one"
        )
    return stem or from_names


def _left_out(
    arrays: layouts.Arrays, layout: layouts.Layout, taken: tuple[str, ...]
) -> tuple[str, ...]:
    """List the names of entries that have no place here, those within an encoder first."""
    encoders = tuple(prefix for prefix in (layout.query, layout.key) if prefix is not None)
    within, beside = [], []
    for name in arrays:
        prefix = next((known for known in encoders if name.startswith(known)), None)
        on_top = huggingface.ON_TOP if layout.name == "Hugging Face" else ()
        inner = name.removeprefix(prefix or "")
        if prefix is None:
            beside += [] if name.startswith(taken or " ") else [name]
        elif layouts.is_beside(inner) or inner.startswith(on_top):
            within.append(name)
    return (*within, *beside)


def _remarks(
    layout: layouts.Layout, options: dict[str, Any], turned: bool, in_folder: bool
) -> list[str]:
    remarks = []
    if turned:
        remarks.append(
            "its positions count columns first: the halves of its width have changed places here,"
            " and so have those of its features"
        )
    if options["name"] == "vit_small" and "width" not in options and not in_folder:
        remarks.append(
            "it is taken to have 12 attention heads, as MoCo v3's ViT-S; timm's own has 6, and the"
            " file does not say it"
        )
    return remarks


def describe(pretrained: Pretrained) -> str:
    """Describe the encoders in a few words: architecture, heads, queue."""
    options = pretrained.options
    words = [options["name"]]
    words += [f"width {options['width']}"] if options.get("width") else []
    words += [] if pretrained.is_vit else [f"stem {options['stem']}"]
    words += [f"head {options['head']} to {options['dim']}"] if "head" in options else []
    words += ["predictor"] if options.get("predictor", "none") != "none" else []
    words += ["momentum encoder"] if pretrained.key else []
    words += [f"queue of {len(pretrained.queue):,}"] if pretrained.queue is not None else []
    return ", ".join(words)


def _from_workdir(place: str, arch: str, stem: str) -> Pretrained:
    config, step = workdir.read_config(place), workdir.sound_step(place)
    for name, wanted in (("arch", arch), ("stem", stem)):
        if wanted not in ("", config[name]):
            raise UserError(f"{place} was trained with {name}={config[name]!r}, not {wanted!r}")
    query = workdir.variables(place, "query", step)
    check_run(place, step, query)
    options = dict(
        name=config.arch,
        head=config.head,
        head_width=config.head_width,
        dim=config.dim,
        predictor=config.predictor,
        width=config.width or None,
        stem=config.stem,
    )
    has_key = config.key_encoder == "momentum"
    return Pretrained(
        options=options,
        query=query,
        key=workdir.variables(place, "key", step) if has_key else None,
        queue=workdir.queue(place, step),
        image_size=config.image_size,
        channels=config.channels,
        preprocessing=dict(
            image_size=config.image_size,
            mean=tuple(config.mean),
            std=tuple(config.std),
            resize=recipes.create(config.augment, config.image_size).evaluation_resize,
        ),
    )


def save(pretrained: Pretrained, path: str, kind: str, which: str = "query") -> None:
    """Write `pretrained` in the format `kind` to `path`.

    Args:
        pretrained: what to write.
        path: .pth, .pth.tar, .pt, .bin or .safetensors; .pkl for Detectron2; a new or empty
            folder for Hugging Face.
        kind: the layout, one of `FORMATS`; 'moco' holds all there is, the others the backbone of
            one encoder.
        which: 'query' or 'key'; 'query' for 'moco'.

    Raises:
        UserError: the format does not know such an encoder, or the ending is another format's.
    """
    arrays, around = entries(pretrained, kind, which)
    if kind == "huggingface":
        return huggingface.save(path, pretrained, arrays)
    pickled = weight_files.ending(path) == ".pkl"
    if pickled != (kind == "detectron2"):
        rule = "is read from .pkl" if kind == "detectron2" else "is not kept in .pkl"
        raise UserError(f"format={kind} {rule}; {path} has another ending")
    packed = weight_files.ending(path) == ".safetensors"
    weight_files.write(path, arrays, {} if packed else around)


def entries(
    pretrained: Pretrained, kind: str, which: str = "query"
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return what `save` writes: names to arrays, and what stands around them in the file."""
    if kind not in FORMATS:
        raise UserError(f"format={kind!r} is unknown; use one of {', '.join(FORMATS)}")
    if which not in workdir.PARTS:
        raise UserError(f"which={which!r} is no encoder; use one of {', '.join(workdir.PARTS)}")
    if kind == "moco":
        if which != "query":
            raise UserError("format=moco holds both encoders; leave which out")
        return moco.save(pretrained), moco.around(pretrained)
    variables = pretrained.query if which == "query" else pretrained.key
    if variables is None:
        raise UserError("these weights have no momentum encoder; which=query works")
    backbone: Variables = {"batch_stats": {}} | part(variables, "backbone")
    if kind == "detectron2":
        return detectron2.save(backbone), detectron2.AROUND
    if not pretrained.is_vit:
        renamed = torchvision.save(backbone)  # timm's names are the same
    else:
        renamed = timm.save(backbone, pretrained.image_size)
    if kind == "huggingface":
        return huggingface.entries(pretrained, renamed), {}
    if not pretrained.is_vit:
        return renamed, {}
    return (torchvision_vit.from_timm(renamed) if kind == "torchvision" else renamed), {}
