"""Builds dreluop's compiled part with plain setuptools.

DRELUOP_BUILD chooses what is built:
    auto  (default) the CPU operators; with nvcc also the CUDA kernels, in the same library
    cuda  as auto, but a missing nvcc is an error
    cpu   the CPU operators only, whether or not there is an nvcc
    none  nothing: a pure Python package served by the reference
DRELUOP_AUTOGRAD chooses whether the autograd node in torch's C++ is built too (docs/packaging.md):
    auto      (default) unless it does not compile, as may be with a newer torch; then a note says so
    compiled  yes: if it does not compile it is an error (with DRELUOP_WERROR too)
    python    no
What is built depends on this choice and on the compilers found, never on whether a GPU is present.
"""

import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import setuptools
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
SETUPTOOLS = 77
CHOICES = {"DRELUOP_BUILD": ("auto", "cuda", "cpu", "none"), "DRELUOP_AUTOGRAD": ("auto", "compiled", "python")}
TORCH_TARGET = "2.10"
TORCH_TARGET_VERSION = "0x020a000000000000"
AUTOGRAD = "dreluop._autograd"
X86_FLAGS = {"primitives_avx2.cpp": ["-march=x86-64-v3"], "primitives_avx512.cpp": ["-march=x86-64-v4"]}
CPU_FLAGS = X86_FLAGS if platform.machine() in ("x86_64", "AMD64") else {}
CUDA_ARCHS = "80;90;100+PTX"
OLDEST_ARCH = 80
# Kernel parameters of more than 4 kB.
OLDEST_NVCC = (12, 1)


def stop(sentence: str) -> None:
    raise SystemExit(f"\ndreluop: {sentence}\n")


def chosen(variable: str) -> str:
    choice = os.environ.get(variable, "auto")
    if choice not in CHOICES[variable]:
        stop(f"{variable}={choice} is not one of {', '.join(CHOICES[variable])}.")
    return choice


def cxx_compiler() -> str | None:
    command = os.environ.get("CXX") or sysconfig.get_config_var("CXX") or "c++"
    return shutil.which(shlex.split(command)[0])


def cuda_home() -> Path | None:
    """The CUDA toolkit, from CUDA_HOME, CUDA_PATH, or nvcc on PATH (asked, as it may be a wrapper script)."""
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        home = os.environ.get(variable)
        if home and (Path(home) / "bin" / "nvcc").exists():
            return Path(home)
    nvcc = shutil.which("nvcc")
    if nvcc:
        command = [nvcc, "--dryrun", "-x", "cu", "-c", os.devnull, "-o", os.devnull]
        for line in subprocess.run(command, capture_output=True, text=True, check=False).stderr.splitlines():
            if line.startswith("#$ TOP="):
                return Path(line.removeprefix("#$ TOP=")).resolve()
    return Path("/usr/local/cuda") if Path("/usr/local/cuda/bin/nvcc").exists() else None


def torch_module():
    try:
        import torch  # noqa: PLC0415 (absent in an isolated build, which is distinguished here)
    except ImportError:
        stop(
            "torch is not visible to this build (pip isolates builds from installed packages). Install torch first, "
            "then run: pip install --no-build-isolation .   (or DRELUOP_BUILD=none pip install . for a pure Python "
            "install)."
        )
    version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    if version < (2, 10):
        stop(f"torch {torch.__version__} is too old: dreluop needs torch 2.10 or newer.")
    return torch


def nvcc_output(*options: str) -> str:
    command = [str(cuda_home() / "bin" / "nvcc"), *options]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def nvcc_version() -> tuple[int, int]:
    found = re.search(r"release (\d+)\.(\d+)", nvcc_output("--version"))
    return (int(found[1]), int(found[2])) if found else (0, 0)


def cuda_archs() -> str:
    """DRELUOP_CUDA_ARCHS, or those of the default that this nvcc knows; the PTX is kept in any case."""
    if "DRELUOP_CUDA_ARCHS" in os.environ:
        return os.environ["DRELUOP_CUDA_ARCHS"]
    known = nvcc_output("--list-gpu-arch").split()
    numbers = [arch for arch in CUDA_ARCHS.removesuffix("+PTX").split(";") if f"compute_{arch}" in known]
    return ";".join(numbers) + "+PTX" if numbers else CUDA_ARCHS


def gencode(archs: str) -> list[str]:
    """One PTX, of the lowest architecture, and machine code from it for each: a PTX for each takes twice as long."""
    numbers = [arch.removesuffix("+PTX") for arch in archs.split(";")]
    if not all(number.isdigit() for number in numbers):
        stop(f'DRELUOP_CUDA_ARCHS={archs}: expected numbers such as "80;90;100+PTX".')
    if any(int(number) < OLDEST_ARCH for number in numbers):
        stop(f"DRELUOP_CUDA_ARCHS={archs}: the kernels need {OLDEST_ARCH} or newer (bf16 conversions).")
    numbers = sorted(set(numbers), key=int)
    lowest = numbers[0]
    kept = [f"compute_{lowest}"] if "+PTX" in archs else []
    return [f"-gencode=arch=compute_{lowest},code=[{','.join([*(f'sm_{n}' for n in numbers), *kept])}]"]


