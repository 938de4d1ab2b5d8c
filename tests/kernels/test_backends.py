"""Which backend runs: argument over context over environment over default, and never a silent fallback."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

import cpl_kernels
from cpl_kernels import backends, checks, core
from tests.conftest import INTERPRETED

X, W = torch.randn(1, 3, 2, 2), torch.ones(3)
NEEDS_CORE = pytest.mark.skipif(not core.available(), reason=f"{core.MISSING_BECAUSE}")


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, **environment}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=120)


def test_argument_beats_context_and_context_ends() -> None:
    with cpl_kernels.use_backend("reference", layer_norm2d="cuda"):
        with pytest.raises(RuntimeError, match="'cuda' cannot serve"):
            cpl_kernels.layer_norm2d(X, W)
        cpl_kernels.layer_norm2d(X, W, backend="reference")
        with cpl_kernels.use_backend(layer_norm2d="reference"):
            cpl_kernels.layer_norm2d(X, W)
        assert backends.requested("route_topk", None) == "reference"
    assert backends.requested("layer_norm2d", None) == ""


def test_context_ends_after_an_error_too() -> None:
    with pytest.raises(KeyError), cpl_kernels.use_backend("reference"):
        raise KeyError
    assert backends.requested("layer_norm2d", None) == ""


@NEEDS_CORE
def test_backward_runs_where_its_forward_ran(monkeypatch: pytest.MonkeyPatch) -> None:
    from cpl_kernels.layer_norm2d import native

    calls = []
    original = native.backward
    monkeypatch.setattr(native, "backward", lambda *a: calls.append("native") or original(*a))
    x = X.clone().requires_grad_()
    with cpl_kernels.use_backend("native"):
        y = cpl_kernels.layer_norm2d(x, W)
    with cpl_kernels.use_backend("reference"):
        y.sum().backward()
    assert calls == ["native"]


@NEEDS_CORE
def test_a_core_older_than_its_python_says_how_to_rebuild_it() -> None:
    with pytest.raises(
        AttributeError, match=r"_core has no layer_norm3d_forward: it is older.*rebuild it: pip"
    ):
        core.core().layer_norm3d_forward  # noqa: B018
    assert not hasattr(core.core(), "layer_norm3d_forward")


@pytest.mark.skipif(INTERPRETED, reason="TRITON_INTERPRET=1 makes no JITFunction")
def test_kernels_are_known_by_how_their_names_end(monkeypatch: pytest.MonkeyPatch) -> None:
    triton = pytest.importorskip("triton", reason="needs triton (Linux only)")

    def rows_kernel() -> None: ...

    module = types.SimpleNamespace(rows_kernel=triton.jit(rows_kernel))
    monkeypatch.setattr(backends, "_module", lambda op, name: module)
    assert not backends._interpreted.__wrapped__("layer_norm2d")
    module.rows_kernel = rows_kernel
    assert backends._interpreted.__wrapped__("layer_norm2d")


def test_bad_names_are_named() -> None:
    with pytest.raises(ValueError, match="'reference', 'native', 'triton', 'cuda' or None, got 'c\\+\\+'"):
        cpl_kernels.use_backend("c++").__enter__()
    with pytest.raises(ValueError, match="'layernorm' is not an op of cpl_kernels"):
        cpl_kernels.use_backend(layernorm="native").__enter__()


@pytest.mark.parametrize(
    ("value", "op", "backend"),
    [
        ("reference", "route_topk", "reference"),
        ("layer_norm2d=native, route_topk=reference", "layer_norm2d", "native"),
    ],
)
def test_environment(value: str, op: str, backend: str) -> None:
    done = python(
        f"from cpl_kernels import backends; print(backends.requested({op!r}, None))", CPL_BACKEND=value
    )
    assert done.stdout.strip() == backend, done.stderr


def test_bad_environment_is_one_clear_error() -> None:
    done = python("import cpl_kernels", CPL_BACKEND="layer_norm2d=fast")
    assert done.returncode == 1
    assert "ValueError: CPL_BACKEND='layer_norm2d=fast': backend must be one of" in done.stderr


@pytest.mark.parametrize("value", ["1", "yes"])  # as setup.py reads it
def test_without_the_core_everything_still_runs_and_says_why(value: str) -> None:
    code = (
        "import torch, cpl_kernels\n"
        "print(cpl_kernels.layer_norm2d(torch.ones(1, 2, 3, 3), torch.ones(2)).shape)\n"
        "print(cpl_kernels.config()['native_core'])\n"
        "try: cpl_kernels.layer_norm2d(torch.ones(1, 2, 3, 3), torch.ones(2), backend='native')\n"
        "except RuntimeError as error: print(error)\n"
    )
    done = python(code, CPL_SKIP_EXT=value)
    assert done.returncode == 0, done.stderr
    shape, config, error = done.stdout.splitlines()
    assert shape == "torch.Size([1, 2, 3, 3])"
    assert config == f"the native core is missing: CPL_SKIP_EXT={value} is set"
    assert "backend 'native' cannot serve this call: the native core is missing" in error


def test_show_config_names_every_op_and_its_choice(capsys: pytest.CaptureFixture[str]) -> None:
    cpl_kernels.show_config()
    printed = capsys.readouterr().out
    for op in backends.OPS:
        assert f"\n{op}" in printed
    assert "threads:" in printed
    assert "no measurement yet" in printed


@NEEDS_CORE
@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512", "amx"])
def test_every_instruction_set_that_this_cpu_has(isa: str) -> None:
    """The whole parity test is run on each by make test-full; here one call on each, and its name."""
    code = (
        "import torch, cpl_kernels as k\n"
        "torch.manual_seed(0)\n"
        "x, w = torch.randn(2, 7, 9, 31), torch.randn(7)\n"
        "a = k.layer_norm2d(x, w, backend='native'); b = k.layer_norm2d(x, w, backend='reference')\n"
        "print(k.config()['native_core'], bool((a - b).abs().max() < 1e-5))\n"
    )
    done = python(code, CPL_ISA=isa)
    if done.returncode and "this CPU or this build does not have it" in done.stderr:
        pytest.skip(reason=f"this CPU has no {isa}")
    assert done.stdout.strip() == f"built, {isa} chosen for this CPU True", done.stderr


def test_unknown_instruction_set_is_an_error() -> None:
    if not core.available():
        pytest.skip(reason=core.MISSING_BECAUSE)
    done = python("import cpl_kernels; cpl_kernels.show_config()", CPL_ISA="sse9")
    assert "CPL_ISA=sse9: must be baseline, avx2, avx512 or amx" in done.stderr


# common/isa.cpp on a CPU that has everything but the feature named by MISSING.
FAKE_CPU = """
#include <cpuid.h>
#include <cstdio>
#include <cstdlib>
#include <cstring>
static bool has(const char* feature) {
  const char* missing = std::getenv("MISSING");
  return missing == nullptr || std::strcmp(feature, missing) != 0;
}
static int fake_cpuid(unsigned, unsigned* a, unsigned* b, unsigned* c, unsigned* d) {
  *a = *b = *d = 0;
  *c = has("f16c") ? bit_F16C : 0;
  return 1;
}
static int fake_cpuid_count(unsigned, unsigned part, unsigned* a, unsigned* b, unsigned* c, unsigned* d) {
  *b = *c = *d = 0;
  *a = part == 0 ? 1 : has("avx512bf16") ? 1u << 5 : 0;
  if (part == 0) *d = (has("amx-bf16") ? 1u << 22 : 0) | (has("amx-tile") ? 1u << 24 : 0);
  return 1;
}
#define __builtin_cpu_supports(feature) has(feature)
#define __get_cpuid(leaf, a, b, c, d) fake_cpuid(leaf, a, b, c, d)
#define __get_cpuid_count(leaf, part, a, b, c, d) fake_cpuid_count(leaf, part, a, b, c, d)
#define CPL_X86_VARIANTS
#define CPL_WITH_AMX
#define CPL_ISA baseline
#include "products/op.h"
bool cpl::products::available() { return has("the system's grant"); }
#include "common/isa.cpp"
int main() { std::puts(cpl::isa_name(cpl::active_isa())); }
"""


@NEEDS_CORE
def test_the_core_knows_the_third_level_cache() -> None:
    told = Path("/sys/devices/system/cpu/cpu0/cache/index3/size")
    said = re.fullmatch(r"(\d+)([KM])", told.read_text().strip()) if told.exists() else None
    expected = int(said[1]) * {"K": 2**10, "M": 2**20}[said[2]] if said else 0
    assert core.core().last_level_cache() == expected


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="only x86-64 has variants")
@pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler")
def test_a_variant_runs_only_where_the_cpu_has_all_that_its_flags_assume(tmp_path: Path) -> None:
    csrc = Path(__file__).parents[2] / "csrc"
    source, program = tmp_path / "fake.cpp", tmp_path / "fake"
    source.write_text(FAKE_CPU)
    subprocess.run(["c++", "-std=c++17", "-I", csrc, source, "-o", program], check=True, timeout=120)

    def chosen(missing: str) -> str:
        env = {name: value for name, value in os.environ.items() if name != "CPL_ISA"}
        done = subprocess.run([program], env={**env, "MISSING": missing}, capture_output=True, text=True)
        return done.stdout.strip()

    assert chosen("nothing") == "amx"
    assert chosen("the system's grant") == "avx512"
    flags = dict(re.findall(r"set\(FLAGS_(\w+) (.*)\)", (csrc / "CMakeLists.txt").read_text()))
    assert set(flags) == {"avx2", "avx512", "amx"}
    flags["amx"] = flags["amx"].replace("${FLAGS_avx512}", flags["avx512"])
    features = {isa: re.findall(r"-m([\w-]+)(?!\S)", line) for isa, line in flags.items()}
    assert {"amx-tile", "amx-bf16", "avx512bf16", "f16c"} <= set(features["amx"])
    assert "f16c" in features["avx2"]
    for isa, needed in features.items():
        for feature in needed:
            got = chosen(feature)
            assert got != isa, f"without {feature}"
            assert got == "baseline" or feature not in features[got], f"without {feature}"


@pytest.mark.parametrize(
    ("value", "looks"),
    [("1", True), ("true", True), ("YES", True), ("", False), ("0", False), ("False", False), ("no", False)],
)
def test_check_switch_follows_the_rule_of_setup(
    value: str, looks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = torch.empty(1, device="meta")  # as on a GPU, looking is not free
    monkeypatch.setenv("CPL_CHECK", value)
    assert checks.values_visible(elsewhere) == looks
    monkeypatch.delenv("CPL_CHECK")
    assert not checks.values_visible(elsewhere)
    assert checks.values_visible(torch.empty(1))
