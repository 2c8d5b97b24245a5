"""The page in a real browser: headless Chromium, driven by Playwright, accessibility judged by axe-core.

Skipped where one of them is missing, but with JAXBP_NEED_BROWSER=1 that is a failure. With JAXBP_PAGE=FOLDER the report.html of a real
run is looked at, too; with JAXBP_SCREENSHOTS=FOLDER pictures of every page are kept there.
"""

import http.server
import itertools
import os
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest

from jaxbp import claims, report, stats
from jaxbp.claims import Above, Below, Claim, Within

pytestmark = pytest.mark.browser

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
NASTY = (
    "<script>document.title = 'ran'</script><img src=x onerror=\"document.title = 'ran'\">",
    "\" onfocus=\"document.title = 'ran'\" tabindex='0' autofocus x='",
    "</style></title></code></pre></details><!--<style>body { display: none }",
    "javascript:alert(1)",
    "../../" + "a" * 300 + "/file:///C:\\x?<y>&amp;#S2.a.npz",
    "w" * 400,
    "zero\u200bwidth\u200d\ufeff" * 40,
    "\u202eturned over, never ended",
    "שלום עולם مرحبا بالعالم, 123 [4, 5]",
    "z\u0337\u0351\u0343\u0363" * 60,
    "bell\x07 escape\x1b[31m nothing\x00",
)
SHOWN = [text.translate({7: "\ufffd", 27: "\ufffd", 0: "\ufffd", 0x202E: "\ufffd"}) for text in NASTY]
PAPER = 680  # A4 less its margins
LOOKS = [(width, scheme) for width in (1280, 768, 360) for scheme in ("light", "dark")]
PAGES = ["several", "one", *(["real"] if os.environ.get("JAXBP_PAGE") else [])]
REACHED = "a[href], summary, [tabindex='0'], input"  # what the keyboard has to get to


def missing(what):
    need = os.environ.get("JAXBP_NEED_BROWSER") == "1"
    (pytest.fail if need else pytest.skip)(f"{what} is not installed: no browser looks at the page")


