"""Pictures of the page of `cacovid app` in a real browser: the README's, and all that is worth a look after a change of the page.

python scripts/app_screenshots.py                # docs/images/app.png
python scripts/app_screenshots.py --folder DIR   # every view, into DIR

Needs the extra `test-demo` and a Chromium of the system. Without them it says so and does nothing.
"""

import argparse
import importlib.util
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
README_PICTURE = ROOT / "docs" / "images" / "app.png"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PHONE: dict[str, Any] = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}
WIDE: dict[str, Any] = {"viewport": {"width": 1240, "height": 900}}
_SECONDS = 60_000  # of any wait, in milliseconds


def missing() -> str | None:
    """Return what is not installed, with its remedy, or None."""
    if any(importlib.util.find_spec(name) is None for name in ("gradio", "playwright")):
        return 'gradio or playwright is not installed: pip install -e ".[test-demo]".'
    return None if CHROMIUM else "no Chromium is installed: apt-get install chromium, or the like."


def opened(browser: Any, address: str, **options: Any) -> Any:
    """Open the page as a new visitor."""
    page = browser.new_context(**options).new_page()
    page.set_default_timeout(_SECONDS)
    page.goto(address)
    page.wait_for_selector("#cv-ask")
    return page


def until(page: Any, words: str) -> None:
    """Wait until the status says so."""
    page.wait_for_function("words => document.querySelector('#cv-status').innerText.includes(words)", arg=words)


def choose(page: Any, place: str, words: str) -> None:
    """Pick an entry of a list."""
    page.locator(f"{place} input").click()
    entries = page.locator(f"{place} [role=option], [role=listbox] [role=option]")
    entries.filter(has_text=re.compile(f"^\\W*{re.escape(words)}$")).first.click()


def asked(page: Any, line: Any) -> None:
    """Ask, and wait for the answer."""
    page.click("#cv-ask")
    until(page, "Done")


def compared(page: Any, line: Any) -> None:
    """Ask two methods."""
    choose(page, "#cv-other", "uniform")
    asked(page, line)


def all_ratios(page: Any, line: Any) -> None:
    """Ask at all ratios, with the map of the question before."""
    asked(page, line)
    page.click("#cv-table")
    page.wait_for_selector("#cv-ratios table")
    until(page, "Done")


def cancelled(page: Any, line: Any) -> None:
    """Stop a second question, which waits behind somebody else's."""
    from cacovid_cli.app.line import Interrupt

    asked(page, line)
    with line.turn(Interrupt(), print):
        page.click("#cv-ask")
        until(page, "Waiting")
        page.click("#cv-stop")
        until(page, "Stopped")


def by_keyboard(page: Any, line: Any) -> None:
    """Type, ask and move the slider without a mouse; the slider keeps the focus."""
    page.locator("#cv-question textarea").focus()
    page.keyboard.press("Control+A")
    page.keyboard.type("What shape is colored cyan?")
    page.keyboard.press("Enter")
    until(page, "Done")
    page.locator("#cv-slider input[type=range]").focus()
    page.keyboard.press("ArrowLeft")
    page.wait_for_selector("#cv-maps .cv-hint")


def refused(page: Any, line: Any) -> None:
    """Ask nothing."""
    page.fill("#cv-question textarea", " ")
    page.click("#cv-ask")
    page.wait_for_selector("#cv-status [role=alert]")


Do = Callable[[Any, Any], None]
VIEWS: dict[str, tuple[dict[str, Any], Do]] = {
    "compared": (WIDE, compared),
    "compared_dark": (WIDE | {"color_scheme": "dark"}, compared),
    "phone": (PHONE, asked),
    "phone_dark": (PHONE | {"color_scheme": "dark"}, compared),
    "ratios": (WIDE, all_ratios),
    "cancelled": (WIDE, cancelled),
    "keyboard": (WIDE, by_keyboard),
    "refused": (PHONE, refused),
}


def take(browser: Any, address: str, line: Any, name: str, target: Path) -> None:
    """Write the picture of a view, the whole page of it; `line` is the one that visitors of the page wait in."""
    options, do = VIEWS[name]
    page = opened(browser, address, **options)
    do(page, line)
    page.wait_for_function("[...document.images].every(image => image.complete)")
    page.mouse.move(0, 0)  # what it is over looks otherwise
    page.wait_for_timeout(500)  # bars grow, and the video shows its first frame
    page.screenshot(path=target, full_page=True, animations="disabled")
    page.context.close()
    with Image.open(target) as picture:  # as large as it must be; a palette would change the colours
        whole = picture.convert("RGB")
    whole.save(target, optimize=True)


def main() -> None:
    """Show the page, and take pictures of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="of all views; default: the README's picture alone")
    folder = parser.parse_args().folder
    if reason := missing():
        print(f"No pictures: {reason}")
        return
    from playwright.sync_api import sync_playwright

    from cacovid_cli.app.command import EMBEDDED_NOTICE
    from cacovid_cli.app.line import Line
    from cacovid_cli.app.page import launch, make_page
    from cacovid_cli.app.studio import Studio, warm_up
    from cacovid_hf import auto, tiny

    studio = Studio(auto.load_model(tiny.model_path()), auto.load_processor(tiny.model_path()))
    warm_up(studio, tiny.clips()[0].path)
    line = Line()
    shown = make_page(studio, line, "embedded tiny model", EMBEDDED_NOTICE)
    address = launch(shown, "127.0.0.1", None, open_browser=False, max_upload_mb=50)
    targets = {"compared": README_PICTURE}
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        targets = {name: folder / f"{name}.png" for name in VIEWS}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        for name, target in targets.items():
            take(browser, address, line, name, target)
            print(target)
        browser.close()
    shown.close()


if __name__ == "__main__":
    main()
