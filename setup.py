"""Builds dreluop's compiled part: hands these environment variables to CMake, which knows all the rest.

DRELUOP_BUILD chooses what is built:
    auto  (default) the CPU operators; with nvcc also the CUDA kernels, in the same library; on Linux only
    cuda  as auto, but a missing nvcc is an error
    cpu   the CPU operators only, whether or not there is an nvcc
    none  nothing: a pure Python package served by the reference
DRELUOP_AUTOGRAD chooses whether the autograd node in torch's C++ is built too (docs/packaging.md):
    auto      (default) unless it does not compile, as may be with a newer torch; then a note says so
    compiled  yes: if it does not compile it is an error (with DRELUOP_WERROR too)
    python    no
DRELUOP_CUDA_ARCHS="80;90;100+PTX": for which GPUs. DRELUOP_WERROR=1: warnings are errors. MAX_JOBS: parallel compilers.
"""

import os
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
sys.path.insert(0, str(ROOT / "cmake"))  # pip does not put it there
from requirements import checked_tools, is_compiled, stop  # noqa: E402

VARIABLES = ("DRELUOP_BUILD", "DRELUOP_AUTOGRAD", "DRELUOP_CUDA_ARCHS", "DRELUOP_WERROR")
AUTOGRAD = Extension("dreluop._autograd", [])


class BuildExt(build_ext):
    """Has CMake build all extensions at once, into the folder where setuptools expects them."""

    def run(self) -> None:
        self.in_place = self.inplace or self.editable_mode
        # Copy unchanged libraries too: another build may have replaced those in place.
        self.force = True
        # One from an earlier build may be for another torch, and this build may not replace it.
        for folder in [Path(self.build_lib), *([ROOT] if self.in_place else [])]:
            (folder / self.get_ext_filename(AUTOGRAD.name)).unlink(missing_ok=True)
        super().run()

    def build_extensions(self) -> None:
        cmake, ninja = checked_tools()
        # In a folder that stays, the next build compiles only what has changed. pip makes a new one each time.
        build = ROOT / "build" / sys.implementation.cache_tag if self.in_place else Path(self.build_temp).resolve()
        options = {
            **{name: os.environ[name] for name in VARIABLES if name in os.environ},
            "CMAKE_MAKE_PROGRAM": ninja,
            "Python3_EXECUTABLE": sys.executable,
            "CMAKE_LIBRARY_OUTPUT_DIRECTORY": str(Path(self.build_lib).resolve() / "dreluop"),
            "DRELUOP_PYTHON": "ON",
            "DRELUOP_TESTS": "OFF",
            # Profilers show the lines of sources at hand. A wheel would carry paths of this machine.
            "DRELUOP_LINE_INFO": "ON" if self.in_place else "OFF",
        }
        # Forget the last compiler and options, but keep the objects, which --fresh would remove.
        for known in (*build.glob("CMakeCache.txt"), *build.glob("CMakeFiles/[0-9]*/*.cmake")):
            known.unlink()
        configure = [cmake, "-G", "Ninja", "-S", ROOT, "-B", build]
        configure += [f"-D{name}={value}" for name, value in options.items()]
        done = subprocess.run(configure, stderr=subprocess.PIPE, text=True, check=False)
        print(done.stderr, end="", file=sys.stderr)
        if done.returncode != 0:
            stop(done.stderr.partition("dreluop: ")[2].partition("\n")[0] or "CMake failed; the reason is above.")
        compile_all = [cmake, "--build", build, "--parallel", os.environ.get("MAX_JOBS") or str(os.cpu_count())]
        if subprocess.run([*compile_all, "--", "-k", "0"], check=False).returncode != 0:
            optional = os.environ.get("DRELUOP_AUTOGRAD", "auto") == "auto" and not os.environ.get("DRELUOP_WERROR")
            others = [*compile_all, "--target", "dreluop_ops", "dreluop_C"]
            if not optional or subprocess.run(others, check=False).returncode != 0:
                stop("the build failed; the compiler's message is above.")
            print(f"dreluop: building without {AUTOGRAD.name}", file=sys.stderr)
            self.extensions.remove(AUTOGRAD)


libraries = [Extension("dreluop._ops", [], py_limited_api=True), Extension("dreluop._C", [])]
if os.environ.get("DRELUOP_AUTOGRAD") != "python":
    libraries.append(AUTOGRAD)
setup(ext_modules=libraries if is_compiled() else [], cmdclass={"build_ext": BuildExt})
