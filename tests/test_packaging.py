"""How it is built, shipped and imported."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import torch_lsh
from torch_lsh import ops
from torch_lsh._private_names import NAMES

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = next(iter(Path(torch_lsh.__file__).parent.glob("_C*.so")), None)

needs_sources = pytest.mark.skipif(not (ROOT / "setup.py").is_file(), reason="the sources are not here")


def needs_tool(name):
    missing = shutil.which(name) is None or LIBRARY is None
    return pytest.mark.skipif(missing, reason=f"{name} or the library is not here")


# --- building ---------------------------------------------------------------------------------------------------------

FAKE_TORCH = {
    "no torch was found": {"torch/__init__.py": "raise ImportError(\"No module named 'torch'\")"},
    "torch 2.9.1+cu128 was found": {
        "torch/__init__.py": "__version__ = '2.9.1+cu128'",
        "torch/utils/__init__.py": "",
        "torch/utils/cpp_extension.py": "BuildExtension = CppExtension = None",
    },
}


@needs_sources
@pytest.mark.parametrize("reason", FAKE_TORCH)
def test_building_without_the_torch_it_needs_ends_with_one_sentence(tmp_path, reason):
    for name, text in FAKE_TORCH[reason].items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    result = subprocess.run(
        [sys.executable, "setup.py", "--version"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert "pip install 'torch>=2.11'" in result.stderr
    assert reason in result.stderr


def metadata():
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


@needs_sources
def test_one_version():
    assert metadata()["project"]["version"] == torch_lsh.__version__


@pytest.fixture(scope="module")
def source_distribution(tmp_path_factory):
    """The unpacked folder."""
    if not (ROOT / "setup.py").is_file():
        pytest.skip("the sources are not here")
    folder = tmp_path_factory.mktemp("sdist")
    subprocess.run(
        [sys.executable, "setup.py", "-q", "egg_info", "--egg-base", folder, "sdist", "--dist-dir", folder],
        cwd=ROOT,
        check=True,
    )
    (archive,) = folder.glob("*.tar.gz")
    shutil.unpack_archive(archive, folder, filter="data")
    return folder / archive.name.removesuffix(".tar.gz")


def files_below(root, *folders):
    suffixes = {".py", ".h", ".cpp", ".md", ".typed"}
    return {
        path.relative_to(root) for folder in folders for path in (root / folder).rglob("*") if path.suffix in suffixes
    }


def test_the_source_distribution_holds_every_source(source_distribution):
    folders = ("torch_lsh", "csrc", "tests", "docs", "examples", "benchmarks")
    assert files_below(source_distribution, *folders) == files_below(ROOT, *folders)
    assert {"Makefile", "LICENSE", "setup.py", "pyproject.toml"} <= {
        path.name for path in source_distribution.iterdir()
    }


@needs_tool("g++")
def test_the_source_distribution_compiles(source_distribution):
    """One file of kernels, without making code; `make dist` builds all of it."""
    subprocess.run(
        ["g++", "-std=c++20", "-fsyntax-only", "-fopenmp-simd", "-Icsrc", "csrc/kernels/levels/scalar.cpp"],
        cwd=source_distribution,
        check=True,
    )


# --- the library ------------------------------------------------------------------------------------------------------


@needs_tool("nm")
def test_the_library_needs_no_python():
    """So one file serves every version of Python."""
    symbols = subprocess.run(["nm", "-D", LIBRARY], capture_output=True, text=True, check=True).stdout
    undefined = [line.split()[-1] for line in symbols.splitlines() if re.match(r"\s+U ", line)]
    assert len(undefined) > 10
    assert [name for name in undefined if re.match(r"_?Py[A-Z_]", name)] == []
    # nor the parts of torch that change from release to release
    assert [name for name in undefined if "2at" in name or "3c10" in name or "5torch" in name] == []


def level_of_x86(instruction: str) -> str | None:
    """The first level that has an instruction of objdump's; None: every CPU has it."""
    if re.match(r"(tile|tdp|ldtile|sttile)", instruction):
        return "amx_bf16"
    # AVX and later begin with a v; the others are BMI2's
    if re.match(r"v[a-z]|(mulx|rorx|sarx|shlx|shrx|pdep|pext|bzhi) ", instruction):
        wide = "zmm" in instruction or "%k" in instruction
        mnemonic = instruction.split()[0]  # not the operands: 0x14bf16 is an address
        return "avx512_bf16" if "bf16" in mnemonic else "avx512" if wide else "avx2"
    return None


