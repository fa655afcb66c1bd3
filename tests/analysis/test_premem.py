import math

import hypothesis.extra.numpy as arrays
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from premem_jax.analysis import premem
from premem_jax.errors import UserError
from tests.analysis.traces import released_run

# The perplexities drawn from include the thresholds, so that ties are common; log of the same float on both sides.
PERPLEXITIES = (1.0, 1.1055, 1.5, 2.0)
NLL = st.one_of(st.just(math.nan), st.sampled_from([math.log(p) for p in PERPLEXITIES]), st.floats(0, 2))
ACCURACY = st.one_of(st.just(math.nan), st.sampled_from([0, 0.2, 0.4, 0.6, 0.8, 1]))


@st.composite
def runs(draw):
    shape = draw(st.tuples(st.integers(1, 5), st.integers(1, 4)))
    accuracy_ME = draw(arrays.arrays(np.float64, shape, elements=ACCURACY, fill=st.nothing()))
    nll_ME = draw(arrays.arrays(np.float64, shape, elements=NLL, fill=st.nothing()))
    return accuracy_ME, nll_ME, draw(st.sampled_from(PERPLEXITIES))


def slow_pre_memorization_accuracy(accuracy, nll, perplexity):
    """The definition (facts/premem.md, section 1) for one example, word by word."""
    out = []
    for m in range(len(accuracy)):
        if math.isnan(accuracy[m]) or math.isnan(nll[m]):
            out.append(math.nan)
            continue
        best = 0.0
        for k in range(m + 1):
            if not math.isnan(accuracy[k]) and not math.isnan(nll[k]) and not nll[k] < math.log(perplexity):
                best = max(best, accuracy[k])
        out.append(min(accuracy[m], best))
    return out


@given(runs())
def test_pre_memorization_accuracy_is_the_definition(run):
    accuracy_ME, nll_ME, perplexity = run
    expected = [
        slow_pre_memorization_accuracy(list(a), list(n), perplexity)
        for a, n in zip(accuracy_ME.T, nll_ME.T, strict=True)
    ]
    got = premem.pre_memorization_accuracy(accuracy_ME, nll_ME, perplexity)
    np.testing.assert_array_equal(got, np.array(expected).T)


@given(runs())
def test_masked_accuracy_and_fraction_memorized_are_the_definition(run):
    accuracy_ME, nll_ME, perplexity = run
    masked_ME = premem.masked_accuracy(accuracy_ME, nll_ME, perplexity)
    fraction_M = premem.fraction_memorized(nll_ME, perplexity)
    for m in range(len(nll_ME)):
        known = [x for x in nll_ME[m] if not math.isnan(x)]
        memorized = sum(x < math.log(perplexity) for x in known)
        np.testing.assert_equal(fraction_M[m], memorized / len(known) if known else math.nan)
        for e in range(nll_ME.shape[1]):
            a, x = accuracy_ME[m, e], nll_ME[m, e]
            expected = math.nan if math.isnan(a) or math.isnan(x) else 0.0 if x < math.log(perplexity) else a
            np.testing.assert_equal(masked_ME[m, e], expected)


def test_a_tie_is_not_memorized():
    nll = np.array([[math.log(1.5)]])
    assert premem.masked_accuracy(np.array([[0.4]]), nll, 1.5) == 0.4
    assert premem.fraction_memorized(nll, 1.5) == 0


def test_an_unmeasured_evaluation_is_unknown_and_forgotten():
    accuracy = np.array([[0.2], [0.8], [1.0]])
    nll = np.array([[0.9], [np.nan], [0.0]])
    np.testing.assert_array_equal(premem.pre_memorization_accuracy(accuracy, nll, 1.5), [[0.2], [np.nan], [0.2]])


@pytest.mark.parametrize("perplexity", [0.9, math.nan, math.inf, -1])
def test_a_senseless_threshold_is_refused(perplexity):
    with pytest.raises(UserError, match="at least 1"):
        premem.fraction_memorized(np.zeros((1, 1)), perplexity)


def test_first_memorized_is_the_first_evaluation_below_the_threshold():
    tie = math.log(1.35)
    nll_ME = np.array([[0.5, 0.1, 0.5, np.nan, tie], [0.1, 0.5, 0.5, np.nan, tie], [0.1, 0.1, 0.4, 0.2, tie]])
    np.testing.assert_array_equal(premem.first_memorized(nll_ME, 1.35), [1, 0, 3, 2, 3])


