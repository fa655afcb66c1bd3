"""The tokenizer.json of Llama3 and Gemma2, built from their other files as the converters of `transformers` do."""

from pathlib import Path

import tiktoken.load
from sentencepiece import sentencepiece_model_pb2
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers.pre_tokenizers import ByteLevel

PATTERN = (
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*"
    "|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
)
RESERVED = "<|reserved_special_token_{}|>"
LLAMA3_SPECIAL = [
    *("<|begin_of_text|>", "<|end_of_text|>", *(RESERVED.format(i) for i in range(4))),
    *("<|start_header_id|>", "<|end_header_id|>", RESERVED.format(4), "<|eot_id|>"),
    *(RESERVED.format(i) for i in range(5, 251)),
]


def merges_of(vocabulary: dict, order: list) -> list:
    """For each entry of `order` every way to join it from two entries, the earlier ones first."""
    found = []
    for whole in order:
        cuts = [(whole[:i], whole[i:]) for i in range(1, len(whole))]
        cuts = [(left, right) for left, right in cuts if left in vocabulary and right in vocabulary]
        found += sorted(cuts, key=lambda cut: (vocabulary[cut[0]], vocabulary[cut[1]]))
    return found


def llama3(ranks_file: Path) -> Tokenizer:
    ranks = tiktoken.load.load_tiktoken_bpe(str(ranks_file))
    assert len(LLAMA3_SPECIAL) == 256 and list(ranks.values()) == list(range(128_000))
    letters = [spelling(byte) for byte in range(256)]
    spell = lambda token: "".join(letters[byte] for byte in token)
    merges = [(spell(left), spell(right)) for left, right in merges_of(ranks, list(ranks))]
    vocabulary = {spell(token): rank for token, rank in ranks.items()}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=True))
    split = pre_tokenizers.Split(Regex(PATTERN), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in LLAMA3_SPECIAL])
    bos = LLAMA3_SPECIAL[0]
    template = processors.TemplateProcessing(f"{bos} $A", f"{bos} $A {bos}:1 $B:1", [(bos, 128_000)])
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=True), template])
    return tokenizer


def spelling(byte: int) -> str:
    """How byte-level tokenizers write a byte, read off the library: in UTF-8 text each byte becomes one letter."""
    if byte < 128:
        text, position = chr(byte), 0
    elif byte < 192:
        text, position = bytes([0xC2, byte]).decode(), 1
    elif byte in (0xC0, 0xC1) or byte > 0xF4:  # in no UTF-8 text; they are letters of their own
        return chr(byte)
    else:
        tail = {0xE0: b"\xa0\x80", 0xF0: b"\x90\x80\x80"}.get(
            byte, b"\x80" * (1 if byte < 0xE0 else 2 + (byte >= 0xF0))
        )
        text, position = (bytes([byte]) + tail).decode(), 0
    ((letters, _),) = ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)
    return letters[position]


def gemma2(model_file: Path) -> Tokenizer:
    proto = sentencepiece_model_pb2.ModelProto.FromString(model_file.read_bytes())
    vocabulary = {piece.piece: i for i, piece in enumerate(proto.pieces)}
    by_score = [piece.piece for piece in sorted(proto.pieces, key=lambda piece: -piece.score)]
    bpe = models.BPE(
        vocab=vocabulary, merges=merges_of(vocabulary, by_score), unk_token="<unk>", fuse_unk=True, byte_fallback=True
    )
    tokenizer = Tokenizer(bpe)
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    declared = [piece for piece in proto.pieces if piece.type in (piece.UNKNOWN, piece.CONTROL, piece.USER_DEFINED)]
    tokenizer.add_tokens(
        [AddedToken(p.piece, special=p.type != p.USER_DEFINED, normalized=p.type == p.USER_DEFINED) for p in declared]
    )
    tokenizer.post_processor = processors.TemplateProcessing("<bos> $A", "<bos> $A <bos>:1 $B:1", [("<bos>", 2)])
    tokenizer.enable_truncation(max_length=64)  # as saved by a training script that used it
    tokenizer.enable_padding(length=64)
    return tokenizer
