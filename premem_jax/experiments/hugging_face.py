"""Import and export of Hugging Face folders as a config asks for them."""

import dataclasses
import json
import logging

import jax
import jax.numpy as jnp
import numpy as np
from etils.epath import Path
from flax.traverse_util import flatten_dict

from premem_jax import sharding, strict_json
from premem_jax.data import chat, tokenizer_export
from premem_jax.data.tokenizers import Tokenizer
from premem_jax.errors import NonFinite, UserError
from premem_jax.models import adapters, peft
from premem_jax.models import architecture as presets
from premem_jax.models.decoder import Model, build
from premem_jax.models.hf_config import to_hf_config
from premem_jax.models.hf_files import CONFIG, GENERATION, Checkpoint, save
from premem_jax.running import atomic, processes, progress

log = logging.getLogger(__name__)

# Vocabularies are padded to a round size, in published models by a few hundred at most.
PADDING = 1024


def checkpoint_of(config) -> Checkpoint | None:
    """The folder `model.path` with its headers checked, or None for random weights.

    Raises:
      UserError: as `Checkpoint`.
    """
    return Checkpoint(config.model.path) if config.model.path else None


def tokenizer_of(config, checkpoint: Checkpoint | None) -> str:
    """The path of the tokenizer that the config names, or of the folder with the weights; empty without one."""
    return config.tokenizer.path or (str(checkpoint.folder) if checkpoint else "")


def model_of(config, checkpoint: Checkpoint | None, tokenizer: Tokenizer, mesh) -> Model:
    """The model in the shape of the checkpoint, or of the preset with the tokenizer's vocabulary. Allocates nothing.

    Adds the checkpoint's stop markers to the tokenizer.

    Raises:
      UserError: the tokenizer does not fit the checkpoint, or the preset is unknown.
    """
    options = config.model.to_dict()
    preset = options.pop("preset", None)
    del options["path"]
    if checkpoint is None:
        shape = presets.preset(preset, V=tokenizer.vocab_size)
    else:
        shape = checkpoint.config
        check_vocabulary(checkpoint, tokenizer)
        tokenizer.also_stop = (*tokenizer.also_stop, *checkpoint.eos_ids)
    shape = dataclasses.replace(shape, lora=presets.lora_of(**config.lora) if "lora" in config else None)
    return build(shape, dtype=config.compute_dtype, mesh=mesh, **options)


def load(checkpoint: Checkpoint, mesh, dtype="float32") -> dict:
    """The weights on `mesh`, checked to be finite in `dtype`.

    Raises:
      NonFinite: names the weights that are not.
    """
    params = checkpoint.load(mesh, dtype)
    found = jax.jit(_finite, out_shardings=sharding.replicated(mesh))(params)
    bad = [jax.tree_util.keystr(name) for name, fine in jax.tree_util.tree_leaves_with_path(found) if not fine]
    if bad:
        raise NonFinite(f"{checkpoint.folder}: weights that are NaN or infinite in {dtype}: {', '.join(bad)}")
    return params


def _finite(tree):
    return jax.tree.map(lambda x: jnp.isfinite(x).all(), tree)


def check_vocabulary(checkpoint: Checkpoint, tokenizer: Tokenizer) -> None:
    """Raises UserError if the vocabulary sizes of tokenizer and checkpoint differ; warns if the markers do."""
    V = checkpoint.config.V
    if not 0 <= V - tokenizer.vocab_size < PADDING:
        raise UserError(
            f"{checkpoint.folder} has a vocabulary of {V} tokens and the tokenizer one of {tokenizer.vocab_size}; "
            "they do not belong together: set tokenizer.path to the file that came with the model"
        )
    stated = checkpoint.description.get("bos_token_id")
    if stated is not None and tokenizer.start_ids and stated not in tokenizer.start_ids:
        log.warning(
            "%s: config.json has the start marker %s, and the tokenizer %s; do they belong together?",
            checkpoint.folder,
            stated,
            ", ".join(map(str, tokenizer.start_ids)),
        )


def export(
    config, folder: Path, params, model: Model, checkpoint: Checkpoint | None, tokenizer: Tokenizer, mesh
) -> None:
    """Writes the trained model as a Hugging Face folder, unless the folder exists.

    Adapters are merged there, and beside it the folder `adapter` has them as `peft` reads them. A model from a folder
    keeps its `config.json` and the files beside its weights, with two exceptions: the markers are those of training,
    and a tokenizer from elsewhere replaces the folder's.
    """
    if model.config.lora:
        _export_adapter(folder.parent / "adapter", params, model, checkpoint, mesh)
    if processes.once(lambda: (folder / CONFIG).exists()):
        return
    if checkpoint is None:
        description, files = to_hf_config(model.config), {}
    else:
        description, files = checkpoint.description, checkpoint.companions()
    if config.tokenizer.path or "tokenizer.json" not in files:
        own = ("tokenizer", "special", "added", "chat_template")
        kept = {name: data for name, data in files.items() if not name.startswith(own)}
        files = kept | tokenizer_export.files(tokenizer)
    else:
        files |= {tokenizer.file: tokenizer.model}
    if (template := chat.template_of(config.data.template, tokenizer)) and config.data.template != chat.AUTO:
        files["chat_template.jinja"] = template.source.encode()
    # Targets ended in the tokenizer's marker, which the folder's config may not name.
    stops = tokenizer.eos_ids
    markers = dict(bos_token_id=tokenizer.bos_id, eos_token_id=list(stops) if len(stops) > 1 else stops[0])
    markers |= dict(pad_token_id=tokenizer.pad_id)
    generation = strict_json.loads(files[GENERATION], GENERATION) if GENERATION in files else {}
    description, files[GENERATION] = description | markers, (json.dumps(generation | markers, indent=2) + "\n").encode()
    dtype = config.checkpoint.export_dtype
    save(folder, params, model.config, mesh, description=description, files=files, dtype=dtype)
    progress.say(f"exported the model to {folder}")


def _export_adapter(folder: Path, params, model: Model, checkpoint: Checkpoint | None, mesh) -> None:
    """Writes the adapters alone in fp32, with the path of their base model if it is a folder as it is."""
    base = str(checkpoint.folder.absolute()) if checkpoint and not checkpoint.adapter else None
    trained, _ = adapters.split(params)
    trained = jax.jit(lambda tree: tree, out_shardings=sharding.replicated(mesh))(trained)
    arrays = {path: np.asarray(x) for path, x in flatten_dict(trained).items()}

    def write():
        if not (folder / peft.CONFIG).exists():
            with atomic.whole_folder(folder) as unfinished:
                for name, data in peft.files(arrays, model.config, base).items():
                    (unfinished / name).write_bytes(data)

    processes.once(write)
