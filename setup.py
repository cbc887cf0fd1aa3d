"""Builds the C++ operators. Metadata and tool settings are in pyproject.toml."""

import os
import re
import sys
import sysconfig
from pathlib import Path

from setuptools import setup

root = Path(__file__).parent
# The oldest torch is that of pyproject.toml.
MAJOR, MINOR = map(int, re.findall(r'"torch>=(\d+)\.(\d+)"', (root / "pyproject.toml").read_text())[0])
INSTALL_TORCH = (
    f"torch_lsh needs PyTorch {MAJOR}.{MINOR} or newer in this environment: run "
    f"`pip install 'torch>={MAJOR}.{MINOR}' ninja` and then `pip install --no-build-isolation torch_lsh`"
)

try:
    import torch
    from torch.utils.cpp_extension import BuildExtension, CppExtension
except ImportError:
    sys.exit(f"{INSTALL_TORCH} (no torch was found).")
if tuple(int(part) for part in torch.__version__.split(".")[:2]) < (MAJOR, MINOR):
    sys.exit(f"{INSTALL_TORCH} (torch {torch.__version__} was found).")

debug = os.environ.get("TORCH_LSH_DEBUG") == "1"
sanitizers = os.environ.get("TORCH_LSH_SANITIZE")  # as of -fsanitize=; .ci/sanitize runs the result
compile_args = [
    "-std=c++20",
    "-O0" if debug else "-O1" if sanitizers else "-O3",
    *(["-g", "-D_GLIBCXX_ASSERTIONS"] if debug or sanitizers else ["-g0"]),
    *([f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"] if sanitizers else []),
    *(["-DTORCH_LSH_PLAIN_THREADS"] if sanitizers == "thread" else []),
    "-fvisibility=hidden",
    "-fopenmp-simd",
    "-fno-math-errno",  # lets sqrt and friends become vector instructions; results do not change
    "-fno-trapping-math",
    "-ffp-contract=fast",
    "-falign-loops=64",  # a loop in as few cache lines as it needs: 2 % of a product by AVX2
    "-Wall",
    "-Wextra",
    "-Wno-unused-parameter",
    "-Wno-unknown-pragmas",
    # Only the stable ABI of this release: the library built here loads in every later torch.
    f"-DTORCH_TARGET_VERSION=0x{MAJOR:02x}{MINOR:02x}000000000000",
]
if sysconfig.get_platform() == "linux-aarch64":
    # The length of SVE's vectors, for csrc/kernels/levels/sve256.cpp: no other file has any.
    compile_args += ["-msve-vector-bits=256", "-DTORCH_LSH_SVE256"]

setup(
    ext_modules=[
        CppExtension(
            "torch_lsh._C",
            sorted(str(path.relative_to(root)) for path in (root / "csrc").rglob("*.cpp")),
            include_dirs=[str(root / "csrc")],
            depends=[str(path) for path in (root / "csrc").rglob("*.h")],
            extra_compile_args={"cxx": compile_args},
            extra_link_args=[f"-fsanitize={sanitizers}"] if sanitizers else [],
            py_limited_api=True,
        )
    ],
    cmdclass={"build_ext": BuildExtension.with_options(use_ninja=True)},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