@pytest.fixture(scope="module")
def browser():
    try:
        from playwright.sync_api import sync_playwright
    except ModuleNotFoundError:
        missing("playwright (extra `browser`)")
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        missing("Chromium (Debian's package chromium)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def axe():
    try:
        from axe_playwright_python.sync_playwright import Axe
    except ModuleNotFoundError:
        missing("axe-playwright-python (extra `browser`)")
    return Axe()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    studies = [nasty_study(folder, number) for number in (1, 2)]
    studies.append(report.StudySection("S3", "Nothing but a title", "And a lead.", []))
    report.write_page(folder / "several.html", title=NASTY[0], lead=" ".join(NASTY), studies=studies)
    report.write_page(folder / "one.html", title=NASTY[2], lead=NASTY[5], studies=studies[:1])
    return folder


@pytest.fixture(scope="module")
def map_page(folder):
    """The page of a map whose every text is from outside."""
    axes = (claims.Axis("rate", (0.01, 0.1, 1.0)), claims.Axis(NASTY[5], NASTY[:7]), claims.Axis(NASTY[1], tuple(range(12))))
    claim = Claim("S1.a", NASTY[0], NASTY[1], NASTY[2], Above(0.0), NASTY[5])
    rng, cells = np.random.default_rng(0), []
    for values in itertools.product(*(axis.values for axis in axes)):
        point = dict(zip((axis.name for axis in axes), values, strict=True))
        verdict = claims.judge(claim, {"a": rng.normal(size=5) - np.log10(10 * values[0])})
        cells.append(claims.MapCell(point, None, " ".join(NASTY)) if values[2] == 3 else claims.MapCell(point, verdict))
    facts = {"sampling": NASTY[0], "controls": NASTY, "command": NASTY[4], "settings": {NASTY[0]: NASTY[5]}}
    work = {"cells": 9, "cells_computed": 1, "jobs": 2}
    report.write_map_page(folder / "map.html", claims.ClaimMap(claim, axes, tuple(cells), facts | {"work": work}))
    return folder / "map.html"


@pytest.fixture(params=PAGES)
def path(request, folder):
    return Path(os.environ["JAXBP_PAGE"]) / "report.html" if request.param == "real" else folder / f"{request.param}.html"


def nasty_study(folder, number):
    """A study whose every text is from outside."""
    rng = np.random.default_rng(number)
    by_case = {text: rng.normal(size=5) + row - 3 for row, text in enumerate(NASTY)} | {NASTY[5][1:]: [np.nan] * 3}
    rules = (Above(0.0), Below(-1e-7), Within(0.25, centre=-0.5), Above(9.0), Below(1e9))
    verdicts = [claims.judge(Claim(f"S{number}.a", "Plain.", "Table 1", "x", Above(-99.0)), {"a": rng.normal(size=5)})]
    for text, rule in zip(NASTY, rules * 3, strict=False):
        name = f"S{number}.{text.translate({ord(c): None for c in ' ' + chr(9)})}"
        claim = Claim(name, text, text, text, rule, text, belief=text)
        verdicts.append(claims.judge(claim, by_case if rule.region[0] == 0 else {text: by_case[text]}))
    fig, ax = report.figure()
    report.strip(ax, {"a": [1.0, 2.0], "b": [3.0, 2.0]})
    picture = report.Picture(report.save_figure(fig, folder, f"figure{number}")[1], NASTY[1], NASTY[1])
    rows = [(text, text, 1.5, stats.t_interval([1.0, 2.0]), None, *[text] * 3) for text in NASTY]
    table = report.Table(("plain", NASTY[5], NASTY[2], "interval", "none", "a", "b", "c"), rows, NASTY[0])
    inner = report.Section(NASTY[1], [table, report.Table(("few",), [("1",)], "A small table.")])
    sections = [report.Section(NASTY[0], [picture, *NASTY, inner]), report.Section(NASTY[5], [picture])]
    config = {"command": " ".join(NASTY), "packages": {"jax": NASTY[1]}, "git_commit": NASTY[2], "devices": [NASTY[5]]}
    config["settings"] = {text: {"list": [text], text: [{text: text}]} for text in NASTY}
    return report.StudySection(f"S{number}", NASTY[3 + number], NASTY[4], verdicts, sections, config, f"python {NASTY[4]}")


class Visit:
    """A page that is open, and what its browser had to say and asked for."""

    def __init__(self, browser, path, *, width=1280, scheme="light", **options):
        self.context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme, **options)
        self.context.set_default_timeout(180_000)  # milliseconds; a busy machine needs some
        self.said, self.asked = [], []
        self.context.on("request", lambda request: self.asked.append(request.url))
        self.page = self.context.new_page()
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.goto(path if isinstance(path, str) else path.as_uri())  # until all has been loaded
        self.page.wait_for_load_state("networkidle")  # what a script may ask for later

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.context.close()

    def unfold(self):
        self.page.evaluate("document.querySelectorAll('details').forEach(each => { each.open = true })")

    def excess(self):
        """By how many pixels the page is wider than its window, and what sticks out of it without a box that scrolls."""
        return self.page.evaluate("""() => {
            const root = document.documentElement, out = []
            for (const each of document.querySelectorAll('body *')) {
                const right = each.getBoundingClientRect().right
                if (right > root.clientWidth + 1 && !each.closest('.scroll, pre')) out.push([each.tagName, each.className, right])
            }
            return [root.scrollWidth - root.clientWidth, out]
        }""")


def keep(visit, path, name):
    if folder := os.environ.get("JAXBP_SCREENSHOTS"):
        visit.page.screenshot(path=Path(folder) / f"{path.parent.name}-{path.stem}-{name}.png", full_page=True)


