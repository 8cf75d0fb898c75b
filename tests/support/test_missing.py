"""A development package that is not installed: a failure, or a skip by its name where `make gpu` asks for that."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import missing

pytestmark = pytest.mark.slow

PLUGIN = """
from tests.support import missing
from tests.support.missing import pytest_make_collect_report, pytest_runtest_makereport

missing.PACKAGES = ("absent_package",)
"""
AT_IMPORT = "import absent_package.part\n\ndef test_one(): pass\n"
WHEN_CALLED = "def test_one():\n    import absent_package\n"


@pytest.mark.parametrize("text", [AT_IMPORT, WHEN_CALLED], ids=["at_import", "when_called"])
@pytest.mark.parametrize("asked", [False, True], ids=["", "asked"])
@pytest.mark.parametrize("listed", [False, True], ids=["", "listed"])
def test_missing_package(tmp_path: Path, text: str, asked: bool, listed: bool) -> None:
    (tmp_path / "conftest.py").write_text(PLUGIN)
    (tmp_path / "test_some.py").write_text(text if listed else text.replace("absent_package", "other_package"))
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    environment.pop(missing.ENVIRONMENT_VARIABLE, None)
    if asked:
        environment[missing.ENVIRONMENT_VARIABLE] = "1"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-rs", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), str(tmp_path)],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    skips = asked and listed
    assert ("1 skipped" in done.stdout) == skips, done.stdout
    assert ("needs absent_package, not installed" in done.stdout) == skips
    # With nothing but skips, a collection that found no test ends with 5.
    assert (done.returncode in (0, 5)) == skips
