"""Small tokenizers of the kinds that model folders have, made by the libraries of their publishers, as folders."""

import io
import json
from pathlib import Path

import sentencepiece
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

QWEN_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def write(folder: Path, fast: Tokenizer | None = None, model_type: str = "llama", **said) -> Path:
    """A folder of a tokenizer.json and what its settings say."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(dict(model_type=model_type)))
    (folder / "tokenizer_config.json").write_text(json.dumps(said))
    if fast is not None:
        fast.save(str(folder / "tokenizer.json"))
    return folder


def special(*names: str) -> list[AddedToken]:
    return [AddedToken(name, special=True, normalized=False) for name in names]


def trained(fast: Tokenizer, trainer, texts) -> Tokenizer:
    fast.train_from_iterator(texts, trainer)
    return fast


def llama2(folder: Path, texts) -> Path:
    """SentencePiece as Llama2 has it: a space in front, bytes for what is unknown, no pad piece."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        vocab_size=500,
        hard_vocab_limit=False,
        model_type="bpe",
        byte_fallback=True,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        character_coverage=0.9999,
        num_threads=1,
        minloglevel=2,
    )
    said = dict(tokenizer_class="LlamaTokenizer", bos_token="<s>", eos_token="</s>", unk_token="<unk>", legacy=False)
    write(folder, **said, add_bos_token=True, add_eos_token=False)
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    return folder


def qwen(folder: Path, texts) -> Path:
    """As Qwen2.5: composed Unicode, digits one by one, no start marker, two sorts of added tokens."""
    fast = Tokenizer(models.BPE())
    fast.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(QWEN_PATTERN), "isolated")
    fast.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    fast.decoder, fast.post_processor = decoders.ByteLevel(), processors.ByteLevel(trim_offsets=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trained(fast, trainers.BpeTrainer(vocab_size=1200, initial_alphabet=alphabet, show_progress=False), texts)
    fast.add_special_tokens(special("<|endoftext|>", "<|im_start|>", "<|im_end|>"))
    fast.add_tokens([AddedToken(name, normalized=False) for name in ("<tool_call>", "</tool_call>")])
    said = dict(tokenizer_class="Qwen2Tokenizer", bos_token=None, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    return write(folder, fast, "qwen2", **said, add_bos_token=False, chat_template=CHATML)


def byte_level(folder: Path, texts) -> Path:
    """A byte-level BPE with bos by its post-processor, which no flag of the settings repeats."""
    fast = Tokenizer(models.BPE())
    fast.pre_tokenizer, fast.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    names = ("<|begin|>", "<|end|>", "<|pad|>")
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    options = dict(vocab_size=900, special_tokens=special(*names), initial_alphabet=alphabet, show_progress=False)
    trained(fast, trainers.BpeTrainer(**options), texts)
    fast.post_processor = processors.TemplateProcessing("<|begin|> $A", special_tokens=[("<|begin|>", 0)])
    said = dict(zip(("bos_token", "eos_token", "pad_token"), names, strict=True))
    return write(folder, fast, tokenizer_class="PreTrainedTokenizerFast", **said)


def unigram(folder: Path, texts) -> Path:
    """A Unigram model with spaces as U+2581, put in front of the first word alone."""
    fast = Tokenizer(models.Unigram())
    fast.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    fast.decoder = decoders.Metaspace(prepend_scheme="first")
    options = dict(vocab_size=600, special_tokens=special("<pad>", "</s>", "<unk>"), unk_token="<unk>")
    trained(fast, trainers.UnigramTrainer(**options, show_progress=False), texts)
    said = dict(eos_token="</s>", pad_token="<pad>", unk_token="<unk>")
    return write(folder, fast, tokenizer_class="PreTrainedTokenizerFast", **said)


def word_piece(folder: Path, texts) -> Path:
    """WordPiece in lower case, whose tokens have no text of their own, with markers around each text."""
    fast = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    fast.normalizer, fast.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    fast.decoder = decoders.WordPiece()
    options = dict(vocab_size=700, special_tokens=special("[PAD]", "[CLS]", "[SEP]", "[UNK]"), show_progress=False)
    trained(fast, trainers.WordPieceTrainer(**options), texts)
    fast.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)])
    said = dict(eos_token="[SEP]", pad_token="[PAD]", unk_token="[UNK]", bos_token="[CLS]")
    return write(folder, fast, tokenizer_class="PreTrainedTokenizerFast", **said)


KINDS = (llama2, qwen, byte_level, unigram, word_piece)
