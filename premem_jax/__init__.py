"""Learning dynamics of LLM finetuning: predict how a finetuned model generalises from its training examples alone."""

__version__ = "0.1.0"
