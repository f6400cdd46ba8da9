"""Derives the worm that comes along, src/retrograde/connectome/examples/worm_*.csv, from the package cect.

    pip install --no-deps cect==0.3.5; pip install numpy openpyxl
    python benchmarks/worm.py

The connections are the chemical synapses of the hermaphrodite of Cook et al. (2019); the transmitters are those of Wang
et al. (2024), Supplementary File 2, the first that is named; classes are WormAtlas's. The cells are those of the worm
that ConnectomeInfluenceCalculator comes with, so that numbers can be compared: without the neurons of one sex alone,
and with some cells of the pharynx that neurons connect to.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import openpyxl

HERE = Path(__file__).parents[1] / "src" / "retrograde" / "connectome" / "examples"
LEFT_OUT = {"HSNL", "HSNR", "VC1", "VC2", "VC3", "VC4", "VC5", "VC6", "I1L"}
ADDED = {"bm", "e3D", "e3VL", "e3VR", "g1AL", "g1AR", "g2L", "g2R", "pm1"}
TRANSMITTERS = {"ACh": "acetylcholine", "Glu": "glutamate", "GABA": "gaba", "DA": "dopamine", "5-HT": "serotonin",
                "octopamine": "octopamine", "tyramine": "tyramine"}  # fmt: skip
SUPER_CLASSES = [  # the first word that WormAtlas's type has
    ("muscle", "end organ"),
    ("epithelium", "end organ"),
    ("gland", "end organ"),
    ("membrane", "end organ"),
    ("motor", "motor"),
    ("interneuron", "interneuron"),
    ("linker", "interneuron"),
]


def cect() -> Path:
    """The package's folder; it is not imported, for that would take a dozen others."""
    spec = find_spec("cect")
    assert spec is not None and spec.origin is not None, "pip install --no-deps cect"
    return Path(spec.origin).parent


def chemical_synapses(folder: Path) -> dict[tuple[str, str], int]:
    found = json.loads((folder / "cache" / "Cook2019HermReader.json").read_text())
    counts, names = np.array(found["connections"]["Generic_CS"]), found["nodes"]
    every = {(names[i], names[j]): int(counts[i, j]) for i, j in zip(*np.nonzero(counts), strict=True)}
    cells = ({pre for pre, _post in every} - LEFT_OUT) | ADDED
    return {pair: count for pair, count in every.items() if cells.issuperset(pair)}


def transmitters(folder: Path) -> dict[str, list[str]]:
    """Neuron -> the transmitters that it makes, the first one first; those only taken up are left out."""
    sheet = openpyxl.load_workbook(folder / "data" / "elife-95402-supp2-v1.xlsx").worksheets[0]
    found: dict[str, list[str]] = {}
    for row in sheet.iter_rows(min_row=5, max_row=306, values_only=True):
        name = {"DB1/3": "DB1", "DB3/1": "DB3"}.get(row[2], row[2])
        told = [str(each).strip(" *") for each in row[20:23] if each]
        told = [each for each in told if not re.search(r"unknown|5-HTP|male|\(uptake\)", each)]
        spoken = [full for each in told for short, full in TRANSMITTERS.items() if re.match(rf"{short}\b", each)]
        found[name] = list(dict.fromkeys(spoken))
    return found


def types(folder: Path) -> dict[str, str]:
    with open(folder / "data" / "all_cell_info.csv", encoding="utf-8") as file:
        lines = [line.rstrip("\n").replace('"', "").split(",") for line in file][1:]
    return {name: re.split(r"[;,]", kind)[0].strip() for name, kind, *_ in lines}


def cell_type(name: str, known: Iterable[str]) -> tuple[str, str]:
    """AVA and left of AVAL, SMDV and right of SMDVR, VA and "" of VA7: type, and the side if it has a twin."""
    if re.fullmatch(r"(AS|D[ABD]|V[ABD])\d+", name):
        return name.rstrip("0123456789"), ""
    twin = {"L": name[:-1] + "R", "R": name[:-1] + "L"}.get(name[-1])
    return (name[:-1], {"L": "left", "R": "right"}[name[-1]]) if twin in known else (name, "")


def super_class(kind: str) -> str:
    return next((found for word, found in SUPER_CLASSES if word in kind.lower()), "sensory")


def write(name: str, head: list[str], rows: Iterable[tuple[Any, ...]]) -> None:
    with open(HERE / name, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(head)
        writer.writerows(rows)


def main() -> None:
    folder = cect()
    counts, spoken, kinds = chemical_synapses(folder), transmitters(folder), types(folder)
    cells = sorted({cell for pair in counts for cell in pair})
    write("worm_edges.csv", ["pre", "post", "count"], ((*pair, count) for pair, count in sorted(counts.items())))
    rows = []
    for name in cells:
        first, *others = spoken.get(name) or [""]
        kind = kinds[name]
        rows.append((name, *cell_type(name, kinds), super_class(kind), kind.lower(), first, " ".join(others)))
    head = ["id", "cell_type", "side", "super_class", "class", "transmitter", "other_transmitters"]
    write("worm_neurons.csv", head, rows)
    print(f"{len(cells)} cells, {len(counts)} connections, {sum(counts.values())} synapses, in {HERE}")


if __name__ == "__main__":
    main()
