"""A choice between families whose laws are known: the order, its error, and what speaks against it."""

from functools import cache

import numpy as np
import pytest

from premem_jax.analysis.emergence_choice import compared
from premem_jax.analysis.emergence_forecast import forecast, verdict
from premem_jax.analysis.emergence_law import Law, planted

WEAK, STRONG = np.linspace(2.8, 1.95, 9), (1.9, 1.82, 1.75, 1.68, 1.6, 1.5)
AGREE = {"sizes": {"holds": True}}


@cache
def family(elbow: float, losses=tuple(WEAK)) -> tuple[dict, dict]:
    """The forecast from weak models of a law with this few-shot elbow, and its verdict."""
    law = Law("log_power_law", 4, 4096, elbow, 2.4, 2.0, slope=0.6, floor=0.25, fewshot_floor=0.25)
    amounts = (64, 256, 1024, 4096)
    weak = planted(law, losses, amounts, noise=0.003, seed=int(1000 * elbow))
    found = forecast(weak, 4, "log_power_law", 0, 0)
    return found, verdict(found, weak, planted(law, STRONG, (), noise=0.003, seed=1))


def pair(gates=None, **families) -> dict:
    [one] = compared(
        {name: found for name, (found, _) in families.items()},
        {name: said for name, (_, said) in families.items()},
        {name: AGREE for name in families} | (gates or {}),
    )
    return one


def test_the_order_of_two_families_is_foretold_with_its_error():
    early, late = family(1.88), family(1.72)
    one = pair(a=early, b=late)
    assert one["families"] == ["a", "b"] and one["doubts"] == []
    assert abs(one["difference"] - 0.16) < 3 * one["error"] and 0 < one["error"] < 0.08
    assert abs(one["truth"] - 0.16) < 0.03 and one["right"] is True
    width = [np.diff(found["interval"])[0] for found, _ in (early, late)]
    assert one["error"] == pytest.approx(np.hypot(*width) / 2 / 1.6449, rel=1e-3)
    back = pair(b=late, a=early)
    assert back["difference"] == -one["difference"] and back["right"] is True
    assert one["others"]["smallest_amount"]["difference"] == pytest.approx(
        early[0]["baselines"]["smallest_amount"]["elbow"] - late[0]["baselines"]["smallest_amount"]["elbow"]
    )


def test_what_speaks_against_an_order_is_told():
    early, late = family(1.88), family(1.72)
    vague = pair(a=early, b=(late[0] | {"interval": [1.2, 2.2]}, late[1]))
    assert [doubt for doubt in vague["doubts"] if "the elbows differ by" in doubt] and vague["difference"] > 0
    assert pair(a=early, b=late, gates={"b": {"sizes": {"holds": False}}})["doubts"][0].startswith("b: sizes disagree")
    flat = forecast(
        planted(Law("log_power_law", 4, 64, 0.1, 0.2, 1, 0.1, 0.25, 0.25), WEAK, (16, 32, 64), noise=0.01),
        4,
        "log_power_law",
        0,
        0,
    )
    refused = pair(a=early, b=(flat, early[1]))
    assert (
        refused["difference"] is None and refused["right"] is None and refused["doubts"][0].startswith("b: no forecast")
    )
    apart = pair(a=early, b=(early[0] | {"losses": [3.0, 4.0]}, early[1]))
    assert any("no loss is in the range of both" in doubt for doubt in apart["doubts"])
