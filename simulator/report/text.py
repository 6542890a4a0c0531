"""Estimates and counts as text: tables on a terminal, plain text when piped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from io import StringIO
from itertools import groupby
from typing import TYPE_CHECKING, Any

from simulator.result import Estimate
from simulator.units import format_bytes, format_count, format_flop_rate, format_percent, format_time

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

WIDTH = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """How text is laid out: columns to fill (0: as many as the text asks for), and whether colours may be used."""

    columns: int = 0
    colour: bool = False


PLAIN = Look()
LOOK: ContextVar[Look] = ContextVar("look", default=PLAIN)
"""Plain, unless the command line found a terminal and said so."""


def rendered(items: Sequence[Any], width: int = WIDTH) -> str:
    """Rich items (tables, strings) as text, plain or as `LOOK` has it."""
    from rich.console import Console

    look, buffer = LOOK.get(), StringIO()
    console = Console(file=buffer, width=columns_for(width), highlight=False, force_terminal=look.colour,
                      color_system="standard" if look.colour else None)  # fmt: skip
    for item in items:
        console.print(_marked(item) if isinstance(item, str) else item)
    return buffer.getvalue().rstrip("\n")


WIDEST = 120
"""Columns of a terminal that a table made for fewer may still fill."""


def columns_for(width: int = WIDTH) -> int:
    """The columns of text that asks for `width`: those, or what the terminal has."""
    terminal = LOOK.get().columns
    return min(terminal, max(width, WIDEST)) if terminal else width


def _marked(words: str) -> Text:
    """A string as it is, with verdicts in colour."""
    from rich.text import Text

    marked = Text(words)
    marked.highlight_regex(r"DOES NOT FIT|does not fit|out of memory", "bold red")
    marked.highlight_regex(r"(?<=: )fits\b|^best\b", "bold green")
    return marked


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A table whose first column is text and whose others are numbers."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    # A title may be wider than its table.
    name = Text(title, style="bold", no_wrap=True, overflow="ignore")
    result = Table(title=name, title_style="", title_justify="left", header_style="dim", box=box.SIMPLE_HEAD,
                   pad_edge=False)  # fmt: skip
    for index, column in enumerate(columns):
        result.add_column(column, justify="left" if index == 0 else "right")
    for row in rows:
        result.add_row(*(_marked(cell) for cell in row))
    return result


def progress_line(done: int, total: int, what: str, left: str = "") -> str:
    """A bar with its count, to be written over itself on a terminal.

    >>> progress_line(5, 20, "points", "3 s left")
    '[#####...............] 5 of 20 points, 3 s left'
    """
    filled = _BAR * done // max(total, 1)
    return f"[{'#' * filled}{'.' * (_BAR - filled)}] {done:,} of {total:,} {what}" + (f", {left}" if left else "")


_BAR = 20


def _share(value: float, total: float) -> str:
    return format_percent(value / total) if total else "-"


def recompute_words(kind: str, layers: Any) -> str:
    """What is recomputed, on one line; equal numbers of stages in a row are said once.

    >>> recompute_words("full", 1), recompute_words("full", (3, 2, 2, 0))
    ('recompute full (1 layer)', 'recompute full (3,2*2,0 layers by stage)')
    """
    if isinstance(layers, tuple):
        runs = [(number, len(list(same))) for number, same in groupby(layers)]
        said = ",".join(f"{number}*{count}" if count > 1 else str(number) for number, count in runs)
        return f"recompute {kind} ({said} layers by stage)"
    return f"recompute {kind}" + (f" ({layers} layer{'s' if layers > 1 else ''})" if layers else "")


def estimate_text(answer: Estimate, said: Sequence[str] = ()) -> str:
    """An estimate as a person reads it: verdict, where the time goes, memory, traffic, what was assumed."""
    step, memory = answer.step_time_s, answer.memory
    verdict = "fits" if answer.fits else "DOES NOT FIT"
    strategy = answer.strategy
    degrees = "  ".join(f"{name} {strategy[name]}" for name in ("tp", "pp", "dp", "cp", "ep", "vp", "zero"))
    low, high = format_time(answer.step_time_low_s), format_time(answer.step_time_high_s)
    hidden, shown = (format_time(bound) for bound in answer.bracket_s)
    each = format_count(answer.tokens_per_s_per_device)
    rate = format_flop_rate(answer.model_flops_per_s_per_device)
    head = [
        f"{answer.model} on {answer.devices} devices of {answer.cluster} ({answer.framework})",
        (f"{degrees}  micro-batch {strategy['micro_batch']}  {strategy['schedule']}  "
         f"{recompute_words(str(strategy['recompute']), strategy['recompute_layers'])}"),
        "",
        f"step time   {format_time(step)}, likely {low} to {high}",
        f"bracket     {hidden} with all communication hidden, {shown} with none hidden",
        f"throughput  {format_count(answer.tokens_per_s)} tokens/s, {each} tokens/s and {rate} per device",
        f"MFU         {format_percent(answer.mfu)} ({answer.flops_convention} FLOPs), HFU {format_percent(answer.hfu)}",
        (f"memory      {format_bytes(memory.peak_bytes)} of {format_bytes(memory.limit_bytes)}: {verdict} "
         f"({format_percent(answer.fits_confidence, 2)} sure)"),
        "",
    ]
    times = sorted(answer.time.parts.items(), key=lambda item: -item[1])
    time_rows = [(name, format_time(s), _share(s, step), _hidden(answer, name)) for name, s in times]
    memory_rows = [
        (name, format_bytes(v), _share(v, memory.peak_bytes))
        for name, v in sorted(memory.parts.items(), key=lambda item: -item[1])
        if v
    ]
    traffic_rows = [(axis, format_bytes(v)) for axis, v in sorted(answer.traffic_bytes.items(), key=lambda i: -i[1])]
    items: list[Any] = [
        "\n".join(head),
        table("Where the time goes", ("part", "time", "share", "hidden beside"), time_rows),
        table("Memory of the fullest rank", ("part", "bytes", "share"), memory_rows),
        _ranks(answer),
        _members(answer),
    ]
    if traffic_rows:
        items.append(table("Sent per device and step", ("axis", "bytes"), traffic_rows))
    items += [f"- {note}" for note in (*said, *answer.notes)]
    return rendered(items)


def _hidden(answer: Estimate, name: str) -> str:
    hidden = answer.time.hidden.get(name, 0.0)
    return format_time(hidden) if hidden else ""


def _ranks(answer: Estimate) -> Any:
    """Memory by pipeline rank, folding the equal ones in the middle."""
    ranks = answer.memory.per_stage
    if len(ranks) == 1:
        return ""
    shown = list(enumerate(ranks)) if len(ranks) <= 8 else [*enumerate(ranks[:3]), *list(enumerate(ranks))[-2:]]
    names = ("weights", "gradients", "optimizer", "activations", "total")
    rows = [(str(index), *(format_bytes(rank.get(name, 0.0)) for name in names)) for index, rank in shown]
    return table(f"Memory by pipeline rank ({len(ranks)} ranks)", ("rank", *names), rows)


def _members(answer: Estimate) -> Any:
    """Of unequal nodes: the slowest of every pipeline rank, and its devices' memory; equal neighbours in one row."""
    if not answer.members:
        return ""
    rows: list[tuple[str, ...]] = []
    for row in answer.members:
        nodes = ", ".join(f"{count} {name}" for name, count in sorted(row["nodes_by_device"].items()))
        said = (nodes, row["slowest"] if row["kinds"] > 1 else "", format_bytes(row["memory_bytes"]))
        if rows and rows[-1][1:] == said:
            first = rows.pop()[0].split(" to ")[0]
            rows.append((f"{first} to {row['rank']}", *said))
        else:
            rows.append((str(row["rank"]), *said))
    columns = ("rank", "nodes", "waits for", "memory per device")
    return table(f"Unequal nodes by pipeline rank ({len(answer.members)} ranks)", columns, rows)


