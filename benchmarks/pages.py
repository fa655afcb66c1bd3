"""How long a run's page with many examples takes in a browser: to open, to search, to sort.

    python -m benchmarks.pages [--examples=20000] [--evaluations=10] [--name=100000]

Needs `pip install -e '.[test]'` and a Chromium. The page holds random words in texts as long as those of MATH, some of
them not ASCII, and facts and a split with a name of so many characters. Prints milliseconds, the first search apart: it
comes right after the page has opened.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

from premem_jax.analysis import curves, threshold, trace
from premem_jax.report import page as report_page
from tests.analysis.traces import synthetic_splits
from tests.report.browser import launched, opened

# Both run in the page: from the event until the rows are in their places.
SEARCH = """(text) => {
  const box = document.getElementById("search"), begun = performance.now();
  box.value = text;
  box.dispatchEvent(new Event("input"));
  document.getElementById("rows").getBoundingClientRect();
  return [performance.now() - begun, document.getElementById("found").textContent];
}"""
SORT = """(column) => {
  const begun = performance.now();
  document.querySelector(`th.${column} button`).click();
  document.getElementById("rows").getBoundingClientRect();
  return performance.now() - begun;
}"""


def write(folder: Path, examples: int, evaluations: int, name: str) -> tuple[Path, list[str]]:
    """The page, and the texts of its questions."""
    for evaluation in range(evaluations):
        splits = synthetic_splits(5, evaluation, examples)
        splits[name] = splits.pop("test")
        trace.write_evaluation(folder / "trace", evaluation, evaluation, splits)
    read, chosen = trace.read_trace(folder / "trace"), threshold.given(1.1)
    rng = np.random.default_rng(0)
    words = np.array([f"word{i}" for i in range(3000)] + ["Größe", "”so”", "√2"])
    texts = [" ".join(words[rng.integers(len(words), size=100)]).replace("word7", "word7\n") for _ in range(examples)]
    rows = [dict(split="train", example=i, prompt=text[:250], reference=text[250:]) for i, text in enumerate(texts)]
    seen = curves.run_curves(read, chosen, test=name)
    return report_page.write_report(folder, read, seen, chosen, {"name": name}, rows, []), texts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=20_000)
    parser.add_argument("--evaluations", type=int, default=10)
    parser.add_argument("--name", type=int, default=100_000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, launched() as browser:
        begun = time.perf_counter()
        path, texts = write(Path(folder), args.examples, args.evaluations, "n" * args.name)
        print(f"{path.stat().st_size / 1e6:.1f} MB, written in {time.perf_counter() - begun:.1f} s")
        begun = time.perf_counter()
        with opened(browser, path) as page:
            print(f"{'open':16}{1000 * (time.perf_counter() - begun):8.0f} ms")
            for title, query in (
                ("first search", " ".join(texts[-1][:60].split())),
                ("no match", "zzz"),
                ("many matches", "word1"),
            ):
                taken, found = page.evaluate(SEARCH, query)
                print(f"{title:16}{taken:8.0f} ms  {found}")
            page.evaluate(SEARCH, "")
            for column in ("nll", "text"):
                print(f"{'sort by ' + column:16}{page.evaluate(SORT, column):8.0f} ms")
            begun = time.perf_counter()
            page.select_option("#split", index=1)
            page.locator("#body tr:not(.space)").first.wait_for()
            print(f"{'other split':16}{1000 * (time.perf_counter() - begun):8.0f} ms")


if __name__ == "__main__":
    main()
