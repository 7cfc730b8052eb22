"""The page of `cacovid app` in a real browser: what a visitor does, on a wide screen and a narrow one, in the light and the dark.

Needs the extra `test-demo` and a Chromium of the system; skipped without.
"""

import contextlib
import functools
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import numpy as np
import pytest
from PIL import Image

from cacovid_cli.app.line import Interrupt, Line
from cacovid_cli.app.studio import Studio
from cacovid_hf import auto, tiny
from scripts.app_screenshots import CHROMIUM, PHONE, VIEWS, choose, take

pytest.importorskip("gradio", reason="the extra test-demo is not installed")
sync_api = pytest.importorskip("playwright.sync_api", reason="the extra test-demo is not installed")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")

SECONDS = 60_000  # of any wait, in milliseconds


@pytest.fixture(scope="module", autouse=True)
def connections():
    """Whom this process connects to: itself alone."""
    others = []
    with pytest.MonkeyPatch.context() as patch:
        for name in ("connect", "connect_ex"):
            connect = getattr(socket.socket, name)

            def noted(self, address, connect=connect):
                if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1", "localhost"):
                    others.append(address)
                return connect(self, address)

            patch.setattr(socket.socket, name, noted)
        yield others
    assert not others


@pytest.fixture(scope="module")
def line():
    return Line()


@pytest.fixture(scope="module")
def address(line):
    from cacovid_cli.app.page import launch, make_page

    studio = Studio(auto.load_model(tiny.model_path()), auto.load_processor(tiny.model_path()))
    page = make_page(studio, line, "embedded tiny model", "It knows its own clips only.")
    yield launch(page, "127.0.0.1", None, open_browser=False, max_upload_mb=50)
    page.close()


def test_a_busy_machine_is_not_asked_for_a_public_link(monkeypatch):
    """Gradio takes an address for unreachable whose first answer takes more than three seconds."""
    gradio = pytest.importorskip("gradio")
    from cacovid_cli.app.page import launch

    monkeypatch.setattr(gradio.networking, "url_ok", lambda url: False)
    with gradio.Blocks() as page:
        gradio.Markdown("Here.")
    try:
        address = launch(page, "127.0.0.1", None, open_browser=False, max_upload_mb=1)
        assert address.startswith("http://127.0.0.1:")
        assert not page.share
    finally:
        page.close()


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def visit(browser, address):
    """Opens the page as a new visitor; no request leaves the machine, and nothing fails in the page's own scripts."""
    outside, broken, contexts = [], [], []

    def opened(**options):
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(SECONDS)
        page.on("request", lambda r: None if r.url.startswith((address, "data:", "blob:")) else outside.append(r.url))
        page.on("pageerror", lambda error: broken.append(str(error)))
        page.goto(address)
        page.wait_for_selector("#cv-ask")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert not outside
    assert not broken


def status_is(page, words):
    sync_api.expect(page.locator("#cv-status")).to_contain_text(words, timeout=SECONDS)


def ask(page):
    page.click("#cv-ask")
    status_is(page, "Done")


def kept(page, number=0):
    return int(re.search(r"(\d+) of 288", page.locator(".cv-map h3").nth(number).inner_text())[1])


def fits(page):
    """Nothing makes the page wider than its screen."""
    return page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth + 1")


def test_a_question_is_answered(visit):
    page = visit()
    assert "Ready" in page.inner_text("#cv-status")
    ask(page)
    cards = page.locator(".cv-card")
    assert cards.count() == 2
    assert "purple" in cards.nth(0).inner_text()
    assert "72 of 288 video tokens (25.0%)" in cards.nth(0).inner_text()
    assert "288 of 288" in cards.nth(1).inner_text()
    assert kept(page) == 72
    assert page.locator(".cv-map figure").count() == 8
    assert page.locator(".cv-strip i").count() == 8
    assert "444 KiB" in page.inner_text("#cv-costs")
    assert "prefill" in page.inner_text("#cv-times")


def test_the_map_follows_the_slider_by_keyboard(visit):
    page = visit()
    ask(page)
    words = page.inner_text("#cv-answers")
    page.locator("#cv-slider input[type=range]").focus()
    first = page.locator(".cv-map img").first.get_attribute("src")
    for expected in (69, 66, 63):
        page.keyboard.press("ArrowLeft")
        sync_api.expect(page.locator(".cv-map h3")).to_contain_text(f"{expected} of 288", timeout=SECONDS)
    assert page.locator(".cv-map img").first.get_attribute("src") != first
    assert "ask again to hear" in page.inner_text("#cv-maps")
    assert page.inner_text("#cv-answers") == words
    page.locator("#cv-auto input").check()
    sync_api.expect(page.locator("#cv-maps")).to_contain_text("This is auto", timeout=SECONDS)


def test_everything_can_be_done_by_keyboard(visit):
    page = visit()
    page.locator("#cv-question textarea").focus()
    page.keyboard.press("Control+A")
    page.keyboard.type("What shape is colored cyan?")
    page.keyboard.press("Enter")
    status_is(page, "Done")
    assert "square" in page.locator(".cv-card").first.inner_text()
    names = set()
    page.locator("#cv-question textarea").focus()
    for _ in range(25):
        page.keyboard.press("Tab")
        names.add(page.evaluate("document.activeElement.closest('[id^=cv-]')?.id"))
    assert {"cv-method", "cv-other", "cv-ask", "cv-table", "cv-slider", "cv-auto"} <= names


