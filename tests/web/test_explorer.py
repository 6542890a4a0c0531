"""The explorer driven in Chromium as a person would: every dial, the plan, the link, and what goes wrong."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import urlencode

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, Route, expect

import simulator as sim
from simulator.cli import run as run_command
from simulator.units import format_bytes, format_percent, format_time
from simulator.web.server import Explorer
from tests.web.explorer_page import settled

pytestmark = [pytest.mark.browser, pytest.mark.loopback]

SMALL = {"model": "gpt3-6.7b", "cluster": "dgx-a100", "nodes": "2", "global_batch": "32", "tp": "2", "pp": "2",
         "vp": "1", "schedule": "1f1b", "recompute": "none"}  # fmt: skip
TURNS = [
    ("nodes", "4"), ("tp", "4"), ("pp", "4"), ("vp", "4"), ("dp", "4"), ("cp", "2"), ("zero", "1"),
    ("micro_batch", "2"), ("global_batch", "64"), ("seq_len", "1024"), ("schedule", "zb-h1"), ("recompute", "full"),
    ("precision", "fp16"), ("optimizer", "sgd"), ("framework", "nemo-2024"), ("model", "gpt3-13b"),
    ("cluster", "dgx-h100"),
]  # fmt: skip
MIXTURE_TURNS = [("ep", "8"), ("etp", "2"), ("cp", "2")]
MIXTURE = {**SMALL, "model": "mixtral-8x7b", "seq_len": "4096", "nodes": "4", "tp": "1", "pp": "4"}


def visit(page: Page, server: Explorer, **state: str) -> None:
    page.goto(server.url + "#" + urlencode(state))
    settled(page)


def setting(page: Page, name: str) -> str | None:
    """What the address says of one setting."""
    return page.evaluate("n => new URLSearchParams(location.hash.slice(1)).get(n)", name)


def revision(page: Page) -> int:
    return int(page.evaluate("() => document.body.dataset.revision || 0"))


def turn(page: Page, name: str, value: str) -> None:
    """Type a value into a dial's box, or choose it from its list, and wait for the answer."""
    before = revision(page)
    box = page.locator(f"#dial-{name}")
    if box.evaluate("e => e.tagName") == "SELECT":
        box.select_option(value)
    else:
        box.fill(value)
        box.press("Enter")
    page.wait_for_function("n => Number(document.body.dataset.revision) > n", arg=before)
    settled(page)


def shown(page: Page, term: str) -> str:
    """A number of the headline."""
    return page.locator(f"#headline [data-term={term}] b").inner_text()


def test_the_first_page_shows_the_estimate_of_the_library(page: Page, server: Explorer) -> None:
    visit(page, server)
    strategy = sim.Strategy(tp=8, pp=8, dp=16, vp=6, schedule="interleaved", recompute="selective")
    run = sim.Run(global_batch=1536, seq_len=2048)
    answer = sim.estimate(sim.load_model("gpt3-175b"), sim.load_cluster("dgx-a100", nodes=128), run, strategy)
    assert shown(page, "step_time_s") == format_time(answer.step_time_s)
    assert shown(page, "peak_memory_bytes") == format_bytes(answer.peak_memory_bytes)
    expect(page.locator("#fits")).to_have_class("fits")
    # How sure: the interval of the step time, the confidence of the verdict.
    low, high = format_time(answer.step_time_low_s, 3), format_time(answer.step_time_high_s, 3)
    expect(page.locator("#headline [data-term=step_time_s] small")).to_have_text(f"likely {low} to {high} (90 %)")
    expect(page.locator("#fits")).to_contain_text(f"({format_percent(answer.fits_confidence, 2)} sure)")
    for name in ("waterfall", "memory", "timeline", "topology", "scatter"):
        expect(page.locator(f"#picture-{name} svg[role=img]")).to_have_attribute("aria-label", re.compile(r"\w+"))


def test_the_token_is_not_left_in_the_address(page: Page, server: Explorer) -> None:
    visit(page, server)
    assert server.token not in page.url
    assert server.token not in page.content()


@pytest.mark.parametrize(("name", "value"), TURNS)
def test_every_dial_changes_the_answer_and_the_address(page: Page, server: Explorer, name: str, value: str) -> None:
    if name == "framework":
        value = next(each for each in sim.catalog.names("frameworks") if each.startswith("nemo"))
    visit(page, server, **SMALL)
    before = page.locator("#command").inner_text()
    turn(page, name, value)
    assert setting(page, name) == value
    assert page.locator("#problems").is_hidden()
    after = page.locator("#command").inner_text()
    assert after != before or name == "dp"
    assert value in after


