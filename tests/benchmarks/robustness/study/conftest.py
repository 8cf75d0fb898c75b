from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.robustness.study import configuration
from benchmarks.robustness.study.configuration import Study

TINY = """
title: Tiny
data: {name: digits, train_limit: 96}
seeds: [0, 1]
models: [dense]
methods: [natural, {method: at, training: {epochs: 1}}, {method: drelu, balancer: [1, 100]}]
training: {epochs: 2, attack_steps: 1}
attacks:
  {eps: 0.1, samples: 10, batch_size: 6, pgd_steps: 1, apgd_steps: 2, square_queries: 3, cw_samples: 2, cw_steps: 2,
   cw_searches: 1, bounds: [0.05, 0.2]}
pictures: [balancer, bounds, initial_cap, trajectory]
"""


@pytest.fixture(scope="session")
def tiny_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("configuration") / "tiny.yaml"
    path.write_text(TINY)
    return path


@pytest.fixture(scope="session")
def tiny(tiny_file: Path) -> Study:
    return configuration.read(tiny_file)
