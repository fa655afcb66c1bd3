"""New examples: given ones, rewritten by a model behind an OpenAI-compatible endpoint.

A reply is treated as data. It is accepted if it is a JSON object {question, solution} whose solution has a final answer
and correct equations. Replies are cached on disk, so each request is paid for once. The key is read from the
environment, sent only to the endpoint, and never written.
"""

import http.client
import json
import os
import re
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import count

from etils.epath import Path

from premem_jax import strict_json
from premem_jax.data.examples import Example, worked
from premem_jax.errors import UserError
from premem_jax.running import sealed

KEY = "OPENAI_API_KEY"  # the environment variable
ASKED = """Write another problem like the one below: the same kind of reasoning, with other numbers, names and things.
Solve it step by step in the format of the solution below, ending in its final answer in the same way.
Reply with a JSON object {"question": ..., "solution": ...} and nothing else.
"""
AGAIN = (408, 409, 429, 500, 502, 503, 504, 529)  # statuses of faults that pass
MOST_BAD = 20  # replies in a row, about one original, that are no example; then there are no more
_N = r"(\d+(?:\.\d+)?)"
_EQUATION = re.compile(rf"(?<![\d.]){_N} ?([-+*/]) ?\$?{_N} ?= ?\$?{_N}(?![\d.]*\d)")


@dataclass
class Endpoint:
    """An endpoint with its rate limit. Methods are thread-safe."""

    url: str  # up to and with /v1
    model: str
    folder: Path  # of the replies that are there
    per_minute: float = 60.0  # requests, over all threads
    workers: int = 8  # requests at once
    tries: int = 6
    first_wait: float = 1.0  # seconds before the second try; each wait is twice the one before
    timeout: float = 60.0
    spent: dict[str, int] = field(default_factory=lambda: {"requests": 0, "prompt_tokens": 0, "completion_tokens": 0})
    _free_at: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def reply(self, text: str, variation: int) -> str:
        """The model's reply to a text; each `variation` is a separate reply.

        Raises:
          UserError: the endpoint refuses, or fails in all retries.
        """
        request = {
            "model": self.model,
            "messages": [{"role": "user", "content": text}],
            "temperature": 1.0,
            "seed": variation,
        }
        path = self.folder / f"{sealed.digest(json.dumps([self.url, request], sort_keys=True).encode())}.json"
        kept = sealed.unless_damaged(sealed.read_json, path, self.folder, "it is asked again")
        if kept is None:
            kept = {"reply": self._asked(json.dumps(request).encode())}
            sealed.write_json(path, kept)
        return kept["reply"]

    def _asked(self, body: bytes) -> str:
        why = ""
        for attempt in range(self.tries):
            if attempt:
                time.sleep(self.first_wait * 2 ** (attempt - 1))
            self._wait_for_turn()
            try:
                return self._once(body)
            except urllib.error.HTTPError as error:
                why = f"status {error.code}"
                if error.code not in AGAIN:
                    break
                self._hold(error.headers.get("Retry-After", ""))
            except (OSError, http.client.HTTPException, ValueError, KeyError, IndexError, TypeError) as error:
                why = f"{type(error).__name__}: {error}"  # no connection, a timeout, or half a reply
            except RecursionError:
                why = "a reply that is nested too deeply"
        raise UserError(f"the endpoint {self.url} gives no reply ({why}); what it replied before is kept")

    def _once(self, body: bytes) -> str:
        headers, keys = {"Content-Type": "application/json"}, {}
        if key := os.environ.get(KEY, "").strip():
            if not re.fullmatch("[!-~]+", key):  # the library would name it in its error
                raise UserError(
                    f"the environment variable {KEY} holds what no key does: a space, or a letter beyond ASCII"
                )
            keys["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(f"{self.url.rstrip('/')}/chat/completions", body, headers)
        request.unredirected_hdrs |= keys  # not to where it may refer
        with urllib.request.urlopen(request, timeout=self.timeout) as response:
            document = json.loads(response.read())
        text = document["choices"][0]["message"]["content"]
        if not isinstance(text, str):
            raise ValueError("the reply has no text")
        usage = document.get("usage")
        with self._lock:
            self.spent["requests"] += 1
            for name in ("prompt_tokens", "completion_tokens"):
                count = usage.get(name) if isinstance(usage, dict) else None
                self.spent[name] += count if isinstance(count, int) else 0
        return text

    def _wait_for_turn(self) -> None:
        with self._lock:
            turn = max(self._free_at, time.monotonic())
            self._free_at = turn + 60 / self.per_minute
        time.sleep(max(0.0, turn - time.monotonic()))

    def _hold(self, seconds: str) -> None:
        """Pauses requests as long as the endpoint asks, at most a minute."""
        if re.fullmatch(r"\d{1,5}", seconds):
            with self._lock:
                self._free_at = max(self._free_at, time.monotonic() + min(60, int(seconds)))


@dataclass(frozen=True)
class Rewriter:
    """Rewrites examples of a task whose prompts are those of `worked`; `final_answer` is the task's."""

    endpoint: Endpoint
    final_answer: Callable[[str], str]

    def candidates(self, original: Example) -> Iterator[Example]:
        """Rewritten examples that pass the checks, in order of variation."""
        bad = 0
        for variation in count():
            found = self._read(self._reply(original, variation))
            bad = 0 if found else bad + 1
            if bad == MOST_BAD:
                return
            if found:
                yield found

    def prepare(self, originals: Sequence[Example], counts: Sequence[int]) -> None:
        """Requests this many variations of each example in parallel, to fill the cache."""
        wanted = [(one, i) for one, most in zip(originals, counts, strict=True) for i in range(int(most))]
        with ThreadPoolExecutor(self.endpoint.workers) as pool:
            for _ in pool.map(lambda each: self._reply(*each), wanted):
                pass

    def _reply(self, original: Example, variation: int) -> str:
        question = original.prompt.removesuffix("\nAnswer:")
        return self.endpoint.reply(f"{ASKED}\nProblem:\n{question}\n\nSolution:\n{original.target.strip()}", variation)

    def _read(self, reply: str) -> Example | None:
        """The example in a reply; None if the reply is malformed or its equations are wrong."""
        try:
            row = strict_json.loads(reply.encode(), "reply")
            question, solution = row["question"].strip(), row["solution"].strip()
            answer = self.final_answer(solution)
        except (UserError, ValueError, KeyError, TypeError, AttributeError):
            return None
        if not question or not holds(solution):
            return None
        return worked(0, {"problem": question, "solution": solution, "answer": answer})


def holds(solution: str) -> bool:
    """Whether every equation `a op b = c` in a solution is right, to the last digit of c.

    Parts of longer terms are ignored.
    """
    text = solution.replace(",", "")
    for found in _EQUATION.finditer(text):
        part = re.search(r"[-+*/(]\s*\$?$", text[: found.start()]) or re.match(r"\s*[-+*/%]", text[found.end() :])
        if not part and not _right(*found.groups()):
            return False
    return True


def _right(a: str, op: str, b: str, c: str) -> bool:
    x, y = float(a), float(b)
    if op == "/" and y == 0:
        return False
    value = {"+": x + y, "-": x - y, "*": x * y}[op] if op != "/" else x / y
    return abs(value - float(c)) <= 0.5 * 10.0 ** -len(c.partition(".")[2]) + 1e-9
