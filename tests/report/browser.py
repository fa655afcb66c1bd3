"""Pages in a real browser, headless Chromium, that tells of every request, message and dialog."""

import functools
import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest

WIDTHS = (390, 1440)
# What is cut off: the page, cells and texts beyond its right border, and what only scrolling sideways shows of a table.
CUT = """() => {
  const beyond = [...document.querySelectorAll("td, th, p, li, button, input, figcaption")].filter(
    (e) => e.offsetParent && e.getBoundingClientRect().right > innerWidth + 1).map((e) => e.outerHTML.slice(0, 80));
  const hidden = [...document.querySelectorAll(".wide, #rows")].filter((e) => e.scrollWidth > e.clientWidth + 1);
  return [document.documentElement.scrollWidth > innerWidth, beyond, hidden.map((e) => e.id || e.className)];
}"""
SMALLEST = 9  # points, of texts in figures
# Width of each picture and CSS pixels of such a text in it, as shown; PNGs have 150 dots per inch.
TEXT = """async (points) => {
  await new Promise(requestAnimationFrame);  // in which another width chooses other pictures
  await Promise.all([...document.images].map((i) => i.decode()));
  return [...document.images].map((i) => [i.clientWidth, (i.clientWidth / i.naturalWidth) * (150 / 72) * points]);
}"""


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


def misfits(page) -> list:
    """What is cut off, or drawn too small or too wide, on a phone and on a desktop; nothing where all is well."""
    found = []
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 844})
        pictures = [each for each in page.evaluate(TEXT, SMALLEST) if each[0] > width or each[1] < 9]
        cut = page.evaluate(CUT)
        found += [(width, *cut, pictures)] if cut != [False, [], []] or pictures else []
    return found


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
