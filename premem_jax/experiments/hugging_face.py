"""Models that come from Hugging Face folders and go to them: what a config says of both."""

import logging

from etils.epath import Path

from premem_jax import processes, progress
from premem_jax.data.tokenizers import Tokenizer
from premem_jax.errors import UserError
from premem_jax.models import config as presets
from premem_jax.models.decoder import Model, build
from premem_jax.models.hf import to_hf_config
from premem_jax.models.hf_files import CONFIG, Checkpoint, save

log = logging.getLogger(__name__)

# Vocabularies are padded to a round number of rows, in published models by some hundreds at most.
PADDING = 1024


def checkpoint_of(config) -> Checkpoint | None:
    """The folder `model.path` with its headers checked, or None where weights are random.

    Raises:
      UserError: as `Checkpoint`.
    """
    return Checkpoint(config.model.path) if config.model.path else None


def model_of(config, checkpoint: Checkpoint | None, tokenizer: Tokenizer, mesh) -> Model:
    """The model in the shape of the checkpoint, or of the preset with the tokenizer's vocabulary; nothing allocated.

    Raises:
      UserError: the tokenizer does not belong to the checkpoint, or there is no such preset.
    """
    options = config.model.to_dict()
    preset = options.pop("preset", None)
    del options["path"]
    if checkpoint is None:
        shape = presets.preset(preset, V=tokenizer.vocab_size)
    else:
        shape = checkpoint.config
        check_vocabulary(checkpoint, tokenizer)
    return build(shape, dtype=config.compute_dtype, mesh=mesh, **options)


def check_vocabulary(checkpoint: Checkpoint, tokenizer: Tokenizer) -> None:
    """Raises UserError where tokenizer and checkpoint have vocabularies of other sizes; warns of other markers."""
    V = checkpoint.config.V
    if not 0 <= V - tokenizer.vocab_size < PADDING:
        raise UserError(
            f"{checkpoint.folder} has a vocabulary of {V} tokens and the tokenizer one of {tokenizer.vocab_size}; "
            "they do not belong together: set tokenizer.path to the file that came with the model"
        )
    stated = checkpoint.description.get("bos_token_id")
    if stated not in (None, tokenizer.bos_id):
        log.warning(
            "%s: config.json has the start marker %s, and the tokenizer %d; do they belong together?",
            checkpoint.folder,
            stated,
            tokenizer.bos_id,
        )


def export(
    config, folder: Path, params, model: Model, checkpoint: Checkpoint | None, tokenizer: Tokenizer, mesh
) -> None:
    """Writes the trained model as a Hugging Face folder, unless that is there already.

    A model that came from a folder keeps its `config.json` and what lay beside its weights.
    """
    if processes.once(lambda: (folder / CONFIG).exists()):
        return
    if checkpoint is None:
        description, files = to_hf_config(model.config), {}
        description |= {f"{name}_token_id": getattr(tokenizer, f"{name}_id") for name in ("bos", "eos", "pad")}
    else:
        description, files = checkpoint.description, checkpoint.companions()
        if config.tokenizer.path:
            files = {name: data for name, data in files.items() if not name.startswith("tokenizer")}
    files |= {tokenizer.file: tokenizer.model}
    dtype = config.checkpoint.export_dtype
    save(folder, params, model.config, mesh, description=description, files=files, dtype=dtype)
    progress.say(f"exported the model to {folder}")