@pytest.mark.parametrize(("name", "value"), MIXTURE_TURNS)
def test_a_mixture_has_its_dials_too(page: Page, server: Explorer, name: str, value: str) -> None:
    visit(page, server, **MIXTURE)
    before = page.locator("#picture-topology svg").get_attribute("aria-label")
    turn(page, name, value)
    after = page.locator("#picture-topology svg").get_attribute("aria-label")
    assert page.locator("#problems").is_hidden()
    assert before != after
    assert f"{name} {value} reaches" in (after or "")


def test_no_dial_is_without_its_test(page: Page, server: Explorer) -> None:
    visit(page, server, **SMALL)
    dials = set(page.eval_on_selector_all("[id^=dial-]", "all => all.map(each => each.id.slice(5))"))
    turned = {name for name, _ in TURNS} | {name for name, _ in MIXTURE_TURNS}
    assert dials == turned | {"context_kind", "sequence_parallel"}


def test_the_context_kind_and_sequence_parallelism_are_dials(page: Page, server: Explorer) -> None:
    visit(page, server, **{**SMALL, "cp": "2"})
    turn(page, "context_kind", "ulysses")
    assert "--context-kind ulysses" in page.locator("#command").inner_text()
    before = revision(page)
    page.locator("#dial-sequence_parallel").press("Space")
    page.wait_for_function("n => Number(document.body.dataset.revision) > n", arg=before)
    assert "--no-sequence-parallel" in page.locator("#command").inner_text()


def test_a_slider_moves_by_the_keyboard_and_memory_moves_with_it(page: Page, server: Explorer) -> None:
    visit(page, server, **SMALL)
    memory = shown(page, "peak_memory_bytes")
    bars = page.locator("#picture-memory").inner_html()
    before = revision(page)
    slider = page.locator("[data-slider=tp]")
    slider.focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_function("n => Number(document.body.dataset.revision) > n", arg=before)
    assert setting(page, "tp") == "4"
    assert slider.get_attribute("aria-valuetext") == "4"
    assert shown(page, "peak_memory_bytes") != memory
    assert page.locator("#picture-memory").inner_html() != bars


def test_dp_is_what_the_others_leave_until_it_is_set(page: Page, server: Explorer) -> None:
    visit(page, server, **SMALL)
    expect(page.locator("#dial-dp")).to_have_attribute("placeholder", "auto 4")
    turn(page, "tp", "4")
    expect(page.locator("#dial-dp")).to_have_attribute("placeholder", "auto 2")
    turn(page, "dp", "4")
    expect(page.locator("#problems")).to_contain_text("tp(4) * cp(1) * pp(2) * dp(4) = 32")
    turn(page, "dp", "")
    assert setting(page, "dp") is None
    assert page.locator("#problems").is_hidden()


def test_the_whole_page_works_by_keyboard(page: Page, server: Explorer) -> None:
    visit(page, server, **SMALL)
    reached = set()
    for _ in range(140):
        page.keyboard.press("Tab")
        reached.add(page.evaluate(
            "() => { const e = document.activeElement; return e.id || e.dataset.slider || e.dataset.term"
            " || e.dataset.point || e.tagName; }"
        ))  # fmt: skip
    wanted = {"plan", "share", "reset", "dial-model", "tp", "dial-tp", "dial-schedule", "step_time_s", "memory.weights"}
    assert wanted <= reached
    page.locator("#rows-memory [data-term='memory.weights']").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#why")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#why")).to_be_hidden()
    assert page.evaluate("() => document.activeElement.dataset.term") == "memory.weights"


def test_any_number_opens_its_formula_and_source(page: Page, server: Explorer) -> None:
    visit(page, server, **SMALL)
    places = (
        "#headline [data-term=mfu]",
        "#picture-waterfall rect[data-term='time.gemm']",
        "#picture-memory rect[data-term='memory.optimizer']",
        "#rows-traffic [data-term='traffic.dp']",
    )
    for place in places:
        page.locator(place).first.click()
        name = page.locator("#why-name").inner_text()
        assert place.split("data-term=")[1].strip("'\"]") == name
        assert page.locator("#why-formula").inner_text()
        assert page.locator("#why-source").inner_text()
        page.get_by_role("button", name="Close").click()
    page.locator("#headline [data-term=mfu]").click()
    expect(page.locator("#why-source")).to_have_text("Chowdhery 2022 App. B")