def level_of_aarch64(instruction: str) -> str | None:
    if re.search(r"\b[zp]\d+[./]|^(rdvl|cnt[bhwd]|inc[bhwd]|ptrue|while)", instruction):
        return "sve256"
    return "neon_bf16" if re.match(r"bf(mmla|dot|cvt|mlal)|[us]+mmla|[us]dot", instruction) else None


X86_LEVELS = ("avx2", "avx512", "avx512_bf16", "amx_bf16")
X86_TILES = ("ldtilecfg", "tilerelease", "tileloadd", "tilestored", "tdpbf16ps", "tdpbssd")
INSTRUCTIONS = {
    "x86_64": (level_of_x86, X86_LEVELS, X86_TILES),
    "AMD64": (level_of_x86, X86_LEVELS, X86_TILES),
    "aarch64": (level_of_aarch64, ("neon_bf16", "sve256"), ("bfmmla", "smmla", "bfdot", "sdot")),
}


@pytest.mark.skipif(platform.machine() not in INSTRUCTIONS, reason="knows the instructions of x86 and AArch64")
@needs_tool("objdump")
def test_instructions_that_not_every_cpu_has_are_in_the_kernels_for_those_that_do():
    """They would crash an older CPU. A build with -march=native has them everywhere."""
    level_of, names, wanted = INSTRUCTIONS[platform.machine()]
    listing = subprocess.run(
        ["objdump", "-d", "-C", "--no-show-raw-insn", LIBRARY], capture_output=True, text=True, check=True
    ).stdout
    function, levels = "", {}
    for line in listing.splitlines():
        if line.endswith(">:"):
            function = line
        elif "\t" in line and (level := level_of(line.split("\t", 1)[-1].split("#")[0])):
            levels.setdefault(function, set()).add(level)
    if not any("torch_lsh::" in function for function in levels):
        pytest.skip("the library was stripped of its function names")
    allowed: set[str] = set()
    for level in names:
        allowed.add(level)
        of_level = {function for function in levels if f"torch_lsh::{level}::" in function}
        assert any(level in levels[function] for function in of_level), level
        assert [function for function in of_level if not levels.pop(function) <= allowed] == []
    assert levels == {}
    for instruction in wanted:
        assert f"\t{instruction}" in listing


# --- importing --------------------------------------------------------------------------------------------------------


def run_python(code, **environment):
    return subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )


def test_public_names():
    assert sorted(torch_lsh.__all__) == torch_lsh.__all__
    for name in torch_lsh.__all__:
        assert getattr(torch_lsh, name) is not None
    names: dict[str, object] = {}
    exec("from torch_lsh import *", names)
    assert set(torch_lsh.__all__) <= names.keys()
    for module in (torch_lsh.data, torch_lsh.models, torch_lsh.nn):
        for name in module.__all__:
            assert hasattr(module, name)


def test_a_new_process(tmp_path):
    """In two processes, because most of the time goes into starting them."""
    code = """
import sys
sys.modules.update(dict.fromkeys(["matplotlib", "tqdm", "scipy", "sklearn", "pytest"]))  # None: cannot be imported
import torch_lsh
print(torch_lsh.ops.simd_level())
late = "torch_lsh.text", "torch_lsh.cli", "torch_lsh.benchmarking", "torch_lsh.distributed", "torch._dynamo"
print([name for name in sys.modules if name.startswith(late)])
assert torch_lsh.models.TextClassifier.__module__.startswith("torch_lsh.text")
assert torch_lsh.distributed.__name__ == "torch_lsh.distributed"
"""
    scalar = run_python(code, TORCH_LSH_SIMD="scalar")
    unknown = run_python(code, TORCH_LSH_SIMD="sse9")

    output, errors = scalar.communicate()
    assert (scalar.returncode, errors) == (0, "")
    # what only drawing, progress bars and scipy's matrices need is not imported, nor has to be there
    # neither are texts, the command line, benchmarks, the compiler and what processes need, until they are asked for
    assert output == "scalar\n[]\n"

    _, errors = unknown.communicate()
    assert unknown.returncode == 1
    message = errors.strip().splitlines()[-1]
    assert "instruction set (TORCH_LSH_SIMD) is 'sse9'; wanted one that this CPU supports: " in message
    assert all(level in message for level in ("scalar", ops.simd_level()))


