"""Equations that several models share, on whole padded tensors and without their modules' code."""

import torch


def norm(x, layer_norm):
    mean, variance = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, correction=0)
    return (x - mean) / (variance + 1e-12).sqrt() * layer_norm.weight + layer_norm.bias


def gelu(x):
    return x * (1 + torch.erf(x / 2**0.5)) / 2


def feed_forward(x, pffn):
    inner = gelu(x @ pffn.inner.weight.T + pffn.inner.bias)
    return inner @ pffn.outer.weight.T + pffn.outer.bias


def attend(q, k, v, n_heads, visible):
    """q, k, v (.., T, D), visible (.., T or 1, T) -> (.., T, D): head by head."""
    heads = []
    for qh, kh, vh in zip(*(x.chunk(n_heads, -1) for x in (q, k, v))):
        scores = qh @ kh.mT / qh.shape[-1] ** 0.5
        heads.append(scores.masked_fill(~visible, -torch.inf).softmax(-1) @ vh)
    return torch.cat(heads, -1)


def transformer(model, items):
    """items (B, T), 0 on the right -> (B, T, D): what SASRec and BERT4Rec are made of."""
    width = items.shape[1]
    visible = (items > 0)[:, None].expand(-1, width, -1)
    visible = visible.tril() if model.causal else visible
    x = norm(model.embedding.weight[items] + model.positions.weight[:width], model.norm)
    for layer in model.layers:
        matrices = zip(layer.qkv_proj.weight.chunk(3), layer.qkv_proj.bias.chunk(3))
        y = attend(*(x @ weight.T + bias for weight, bias in matrices), model.n_heads, visible)
        s = norm(x + y @ layer.out_proj.weight.T + layer.out_proj.bias, layer.attention_norm)
        x = norm(s + feed_forward(s, layer.pffn), layer.pffn_norm)
    return x