def test_plan_finds_the_best_and_shows_why(page: Page, server: Explorer) -> None:
    visit(page, server, **{**SMALL, "tp": "8", "recompute": "full"})
    slow = page.locator("#picture-scatter .current title").text_content()
    page.get_by_role("button", name="Plan").click()
    expect(page.locator("#planned")).to_be_visible(timeout=60_000)
    settled(page)
    expect(page.locator("#proof")).to_contain_text("legal")
    best = page.locator("#plan-rows tbody tr").first
    assert shown(page, "step_time_s") == best.locator("td").nth(1).inner_text()
    assert best.locator("td").last.inner_text()
    assert page.locator("#picture-scatter .current title").text_content() != slow
    assert page.locator("#picture-scatter .planned").count() == page.locator("#plan-rows tbody tr").count()
    assert "fits" in (page.locator("#fits").get_attribute("class") or "")
    second = page.locator("#plan-rows tbody tr").nth(1)
    expect(second.locator("td").last).to_have_text(re.compile(r"^tie, \d+ % that it is the faster: "))
    second.locator("button").click()
    expect(page.locator("#headline [data-term=step_time_s] b")).to_have_text(second.locator("td").nth(1).inner_text())


def test_each_planned_strategy_is_a_click_away_from_any_other(page: Page, server: Explorer) -> None:
    # Some of these recompute a few layers only, which the others must not inherit.
    state = {**SMALL, "model": "gpt3-13b", "nodes": "1", "seq_len": "2048"}
    visit(page, server, **state)
    page.get_by_role("button", name="Plan").click()
    expect(page.locator("#planned")).to_be_visible(timeout=60_000)
    settled(page)
    rows = page.locator("#plan-rows tbody tr")
    assert rows.filter(has_text="layers)").count() > 0
    for index in [*range(rows.count()), 0]:
        row = rows.nth(index)
        row.locator("button").click()
        expect(page.locator("#headline [data-term=step_time_s] b")).to_have_text(row.locator("td").nth(1).inner_text())
        assert page.locator("#problems").is_hidden()
    turn(page, "recompute", "none")
    assert setting(page, "recompute_layers") is None
    assert page.locator("#problems").is_hidden()


def test_a_plan_that_cannot_be_says_why(page: Page, server: Explorer) -> None:
    visit(page, server, **{**SMALL, "model": "gpt3-175b", "nodes": "1", "pp": "4", "tp": "2"})
    page.get_by_role("button", name="Plan").click()
    expect(page.locator("#problems")).to_contain_text("memory", timeout=60_000)
    expect(page.get_by_role("button", name="Plan")).to_be_enabled()


def test_one_step_away_is_a_click_away(page: Page, server: Explorer) -> None:
    visit(page, server, **SMALL)
    row = page.locator("#rows-nearby tr", has_text="tp 4").first
    step = row.locator("td").nth(1).inner_text()
    row.get_by_role("button").click()
    page.wait_for_function("() => location.hash.includes('tp=4')")
    settled(page)
    assert shown(page, "step_time_s") == step


def test_every_picture_follows_a_dial_at_once_and_bounds_give_way_to_simulations(page: Page, server: Explorer) -> None:
    visit(page, server, **SMALL)
    pictures = ("waterfall", "memory", "timeline", "topology", "scatter")
    before = {name: page.locator(f"#picture-{name}").inner_html() for name in pictures}
    held: list[Route] = []
    hold = True

    def simulate(route: Route) -> None:
        if hold:
            held.append(route)
        else:
            route.continue_()

    page.route("**/api/scatter", simulate)
    earlier = revision(page)
    page.locator("#dial-pp").fill("4")
    page.locator("#dial-pp").press("Enter")
    page.wait_for_function("n => Number(document.body.dataset.revision) > n", arg=earlier)
    # The first answer alone moved them all; of the neighbours it knows bounds.
    assert all(page.locator(f"#picture-{name}").inner_html() != before[name] for name in pictures)
    rows = page.locator("#rows-nearby tbody tr")
    count = rows.count()
    assert count > 4
    assert rows.filter(has_text="at least").count() == count
    assert page.locator("#picture-scatter .neighbour").count() == count
    hold = False
    for route in held:
        route.continue_()
    settled(page)
    assert (rows.count(), rows.filter(has_text="at least").count()) == (count, 0)


