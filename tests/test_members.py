"""Members of a study, as its config names them."""

import importlib.util
import subprocess
import sys
from pathlib import Path

from ml_collections import ConfigDict

from configs import quickstart
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


def test_a_study_of_the_quickstart_is_the_quickstart_with_other_seeds():
    c = quickstart.get_config("seeds=3")
    for seed, member in enumerate(members_of(c).values()):
        alone = quickstart.get_config()
        alone.seed = alone.data.seed = seed
        assert config_of(c, member).to_dict() == alone.to_dict()
    assert len(members_of(c)) == 3


def test_members_are_listed_without_jax():
    code = "import sys, premem_jax.members; sys.exit('jax' in sys.modules)"
    assert importlib.util.find_spec("jax")
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1]).returncode == 0