@pytest.mark.parametrize("width,scheme", LOOKS)
def test_loads_in_silence_and_fits(browser, path, width, scheme):
    with Visit(browser, path, width=width, scheme=scheme) as visit:
        keep(visit, path, f"{width}-{scheme}")
        assert visit.excess() == [0, []]
        visit.unfold()
        assert visit.excess() == [0, []]
        assert visit.page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
        assert visit.said == []
        assert [url for url in visit.asked if not url.startswith("data:")] == [path.as_uri()]


@pytest.mark.parametrize("width,scheme", [*LOOKS, (PAPER, "print")])
def test_a_map_loads_in_silence_fits_and_is_accessible(browser, axe, map_page, width, scheme):
    is_print = scheme == "print"
    with Visit(browser, map_page, width=width, scheme="dark" if is_print else scheme, bypass_csp=True) as visit:
        visit.page.emulate_media(media="print" if is_print else "screen")
        keep(visit, map_page, f"{width}-{scheme}")
        visit.unfold()
        assert visit.excess() == [0, []]
        assert visit.said == []
        assert visit.asked == [map_page.as_uri()]
        found = axe.run(visit.page).response["violations"]
        assert [(each["id"], each["nodes"][0]["html"][:200], each["nodes"][0]["failureSummary"]) for each in found] == []


def test_prints_on_paper(browser, path):
    with Visit(browser, path, width=PAPER, scheme="dark") as visit:  # a reader whose screen is dark
        visit.page.emulate_media(media="print")
        keep(visit, path, "print")
        assert visit.excess() == [0, []]
        unfolded = "each => each.checkVisibility({contentVisibilityAuto: true, visibilityProperty: true})"
        shown = visit.page.evaluate(f"[...document.querySelectorAll('details > :last-child')].map({unfolded})")
        assert shown
        assert all(shown)
        assert visit.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert visit.page.evaluate("[...document.images].every(image => getComputedStyle(image).filter == 'none')")
        assert len(visit.page.pdf(format="A4")) > 10_000


@pytest.mark.parametrize("width,scheme,media", [(*look, "screen") for look in LOOKS if look[0] != 768] + [(PAPER, "light", "print")])
def test_axe_finds_nothing(browser, axe, path, width, scheme, media):
    with Visit(browser, path, width=width, scheme=scheme, bypass_csp=True) as visit:  # axe is a script
        visit.page.emulate_media(media=media)
        visit.unfold()
        found = axe.run(visit.page).response["violations"]
        assert [(each["id"], each["nodes"][0]["html"][:200], each["nodes"][0]["failureSummary"]) for each in found] == []


def test_forced_colours_keep_the_drawings(browser, path):
    with Visit(browser, path, forced_colors="active") as visit:
        keep(visit, path, "forced")
        colour = "const style = (each, key) => getComputedStyle(document.querySelector(each))[key]; return [{}]"
        wanted = [
            "style('body', 'color')",
            "style('.holds', 'stroke')",
            "style('.bar', 'stroke')",
            "style('.limit', 'stroke')",
        ]
        canvas = visit.page.evaluate("getComputedStyle(document.body).backgroundColor")
        found = visit.page.evaluate(f"() => {{ {colour.format(', '.join(wanted))} }}")
        assert len(set(found)) == 1
        assert canvas not in found


@pytest.mark.parametrize("width", [1280, 360])
def test_keyboard_reaches_everything_in_order(browser, path, width):
    with Visit(browser, path, width=width) as visit:
        page = visit.page
        number = "(each, index) => { each.dataset.order = index; return each.tagName }"
        found = f'[...document.querySelectorAll("{REACHED}")].filter(each => each.checkVisibility())'
        order = page.evaluate(f"{found}.map({number})")
        assert {"A", "SUMMARY", "DIV", "PRE"} | ({"INPUT"} if width == 360 else set()) == set(order)
        seen = []
        for _ in range(len(order)):
            page.keyboard.press("Tab")
            seen.append(
                page.evaluate("""() => {
                const style = getComputedStyle(document.activeElement), box = document.activeElement.getBoundingClientRect()
                const shown = style.outlineStyle != 'none' && parseFloat(style.outlineWidth) >= 2 && box.bottom > 0 && box.top < innerHeight
                return [Number(document.activeElement.dataset.order), shown]
            }""")
            )
        assert seen == [[number, True] for number in range(len(order))]


