"""Triton kernels compiled ahead of time for GPUs that are not here, and what they use there.

`compile_report("module:function")` compiles the kernels that `function()` of `module` lists, a
list of Kernel, for sm_80 and sm_90, and returns one row per kernel and GPU. It does so in a fresh
process, as functions decorated under TRITON_INTERPRET=1 cannot be compiled, and once per session.
`module` may be any that imports with tests/ and tests/ops/ on the path, a test module too:

    def kernels():
        pointers = dict.fromkeys(("x", "y"), "*fp32")
        return [Kernel("double", double_kernel, pointers | {"C": "i32"}, {"BLOCK": 32})]

    rows = compile_report("test_double:kernels")
    assert_fits(rows, registers=128, programs=4)
    for row in rows:
        assert_wide(row, bits=128, loads=1, stores=1)

`python tests/ops/aot.py test_fused:kernels` prints the rows as a table, `--json` as JSON. Triton's
wheel (3.3 or later) brings assembler and disassembler; no CUDA toolkit and no GPU are needed.
"""

import collections
import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

TARGETS = (80, 90)  # A100, H100
THREADS = 32  # of a warp

# Per multiprocessor, the same on both but for the last; NVIDIA's "CUDA C++ Programming Guide".
REGISTERS, WARPS, PROGRAMS = 65536, 64, 32
REGISTERS_AT_ONCE = 256  # granted to a warp in such units
SHARED = {80: 164 * 1024, 90: 228 * 1024}
SHARED_OF_SYSTEM = 1024  # per program


class Kernel(NamedTuple):
    """A jit function with the types of its arguments ("*fp32", "i64", ...) and its constants.

    Pointers, and the integers named in `multiples`, are multiples of 16, as a launch would find.
    """

    name: str
    function: Any
    signature: dict[str, str]
    constants: dict[str, Any]
    multiples: tuple[str, ...] = ("C",)
    warps: int = 4


def assert_fits(rows: list[dict], registers: int, programs: int) -> None:
    """No row spills, uses more registers, or has fewer programs at once on a multiprocessor."""
    for row in rows:
        where = f"{row['kernel']} on sm_{row['sm']}: {row}"
        assert row["spills"] == 0, f"spills: {where}"
        assert row["registers"] <= registers, f"over {registers} registers: {where}"
        assert row["programs"] >= programs, f"under {programs} programs at once: {where}"


def assert_wide(row: dict, bits: int, loads: int, stores: int) -> None:
    """At least so many global loads and stores in the code move `bits` bits a thread."""
    for kind, least in (("loads", loads), ("stores", stores)):
        found = row[kind].get(str(bits), 0)
        assert found >= least, f"{found} {kind} of {bits} bits, expected {least}: {row}"


def assert_long_offsets(rows: list[dict]) -> None:
    """No row computes a product that could be an element's offset, over 2^31, in 32 bits."""
    for row in rows:
        assert not row["short_products"], f"{row['kernel']} on sm_{row['sm']}: {row}"