def files(pattern: str) -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for path in ROOT.glob(pattern))


class CompileError(Exception):
    """A compiler failed; the message holds what it was called with and what it said."""


class BuildExt(build_ext):
    """Adds to build_ext: flags per source file, .cu files through nvcc, several files at once."""

    def finalize_options(self) -> None:
        super().finalize_options()
        # Where the sources lie beside the library, profilers can show them. A wheel would carry paths of this machine.
        self.line_info = ["-lineinfo"] if self.inplace or self.editable_mode else []

    def run(self) -> None:
        if self.inplace or self.editable_mode:
            # One that lies here from before may be of another torch, and this build may come to make none.
            (ROOT / self.get_ext_filename(AUTOGRAD)).unlink(missing_ok=True)
        super().run()

    def build_extensions(self) -> None:
        # All files of all libraries at once: at the end of each, most cores would have nothing to do.
        jobs = int(os.environ.get("MAX_JOBS", os.cpu_count() or 1))
        with ThreadPoolExecutor(jobs) as pool:
            compiling = [
                (ext, [pool.submit(self.compile_one, ext, source) for source in ext.sources]) for ext in self.extensions
            ]
        for ext, objects in compiling:
            try:
                ext.extra_objects = [done.result() for done in objects]
            except CompileError as error:
                if not ext.optional:
                    stop(str(error))
                print(f"dreluop: {error}\ndreluop: building without {ext.name}", file=sys.stderr)
                self.extensions.remove(ext)
            ext.sources = []
        super().build_extensions()

    def build_extension(self, ext: Extension) -> None:
        # The objects are new: without sources setuptools could not tell, and would keep an old library.
        self.force = True
        super().build_extension(ext)

    def compile_one(self, ext: Extension, source: str) -> str:
        objects = Path(self.build_temp).resolve() / ext.name
        objects.mkdir(parents=True, exist_ok=True)
        target = objects / (Path(source).name + ".o")
        define = [f"-D{name}={value}" for name, value in ext.define_macros]
        include = [f"-I{d}" for d in (*ext.include_dirs, *self.include_dirs)]
        if source.endswith(".cu"):
            command = [str(cuda_home() / "bin" / "nvcc"), "-O3", "-std=c++17", "--threads", "2", *self.line_info]
            command += [
                "-Xcompiler",
                "-fPIC,-fvisibility=hidden,-Wall",
                "-Werror",
                "all-warnings",
                *gencode(cuda_archs()),
            ]
        else:
            command = [*self.compiler.compiler_so_cxx, *ext.extra_compile_args, *CPU_FLAGS.get(Path(source).name, [])]
            command.append(f"-ffile-prefix-map={ROOT}/=")
        command += [*define, *include, "-c", str(ROOT / source), "-o", str(target)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise CompileError(f"compiling {source} failed:\n{shlex.join(command)}\n{done.stdout}{done.stderr}")
        return str(target)

    def get_export_symbols(self, ext: Extension) -> list[str]:
        # The operators are no Python module: there is no PyInit to export.
        return ext.export_symbols


def check_build_tools() -> None:
    if int(setuptools.__version__.split(".")[0]) < SETUPTOOLS:
        stop(
            f"setuptools {setuptools.__version__} is too old: run pip install 'setuptools>={SETUPTOOLS},<82' first "
            "(a build without isolation uses the one you have)."
        )


def usable_cuda(choice: str) -> Path | None:
    """The CUDA toolkit to build with, if it is wanted and whole."""
    cuda = cuda_home() if choice in ("auto", "cuda") else None
    if cuda and choice == "auto" and not (cuda / "lib64" / "libcudart_static.a").exists():
        print(f"dreluop: {cuda} has no static cudart; building without CUDA", file=sys.stderr)
        return None
    if cuda and nvcc_version() < OLDEST_NVCC:
        found, needed = (".".join(map(str, version)) for version in (nvcc_version(), OLDEST_NVCC))
        sentence = f"nvcc {found} is too old, the CUDA kernels need {needed}"
        if choice == "cuda":
            stop(f"DRELUOP_BUILD=cuda, but {sentence}.")
        print(f"dreluop: {sentence}; building without CUDA", file=sys.stderr)
        return None
    if cuda:
        gencode(cuda_archs())
    return cuda


def cuda_sources() -> list[str]:
    """Largest first."""
    kernels = sorted(files("csrc/cuda/*.cu"), key=lambda file: -(ROOT / file).stat().st_size)
    return [*kernels, "csrc/torch/ops_cuda.cpp", "csrc/torch/cuda_entry.cpp"]


def extensions() -> list[Extension]:
    check_build_tools()
    choice, autograd_choice = chosen("DRELUOP_BUILD"), chosen("DRELUOP_AUTOGRAD")
    if choice == "none":
        return []
    if sys.platform != "linux":
        stop(f"the compiled part builds on Linux only, not on {sys.platform}; use DRELUOP_BUILD=none.")
    if cxx_compiler() is None:
        stop(
            "no C++ compiler was found (set CXX or install g++); DRELUOP_BUILD=none installs without the compiled "
            "part, served by the slower reference."
        )
    if choice == "cuda" and cuda_home() is None:
        stop("DRELUOP_BUILD=cuda, but nvcc was not found: set CUDA_HOME, or use DRELUOP_BUILD=cpu.")
    torch = torch_module()
    cuda = usable_cuda(choice)
    try:
        from pybind11.setup_helpers import Pybind11Extension  # noqa: PLC0415 (not needed by a pure build)
    except ImportError:
        stop("pybind11 is missing: run pip install 'pybind11>=3.0' first (a build without isolation uses yours).")
    from torch.utils.cpp_extension import include_paths  # noqa: PLC0415

    version: dict[str, str] = {}
    exec((ROOT / "dreluop" / "version.py").read_text(), version)
    warnings = ["-Wall", "-Wextra", "-Werror"] if os.environ.get("DRELUOP_WERROR") else ["-Wall", "-Wextra"]
    flags = ["-O3", "-g0", "-std=c++20", "-fvisibility=hidden", "-ffp-contract=off", *warnings]
    include = [str(ROOT / "csrc"), str(ROOT / "csrc" / "include")]
    headers = [file for ending in ("h", "inc", "cuh") for file in files(f"csrc/**/*.{ending}")]
    # Messages of torch's checks name the header: without its place on this machine, which g++ may resolve.
    packages = Path(torch.__file__).parents[1]
    torch_include = [f"-ffile-prefix-map={place}/=" for place in (packages, packages.resolve())]
    torch_include += [flag for directory in include_paths() for flag in ("-isystem", directory)]
    torch_libraries = str(Path(torch.__file__).parent / "lib")
    operators = Extension(
        "dreluop._ops",
        # What compiles longest comes first, so that it is not what everything else waits for at the end.
        [*(cuda_sources() if cuda else []), "csrc/torch/ops_cpu.cpp", *files("csrc/cpu/*.cpp")],
        depends=headers,
        include_dirs=include,
        define_macros=[("TORCH_TARGET_VERSION", TORCH_TARGET_VERSION)],
        library_dirs=[torch_libraries],
        extra_compile_args=[*flags, *torch_include],
        # libtorch alone brings the CPU shims, and under a CUDA torch the CUDA ones too.
        extra_link_args=["-Wl,--no-as-needed", "-ltorch", "-Wl,--as-needed", "-Wl,--exclude-libs,ALL", "-s"],
        language="c++",
        py_limited_api=True,
    )
    information = Pybind11Extension(
        "dreluop._C",
        ["csrc/python/module.cpp"],
        depends=headers,
        include_dirs=include,
        define_macros=[
            ("DRELUOP_VERSION", f'"{version["__version__"]}"'),
            ("DRELUOP_TORCH_HEADERS", f'"{torch.__version__}"'),
            ("DRELUOP_TORCH_TARGET", f'"{TORCH_TARGET}"'),
        ],
        # Asked once: not worth the time of optimizing it.
        extra_compile_args=["-O1", "-g0", *warnings],
        extra_link_args=["-s"],
        cxx_std=20,
    )
    autograd = Extension(
        AUTOGRAD,
        ["csrc/autograd/capped_relu.cpp"],
        depends=["csrc/autograd/exports.map"],
        define_macros=[
            ("_GLIBCXX_USE_CXX11_ABI", str(int(torch._C._GLIBCXX_USE_CXX11_ABI))),
            # It calls no operator of torch's own, and compiles in three quarters of the time.
            ("AT_PER_OPERATOR_HEADERS", "1"),
        ],
        library_dirs=[torch_libraries],
        libraries=["torch_python", "torch_cpu", "c10"],
        # More optim takes longer and gains nothing that can be measured: it calls torch, and waits.
        extra_compile_args=["-O1", *flags[1:], *torch_include],
        extra_link_args=[f"-Wl,--version-script={ROOT / 'csrc' / 'autograd' / 'exports.map'}", "-s"],
        language="c++",
        optional=autograd_choice == "auto" and not os.environ.get("DRELUOP_WERROR"),
    )
    if cuda:
        operators.define_macros.append(("DRELUOP_CUDA_ARCHS", f'"{cuda_archs()}"'))
        operators.library_dirs.append(str(cuda / "lib64"))
        # Static: a shared cudart would tie the file to one CUDA version, and to a CUDA torch.
        operators.extra_link_args += ["-lcudart_static", "-ldl", "-lrt", "-lpthread"]
    # First what compiles longest where there is no CUDA; last `_C`, which says which torch `_autograd` is for.
    return [*([] if autograd_choice == "python" else [autograd]), operators, information]


setup(ext_modules=extensions(), cmdclass={"build_ext": BuildExt})
