"""The example of docs/surgery.md runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.optional import torchvision_or_skip

GUIDE = Path(__file__).parents[2] / "docs" / "surgery.md"


def test_the_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    torchvision_or_skip()
    (code,) = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    exec(compile(code, str(GUIDE), "exec"), {})
    printed = capsys.readouterr().out
    assert "17 of 17 sites replaced, 8 of them fused with a sum" in printed
    assert "step 1: off" in printed


def test_every_picture_is_there() -> None:
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", GUIDE.read_text())
    assert len(pictures) == 2
    assert all((GUIDE.parent / picture).is_file() for picture in pictures)
