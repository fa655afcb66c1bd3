"""LoRA adapters in the folders of `peft`: read beside the base model that they name, and written from ours."""

import json
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from premem_jax import strict_json
from premem_jax.errors import UserError
from premem_jax.models import hf
from premem_jax.models.adapters import A, B
from premem_jax.models.architecture import ModelConfig

CONFIG, WEIGHTS, PICKLED = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
PREFIX = "base_model.model."
LIMIT = 1e12
MERGE = "merge the adapter into its base with merge_and_unload() of peft"
# Settings that say nothing about what is computed, or how an adapter is trained.
IGNORED = (
    *("task_type", "auto_mapping", "peft_version", "revision", "inference_mode", "lora_dropout"),
    *("target_modules", "exclude_modules", "megatron_core", "layers_pattern", "layers_to_transform"),
    *("qalora_group_size", "runtime_config", "eva_config", "corda_config", "lora_ga_config"),
)
READ = ("peft_type", "base_model_name_or_path", "r", "lora_alpha", "use_rslora", "init_lora_weights")
INITIAL = (None, True, False, "gaussian", "orthogonal", "eva")  # others change the base when they begin


class Adapter:
    """An adapter folder: A and B of each matrix, fp32 on the host, and the base model that they belong to.

    Attributes:
      files: the two files that it was read from.
      base: folder of the base model.
    """

    def __init__(self, folder: Path):
        """Raises UserError if the adapter is not whole, not of LoRA, or has a setting that is not followed here."""
        where, weights = self.files = [folder / CONFIG, folder / WEIGHTS]
        if missing := [file for file in self.files if not file.is_file()]:
            pickled = f" ({PICKLED} is a pickle, and is not read)" if (folder / PICKLED).exists() else ""
            raise UserError(f"{folder} has an adapter without {missing[0].name}{pickled}; save it with safetensors")
        said = strict_json.loads(where.read_bytes(), str(where))
        self._scale, self._rank = _checked(where, said)
        self.base = _base(where, said.get("base_model_name_or_path"))
        self._sides: dict[str, np.ndarray] = {}
        try:
            with safe_open(weights, framework="numpy") as stored:
                for name in stored.offset_keys():
                    self._sides[name.removeprefix(PREFIX)] = stored.get_tensor(name).astype(np.float32)
        except (OSError, SafetensorError) as error:
            raise UserError(f"{weights}: not a whole safetensors file ({error}); fetch it again") from error

    def check(self, config: ModelConfig) -> None:
        """Raises UserError if an array belongs to no matrix of this shape, or not both of a pair are there."""
        wanted = {}
        for t in hf.tensors(config):
            if re.search(r"(self_attn|mlp)\.\w+_proj\.weight$", t.name):
                out, into = t.shape
                wanted |= {_side(t.name, "A"): (self._rank, into), _side(t.name, "B"): (out, self._rank)}
        for name, array in self._sides.items():
            if name not in wanted:
                raise UserError(f"{self.files[1]}: {name} is of no matrix of a layer of this model")
            if array.shape != wanted[name]:
                raise UserError(f"{self.files[1]}: {name} has shape {array.shape}, and {wanted[name]} belongs there")
            if (pair := name.translate(str.maketrans("AB", "BA"))) not in self._sides:
                raise UserError(f"{self.files[1]}: {name} is there without {pair}")
        if not self._sides:
            raise UserError(f"{self.files[1]} is empty")

    def added(self, name: str, rows: slice, columns: slice) -> np.ndarray | float:
        """What the adapter adds to a part of the tensor `name` of its base, fp32; 0 for one that it leaves alone."""
        if _side(name, "B") not in self._sides:
            return 0.0
        return self._scale * (self._sides[_side(name, "B")][rows] @ self._sides[_side(name, "A")][:, columns])


def _side(name: str, side: str) -> str:
    """Name of A or B of the adapter of a checkpoint's tensor."""
    return f"{name.removesuffix('weight')}lora_{side}.weight"


def _checked(where: Path, said) -> tuple[float, int]:
    """The factor and the rank of an adapter_config.json. Raises UserError for settings that are not followed here."""
    if not isinstance(said, dict) or said.get("peft_type") != "LORA":
        kind = repr(said.get("peft_type") if isinstance(said, dict) else said)[:80]
        raise UserError(f"{where}: peft_type={kind} is not supported (LORA is); {MERGE}")
    unset = (None, False, {}, [], "none")
    if strange := [key for key, value in said.items() if key not in (*IGNORED, *READ) and value not in unset]:
        key = strange[0]
        raise UserError(f"{where}: {key}={repr(said[key])[:80]} is not supported; {MERGE}")
    if said.get("init_lora_weights") not in INITIAL:
        raise UserError(f"{where}: init_lora_weights={repr(said['init_lora_weights'])[:80]} changes the base; {MERGE}")
    rank, alpha = said.get("r"), said.get("lora_alpha")
    if type(rank) is not int or not 1 <= rank <= 2**20:
        raise UserError(f"{where}: r={repr(rank)[:80]} must be a whole number from 1")
    if type(alpha) not in (int, float) or not 0 < alpha <= LIMIT:
        raise UserError(f"{where}: lora_alpha={repr(alpha)[:80]} must be a positive number")
    return alpha / (rank**0.5 if said.get("use_rslora") else rank), rank


def _base(where: Path, named) -> Path:
    if not isinstance(named, str) or not named or "\0" in named or not Path(named).is_dir():
        raise UserError(
            f"{where}: base_model_name_or_path={repr(named)[:200]} is no folder here; fetch the base model, and "
            "put the path of its folder there"
        )
    base = Path(named)
    if (base / CONFIG).exists() and base.resolve() != where.parent.resolve():
        raise UserError(f"{where}: its base {base} is an adapter itself; {MERGE}")
    return base


def files(params: Mapping, config: ModelConfig, base: str | None) -> dict[str, bytes]:
    """The two files of an adapter folder, by name, of parameters with adapters on the host.

    Args:
      params: arrays by their path, adapters alone; layers stacked.
      base: the base model that they name, a folder or a repository; None for one that is in neither.
    """
    lora, arrays = config.lora, {}
    for tensor in hf.tensors(config):
        side = lambda letter, path=tensor.path: (*path[:-1], f"{path[-1]}{letter}")
        if side(A) in params:
            a, b = params[side(A)][tensor.layer], params[side(B)][tensor.layer]
            arrays[PREFIX + _side(tensor.name, "A")] = np.ascontiguousarray(a.reshape(-1, lora.rank).T)
            arrays[PREFIX + _side(tensor.name, "B")] = np.ascontiguousarray(b.reshape(lora.rank, -1).T)
    said = dict(
        peft_type="LORA",
        task_type="CAUSAL_LM",
        base_model_name_or_path=base,
        r=lora.rank,
        lora_alpha=lora.alpha,
        target_modules=sorted(f"{name}_proj" for name in lora.targets),
        lora_dropout=0.0,
        bias="none",
        inference_mode=True,
    )
    text = json.dumps(said, indent=2) + "\n"
    return {WEIGHTS: save(arrays, metadata={"format": "pt"}), CONFIG: text.encode()}
