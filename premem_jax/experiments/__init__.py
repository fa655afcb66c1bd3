"""What a user can run: `experiment` in a config names the file here whose `run` is called."""

EXPERIMENTS = ("analyze", "evaluate", "finetune", "grade", "plan", "sweep")
SEVERAL = ("evaluate", "finetune", "sweep")  # run by several processes, and stop when asked to
