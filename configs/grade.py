"""Grade responses of any model by the rules of GSM8K or MATH, or by a grader's name, with the kernel of training.

  python -m premem_jax.main --config=configs/grade.py:task=math --config.data.path=FILE.jsonl

FILE holds rows `{"output": a response, "answer": the final answer, or a whole reference solution}`. The verdict of each
row goes to `verdicts.jsonl` in the workdir, in file order, and the accuracy to `summary.json`.

With --config.data.grader=number (docs/own_data.md has all names), rows may also be those that finetuning reads,
`{question, answer, output}` for example, and answers are found as there.

Options after the colon: task (gsm8k or math); check=math_verify asks math-verify as well (`pip install -e '.[verify]'`;
one row may take `deadline` seconds) and writes disagreements to `disagreements.jsonl`. It changes no verdict.
"""

from ml_collections import ConfigDict

from premem_jax import config


def get_config(arg=None):
    options = config.parse_arg(arg, task="gsm8k", check="")
    c = ConfigDict()
    c.experiment = "grade"
    c.cache = ""  # compiled programs; no path: beside the workdir
    c.data = ConfigDict(dict(task=options.task, path="", grader=""))
    c.check = options.check
    c.deadline = 10.0
    return c
