"""The same weights in our decoder and in `transformers`, and batches for both."""

import dataclasses

import numpy as np
import torch
import transformers

from premem_jax.models.decoder import build
from premem_jax.models.hf import to_hf_state
from premem_jax.models.hf_config import from_hf_config
from tests import tiny

LENGTHS = (24, 17, 9, 21)
B, T = len(LENGTHS), 24


@dataclasses.dataclass
class Pair:
    """The same weights in both libraries."""

    theirs: transformers.PreTrainedModel
    model: object
    params: dict

    def __init__(self, hf_config):
        config = from_hf_config(hf_config.to_dict())
        self.model, self.params = build(config), tiny.parameters(config)
        self.theirs = transformers.AutoModelForCausalLM.from_config(hf_config, attn_implementation="eager").eval()
        weights = {name: torch.tensor(x) for name, x in to_hf_state(self.params, config).items()}
        missing, unknown = self.theirs.load_state_dict(weights, strict=False)
        assert not unknown and missing == (["lm_head.weight"] if config.tied_embedding else [])

    @property
    def config(self):
        return self.model.config


def batch(config, seed=0):
    """Right-padded tokens, the mask of tokens, and weights of the targets, which begin at different places."""
    rng = np.random.default_rng(seed)
    tokens_BT = rng.integers(0, config.V, (B, T)).astype(np.int32)
    real_BT = np.arange(T) < np.array(LENGTHS)[:, None]
    target_BT = real_BT & (np.arange(T) >= rng.integers(1, 6, (B, 1)))
    return tokens_BT, real_BT, target_BT


def theirs_on(pair, tokens_BT, real_BT, target_BT):
    tokens, mask = torch.tensor(tokens_BT, dtype=torch.long), torch.tensor(real_BT)
    labels = torch.where(torch.tensor(target_BT), tokens, -100)
    return pair.theirs(input_ids=tokens, attention_mask=mask.long(), labels=labels)
