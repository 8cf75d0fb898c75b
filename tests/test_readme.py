"""The example of the README runs as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def test_example_runs_and_trains_the_caps():
    (example,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    names: dict[str, object] = {}
    exec(example, names)
    cap = names["model"][3].cap
    assert cap.shape == (128,)
    # One Adam step: every cap fell by its learning rate, since the penalty pulls and nothing holds.
    assert ((5.0 - cap.detach()) - 1e-2).abs().max() < 1e-3
