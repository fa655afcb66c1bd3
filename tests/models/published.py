"""Configs of Hugging Face models for tests: a published one of each family, and small random ones."""

import numpy as np
import transformers

LLAMA3_2_1B = dict(
    model_type="llama",
    vocab_size=128256,
    hidden_size=2048,
    num_hidden_layers=16,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=64,
    intermediate_size=8192,
    hidden_act="silu",
    rms_norm_eps=1e-5,
    rope_theta=500000.0,
    max_position_embeddings=131072,
    rope_scaling=dict(
        factor=32.0,
        high_freq_factor=4.0,
        low_freq_factor=1.0,
        original_max_position_embeddings=8192,
        rope_type="llama3",
    ),
    tie_word_embeddings=True,
)
GEMMA2_9B = dict(
    model_type="gemma2",
    vocab_size=256000,
    hidden_size=3584,
    num_hidden_layers=42,
    num_attention_heads=16,
    num_key_value_heads=8,
    head_dim=256,
    intermediate_size=14336,
    hidden_act="gelu_pytorch_tanh",
    hidden_activation="gelu_pytorch_tanh",
    attn_logit_softcapping=50.0,
    final_logit_softcapping=30.0,
    query_pre_attn_scalar=256,
    rms_norm_eps=1e-6,
    rope_theta=10000.0,
    sliding_window=4096,
)
QWEN2_5_7B = dict(
    model_type="qwen2",
    vocab_size=152064,
    hidden_size=3584,
    num_hidden_layers=28,
    num_attention_heads=28,
    num_key_value_heads=4,
    intermediate_size=18944,
    hidden_act="silu",
    rms_norm_eps=1e-6,
    rope_theta=1000000.0,
    max_position_embeddings=131072,
    max_window_layers=28,
    sliding_window=131072,
    use_sliding_window=False,
    use_mrope=False,
    tie_word_embeddings=False,
)
QWEN3_8B = dict(
    model_type="qwen3",
    vocab_size=151936,
    hidden_size=4096,
    num_hidden_layers=36,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=128,
    intermediate_size=12288,
    attention_bias=False,
    hidden_act="silu",
    rms_norm_eps=1e-6,
    rope_theta=1000000,
    rope_scaling=None,
    max_position_embeddings=40960,
    max_window_layers=36,
    sliding_window=None,
    use_sliding_window=False,
    tie_word_embeddings=False,
)
MISTRAL_7B = dict(
    model_type="mistral",
    vocab_size=32000,
    hidden_size=4096,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    intermediate_size=14336,
    hidden_act="silu",
    rms_norm_eps=1e-5,
    rope_theta=10000.0,
    max_position_embeddings=32768,
    sliding_window=4096,
    tie_word_embeddings=False,
)
PUBLISHED = dict(llama=LLAMA3_2_1B, gemma2=GEMMA2_9B, qwen2=QWEN2_5_7B, qwen3=QWEN3_8B, mistral=MISTRAL_7B)


def llama(seed, kv_heads, head_dim=None, tied=False, scaling=None):
    rng = np.random.default_rng(seed)
    return transformers.LlamaConfig(
        **sizes(rng),
        num_hidden_layers=3,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        tie_word_embeddings=tied,
        rms_norm_eps=1e-5,
        rope_parameters=dict(rope_theta=500.0) | (scaling or dict(rope_type="default")),
        attn_implementation="eager",
        **NO_MARKERS,
    )


def later(kind, seed, kv_heads, layers=3, **own):
    """A config of class `kind`, one of the families without soft-caps."""
    rng = np.random.default_rng(seed)
    return kind(
        **sizes(rng),
        num_hidden_layers=layers,
        num_key_value_heads=kv_heads,
        rope_parameters=dict(rope_theta=500.0, rope_type="default"),
        attn_implementation="eager",
        **NO_MARKERS,
        **own,
    )


def gemma(seed, kv_heads, window, layers=4, head_dim=12):
    rng = np.random.default_rng(seed)
    return transformers.Gemma2Config(
        **sizes(rng),
        num_hidden_layers=layers,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        query_pre_attn_scalar=int(rng.integers(3, 9)),
        sliding_window=window,
        attn_logit_softcapping=2.0,
        final_logit_softcapping=4.0,
        rope_parameters=dict(rope_theta=100.0, rope_type="default"),
        attn_implementation="eager",  # the other implementations leave the soft-cap out
        **NO_MARKERS,
    )


NO_MARKERS = dict(bos_token_id=None, eos_token_id=None, pad_token_id=None, max_position_embeddings=64)


def sizes(rng):
    return dict(
        vocab_size=int(rng.integers(40, 90)),
        hidden_size=8 * int(rng.integers(3, 7)),
        num_attention_heads=4,
        intermediate_size=int(rng.integers(30, 90)),
    )