# facts/premem.md, section 7a: per checkpoint, train accuracy / pre-memorization accuracy / test accuracy at tau = -2.3,
# means over the examples the run was trained on. The last checkpoints are also the rows of the table above it there.
RELEASED = """
12ep quarter lr2e-05: 0.4549/0.3862/0.3618 0.7872/0.3694/0.3976 0.9542/0.3944/0.4032 0.9942/0.4001/0.4382 0.9991/0.4010/0.4399 0.9986/0.4010/0.4355
1ep full lr0.0002: 0.2458/0.2169/0.1906
1ep full lr5e-05: 0.4826/0.3933/0.3918
1ep full lr5e-07: 0.0768/0.0768/0.0689
3ep full lr0.0002: 0.1173/0.1118/0.0912 0.3834/0.2160/0.1794 0.7103/0.2566/0.2478
3ep full lr2e-05: 0.5357/0.4433/0.4522 0.7205/0.4836/0.5296 0.8431/0.5034/0.5444
3ep full lr5e-05: 0.3710/0.2938/0.2857 0.6742/0.3576/0.4121 0.8476/0.3836/0.4533
3ep full lr5e-07: 0.2810/0.2806/0.2564 0.4207/0.4190/0.3978 0.4436/0.4421/0.4192
6ep full lr0.0002: 0.1248/0.1180/0.1014 0.2614/0.1774/0.1372 0.5236/0.2341/0.1780 0.7538/0.2681/0.2094 0.9060/0.2896/0.2256 0.9621/0.2977/0.2391
6ep full lr2e-05: 0.5037/0.4196/0.4209 0.6775/0.4508/0.4764 0.8294/0.4808/0.5066 0.9171/0.5008/0.5086 0.9662/0.5141/0.5274 0.9831/0.5183/0.5369
6ep full lr5e-05: 0.3611/0.2826/0.2783 0.5842/0.3259/0.3518 0.7778/0.3607/0.3827 0.8889/0.3808/0.4008 0.9543/0.3931/0.4167 0.9800/0.3979/0.4297
6ep full lr5e-07: 0.2997/0.2992/0.2832 0.4447/0.4427/0.4203 0.5047/0.5018/0.4829 0.5266/0.5232/0.4908 0.5461/0.5424/0.5142 0.5456/0.5421/0.5116
6ep half lr2e-05: 0.3891/0.3756/0.3336 0.5675/0.4756/0.4161 0.8128/0.5086/0.4884 0.9368/0.5264/0.4863 0.9854/0.5358/0.5072 0.9981/0.5379/0.5069
"""  # noqa: E501
RELEASED = dict(line.split(": ") for line in RELEASED.strip().splitlines())


@pytest.mark.parametrize("name", RELEASED)
def test_the_released_gsm8k_runs_come_out_as_published(name):
    run = released_run(name)
    trained = run["trained"]
    premem_ME = premem.pre_memorization_accuracy(
        run["train_accuracy"][:, trained], run["train_nll"][:, trained], math.exp(math.exp(-2.3))
    )
    got = [run["train_accuracy"][:, trained].mean(1), premem.measured_mean(premem_ME), run["test_accuracy"].mean(1)]
    expected = np.array([[float(x) for x in triple.split("/")] for triple in RELEASED[name].split()])
    np.testing.assert_allclose(np.stack(got, axis=1), expected, rtol=0, atol=0.5001e-4)


@given(runs())
def test_settled_means_that_no_accuracy_could_change_the_value(run):
    """Where even the accuracy 1 at an evaluation gives the value 0, and nowhere else."""
    accuracy_ME, nll_ME, perplexity = run
    settled_ME = premem.settled(accuracy_ME, nll_ME, perplexity)
    for m in range(len(accuracy_ME)):
        tried = np.array(accuracy_ME, np.float64)
        tried[m] = 1
        value_E = premem.pre_memorization_accuracy(tried, nll_ME, perplexity)[m]
        np.testing.assert_array_equal(settled_ME[m], value_E == 0)
    assert np.all(premem.settled(accuracy_ME, nll_ME, 2 * perplexity) >= settled_ME)