def test_the_link_brings_another_window_to_the_same_answer(
    page: Page, server: Explorer, context: BrowserContext
) -> None:
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    visit(page, server, **SMALL)
    turn(page, "tp", "4")
    turn(page, "zero", "1")
    page.get_by_role("button", name="Copy link").click()
    expect(page.locator("#status")).to_have_text("link copied")
    link = page.evaluate("() => navigator.clipboard.readText()")
    other = context.new_page()
    other.goto(link)
    settled(other)
    assert other.locator("#command").inner_text() == page.locator("#command").inner_text()
    assert shown(other, "step_time_s") == shown(page, "step_time_s")


def test_an_address_that_is_edited_is_followed(page: Page, server: Explorer) -> None:
    visit(page, server, **SMALL)
    page.evaluate("() => { location.hash = location.hash.replace('tp=2', 'tp=8'); }")
    page.wait_for_function("() => document.getElementById('command').textContent.includes('--tp 8')")


def test_reset_goes_back_to_the_first_page(page: Page, server: Explorer) -> None:
    visit(page, server, **SMALL)
    page.get_by_role("button", name="Reset").click()
    page.wait_for_function("() => document.getElementById('title').textContent.startsWith('gpt3-175b')")


def test_what_does_not_fit_says_so_in_words_and_in_the_picture(page: Page, server: Explorer) -> None:
    visit(page, server, **{**SMALL, "model": "gpt3-175b", "nodes": "1", "tp": "8", "pp": "1"})
    expect(page.locator("#fits")).to_have_class("over-limit")
    expect(page.locator("#fits")).to_contain_text("Does not fit: the fullest device lacks")
    limit = page.locator("#picture-memory line.limit").bounding_box()
    bars = [box.bounding_box() for box in page.locator("#picture-memory rect.part").all()]
    assert limit
    assert max(box["x"] + box["width"] for box in bars if box) > limit["x"]
    assert "over" in (page.locator("#picture-scatter .current").get_attribute("class") or "")


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [("tp", "7", "does not divide heads(32)"), ("tp", "many", "tp must be a whole number"),
     ("tp", "0", "at least 1"), ("global_batch", "33", "The nearest batch is"),
     ("model", "gpt3-6.7", "Did you mean gpt3-6.7b?"), ("cluster", "dgx", "no cluster is called dgx"),
     ("pp", "64", "layers")],
)  # fmt: skip
def test_a_wrong_input_is_marked_and_the_fix_is_said(
    page: Page, server: Explorer, name: str, value: str, words: str
) -> None:
    visit(page, server, **SMALL)
    step = shown(page, "step_time_s")
    turn(page, name, value)
    expect(page.locator("#problems")).to_contain_text(words)
    expect(page.locator(f"#dial-{name}")).to_have_attribute("aria-invalid", "true")
    assert page.locator(f"#dial-{name}").input_value() == value
    assert shown(page, "step_time_s") == step
    expect(page.locator("#headline")).to_have_class(re.compile("stale"))
    turn(page, name, SMALL[name])
    expect(page.locator("#problems")).to_be_hidden()
    expect(page.locator(f"#dial-{name}")).to_have_attribute("aria-invalid", "false")


def test_a_first_state_that_cannot_run_claims_no_earlier_answer(page: Page, server: Explorer) -> None:
    visit(page, server, **{**SMALL, "tp": "7"})
    expect(page.locator("#problems")).to_contain_text("does not divide")
    expect(page.locator("#title")).to_have_text("This cannot run")
    assert page.locator("#fits").inner_text() == ""
    turn(page, "tp", "2")
    expect(page.locator("#fits")).to_contain_text("Fits")


@pytest.mark.parametrize(
    "name", ["<script>window.hacked=1</script>", "<img src=x onerror=window.hacked=1>", "\"'><svg onload=hacked=1>",
             "javascript:alert(1)", "__proto__", "../../etc/passwd", "x" * 5000],
)  # fmt: skip
def test_a_hostile_model_name_is_only_words(page: Page, server: Explorer, name: str) -> None:
    visit(page, server, **{**SMALL, "model": name})
    expect(page.locator("#problems")).to_be_visible()
    assert page.evaluate("() => window.hacked") is None
    assert page.locator("#problems script, #problems img, #problems svg").count() == 0
    assert page.locator("#dial-model").input_value() == name