def term_text(term: Mapping[str, Any]) -> str:
    """One number with its formula, values and source."""
    values = "\n".join(f"    {name} = {_valued(name, value, term['unit'])}" for name, value in term["values"].items())
    return (
        f"{term['term']} = {term['value']:.6g} {term['unit']}\n  formula: {term['formula']}\n  with\n{values}\n"
        f"  source: {term['source']}"
    )


def _valued(name: str, value: Any, unit: str) -> str:
    """A value in a formula with its unit: by its name, or that of the sum it is a part of."""
    if not isinstance(value, float):
        return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
    own = "s" if name.endswith("_s") else "FLOP" if "flops" in name else unit
    return f"{value:.6g} {own}"


def count_text(answer: Mapping[str, Any]) -> str:
    """Parameters by part and FLOPs by convention."""
    total = answer["parameters"]["total"]
    parts = answer["parameters"]["by_part"]
    rows = [(name, f"{n:,}", _share(n, total)) for name, n in sorted(parts.items(), key=lambda item: -item[1])]
    rows += [("total", f"{total:,}", ""), ("active per token", f"{answer['parameters']['active']:,}", "")]
    flops = answer["flops"]
    lines = [("forward", flops["forward"], flops["forward_per_token"]),
             ("backward", flops["backward"], flops["backward_per_token"])]  # fmt: skip
    flop_rows = [(name, f"{whole:.6g}", f"{each:.6g}") for name, whole, each in lines]
    convention_rows = [(name, f"{value:.6g}", "") for name, value in flops["by_convention"].items()]
    title = f"{answer['title'] or answer['model']}: parameters"
    return rendered([
        table(title, ("part", "parameters", "share"), rows),
        table(f"FLOPs of {answer['batch']} x {answer['seq_len']} tokens", ("pass", "FLOPs", "per token"), flop_rows),
        table("Model FLOPs, forward and backward", ("convention", "FLOPs", ""), convention_rows),
    ])  # fmt: skip


def check_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Counted against published parameters, one model a line, with the explanations of what differs."""
    lines = [
        (
            row["model"],
            f"{row['counted']:,}",
            f"{row['published']:,}" if row["published"] else "-",
            f"{row['difference']:+.2%}" if row["published"] else "-",
            ("equal as printed" if row["rounds_to_published"] else "explained") if row["ok"] else "UNEXPLAINED",
        )
        for row in rows
    ]
    notes = [f"- {row['model']}: {row['explanation']}" for row in rows if row["explanation"]]
    return rendered([table("Parameters", ("model", "counted", "published", "difference", ""), lines), *notes])
