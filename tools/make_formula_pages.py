"""Write docs/formulas/*.md from the docstrings: python tools/make_formula_pages.py.

A formula is said once, where it is computed. These pages show the docstrings of public functions with their signatures,
so that a reader need not open the code; a test holds them to it.
"""

from __future__ import annotations

import inspect
import re
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
FOLDER = ROOT / "docs" / "formulas"
PAGES = {
    "counts": ("Parameters and FLOPs", ("arch.parameters", "arch.flops", "arch.linear", "arch.feed_forward",
                                        "arch.attention", "arch.experts", "arch.one_hot", "arch.embedding",
                                        "arch.recurrent")),
    "kernels": ("Seconds of a kernel", ("cluster.gemm", "cluster.grouped", "cluster.attention", "cluster.memory")),
    "collectives": ("Seconds of a collective", ("cluster.collectives", "cluster.network", "cluster.nccl",
                                                "cluster.torus", "cluster.dispatch")),
    "fabrics": ("Fabrics and links", ("cluster.closed", "cluster.spans", "cluster.contention", "cluster.link_loads")),
    "memory": ("Memory and traffic of a rank", ("parallel.states", "parallel.memory", "parallel.traffic",
                                                "schedule.memory")),
    "step": ("From kernels to a step", ("parallel.timing", "parallel.stage_cost", "parallel.step_end",
                                        "parallel.gradients", "parallel.seats", "unequal")),
    "schedules": ("Pipeline schedules", ("schedule.closed", "schedule.bounds", "schedule.overlap")),
    "projects": ("Days, dollars, energy, failures", ("project.training", "project.goodput", "project.checkpoint",
                                                     "project.energy", "project.scaling_laws")),
}  # fmt: skip
"""Page -> its title and the modules on it."""
MARK = "<!-- Written by tools/make_formula_pages.py from the docstrings; edit those. -->"


def page(name: str) -> str:
    """The text of one page."""
    title, modules = PAGES[name]
    sections = [section(import_module(f"simulator.{module}")) for module in modules]
    return "\n".join([MARK, f"# {title}", "", *sections]).rstrip() + "\n"


def section(module: ModuleType) -> str:
    """A module: its own words, then its public functions in the order in which they stand."""
    path = module.__name__.replace(".", "/") + ".py"
    lines = [f"## {path}", "", f"[source](../../{path})", "", prose(module.__doc__ or ""), ""]
    for function in public_functions(module):
        lines += [f"### {function.__name__}", "", "```python", signature(function), "```", "",
                  prose(function.__doc__ or ""), ""]  # fmt: skip
    return "\n".join(lines)


def public_functions(module: ModuleType) -> list[type[object]]:
    """Functions with words, defined in this module, in its order."""
    found = [
        value
        for name, value in vars(module).items()
        if inspect.isfunction(value) and not name.startswith("_") and value.__module__ == module.__name__
        and value.__doc__
    ]  # fmt: skip
    return sorted(found, key=lambda function: function.__code__.co_firstlineno)  # type: ignore[attr-defined]


def signature(function: type[object]) -> str:
    """Name, parameters and result, one parameter a line where they are many."""
    text = f"{function.__name__}{inspect.signature(function)}".replace("'", "")
    if len(text) <= 100:
        return text
    inside = ",\n    ".join(str(p).replace("'", "") for p in inspect.signature(function).parameters.values())
    return f"{function.__name__}(\n    {inside},\n)" + text[text.rindex(")") + 1 :]


def prose(docstring: str) -> str:
    """A docstring as Markdown: formulas and examples, which stand indented or after >>>, become blocks of code."""
    blocks = []
    for block in re.split(r"\n\s*\n", inspect.cleandoc(docstring)):
        rows = block.split("\n")
        if rows[0].startswith(">>>"):
            blocks.append("```pycon\n" + block + "\n```")
        elif all(row.startswith("    ") for row in rows):
            blocks.append("```text\n" + inspect.cleandoc(block) + "\n```")
        elif rows[0].startswith("|"):
            blocks.append(block)
        else:
            blocks.append(re.sub(r"(?<![`\w])_(\w+)_(?!\w)", r"\\_\1\\_", block.replace("*", "\\*")))
    return "\n\n".join(blocks)


def pages() -> dict[Path, str]:
    """Every page, by path."""
    index = [MARK, "# Formulas", "", "Each as it stands in the code that computes it, with its source.", ""]
    index += [f"- [{title}]({name}.md)" for name, (title, _) in PAGES.items()]
    return {FOLDER / f"{name}.md": page(name) for name in PAGES} | {FOLDER / "README.md": "\n".join(index) + "\n"}


if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")
        print(f"wrote {path.relative_to(ROOT)}")
