"""What becomes a finding, and how the report shows it."""

import io

import jax
import pytest

from moco_jax.base import findings
from moco_jax.base.console import Console


def test_errors_that_a_line_can_tell_are_faults_and_bugs_are_not_hidden():
    out = io.StringIO()
    report = findings.Report(Console(out=out), limit=2)
    with report.section("devices"):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory\nand a long list")
    with pytest.raises(ZeroDivisionError), report.section("bug"):
        _ = 1 / 0
    report.add(findings.Finding("note", "seen", ("a", "b", "c")))
    text = out.getvalue()
    assert "out of memory; a smaller batch_size or more devices\n" in text
    assert "and a long list" not in text
    assert text.splitlines()[-3:] == [
        "             a",
        "             b",
        "             and 1 more; --full names all",
    ]
    assert findings.verdict(report.marks) == "not ready: 1 fault"