def test_ready_models_that_train_no_network_do_without_the_compiler(tmp_path):
    code = f"""
import sys
from torch_lsh.models import TextClassifier
texts, labels = [f"word{{i % 97}} word{{i % 89}}" for i in range(400)], [str(i % 80) for i in range(400)]
TextClassifier().fit(texts, labels).save({str(tmp_path / "model")!r})
TextClassifier.load({str(tmp_path / "model")!r}).predict(texts[:3])
assert "torch._dynamo" not in sys.modules
"""
    process = run_python(code)
    _, errors = process.communicate()
    assert (process.returncode, errors) == (0, "")


@pytest.mark.skipif("amx_bf16" in Path("/proc/cpuinfo").read_text(), reason="this CPU has AMX")
def test_amx_that_this_cpu_lacks_is_refused_with_the_reason():
    with pytest.raises(RuntimeError, match=r"is 'amx_bf16'; wanted .* \((this CPU has no AMX|AMX )"):
        ops.use_simd_level("amx_bf16")


@pytest.mark.parametrize("level", ["sse9", "AVX2", " scalar", "scalar2"])
def test_a_level_that_this_cpu_does_not_run_is_refused_and_changes_nothing(level):
    before = ops.simd_level()
    with pytest.raises(RuntimeError, match=rf"instruction set .* is '{level}'; wanted"):
        ops.use_simd_level(level)
    assert ops.simd_level() == before


def test_private_names_of_torch_are_checked_on_import():
    used, package = set(), Path(torch_lsh.__file__).parent
    for path in package.rglob("*.py"):
        if path.name == "_private_names.py" or "benchmarking" in path.parts:
            continue
        text = path.read_text()
        used.update(re.findall(r"\btorch(?:\.\w+)*?\._[a-zA-Z][\w.]*", text))
        for module, names in re.findall(r"^from (torch[\w.]*) import (.+)$", text, re.MULTILINE):
            used.update(
                f"{module}.{name}" for name in re.split(r"\W+", names) if "._" in module or name.startswith("_")
            )
        used.update(f"torch.nn.parallel.{name}" for name in re.findall(r"\bDistributedDataParallel\._[a-z]\w*", text))
    assert len(used) > 25
    assert [name for name in used if not any(f"{known}.".startswith(f"{name}.") for known in NAMES)] == []


def test_a_torch_without_a_private_name():
    code = "import torch\ndel torch._C._get_dispatch_mode\nimport torch_lsh"
    _, errors = run_python(code).communicate()
    message = errors.strip().splitlines()[-1]
    assert message.startswith(
        f"ImportError: PyTorch {torch.__version__} has no torch._C._get_dispatch_mode; wanted PyTo"
    )


def test_a_library_for_another_torch(tmp_path):
    (tmp_path / "_C.so").write_bytes(b"no library")
    with pytest.raises(
        ImportError, match=rf"_C.so does not load into PyTorch {re.escape(torch.__version__)}: .* again"
    ):
        import_without_library(tmp_path)


def import_without_library(folder):
    code = (Path(torch_lsh.__file__).parent / "_library.py").read_text()
    exec(compile(code, "_library.py", "exec"), {"__file__": str(folder / "_library.py"), "__name__": "_library"})


def test_a_library_that_was_not_built(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(ImportError, match="torch_lsh was not built: run `pip install"):
        import_without_library(tmp_path / "torch_lsh")
    assert torch.ops.torch_lsh.simd_level() == ops.simd_level()


def test_sources_that_hide_an_installation(monkeypatch, tmp_path):
    installed = tmp_path / "site-packages" / "torch_lsh"
    installed.mkdir(parents=True)
    (installed / "_C.abi3.so").touch()
    monkeypatch.setattr(sys, "path", ["", str(installed.parent)])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ImportError, match=re.escape(f"hides the installation in {installed}: run Python")):
        import_without_library(tmp_path / "sources" / "torch_lsh")