@lru_cache
def compile_report(source: str) -> list[dict]:
    """Rows of `compile_kernels` for a "module:function" that lists kernels, in a fresh process."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, __file__, source, "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)} failed:\n{done.stderr}"
    return json.loads(done.stdout.splitlines()[-1])


def compile_kernels(kernels: list[Kernel]) -> list[dict]:
    return [measure(kernel, sm) for sm in TARGETS for kernel in kernels]


def measure(kernel: Kernel, sm: int) -> dict:
    """Resources of a kernel: loads and stores count global ones in the code by their bits."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = kernel.function.arg_names
    missing = set(names) - set(kernel.signature) - set(kernel.constants)
    assert not missing, f"{kernel.name}: neither type nor constant for {sorted(missing)}"
    signature = {k: kernel.signature.get(k, "constexpr") for k in names}
    aligned = {
        (i,): [["tt.divisibility", 16]] for i, k in enumerate(names)
        if signature[k].startswith("*") or k in kernel.multiples
    }  # fmt: skip
    constants = {(names.index(k),): v for k, v in kernel.constants.items()}
    compiled = triton.compile(
        ASTSource(kernel.function, signature, constants, aligned),
        target=GPUTarget("cuda", sm, THREADS),
        options={"num_warps": kernel.warps, "enable_fp_fusion": True},
    )
    usage, code = disassemble(compiled.asm["cubin"])
    registers, shared = int(usage["REG"]), compiled.metadata.shared
    operations = re.findall(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ +)?([A-Z0-9_.]+)", code, re.M)
    return {
        "kernel": kernel.name,
        "sm": sm,
        "registers": registers,
        "shared": shared,
        "stack": int(usage["STACK"]),
        "spills": sum(op.split(".")[0] in ("LDL", "STL") for op in operations),
        "programs": occupancy(sm, registers, shared, kernel.warps),  # per multiprocessor
        "instructions": len(operations),
        "loads": widths(operations, "LDG"),
        "stores": widths(operations, "STG"),
        "short_products": short_products(compiled.asm["ttir"]),
    }


def disassemble(cubin: bytes) -> tuple[dict[str, str], str]:
    """Resource usage by name, and the machine code as text."""
    import triton

    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage, code = (
            subprocess.run(
                [tool, flag, file.name], capture_output=True, text=True, check=True,
                env=os.environ | {"PATH": f"{tool.parent}:{os.environ['PATH']}"},
            ).stdout
            for flag in ("-res-usage", "-sass")
        )  # fmt: skip
    return dict(re.findall(r"(\w+):(\d+)", usage)), code


def short_products(code: str) -> list[str]:
    """The 32-bit products in Triton's code without a factor known to be small.

    That is a constant, or a number of tl.arange.
    """
    small, found = set(), []
    for line in code.splitlines():
        result, _, operation = line.strip().partition(" = ")
        operands = re.findall(r"%[\w-]+", operation)
        product = re.match(r"arith\.muli .* : (tensor<[\dx]+x)?i32", operation)
        if product and small.isdisjoint(operands):
            found.append(line.strip())
        reshaped = operation.startswith(("tt.expand_dims", "tt.broadcast", "tt.splat"))
        if operation.startswith(("arith.constant", "tt.make_range")) or (
            reshaped and small.issuperset(operands)
        ):
            small.add(result)
        else:  # a name may stand for something else in the next branch
            small.discard(result)
    return found


def widths(operations: list[str], kind: str) -> dict[str, int]:
    """How many global loads (LDG) or stores (STG) there are of each width in bits."""
    found = collections.Counter()
    for op in operations:
        name, *modifiers = op.split(".")
        if name == kind:
            narrow = {"U8": "8", "S8": "8", "U16": "16", "S16": "16", "64": "64", "128": "128"}
            found[next((narrow[m] for m in modifiers if m in narrow), "32")] += 1
    return dict(found)


def occupancy(sm: int, registers: int, shared: int, warps: int) -> int:
    """Programs that fit a multiprocessor at once."""
    per_warp = -(-registers * THREADS // REGISTERS_AT_ONCE) * REGISTERS_AT_ONCE
    by_registers = REGISTERS // per_warp // warps
    by_shared = SHARED[sm] // (shared + SHARED_OF_SYSTEM)
    return min(PROGRAMS, WARPS // warps, by_registers, by_shared)


def main(source: str, *flags: str) -> None:
    here = Path(__file__).parent
    sys.path[:0] = [str(here), str(here.parent)]
    module, function = source.split(":")
    rows = compile_kernels(getattr(importlib.import_module(module), function)())
    if "--json" in flags:
        print(json.dumps(rows))
        return
    print(*rows[0], sep="\t")
    for row in rows:
        print(*row.values(), sep="\t")


if __name__ == "__main__":
    main(*sys.argv[1:])
