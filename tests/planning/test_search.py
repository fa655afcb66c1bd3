"""The search for what fits: the earliest entry of the path, with few trials, and only settings that are allowed."""

import math

from hypothesis import given
from hypothesis import strategies as st

from configs import llama3_8b_gsm8k
from premem_jax.planning.search import first_that_fits, smaller


@given(length=st.integers(0, 40), first=st.integers(0, 45))
def test_the_earliest_that_fits_is_found_with_few_trials(length, first):
    path, tried = [{"n": n} for n in range(length)], []

    def try_out(change):
        tried.append(change)
        return {"fits": change["n"] >= first, "n": change["n"]}

    found = first_that_fits(path, try_out)
    assert found == ((path[first], {"fits": True, "n": first}) if first < length else None)
    assert len(tried) <= 2 + math.log2(max(length, 1))


@given(
    remat=st.sampled_from(["none", "dots", "full"]),
    chunks=st.sampled_from([1, 8]),
    batch=st.integers(1, 12).map(lambda n: 16 * n),
    name=st.sampled_from(["train", "score", "sample"]),
    rows=st.sampled_from([1, 4, 16]),
)
def test_every_step_of_the_path_is_new_and_divides(remat, chunks, batch, name, rows):
    c = llama3_8b_gsm8k.get_config()
    c.model.update(remat=remat, vocab_chunks=chunks)
    c.train.update(batch=batch, micro_batches=1)
    for options in c.evals.values():
        options.batch = batch
    path = smaller(c, name, rows)
    for before, after in zip([{}, *path], path, strict=False):
        assert before != after and before.keys() <= after.keys()
    seen = {key for change in path for key in change}
    assert ("train.micro_batches" in seen) == (name == "train" and batch % (2 * rows) == 0)
    assert ("model.remat" in seen) == (name == "train" and remat != "full")
    for change in path:
        assert batch % (change.get("train.micro_batches", 1) * rows) == 0
        assert all(value % rows == 0 for key, value in change.items() if key.endswith(".batch"))
        assert change.keys() >= {f"evals.{k}.batch" for k in c.evals if k.endswith("accuracy")} or name != "sample"
