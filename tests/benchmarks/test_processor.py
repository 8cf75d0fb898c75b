from __future__ import annotations

from pathlib import Path

from benchmarks import processor


def test_last_level_cache(tmp_path: Path) -> None:
    assert processor.last_level_cache(tmp_path) == processor.USUAL_CACHE
    for index, text in enumerate(("32K\n", "1024K\n", "36M\n")):
        (tmp_path / f"index{index}").mkdir()
        (tmp_path / f"index{index}" / "size").write_text(text)
    assert processor.last_level_cache(tmp_path) == 36 * 2**20


def test_available_memory(tmp_path: Path) -> None:
    file = tmp_path / "meminfo"
    assert processor.available_memory(file) > 2**28
    file.write_text("MemTotal:       100 kB\nMemAvailable:      7 kB\n")
    assert processor.available_memory(file) == 7 * 1024
