"""What Snell et al. (arXiv 2411.16035) print of their forecasts, retyped: elbows in nats, and errors of ablations."""

# fit, method, 5 %, 10 %, 25 %, 50 %, 75 %, 90 %, 95 %, maximum likelihood, truth (- where there is none)
ELBOWS = """
GSM8K    MCMC 1.813 1.852 1.900 1.937 1.970 1.992 2.003 2.006 1.984
GSM8K    boot 1.978 1.984 1.995 2.007 2.021 2.031 2.036 2.006 1.984
MMLU     MCMC 1.825 1.828 1.837 1.847 1.858 1.866 1.869 1.855 1.814
MMLU     boot 1.818 1.825 1.836 1.848 1.859 1.867 1.871 1.855 1.814
CSQA     MCMC 1.781 1.810 1.821 1.829 1.835 1.840 1.843 1.830 1.827
CSQA     boot 1.723 1.736 1.815 1.835 1.846 1.857 1.863 1.830 1.827
CoLA     MCMC 1.712 1.724 1.742 1.761 1.779 1.795 1.804 1.769 1.833
CoLA     boot 1.738 1.746 1.758 1.770 1.782 1.791 1.798 1.769 1.833
MMLU-V1  MCMC 2.207 2.221 2.241 2.246 2.255 2.259 2.261 2.254 2.226
MMLU-V1  boot 2.183 2.200 2.216 2.228 2.238 2.246 2.250 2.254 2.226
MMLU-V2  MCMC 2.264 2.275 2.289 2.306 2.310 2.316 2.320 2.311 2.318
MMLU-V2  boot 2.249 2.257 2.272 2.284 2.296 2.305 2.311 2.311 2.318
APPS     MCMC 1.324 1.332 1.344 1.357 1.370 1.380 1.386 1.361 -
APPS     boot 1.285 1.304 1.330 1.352 1.370 1.385 1.393 1.361 -
"""

# what is left out: |maximum likelihood - truth| of GSM8K, MMLU, CSQA, CoLA
ABLATIONS = """
full data              0.022 0.041 0.003 0.064
-1 smallest subset     0.014 0.022 0.051 0.071
-2 smallest            0.047 0.025 0.087 0.634
-3 smallest            0.005 0.001 0.988 1.513
-1 largest subset      0.022 0.034 0.045 0.036
-2 largest             0.005 1.017 0.057 0.004
-3 largest             0.016 0.332 0.089 0.044
only subset sample 1   0.006 0.244 1.557 0.179
only subset sample 2   0.026 0.073 0.035 0.034
last 6 checkpoints     0.010 0.041 0.075 0.118
last 5                 0.047 0.032 1.165 0.130
last 4                 0.080 0.030 1.734 0.076
last 3                 0.159 0.013 0.986 0.039
last 6, every other (even) 0.019 0.070 1.663 0.033
last 6, every other (odd)  0.044 0.040 0.037 0.224
-1 last checkpoint     0.069 0.043 0.985 0.026
-2 last                0.087 0.076 0.102 0.165
-3 last                0.110 0.664 0.616 2.217
-4 last                0.044 2.308 0.581 1.039
"""

QUANTILES = ("5%", "10%", "25%", "50%", "75%", "90%", "95%")


def elbows() -> dict[tuple[str, str], dict[str, float]]:
    """(fit, method) to its percentiles, `likelihood` and, where there is one, `truth`."""
    found = {}
    for line in ELBOWS.strip().splitlines():
        name, method, *numbers = line.split()
        row = dict(zip((*QUANTILES, "likelihood", "truth"), numbers, strict=True))
        found[name, method] = {key: float(value) for key, value in row.items() if value != "-"}
    return found


def ablations() -> dict[str, dict[str, float]]:
    """What is left out to the error of each task."""
    rows = (line.rsplit(maxsplit=4) for line in ABLATIONS.strip().splitlines())
    return {name: dict(zip(("GSM8K", "MMLU", "CSQA", "CoLA"), map(float, row), strict=True)) for name, *row in rows}
