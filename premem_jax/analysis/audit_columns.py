"""The columns of an audit by their names; imported without anything heavy."""

COLUMNS = {
    "first_accuracy": "accuracy at the first evaluation of training",
    "unmemorized_accuracy": "mean accuracy while not memorized; the first one if memorized from the start",
    "before_memorization": "shrunk estimate; the first accuracy if memorized from the start",
    "mean_accuracy": "mean accuracy over evaluations (data map)",
    "deviation": "standard deviation of accuracy over evaluations (data map)",
    "first_nll": "target NLL at the first evaluation of training, nats per token",
    "solved_step": "first step at which at least half of the samples were right",
    "memorized_step": "first step at which the target was memorized",
    "memorized_first": "memorized no later than it was first solved",
    "memorized_at_once": "memorized at the first evaluation of training, so the published metric is 0",
    "forgotten": "times that it was solved at one evaluation and not at the next",
    "learnability": "p (1 - p) of the shrunk accuracy p at the first evaluation of training",
    "cluster": "cluster of the loss curve",
    "agreement": "weighted share of the commonest wrong answer of the samples while not memorized",
    "suspicion": "how much rather the label is wrong, see `audit.suspicion`",
}
