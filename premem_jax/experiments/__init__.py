"""Experiments. The config key `experiment` names a module here, whose `run` is called."""

LADDERS = ("checkpoint_ladder", "checkpoint_rung", "ladder", "rungs")
# Run by several processes, and stop when asked to.
SEVERAL = ("curate", "dynamics", "evaluate", "finetune", "preference", "sweep", *LADDERS)
POLLING = (*SEVERAL, "grade")  # look now and then whether they were asked to stop
ELSEWHERE = ("plan", "plan_preference")  # compile for devices that are not here
