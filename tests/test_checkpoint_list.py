"""The list of checkpoints of a folder: what becomes a member, and what is refused."""

import pytest

from configs import emergence_checkpoints, emergence_openllama, plan
from premem_jax import keys
from premem_jax.checkpoint_list import models_in
from premem_jax.errors import UserError
from premem_jax.members import config_of, members_of


def test_a_list_becomes_a_ladder(tmp_path):
    (tmp_path / "losses.csv").write_text("model, loss, flops, strong\nsmall,2.5,1e18,\nlarge,2.0,,1\n")
    weak, strong = models_in(str(tmp_path))
    assert weak == {"small": {"model.path": f"{tmp_path}/small", "rung.loss": 2.5, "rung.flops": 1e18}}
    assert strong == {"large": {"model.path": f"{tmp_path}/large", "rung.loss": 2.0}}
    c = emergence_checkpoints.get_config(f"folder={tmp_path}")
    c.data.path = "questions.jsonl"
    keys.check(c)
    small, large = (config_of(c, member) for member in members_of(c).values())
    assert (small.rung.loss, large.rung.loss, large.finetune.amounts) == (2.5, 2.0, ())


def test_without_a_list_losses_are_measured_on_the_text(tmp_path):
    for name in ("b", "a"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").touch()
    (tmp_path / "text.txt").touch()
    weak, strong = models_in(str(tmp_path))
    assert [*weak] == ["a", "b"] and not strong
    assert weak["a"] == {"model.path": f"{tmp_path}/a", "rung.texts": f"{tmp_path}/text.txt"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "neither losses.csv"),
        ("", "no column model, loss"),
        ("model,perplexity\na,2\n", "no column loss"),
        ("model,loss\na,2\na,3\n", "row 2: model='a' is the name of a folder, once"),
        ("model,loss\n,2\n", "row 1: model=''"),
        ("model,loss\na,two\n", "row 1: loss='two'"),
        ("model,loss\na,-1\n", "row 1: loss='-1'"),
        ("model,loss\na\n", "row 1: loss=None"),
        ("model,loss,strong\na,2,yes\n", "row 1: strong='yes'"),
        ("model,loss,strong\na,2,1\n", "no model that is not strong"),
    ],
)
def test_a_list_that_cannot_be_used_is_refused(text, words, tmp_path):
    if text is not None:
        (tmp_path / "losses.csv").write_text(text)
    with pytest.raises(UserError, match=words):
        models_in(str(tmp_path))


def test_the_folder_is_asked_for():
    with pytest.raises(UserError, match="config option folder=''"):
        emergence_checkpoints.get_config()


def test_the_ladder_of_the_paper():
    """Nine checkpoints of 3B are finetuned; the cost of the first is that of 10 G tokens."""
    c = emergence_openllama.get_config("folder=models")
    keys.check(c)
    members = [config_of(c, member) for member in members_of(c).values()]
    assert [len(member.finetune.amounts) for member in members] == [7] * 9 + [0] * 18
    assert members[0].model.path == "models/3b-2500" and members[-1].model.path == "models/13b-500000"
    assert members[0].rung.flops == pytest.approx(2.2e20, rel=0.02)
    assert members[8].rung.flops == pytest.approx(2.16e22, rel=0.01)
    assert members[-1].rung.flops == pytest.approx(8.2e22, rel=0.01)
    planned = plan.get_config("task=emergence_openllama,topology=v5e:4x4")
    keys.check(planned)
    assert planned.model.preset == "open_llama_3b" and planned.train.to_dict() == {**c.train, "epochs": 3}
