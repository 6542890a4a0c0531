"""On a terminal tables fill it and speak in colour; into a pipe, or with NO_COLOR, text is plain."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from simulator.cli.waiting import waiting

ROOT = Path(__file__).resolve().parents[3]
RULE = "\u2500"
ESCAPE = re.compile(r"\x1b\[[0-9;]*m")
SMALL = ["gpt3-13b", "dgx-a100", "--nodes", "1", "--tp", "2", "--pp", "4", "--global-batch", "32"]
COMMANDS = {
    "estimate": ["estimate", *SMALL],
    "explain": ["explain", *SMALL],
    "network": ["network", "dgx-a100", "--nodes", "2", "--tp", "8"],
    "timeline": ["timeline", *SMALL],
    "project": ["project", *SMALL, "--tokens", "1B"],
    "count": ["count", "mixtral-8x7b"],
    "serve": ["serve", "llama3.1-8b", "dgx-h100", "--nodes", "1"],
}


def shardwise(arguments: list[str], **environment: str) -> tuple[list[str], dict[str, str]]:
    names = {"PATH", "HOME", "LANG", "VIRTUAL_ENV"}
    kept = {name: value for name, value in os.environ.items() if name in names}
    return [sys.executable, "-m", "simulator", *arguments], {
        **kept, "PYTHONPATH": str(ROOT), "TERM": "xterm-256color", **environment,
    }  # fmt: skip


def on_terminal(arguments: list[str], columns: int = 90, **environment: str) -> str:
    """What a command writes to a terminal of so many columns."""
    words, variables = shardwise(arguments, **environment)
    outer, inner = pty.openpty()
    fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    process = subprocess.Popen(words, env=variables, stdout=inner, stderr=inner, stdin=inner)
    os.close(inner)
    parts = []
    while True:
        try:
            part = os.read(outer, 65_536)
        except OSError:
            break
        if not part:
            break
        parts.append(part)
    os.close(outer)
    assert process.wait(60) == 0
    return b"".join(parts).decode().replace("\r\n", "\n")


def test_a_sweep_shows_a_bar_on_a_terminal_and_nothing_in_a_pipe(tmp_path: Path) -> None:
    points = tmp_path / "points.toml"
    points.write_text(
        '[case]\nmodel = "gpt3-6.7b"\ncluster = "dgx-a100"\nnodes = 1\nglobal_batch = 16\n[grid]\ntp = [1, 2, 4, 8]\n',
        encoding="utf-8",
    )
    shown = on_terminal(["sweep", str(points), "--out", str(tmp_path / "one")])
    assert f"[{'#' * 20}] 4 of 4 points" in shown
    words, variables = shardwise(["sweep", str(points), "--out", str(tmp_path / "two")])
    done = subprocess.run(words, env=variables, capture_output=True, text=True, check=True)
    assert " of 4 points" not in done.stdout + done.stderr


def piped(arguments: list[str]) -> str:
    words, variables = shardwise(arguments)
    return subprocess.run(words, env=variables, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_a_terminal_gets_colour_within_its_width_and_a_pipe_the_same_words_plain(name: str) -> None:
    shown, plain = on_terminal(COMMANDS[name], 130), piped(COMMANDS[name])
    assert "\x1b" not in plain
    bare = ESCAPE.sub("", shown)
    assert "\x1b" not in bare
    assert re.sub(r"[\s\u2500]+", " ", bare).strip() == re.sub(r"[\s\u2500]+", " ", plain).strip()
    if RULE in plain:
        assert "\x1b[1m" in shown


def test_tables_stay_within_a_narrow_terminal() -> None:
    for name in ("estimate", "network"):
        shown = ESCAPE.sub("", on_terminal(COMMANDS[name], 70))
        rules = [line for line in shown.splitlines() if RULE in line]
        assert rules
        assert max(map(len, rules)) <= 70


def test_a_wait_is_counted_on_a_terminal_and_wiped(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("simulator.cli.waiting.PATIENCE_S", 0.01)
    with waiting("planning"):
        time.sleep(0.1)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with waiting("planning"):
        time.sleep(0.1)
    said = capsys.readouterr().err
    assert said.startswith("\rplanning ... 0 s")
    assert said.endswith("\r" + " " * len("planning ... 0 s") + "\r")


def test_what_hangs_beneath_its_head_is_wrapped_once() -> None:
    arguments = ["plan", "gpt3-6.7b", "dgx-a100", "--nodes", "1", "--global-batch", "16", "--fix", "tp=2", "--top", "2"]
    lines = ESCAPE.sub("", on_terminal(arguments, 75)).splitlines()
    start = next(index for index, line in enumerate(lines) if line.startswith("Best first"))
    stop = next(index for index, line in enumerate(lines) if line.startswith("tie: "))
    assert max(len(line.rstrip()) for line in lines) <= 75
    # Rows begin with their number; all that follows stands beneath the words of the first line.
    rows = [line for line in lines[start + 1 : stop] if line.strip()]
    assert all(re.match(r" +\d+ ", line) or line.startswith(" " * 20) for line in rows)


@pytest.mark.parametrize("environment", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_no_color_is_respected(environment: dict[str, str]) -> None:
    assert "\x1b" not in on_terminal(COMMANDS["estimate"], **environment)


def test_an_empty_no_color_says_nothing() -> None:
    assert "\x1b" in on_terminal(COMMANDS["count"], NO_COLOR="")
