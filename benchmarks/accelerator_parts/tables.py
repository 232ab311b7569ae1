"""The results of one command as tables."""

from typing import Any

from moco_jax.base.console import table

Records = list[dict[str, Any]]


def tables(results: Records) -> str:
    """Lay out all results: checks, steps, views, the curve, and what failed."""
    parts = (_checks(results), _steps(results), _views(results), _curve(results), _failed(results))
    return "\n\n".join(part for part in parts if part)


def _of(results: Records, *what: str) -> Records:
    return [result for result in results if result.get("what") in what]


def _number(value: float | None, form: str = ",.0f") -> str:
    return "" if value is None else format(value, form)


def _checks(results: Records) -> str:
    rows = [
        [
            found["what"],
            found["precision"],
            "right" if found["right"] else "WRONG",
            _number(max(found["differences"].values()), ".1e") if "differences" in found else "",
        ]
        for found in _of(results, "known answers", "five steps beside PyTorch")
    ]
    header = ["what", "precision", "result", "largest difference"]
    return table(header, rows) if rows else ""


def _steps(results: Records) -> str:
    found = _of(results, "step")
    best = {
        of: max(
            (x["images_a_second"] for x in found if x["of"] == of and x["form"] != "JAX"), default=0
        )
        for of in {x["of"] for x in found}
    }
    shares = {x["of"]: x for x in _of(results, "share of the peak")}
    rows = [
        [
            x["of"],
            f"{x['side']} px x {x['batch']}",
            x["form"],
            _number(x["images_a_second"]),
            _number(x["images_a_second"] / best[x["of"]] if best[x["of"]] else None, ".2f"),
            *(_share(shares.get(x["of"], {})) if x["form"] == "JAX" else ("", "")),
            _number(x["seconds_until_first"], ".0f"),
        ]
        for x in found
    ]
    header = ["step", "images", "form", "images/s", "over best PyTorch", "TFLOP/s", "of peak"]
    return table([*header, "s to the first"], rows) if rows else ""


def _share(found: dict[str, Any]) -> tuple[str, str]:
    return _number(found.get("teraflops"), ".1f"), _number(found.get("share_of_peak"), ".1%")


def _views(results: Records) -> str:
    rows = [[x["of"], str(x["batch"]), _number(x["pairs_a_second"])] for x in _of(results, "views")]
    return table(["views", "batch", "pairs/s"], rows) if rows else ""


def _curve(results: Records) -> str:
    rows = [
        [str(x["epoch"]), f"{x['knn']:.2f}", _number(x["authors"], ".2f"), _number(x["seconds"])]
        for x in _of(results, "kNN")
    ]
    return table(["epoch", "kNN %", "the authors'", "s of training"], rows) if rows else ""


def _failed(results: Records) -> str:
    return "\n".join(
        f"failed: {result['failed']}, {result['why']}" for result in results if "failed" in result
    )
