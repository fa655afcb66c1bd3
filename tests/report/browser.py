"""Pages in a real browser, headless Chromium, that tells of every request, message and dialog."""

import functools
import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest


@functools.cache
def chromium() -> str:
    """The path of the browser; skips the test that asks where there is none."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("no Chromium on this machine; apt-get install chromium")
    return found


@contextmanager
def launched():
    """A headless browser."""
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install -e '.[test]' brings playwright")
    path = chromium()
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def opened(browser, path: Path, fragment: str = "", **options):
    """The page of a file, at a fragment such as `#train/3`.

    Ends in a failed assertion if the page asked for another file, complained, or opened a dialog.
    """
    page = browser.new_page(viewport={"width": 1440, "height": 950}, **options)
    heard, asked = [], []
    page.on("console", lambda message: heard.append(message.text))
    page.on("pageerror", lambda error: heard.append(str(error)))
    page.on("dialog", lambda dialog: (heard.append(f"dialog {dialog.message}"), dialog.dismiss()))
    page.on("request", lambda request: asked.append(request.url.split("#")[0]))
    page.goto(path.as_uri() + fragment)
    yield page
    page.close()
    assert heard == []
    assert {url for url in asked if not url.startswith("data:")} == {path.as_uri()}


def broken_images(page) -> list[str]:
    """Captions of the images without a picture."""
    return page.evaluate("[...document.images].filter(i => !i.naturalWidth).map(i => i.alt)")


def columns(page) -> dict[str, list[str]]:
    """The explorer's table, scrolled through to its end: column to the texts of its cells, from top to bottom."""
    read = """async () => {
      const box = document.getElementById("rows"), found = new Map();
      for (box.scrollTop = 0; ; box.scrollTop += 600) {
        await new Promise(requestAnimationFrame);
        await new Promise(requestAnimationFrame);
        for (const line of document.querySelectorAll("#body tr:not(.space)"))
          found.set(line.cells[0].textContent, [...line.cells].map((cell) => [cell.className, cell.textContent]));
        if (box.scrollTop + box.clientHeight >= box.scrollHeight - 1) break;
      }
      return [...found.values()];
    }"""
    lines = [dict(line) for line in page.evaluate(read)]
    return {name: [line[name] for line in lines] for name in (lines[0] if lines else ["example"])}


def ids(page) -> list[int]:
    """The ids in the table, from top to bottom."""
    return [int(text) for text in columns(page)["example"]]
