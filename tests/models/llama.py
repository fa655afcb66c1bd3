"""A Llama forward pass in float64 NumPy, one sequence at a time, one head at a time: slow and plain."""

import numpy as np


def normalise(x, scale, eps):
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + eps) * scale


def rotate(x_TH, theta):
    """Entry i of the first half and entry i of the second half are a complex number, turned by t * theta**(-2i/H)."""
    T, H = x_TH.shape
    angle = np.outer(np.arange(T), [theta ** (-2 * i / H) for i in range(H // 2)])
    turned = (x_TH[:, : H // 2] + 1j * x_TH[:, H // 2 :]) * np.exp(1j * angle)
    return np.concatenate([turned.real, turned.imag], axis=1)


def softmax(x):
    x = np.exp(x - x.max(axis=-1, keepdims=True))
    return x / x.sum(axis=-1, keepdims=True)


def attention(x, p, config):
    T, out = len(x), 0
    for n in range(config.N):
        k = n // (config.N // config.K)
        q = rotate(x @ p["q"][:, n], config.rope_theta)
        scores = q @ rotate(x @ p["k"][:, k], config.rope_theta).T / np.sqrt(config.H)
        scores[np.triu_indices(T, 1)] = -np.inf
        out = out + softmax(scores) @ (x @ p["v"][:, k]) @ p["o"][n]
    return out


def mlp(x, p):
    gate = x @ p["gate"]
    return (gate / (1 + np.exp(-gate)) * (x @ p["up"])) @ p["down"]


def at(tree, layer):
    return {name: at(x, layer) if isinstance(x, dict) else np.asarray(x[layer], np.float64) for name, x in tree.items()}


def logits(params, config, tokens) -> np.ndarray:
    """(T, V) of one unpadded sequence of T tokens."""
    embedding = np.asarray(params["embedding"], np.float64)
    x = embedding[np.asarray(tokens)]
    for i in range(config.L):
        layer = at(params["layers"], i)
        x = x + attention(normalise(x, layer["attention_norm"]["scale"], config.norm_eps), layer["attention"], config)
        x = x + mlp(normalise(x, layer["mlp_norm"]["scale"], config.norm_eps), layer["mlp"])
    x = normalise(x, np.asarray(params["final_norm"]["scale"], np.float64), config.norm_eps)
    return x @ (embedding.T if config.tied_embedding else np.asarray(params["head"], np.float64))


def nll(params, config, tokens) -> np.ndarray:
    """(T,) nats of each token given those before it; zero for the first."""
    p = softmax(logits(params, config, tokens))
    return np.array([0.0] + [-np.log(p[t - 1, tokens[t]]) for t in range(1, len(tokens))])
