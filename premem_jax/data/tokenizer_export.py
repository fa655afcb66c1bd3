"""Tokenizer files for `transformers` that give the same token ids and markers as a run's tokenizer."""

import json

from sentencepiece import sentencepiece_model_pb2
from tokenizers import AddedToken, Regex, decoders, models, normalizers, processors
from tokenizers import Tokenizer as Fast
from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split

from premem_jax.data.markers import SETTINGS
from premem_jax.data.tokenizer_kinds import BYTE_OF_LETTER, LLAMA3_PATTERN, LLAMA3_RANKS, Llama3, SentencePiece
from premem_jax.data.tokenizers import Tokenizer


def files(tokenizer: Tokenizer) -> dict[str, bytes]:
    """The tokenizer's own file and, if that is another format, a tokenizer.json that also adds the start marker.

    Token ids are the same with two exceptions: `transformers` reads text that spells a control token as that token,
    and a SentencePiece model of words merges several unknown words in a row into one token.
    """
    made = {tokenizer.file: tokenizer.model}
    if not isinstance(tokenizer, SentencePiece | Llama3):
        return made | ({SETTINGS: (json.dumps(tokenizer.said, indent=2) + "\n").encode()} if tokenizer.said else {})
    fast, names = _pieces(tokenizer) if isinstance(tokenizer, SentencePiece) else _ranks(tokenizer)
    begin = " ".join(names[i] for i in tokenizer.start_ids)
    fast.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A".strip(),
        pair=f"{begin} $A {' '.join(f'{names[i]}:1' for i in tokenizer.start_ids)} $B:1".strip(),
        special_tokens=[(names[i], i) for i in tokenizer.start_ids],
    )
    bos, eos, pad = (names.get(i) for i in (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id))
    said = dict(tokenizer_class="PreTrainedTokenizerFast", bos_token=bos, eos_token=eos, pad_token=pad)
    said |= dict(clean_up_tokenization_spaces=False)
    said |= {"chat_template": tokenizer.said["chat_template"]} if "chat_template" in tokenizer.said else {}
    return made | {
        "tokenizer.json": fast.to_str().encode(),
        SETTINGS: (json.dumps(said, indent=2) + "\n").encode(),
    }


def _pieces(tokenizer: SentencePiece) -> tuple[Fast, dict[int, str]]:
    proto = sentencepiece_model_pb2.ModelProto.FromString(tokenizer.model)
    names = {i: piece.piece for i, piece in enumerate(proto.pieces)}
    vocabulary = {name: i for i, name in names.items()}
    if proto.trainer_spec.model_type == proto.trainer_spec.WORD:
        fast = Fast(models.WordLevel(vocab=vocabulary, unk_token="<unk>"))
        marked = [normalizers.Replace(Regex("^ +| +$"), ""), normalizers.Replace(Regex(" +"), "▁")]
        fast.normalizer = normalizers.Sequence([*marked, normalizers.Prepend("▁")])
        fast.pre_tokenizer = Split("▁", "merged_with_next")
        fast.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    else:
        joined = sorted((p for p in proto.pieces if p.type == p.NORMAL), key=lambda piece: -piece.score)
        merges = [cut for piece in joined for cut in _cuts(piece.piece, vocabulary)]
        fast = Fast(models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
        fast.normalizer = normalizers.Replace(" ", "▁")
        fast.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    declared = [p for p in proto.pieces if p.type in (p.UNKNOWN, p.CONTROL, p.USER_DEFINED)]
    own = lambda piece: piece.type == piece.USER_DEFINED
    fast.add_tokens([AddedToken(p.piece, special=not own(p), normalized=own(p)) for p in declared])
    return fast, names


def _ranks(tokenizer: Llama3) -> tuple[Fast, dict[int, str]]:
    letters = {byte: letter for letter, byte in BYTE_OF_LETTER.items()}
    words = tokenizer.token_bytes()[:LLAMA3_RANKS]
    vocabulary = {"".join(letters[byte] for byte in word): i for i, word in enumerate(words)}
    merges = [cut for word in vocabulary for cut in _cuts(word, vocabulary)]
    fast = Fast(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=True))
    split = Split(Regex(LLAMA3_PATTERN), "isolated")
    fast.pre_tokenizer = Sequence([split, ByteLevel(add_prefix_space=False, use_regex=False)])
    fast.decoder = decoders.ByteLevel()
    fast.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in tokenizer.control])
    return fast, {i: name for name, i in tokenizer.control.items()}


def _cuts(whole: str, vocabulary: dict[str, int]) -> list[tuple[str, str]]:
    """All pairs of entries that concatenate to `whole`, pairs of earlier entries first."""
    cuts = ((whole[:i], whole[i:]) for i in range(1, len(whole)))
    return sorted(
        ((left, right) for left, right in cuts if left in vocabulary and right in vocabulary),
        key=lambda cut: (vocabulary[cut[0]], vocabulary[cut[1]]),
    )