def test_keys_skip_unfold_and_scroll(browser, path):
    with Visit(browser, path, width=360) as visit:
        page = visit.page
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
        page.keyboard.press("Enter")
        assert page.evaluate("document.activeElement.id") == "content"
        page.locator("summary").first.focus()
        for _ in range(2):  # some are open from the start: the key closes and opens them
            before = page.evaluate("document.querySelector('details').open")
            page.keyboard.press("Enter")
            assert page.evaluate("document.querySelector('details').open") != before
        if not page.evaluate("document.querySelector('details').open"):
            page.keyboard.press("Enter")
        enlarge = page.locator("input").first
        enlarge.focus()
        page.keyboard.press("Space")
        for inside in (enlarge, page.locator(".scroll[tabindex]").first):
            inside.focus()
            page.keyboard.press("ArrowRight")
            page.wait_for_function("each => each.closest('.scroll').scrollLeft > 0", arg=inside.element_handle())
        assert visit.excess() == [0, []]


def test_claims_and_studies_can_be_linked_to(browser, folder):
    for anchor in ("S2.a", "S2", "S2-1"):
        with Visit(browser, f"{(folder / 'several.html').as_uri()}#{anchor}") as visit:
            top = visit.page.evaluate("id => document.getElementById(id).getBoundingClientRect().top", anchor)
            assert 0 <= top < 100


def test_text_from_outside_is_text(browser, folder):
    with Visit(browser, folder / "several.html") as visit:
        visit.unfold()
        page = visit.page
        said = page.evaluate("document.body.textContent")
        assert page.title() == SHOWN[0]
        for text in SHOWN:
            assert said.count(text) > 10
        tags = set(page.evaluate("[...document.querySelectorAll('*')].map(each => each.localName)"))
        assert not tags & {"script", "iframe", "object", "embed", "form", "base"}
        names = set(page.evaluate("[...document.querySelectorAll('*')].flatMap(each => each.getAttributeNames())"))
        assert not [name for name in names if name.startswith("on") or name == "autofocus"]
        links = page.evaluate("[...document.querySelectorAll('[href], [src]')].map(each => each.getAttribute('href') || each.src)")
        assert all(link.startswith(("#", "data:")) for link in links)


@pytest.mark.parametrize("guarded", [True, False])
def test_policy_lets_nothing_out(browser, folder, guarded):
    """What no test above should find is put into the page; without the policy it gets out, which shows that the test sees it."""
    hits = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            hits.append(self.path)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        target = f"http://127.0.0.1:{server.server_port}"
        evil = (
            f'<img src="{target}/image"><link rel="stylesheet" href="{target}/sheet"><style>@import "{target}/import";'
            f'body {{ background: url({target}/background) }}</style><script src="{target}/script"></script>'
            f'<script>fetch("{target}/fetch"); document.title = "ran"</script><iframe src="{target}/frame"></iframe>'
        )
        text = (folder / "one.html").read_text("utf-8").replace("</main>", f"{evil}</main>")
        if not guarded:
            text = text.replace("Content-Security-Policy", "none")
        (folder / "injected.html").write_text(text, "utf-8")
        with Visit(browser, folder / "injected.html") as visit:
            ran = visit.page.title() == "ran"
        server.shutdown()
    assert ran != guarded
    assert set(hits) == (set() if guarded else {"/image", "/sheet", "/import", "/background", "/script", "/fetch", "/frame"})
