"""One self-contained HTML file for one estimate: tables, pictures, assumptions, and the source of every input.

No script, no outside request: style and pictures stand in the file, and its own Content-Security-Policy forbids the
rest. Every text is escaped by `escape`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from html import escape
from importlib.resources import files
from typing import Any

from simulator import __version__
from simulator.cluster.members import distinct_devices
from simulator.count import count
from simulator.report.document import document
from simulator.report.network import tier_rates
from simulator.report.svg import Scene, svg_text
from simulator.report.svg_bars import memory_scene, waterfall_scene
from simulator.report.svg_timeline import timeline_scene
from simulator.report.svg_topology import topology_scene
from simulator.result import Estimate
from simulator.spec.hardware import Cluster, Device, Tier
from simulator.spec.model import ModelSpec
from simulator.spec.strategy import Strategy
from simulator.units import format_bandwidth, format_bytes, format_count, format_flop_rate, format_time, format_usd

WIDTH = 760
POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
_LAYOUT = """
main { max-width: 820px; margin: 0 auto; padding: 1.5rem 1rem 3rem; }
section { margin: 1.8rem 0; } .figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(170px, 1fr));
gap: .8rem; margin: 1rem 0; } .figures div { background: var(--panel); padding: .7rem .8rem; border-radius: 6px; }
.figures b { display: block; font-size: 1.3rem; } .scroll { overflow-x: auto; } pre { overflow-x: auto;
background: var(--panel); padding: .7rem; border-radius: 6px; font-size: .76rem; line-height: 1.4; }
pre.code { white-space: pre-wrap; font-size: .85rem; } figure { margin: 0; overflow-x: auto; }
figure .picture { min-width: 600px; }
dt { font-size: .9rem; margin-top: .6rem; } dd { margin: 0; font-size: .85rem; overflow-wrap: anywhere; }
@media print { section { break-inside: avoid; } pre { white-space: pre-wrap; } }
"""


@cache
def style() -> str:
    """The style sheet that the report and the explorer share."""
    return files("simulator.report").joinpath("page.css").read_text(encoding="utf-8")


def report_html(
    answer: Estimate, *, model: ModelSpec, cluster: Cluster, strategy: Strategy, said: Sequence[str] = (),
    extra: Sequence[tuple[str, str]] = (),
) -> str:  # fmt: skip
    """The whole page. `said` are choices made for the reader; `extra` are (heading, plain text) sections."""
    view = document(answer, nodes=cluster.nodes, said=said)
    pictures = (waterfall_scene(answer, WIDTH), memory_scene(answer, WIDTH), timeline_scene(answer, WIDTH),
                topology_scene(cluster, strategy, answer, WIDTH))  # fmt: skip
    tables = {"waterfall": _time_table(view), "memory": _parts_table(view["memory"], "bytes"),
              "timeline": "", "topology": _parts_table(view["traffic"], "sent per device and step")}  # fmt: skip
    body = [
        _head(view),
        *(_picture(scene, tables[scene.name]) for scene in pictures),
        *(_section(heading, f"<pre>{escape(words)}</pre>") for heading, words in extra),
        _section("What was asked", _asked(answer, model, cluster)),
        _section("What was assumed", _list(view["notes"]) or "<p>Nothing beyond the inputs.</p>"),
        _section("How each number is made", _formulas(view["terms"])),
        _section("Where each input comes from", _provenance(view["provenance"])),
        _section("To repeat it", f"<pre class=code>{escape(view['command'])}</pre>"),
    ]
    return _page(view["title"], "\n".join(body))


def _page(title: str, body: str) -> str:
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style()}{_LAYOUT}</style>\n</head>\n<body>\n<main>\n{body}\n"
        f'<p class="quiet">Made by shardwise {__version__}. Nothing in this file asks another machine for anything.</p>'
        "\n</main>\n</body>\n</html>\n"
    )


def _head(view: Mapping[str, Any]) -> str:
    kind = "fits" if view["fits"] else "over-limit"
    figures = "".join(
        f'<div><span class="quiet">{escape(row["name"])}</span><b>{escape(row["value"])}</b>'
        f'<span class="quiet">{escape(row["note"])}</span></div>'
        for row in view["headline"]
    )
    return (
        f"<h1>{escape(view['title'])}</h1>\n<p class={kind}>{escape(view['verdict'])}</p>\n"
        f'<div class="figures">{figures}</div>'
    )


def _section(heading: str, content: str) -> str:
    return f"<section>\n<h2>{escape(heading)}</h2>\n{content}\n</section>"


def _picture(scene: Scene, table: str) -> str:
    return _section(scene.title, f"<figure>{svg_text(scene)}</figure>\n{table}")


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]], words: Sequence[int] = (0,)) -> str:
    """A table of ready cells: those of the columns `words` are left-aligned."""
    kind = dict.fromkeys(words, ' class="words"')
    head = "".join(f"<th{kind.get(i, '')}>{escape(name)}</th>" for i, name in enumerate(columns))
    lines = ("".join(f"<td{kind.get(i, '')}>{cell}</td>" for i, cell in enumerate(row)) for row in rows)
    body = "".join(f"<tr>{cells}</tr>" for cells in lines)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _name(row: Mapping[str, Any]) -> str:
    return f'<span class="swatch k-{escape(row["part"])}"></span>{escape(row["name"])}'


def _time_table(view: Mapping[str, Any]) -> str:
    rows = [(_name(r), escape(r["value"]), escape(r["share"]), escape(r["hidden"])) for r in view["time"]]
    return _table(("part", "time", "share", "hidden"), rows)


def _parts_table(rows: Sequence[Mapping[str, Any]], heading: str) -> str:
    return _table(("part", heading, "share"), [(_name(r), escape(r["value"]), escape(r["share"])) for r in rows])


def _asked(answer: Estimate, model: ModelSpec, cluster: Cluster) -> str:
    parameters = count(model)["parameters"]
    devices = distinct_devices(cluster)
    price = cluster.price_usd_per_device_hour or (devices[0].price_usd_per_hour if len(devices) == 1 else 0.0)
    facts = [
        ("model", model.title or model.name),
        ("parameters", f"{format_count(parameters['total'])}, {format_count(parameters['active'])} per token"),
        ("cluster", f"{cluster.title or cluster.name}: {cluster.nodes:,} nodes of {cluster.devices_per_node}"),
        *(("device", _device(device)) for device in devices),
        *((f"tier {tier.name}", _tier(cluster, tier)) for tier in cluster.tiers),
        *((name.replace("_", " "), _value(value)) for name, value in answer.run.items() if value not in ("", None, 0)),
        *((name.replace("_", " "), _value(value)) for name, value in answer.strategy.items()
          if value not in ("", None, 0, ())),
    ]  # fmt: skip
    if price:
        facts.append(("list price", f"{format_usd(price)} per device hour"))
    return _table(("input", "value"), [(escape(name), escape(value)) for name, value in facts], words=(0, 1))


def _device(device: Device) -> str:
    peaks = ", ".join(f"{name} {format_flop_rate(value)}" for name, value in device.peak_flops_per_s.items())
    memory = f"{format_bytes(device.memory_bytes)} at {format_bandwidth(device.memory_bandwidth_bytes_per_s)}"
    return f"{device.title}: {memory}; {peaks}"


def _tier(cluster: Cluster, tier: Tier) -> str:
    speed = f"{tier_rates(cluster, tier)} per device, {format_time(tier.latency_s)}"
    return f"{tier.topology} of {tier.size:,} devices, {speed}"


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple | list):
        return ", ".join(map(str, value))
    return f"{value:,}" if isinstance(value, int) else str(value)


def _list(lines: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{escape(words)}</li>' for words in lines)}</ul>" if lines else ""


def _formulas(terms: Mapping[str, Mapping[str, Any]]) -> str:
    return _facts(
        (f"{name} = {term['value']}", term["formula"], "with " + ", ".join(f"{k} = {v}" for k, v in term["values"]),
         f"source: {term['source']}")
        for name, term in terms.items()
    )  # fmt: skip


def _provenance(rows: Sequence[Mapping[str, str]]) -> str:
    return _facts((f"{row['what']} ({row['kind']})", row["source"]) for row in rows)


def _facts(entries: Iterable[tuple[str, ...]]) -> str:
    """A list of (heading, line, quiet line, ...)."""
    parts = []
    for heading, first, *rest in entries:
        quiet = "".join(f'<dd class="quiet">{escape(words)}</dd>' for words in rest)
        parts.append(f"<dt><b>{escape(heading)}</b></dt><dd>{escape(first)}</dd>{quiet}")
    return f"<dl>{''.join(parts)}</dl>"