def test_two_methods_side_by_side(visit):
    page = visit()
    choose(page, "#cv-other", "uniform")
    ask(page)
    assert page.locator(".cv-card").count() == 3
    assert [kept(page, number) for number in (0, 1)] == [72, 72]
    left, right = (page.locator(".cv-map").nth(number).bounding_box() for number in (0, 1))
    assert left["y"] == right["y"]
    assert left["x"] + left["width"] <= right["x"]
    strips = [page.locator(".cv-strip").nth(number).get_attribute("aria-label") for number in (0, 1)]
    assert strips[1] == "Tokens kept over time: 9, 9, 9, 9, 9, 9, 9, 9"
    assert strips[0] != strips[1]


def test_all_ratios(visit):
    page = visit()
    page.click("#cv-table")
    status_is(page, "Done")
    assert page.locator("#cv-ratios tbody tr").count() == 7
    assert page.inner_text("#cv-ratios").count("✓") == 6


def upload(page, path):
    page.locator("#cv-video button[aria-label=Clear], #cv-video button[title=Clear]").first.click()
    page.set_input_files("#cv-video input[type=file]", path)
    page.wait_for_selector("#cv-video video")


def test_a_broken_file_is_one_sentence_and_nothing_is_lost(visit, tmp_path):
    page = visit()
    ask(page)
    before = page.inner_text("#cv-answers"), kept(page)
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(np.random.default_rng(0).bytes(5000))
    upload(page, broken)
    page.click("#cv-ask")
    status_is(page, "broken.mp4")
    assert page.locator("#cv-status [role=alert]").count() == 1
    assert (page.inner_text("#cv-answers"), kept(page)) == before
    upload(page, tiny.clips()[1].path)
    ask(page)
    assert page.locator("#cv-status [role=alert]").count() == 0


def test_no_video_and_no_question(visit):
    page = visit()
    page.fill("#cv-question textarea", " ")
    page.click("#cv-ask")
    status_is(page, "The question is empty")


def test_visitors_wait_and_are_told_so(visit, line):
    first, second = visit(), visit()
    with line.turn(Interrupt(), print):
        first.click("#cv-ask")
        status_is(first, "Waiting: 1 question is before yours")
        second.click("#cv-ask")
        status_is(second, "Waiting: 2 questions are before yours")
        sync_api.expect(first.locator("#cv-ask")).to_be_disabled()
    for page in (first, second):
        status_is(page, "Done")
        assert "purple" in page.locator(".cv-card").first.inner_text()


def test_whoever_waits_can_stop(visit, line):
    page = visit()
    with line.turn(Interrupt(), print):
        page.click("#cv-ask")
        status_is(page, "Waiting")
        page.click("#cv-stop")
        status_is(page, "Stopped")
    sync_api.expect(page.locator("#cv-stop")).to_be_disabled()
    ask(page)


def test_whoever_closes_the_page_makes_way(visit, line):
    page = visit()
    with line.turn(Interrupt(), print):
        page.click("#cv-ask")
        status_is(page, "Waiting")
        page.close()
        ends = time.monotonic() + 30
        while line.waiting:
            assert time.monotonic() < ends
            time.sleep(0.1)


def test_two_visitors_at_once_see_their_own(visit):
    pages = visit(), visit()
    pages[1].fill("#cv-question textarea", "What shape is colored cyan?")
    for page in pages:
        page.click("#cv-ask")
    for page, word in zip(pages, ("purple", "square"), strict=True):
        status_is(page, "Done")
        assert word in page.locator(".cv-card").first.inner_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone(visit, scheme):
    page = visit(**PHONE, color_scheme=scheme)
    page.tap("#cv-ask")
    status_is(page, "Done")
    assert fits(page)
    page.locator(".cv-map figure").last.scroll_into_view_if_needed()
    assert page.locator("#cv-slider").bounding_box()["y"] >= -5  # the slider stays in sight
    brightness = page.evaluate(
        "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3).map(Number).reduce((a, b) => a + b)"
    )
    assert brightness < 200 if scheme == "dark" else brightness > 600


def test_pictures(browser, address, line, tmp_path):
    """Of every view that `scripts/app_screenshots.py` knows; no two are alike."""
    seen = set()
    for name in VIEWS:
        take(browser, address, line, name, tmp_path / f"{name}.png")
        with Image.open(tmp_path / f"{name}.png") as picture:
            wide = VIEWS[name][0]["viewport"]["width"]
            assert picture.width == wide
            assert picture.height > 900
            seen.add(picture.tobytes())
    assert len(seen) == len(VIEWS)


@contextlib.contextmanager
def stopped(process):
    """Ends a process that a failed test leaves, since leaving its own context waits for it."""
    try:
        yield
    finally:
        process.kill()


def test_the_command(visit):
    """From the terminal, until Ctrl-C; a port that is taken is one sentence."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-c", "from cacovid_cli.main import main; main()", "app", "--port", port]
    # A suite that runs in the background of a shell ignores Ctrl-C, and its children would too.
    heed = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with (
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heed
        ) as running,
        stopped(running),
    ):
        line = running.stdout.readline()
        assert line == f"The page is at http://127.0.0.1:{port}/ (Ctrl-C ends it).\n"
        assert b"cv-ask" in urllib.request.urlopen(f"http://127.0.0.1:{port}/").read()
        second = subprocess.run(command, capture_output=True, text=True)
        assert second.returncode == 2
        assert second.stderr.count("\n") == 1
        assert port in second.stderr
        running.send_signal(signal.SIGINT)
        assert running.wait(30) == 0
        assert "Traceback" not in running.stderr.read()