def test_a_hostile_catalogue_is_only_words(
    page: Page, server: Explorer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, root: Path
) -> None:
    text = (root / "models" / "gpt3" / "gpt3-6.7b.toml").read_text(encoding="utf-8")
    hostile = "<img src=x onerror=window.hacked=1>"
    changed = re.sub(r'^title = ".*"$', f'title = "{hostile}"', text, flags=re.MULTILINE)
    assert changed != text
    folder = tmp_path / "models"
    folder.mkdir()
    (folder / "hostile.toml").write_text(re.sub(r"^aliases = .*$", "", changed, flags=re.MULTILINE), encoding="utf-8")
    monkeypatch.setenv("SHARDWISE_CATALOG", str(tmp_path))
    visit(page, server, **{**SMALL, "model": "hostile"})
    assert "hostile on 16 devices" in page.locator("#title").inner_text()
    assert page.evaluate("() => window.hacked") is None
    assert page.locator("#answer img").count() == 0


def test_without_the_token_there_is_no_page(browser: Browser, server: Explorer) -> None:
    context = browser.new_context()
    page = context.new_page()
    answer = page.goto(f"http://127.0.0.1:{server.port}/")
    assert answer
    assert answer.status == 403
    assert "Open the link" in page.content()
    context.close()


def test_another_page_can_neither_ask_nor_read(browser: Browser, server: Explorer) -> None:
    context = browser.new_context()
    page = context.new_page()
    page.goto(server.url)
    settled(page)
    stranger = context.new_page()
    stranger.goto("about:blank")
    outcome = stranger.evaluate(
        "async url => { try { const r = await fetch(url, {method: 'POST', body: '{}', mode: 'no-cors',"
        " credentials: 'include'}); return r.type + await r.text(); } catch (e) { return 'refused'; } }",
        f"http://127.0.0.1:{server.port}/api/catalogue",
    )
    assert outcome in {"refused", "opaque"}
    framed = stranger.evaluate(
        "url => new Promise(done => { const f = document.createElement('iframe'); f.src = url;"
        " f.onload = () => { try { done(f.contentDocument ? 'read' : 'closed'); } catch { done('closed'); } };"
        " document.body.append(f); setTimeout(() => done('closed'), 3000); })",
        f"http://127.0.0.1:{server.port}/",
    )
    assert framed == "closed"
    context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 820, 1300])
def test_it_stands_on_any_width_in_light_and_dark(browser: Browser, server: Explorer, width: int, scheme: str) -> None:
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
    page = context.new_page()
    visit(page, server, **SMALL)
    assert page.evaluate("() => document.documentElement.scrollWidth") <= width
    colours = page.evaluate("() => { const s = getComputedStyle(document.body); return [s.color, s.backgroundColor]; }")
    ink, paper = (sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in colours)
    assert (ink < 200 and paper > 700) if scheme == "light" else (ink > 600 and paper < 150)
    for name in ("waterfall", "memory", "timeline", "topology", "scatter"):
        box = page.locator(f"#picture-{name} svg").bounding_box()
        assert box
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width
    context.close()


def test_every_word_of_a_picture_is_inside_it(browser: Browser, server: Explorer) -> None:
    mixture = {**MIXTURE, "etp": "2", "ep": "4", "cp": "2", "recompute": "full"}
    too_large = {**SMALL, "model": "gpt3-175b", "nodes": "1", "tp": "8", "pp": "1"}
    for width, state in ((360, {}), (1300, {}), (360, mixture), (820, mixture), (360, too_large)):
        context = browser.new_context(viewport={"width": width, "height": 800})
        page = context.new_page()
        visit(page, server, **state)
        outside = page.evaluate(
            "() => [...document.querySelectorAll('figure svg text')].filter(t => { const a = t.getBoundingClientRect(),"
            " b = t.ownerSVGElement.getBoundingClientRect(); return a.left < b.left - 1 || a.right > b.right + 1"
            " || a.top < b.top - 1 || a.bottom > b.bottom + 1; }).map(t => t.textContent)"
        )
        assert outside == [], width
        context.close()


def test_the_report_asks_for_nothing_and_runs_nothing(context: BrowserContext, tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    assert run_command(["report", "gpt3-6.7b", "dgx-a100", "--nodes", "2", "--tp", "2", "--pp", "2", "--global-batch",
                        "32", "-o", str(file)]) == 0  # fmt: skip
    page = context.new_page()
    asked: list[str] = []
    said: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: said.append(message.text))
    page.goto(file.as_uri())
    assert asked == [file.as_uri()]
    assert said == []
    assert page.locator("svg[role=img]").count() == 4
    assert page.evaluate("() => getComputedStyle(document.querySelector('.k-gemm')).getPropertyValue('--part')")
