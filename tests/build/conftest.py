"""A wheel made from these sources, for the tests that look into it."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tools.wheels import build

ROOT = Path(__file__).parents[2]
# Hidden files that the source archive has.
DEVELOPMENT = (".clang-format", ".pre-commit-config.yaml")
SCRIPTS = sysconfig.get_path("scripts")


def find_tool(name: str) -> str:
    """CMake or Ninja, as setup.py looks for them."""
    found = shutil.which(name, path=os.pathsep.join([SCRIPTS, os.environ.get("PATH", os.defpath)]))
    return found or pytest.skip(f"needs {name}")


def configure(folder: Path, **options: str) -> None:
    """Have plain CMake, not setup.py, prepare a build with the Python package in it."""
    options |= {"CMAKE_MAKE_PROGRAM": find_tool("ninja"), "Python3_EXECUTABLE": sys.executable, "DRELUOP_PYTHON": "ON"}
    command = [find_tool("cmake"), "-G", "Ninja", "-S", ROOT, "-B", folder]
    command += [f"-D{name}={value}" for name, value in options.items()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the workers of this run share, so that one of them builds for all."""
    folder = tmp_path_factory.getbasetemp()
    return folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder


@contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    with open(folder / "build.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


class Cpp:
    """A build by CMake of the CPU part and the C++ tests, of which tests make only what they need."""

    def __init__(self, shared: Path) -> None:
        self.shared, self.folder = shared, shared / "cpp"
        with one_at_a_time(shared):
            if not (self.folder / "build.ninja").exists():
                configure(self.folder, DRELUOP_BUILD="cpu")

    def make(self, target: str, file: str | None = None) -> Path:
        """Build a target; return its file, which by default has its name."""
        command = [find_tool("cmake"), "--build", self.folder, "--parallel", "2", "--target", target]
        with one_at_a_time(self.shared):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout
        return self.folder / (file or target)


@pytest.fixture(scope="session")
def cpp(shared: Path) -> Cpp:
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    return Cpp(shared)


def copy_sources(target: Path) -> Path:
    """As from a fresh clone: nothing that a build here has left may be taken for a source."""

    def ignore(folder: str, names: list[str]) -> set[str]:
        hidden = {name for name in names if name.startswith(".") and name not in DEVELOPMENT}
        results = {"build", "dist"} if Path(folder) == ROOT else set()
        return hidden | results | shutil.ignore_patterns("__pycache__", "*.so", "*.egg-info")(folder, names)

    return shutil.copytree(ROOT, target, ignore=ignore)


@pytest.fixture(scope="session")
def built(shared: Path) -> tuple[Path, Path]:
    """A wheel, with the CPU kernels only, and the source archive that it was built from."""
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    names = shared / "built.txt"
    with one_at_a_time(shared), pytest.MonkeyPatch.context() as patch:
        if not names.exists():
            patch.setenv("DRELUOP_BUILD", "cpu")
            patch.setenv("DRELUOP_AUTOGRAD", "compiled")
            source = copy_sources(shared / "source" / "dreluop")
            names.write_text("\n".join(map(str, build.build(source, shared / "dist"))))
    wheel, archive = map(Path, names.read_text().splitlines())
    return wheel, archive


@pytest.fixture(scope="session")
def unpacked(built: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unpacked")
    with zipfile.ZipFile(built[0]) as wheel:
        wheel.extractall(folder)
    return folder


@pytest.fixture(scope="session")
def installed(built: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a new environment with the wheel, and with this one's other packages behind it."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    python = folder / "bin" / "python"
    (site,) = folder.glob("lib/python*/site-packages")
    # Not --system-site-packages, which are those of the Python that this environment was made from.
    (site / "others.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", f"--python={python}"]
    subprocess.run([*pip, "install", "-q", "--no-index", "--no-deps", "--ignore-installed", built[0]], check=True)
    assert (site / "dreluop" / "__init__.py").exists()
    return python
