"""One line for every test network: what of it equals the hooks-only reference.

Runs tests/test_architectures.py and writes what passed as a table.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COLUMNS = {
    "layer graph": ("test_layer_graph_is_the_causal_truth",),
    "node effects": ("test_node_effects",),
    "edge effects": ("test_edge_effects",),
    "total effects": ("test_total_effects",),
    "path effects": ("test_path_effects",),
    "suffix at other batch sizes": ("test_suffix_gives_the_real_output",),
    "left as it was": ("test_the_model_is_left_as_it_was",),
}
INTRODUCTION = """# Architectures

Every network of `tests/zoo/`, with small random weights, against the reference that uses forward
hooks alone, in float64 to 1e-9: `tests/test_architectures.py`. The layer graph must have no edge
missing and none too many; effects are those of some neurons of some layers, drawn by seed, for the
contrasts between quantiles and from zero; a suffix must give the model's real output for one and
three interventions and for some of the samples; and after success, after an exception in the
target and after one in the model, its forwards, hooks, modes, weights, buffers and the random state
must be what they were. Names with a second part look at a network in another way: only every second
layer (`half`), attention heads, whole blocks, normalisations, single positions.

"""


def results() -> dict[str, dict[str, list[bool]]]:
    """Run the tests; for each network and test function, which of its cases passed."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "tests/test_architectures.py"]
        subprocess.run([*command, f"--junitxml={report}"], cwd=ROOT, check=False)
        cases = list(ElementTree.parse(report).iter("testcase"))
    table: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    for case in cases:
        found = re.fullmatch(r"(\w+)\[(\w+?)(?:-(?:quantiles|zero))?\]", case.attrib["name"])
        if found:
            function, network = found.groups()
            table[network][function].append(not len(case))
    return table


def page(table: dict[str, dict[str, list[bool]]]) -> str:
    """Write the results as a Markdown page."""
    head = ["network", *COLUMNS]
    rows = [head, ["---"] * len(head)]
    for network, functions in sorted(table.items()):
        cells = []
        for tests in COLUMNS.values():
            passed = [ok for test in tests for ok in functions[test]]
            cells.append("yes" if passed and all(passed) else "no")
        rows.append([network.replace("_", " "), *cells])
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return INTRODUCTION + "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", type=Path, help="write the page here instead of printing it")
    arguments = parser.parse_args()
    text = page(results())
    if arguments.write:
        arguments.write.write_text(text, encoding="utf-8")
    else:
        print(text)


if __name__ == "__main__":
    main()
