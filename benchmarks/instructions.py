"""What the inner loops of the packed kernels are made of: instructions for every multiply-add.

    python benchmarks/instructions.py                # writes results/instructions.md

The kernels are compiled as for installing (cmake) and disassembled (objdump); of each function the
loop with most multiply-adds is counted, as AVX-512 has it. A multiply-add with an operand in memory
is a load, too.
"""

from __future__ import annotations

import argparse
import datetime
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from machine import machine

RESULTS = Path(__file__).parent / "results"
SLOTS = {"2:4": 8, "1:4": 4, "1:8": 2, "1:16": 1}
KERNELS = {
    "columns, 8 vectors": "add_block<8, {}>",
    "columns, 4 vectors": "add_block<4, {}>",
    "tokens, 8 pixels": "add_windows<{}, 8, 2>",
    "tokens, 4 pixels": "add_windows<{}, 4, 4>",
    "tokens, 1 pixel": "add_windows<{}, 1, 4>",
}
WIDE = "%zmm"
KINDS = ("multiply-adds", "loads", "permutations", "other vector", "scalar")


def compiled(folder: Path) -> Path:
    """The kernels for AVX-512, not linked: what is installed has no names."""
    root = Path(__file__).parents[1]
    for words in (["-S", root, "-B", folder], ["--build", folder, "--target", "avx512"]):
        subprocess.run(["cmake", *map(str, words)], check=True, capture_output=True)
    return next(folder.rglob("isa.cpp.o"))


def functions(code: Path) -> Iterator[tuple[str, list[tuple[int, str]]]]:
    """Names, and addresses with their instructions."""
    words = ["objdump", "-d", "-C", "--no-show-raw-insn", str(code)]
    text = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    for part in text.split("\n\n"):
        head, _, body = part.strip().partition("\n")
        if named := re.fullmatch(r"[0-9a-f]+ <(.*)>:", head):
            lines = (line.strip().split(":\t", 1) for line in body.splitlines())
            yield named[1], [(int(at, 16), code) for at, code in lines]


def kinds(code: str) -> Iterator[str]:
    """What an instruction counts as; one with an operand in memory counts twice."""
    name, _, operands = code.partition(" ")
    sources = operands.strip().rpartition(",")[0]
    if name.startswith(("vfmadd", "vfnmadd")):
        yield "multiply-adds"
    elif name.startswith("vperm"):
        yield "permutations"
    elif WIDE in operands and "(" not in sources:
        yield "other vector"
    elif WIDE not in operands:
        yield "scalar"
    if WIDE in operands and "(" in sources:
        yield "loads"


def inner_loop(codes: list[tuple[int, str]]) -> Counter[str]:
    """The counts of the innermost loop with most multiply-adds."""
    places = {at: i for i, (at, _) in enumerate(codes)}
    loops = []
    for end, (at, code) in enumerate(codes):
        jump = re.match(r"j\w+\s+([0-9a-f]+)\b", code)
        if jump and int(jump[1], 16) in places and int(jump[1], 16) <= at:
            loops.append((places[int(jump[1], 16)], end + 1))
    innermost = [
        a for a in loops if not any(a != b and a[0] <= b[0] and b[1] <= a[1] for b in loops)
    ]
    counts = [
        Counter(kind for _, code in codes[begin:end] for kind in kinds(code))
        for begin, end in innermost
    ]
    return max(counts, key=lambda count: count["multiply-adds"], default=Counter())


def table(found: dict[str, Counter[str]]) -> list[str]:
    lines = [f"| loop | {' | '.join(KINDS)} |", "|---" * (len(KINDS) + 1) + "|"]
    for name, count in found.items():
        whole = count["multiply-adds"]
        cells = [str(whole), *(f"{count[kind] / whole:.2f}" for kind in KINDS[1:])]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=RESULTS / "instructions.md")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        all_of_them = list(functions(compiled(Path(folder))))
    bodies = {name.replace("(anonymous namespace)::", ""): codes for name, codes in all_of_them}
    found = {}
    for kernel, template in KERNELS.items():
        for pattern, slots in SLOTS.items():
            symbol = template.format(slots) + "("
            its = next((codes for name, codes in bodies.items() if symbol in name), None)
            if its is not None:
                found[f"{kernel}, {pattern}"] = inner_loop(its)
    command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])
    lines = [
        "# Instructions of the inner loops, AVX-512",
        "",
        "Multiply-adds in the loop's code, and what stands there for each of them; a multiply-add "
        "or a permutation with an operand in memory is a load, too.",
        "",
        *table(found),
        "",
        *machine(),
        f"Command: `python benchmarks/{command}`, {datetime.date.today()}.",
    ]
    asked.out.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
