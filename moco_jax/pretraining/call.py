"""`moco_jax.pretrain`: from a folder of images to an encoder and all that goes with it.

What does the work is loaded when it is called.
"""

import base64
import dataclasses
import os
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from moco_jax.base.console import table


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """What `pretrain` has made; in a notebook it shows scores and nearest neighbours.

    Attributes:
        out: the folder: a workdir with report, exported encoder and README.md.
        finished: whether the run came to its end; False after Ctrl-C, and the same call goes on.
        scores: of the last score, by the names that records have: `knn`, `probe`,
            `effective_rank` and others; `raw_knn` of raw pixels, `knn_before` of the encoder
            before training.
        verdict: on the run, in words.
    """

    out: str
    finished: bool
    scores: Mapping[str, float]
    verdict: str

    def load(self, **options: Any) -> Any:
        """Load the encoder, as `moco_jax.load` does; `options` are its."""
        from moco_jax.inference import loading

        return loading.load(self.out, **options)

    def __str__(self) -> str:
        """The scores as a table, and the verdict."""
        rows = [[name.replace("_", " "), f"{value:.4g}"] for name, value in self.scores.items()]
        return f"{self.out}: {self.verdict}\n{table(['score', 'value'], rows)}"

    def _repr_html_(self) -> str:
        parts = [f"<pre>{escape(str(self))}</pre>"]
        picture = os.path.join(self.out, "neighbours.png")
        if os.path.exists(picture):
            content = base64.b64encode(Path(picture).read_bytes()).decode()
            parts.append(f'<img style="max-width: 100%" src="data:image/png;base64,{content}">')
        return "".join(parts)


def pretrain(
    data: str | os.PathLike,
    out: str | os.PathLike,
    *,
    recipe: str = "",
    minutes: float | None = None,
    **settings: Any,
) -> Pretrained:
    """Pretrain an encoder on the images in `data`, and leave all that belongs to it in `out`.

    Settings that were not given are chosen by the images and the devices; each is printed with
    its reason, and all stand in `out`/recipe.py. The same call goes on where it was stopped.

    Args:
        data: a folder of images or of shards, a text file that lists images, 'tfds:NAME' (with
            `data_dir`), or 'digits'.
        out: the folder that is made: checkpoints, records, report.html, exported/, README.md.
        recipe: a recipe or file, as --config takes it; '': `folder`, and `folder:cpu` on CPUs.
        minutes: that the whole may take, but for the report and the files at its end; None: 30
            on CPUs, and the recipe's epochs on others.
        **settings: of docs/settings.md, by name.

    Returns:
        Scores, verdict, and a way to the encoder.

    Raises:
        UserError: images or settings that cannot work, in one line; nothing is changed in `out`.
    """
    from moco_jax.pretraining import work

    return work.run(os.fspath(data), os.fspath(out), recipe, minutes, settings)[0]
