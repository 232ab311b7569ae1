"""From a workdir or any file of weights that is known to `Pretrained`, and from there to any kind of file."""

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
    """Whether `place` is a folder of no library's, and so the workdir of a run."""
    return files.absolute(place).is_dir() and not huggingface.weights_in(place)


def load(place: str, arch: str = "", stem: str = "") -> Pretrained:
    """The encoders in `place`.

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
            f"{printable(place)} is not there; a workdir, or a file or folder of weights, is wanted"
        )
    if is_run(place):
        return _from_workdir(place, arch, stem)
    in_folder = huggingface.weights_in(place)
    read = weight_files.contents(in_folder or place)
    try:
        arrays = layouts.bare(read.arrays)
        found = _encoders(arrays, arch, stem, place if in_folder else "")
        taken = {name: arrays[name] for name in arrays if name not in set(found.left_out)}
        check_values(taken)
    except UserError as error:  # of names and values, without the file
        said = "" if str(place) in str(error) else f"{place}: "
        raise UserError(printable(f"{said}{error}")) from error
    if in_folder:
        huggingface.check(place, found)
    remarks = tuple(map(printable, (*found.remarks, *read.remarks)))
    return dataclasses.replace(found, remarks=remarks)


def check_values(arrays: layouts.Arrays) -> None:
    """Refuse values with which features would be no numbers, and no line beside them would help.

    Raises:
        UserError: an entry has NaN, infinity or numbers beyond float32, or a variance is negative.
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
                f"{name} is not finite: {count:,} of its {array.size:,} values are NaN, infinite "
                "or beyond float32, "
                "and so would all features be; weights saved before that are needed"
            )
        if name.endswith("running_var") and lowest < 0:
            raise UserError(f"{name} has a variance of {lowest:g}, and none is below 0")


def check_run(place: str, step: int, variables: Variables) -> None:
    """Raise UserError where the weights of the run in the workdir `place` after `step` are not
    finite.
    """
    try:
        check_values(traverse_util.flatten_dict(variables, sep="/"))
    except UserError as error:
        raise UserError(f"step {step} of {printable(place)}: {error}") from error


def _encoders(arrays: layouts.Arrays, arch: str, stem: str, folder: str) -> Pretrained:
    """The encoders in `arrays`, names as `layouts.bare` gives them; `folder`: of Hugging Face's, or
    ''.
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
    said = moco.preprocessing_of(query)
    if folder:
        said = huggingface.preprocessing(folder) | said
    size = said.get("image_size", moco.image_size_of(query))
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
        preprocessing=said,
    )


def _stem(arrays: layouts.Arrays, layout: layouts.Layout, stem: str) -> str:
    """`stem`, or where it is '' what the names say of it; UserError where these differ or more must be said."""
    said = layouts.stem_of(arrays, layout)
    if said and stem not in ("", said):
        raise UserError(
            f"{layout.name}'s network has stem={said!r}; with stem={stem!r} it is another"
        )
    kernel = layouts.under(arrays, layout.query).get("conv1.weight", np.zeros((1, 1, 7, 7)))
    if layout.name == "solo-learn" and not said and not stem and kernel.shape[-1] == 3:
        raise UserError(
            f"nothing says which 3x3 stem this is: --stem=cifar_pad2 if {layout.query} is"
            " solo-learn's, which pads by two pixels, --stem=cifar if it pads by one"
        )
    return stem or said


def _left_out(
    arrays: layouts.Arrays, layout: layouts.Layout, taken: tuple[str, ...]
) -> tuple[str, ...]:
    """The names that have no place here, those within an encoder first."""
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
    found = []
    if turned:
        found.append(
            "its positions count columns first: the halves of its width have changed places here,"
            " and so have those of its features"
        )
    if options["name"] == "vit_small" and "width" not in options and not in_folder:
        found.append(
            "it is taken to have 12 attention heads, as MoCo v3's ViT-S; timm's own has 6, and the"
            " file does not say it"
        )
    return found


def describe(pretrained: Pretrained) -> str:
    """What is there, in a few words."""
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
    """Write the file `path`, whose name's ending says how it is packed, or for Hugging Face the folder `path`.

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
        wanted = "is read from .pkl" if kind == "detectron2" else "is not kept in .pkl"
        raise UserError(f"format={kind} {wanted}; {path} has another ending")
    packed = weight_files.ending(path) == ".safetensors"
    weight_files.write(path, arrays, {} if packed else around)


def entries(
    pretrained: Pretrained, kind: str, which: str = "query"
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """What `save` writes: names to arrays, and what is around them in the file."""
    if kind not in FORMATS:
        raise UserError(f"format={kind!r} is unknown; known are {', '.join(FORMATS)}")
    if which not in workdir.PARTS:
        raise UserError(f"which={which!r} is no encoder; known are {', '.join(workdir.PARTS)}")
    if kind == "moco":
        if which != "query":
            raise UserError("format=moco holds both encoders; leave which out")
        return moco.save(pretrained), moco.around(pretrained)
    variables = pretrained.query if which == "query" else pretrained.key
    if variables is None:
        raise UserError("there is no momentum encoder among these weights; which=query is there")
    backbone: Variables = {"batch_stats": {}} | part(variables, "backbone")
    if kind == "detectron2":
        return detectron2.save(backbone), detectron2.AROUND
    if not pretrained.is_vit:
        found = torchvision.save(backbone)  # timm's names are the same
    else:
        found = timm.save(backbone, pretrained.image_size)
    if kind == "huggingface":
        return huggingface.entries(pretrained, found), {}
    if not pretrained.is_vit:
        return found, {}
    return (torchvision_vit.from_timm(found) if kind == "torchvision" else found), {}
