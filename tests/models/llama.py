"""The decoder in float64 NumPy, one sequence at a time, one head at a time: slow and plain."""

import numpy as np


def normalise(x, scale, eps):
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + eps) * scale


def frequency(config, i):
    """Of pair i, radians per token; Llama-3.1 slows it by `factor` if it turns too seldom in the original context."""
    plain, scaling = config.rope_theta ** (-2 * i / config.H), config.rope_scaling
    if scaling is None:
        return plain
    turns = scaling.original_context * plain / (2 * np.pi)
    if turns > scaling.high_freq_factor:
        return plain
    if turns < scaling.low_freq_factor:
        return plain / scaling.factor
    mix = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    return plain * (mix + (1 - mix) / scaling.factor)


def rotate(x_TH, config):
    """Entry i of the first half and entry i of the second half are a complex number, turned by t * frequency i."""
    T, H = x_TH.shape
    angle = np.outer(np.arange(T), [frequency(config, i) for i in range(H // 2)])
    turned = (x_TH[:, : H // 2] + 1j * x_TH[:, H // 2 :]) * np.exp(1j * angle)
    return np.concatenate([turned.real, turned.imag], axis=1)


def squeeze(x, cap):
    return x if cap is None else cap * np.tanh(x / cap)


def softmax(x):
    x = np.exp(x - x.max(axis=-1, keepdims=True))
    return x / x.sum(axis=-1, keepdims=True)


def attention(x, p, config, window):
    T, out = len(x), 0
    biased = lambda name, i: x @ p[name][:, i] + (p[f"{name}_bias"][i] if name in config.biases else 0)
    scaled = lambda name: config.norm_offset + p[f"{name}_norm"]["scale"]
    head = lambda name, y: normalise(y, scaled(name), config.norm_eps) if config.head_norms else y
    scale = 1 / np.sqrt(config.H) if config.query_scale is None else config.query_scale
    for n in range(config.N):
        k = n // (config.N // config.K)
        q = rotate(head("q", biased("q", n)), config)
        keys = rotate(head("k", biased("k", k)), config)
        scores = squeeze(q @ keys.T * scale, config.attention_softcap)
        for t in range(T):
            scores[t, t + 1 :] = -np.inf
            if window is not None and t >= window:
                scores[t, : t - window + 1] = -np.inf
        out = out + softmax(scores) @ biased("v", k) @ p["o"][n]
    return out


def mlp(x, p, activation):
    gate = x @ p["gate"]
    if activation == "silu":
        gate = gate / (1 + np.exp(-gate))
    else:
        gate = gate / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3)))
    return (gate * (x @ p["up"])) @ p["down"]


def at(tree, layer):
    return {name: at(x, layer) if isinstance(x, dict) else np.asarray(x[layer], np.float64) for name, x in tree.items()}


def logits(params, config, tokens) -> np.ndarray:
    """(T, V) of one unpadded sequence of T tokens."""
    norm = lambda x, p: normalise(x, config.norm_offset + np.asarray(p["scale"], np.float64), config.norm_eps)
    embedding = np.asarray(params["embedding"], np.float64)
    x = embedding[np.asarray(tokens)] * (np.sqrt(config.D) if config.scaled_embedding else 1)
    for i in range(config.L):
        layer = at(params["layers"], i)
        window = config.windows[i % len(config.windows)]
        y = attention(norm(x, layer["attention_norm"]), layer["attention"], config, window)
        x = x + (norm(y, layer["attention_post_norm"]) if config.post_norms else y)
        y = mlp(norm(x, layer["mlp_norm"]), layer["mlp"], config.activation)
        x = x + (norm(y, layer["mlp_post_norm"]) if config.post_norms else y)
    x = norm(x, params["final_norm"])
    out = x @ (embedding.T if config.tied_embedding else np.asarray(params["head"], np.float64))
    return squeeze(out, config.final_softcap)


def nll(params, config, tokens) -> np.ndarray:
    """(T,) nats of each token given those before it; zero for the first."""
    p = softmax(logits(params, config, tokens))
    return np.array([0.0] + [-np.log(p[t - 1, tokens[t]]) for t in range(1, len(tokens))])
