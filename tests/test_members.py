"""Members of a study, as its config names them."""

import importlib.util
import subprocess
import sys
from pathlib import Path

from ml_collections import ConfigDict

from premem_jax import config as defaults
from premem_jax.members import chosen, config_of, members_of
from tests.configs import tiny_sweep


def test_a_member_is_chosen_with_what_it_needs(tmp_path):
    members = members_of(defaults.study("x", ConfigDict(), [("a", {}, ()), ("b", {}, ("a",)), ("c", {}, ("b",))]))
    assert [member.name for member in chosen(members, "b")] == ["a", "b"]
    assert [member.name for member in chosen(members, "c")] == [*members] == ["a", "b", "c"]
    c = tiny_sweep.get_config()
    rates = [config_of(c, member).train.learning_rate for member in members_of(c).values()]
    assert rates == [1e-3, 4e-3, 1e30] and "study" not in config_of(c, members_of(c)["slow"])


def test_members_are_listed_without_jax():
    code = "import sys, premem_jax.members; sys.exit('jax' in sys.modules)"
    assert importlib.util.find_spec("jax")
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1]).returncode == 0
