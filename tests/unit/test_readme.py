"""The example of the README runs as it stands there."""

from __future__ import annotations

import re
from importlib.metadata import requires
from pathlib import Path

from packaging.requirements import Requirement

README = Path(__file__).parents[2] / "README.md"


def test_example_runs_and_trains_the_caps():
    (example,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    names: dict[str, object] = {}
    exec(example, names)
    cap = names["model"][3].cap
    assert cap.shape == (128,)
    # One Adam step: every cap fell by its learning rate, since the penalty pulls and nothing holds.
    assert ((5.0 - cap.detach()) - 1e-2).abs().max() < 1e-3


def test_torch_accepts_every_setuptools_that_the_readme_allows():
    (line,) = re.findall(r'pip install "(setuptools[^"]*)"', README.read_text())
    wanted = [Requirement(one) for one in requires("torch") or []]
    by_torch = [
        one.specifier for one in wanted if one.name == "setuptools" and (not one.marker or one.marker.evaluate())
    ]
    allowed = [str(version) for version in range(60, 120) if Requirement(line).specifier.contains(str(version))]
    assert "81" in allowed
    # torch 2.13 asks for at least 77.0.3, and pip takes the newest.
    assert all(specifier.contains(version) for specifier in by_torch for version in allowed if version != "77")
