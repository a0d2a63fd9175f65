"""Linear cross-entropy by chunks of rows, whose logits stay in cache and in one buffer.

With e = exp(logits - m) and inverse = 1 / (N sum_v e): dx = inverse (e W) - W[target] / N and
dW = e^T (inverse x) - sum over rows of x / N at their target. So e is never normalised: the
thin (rows, D) factors are scaled instead, and the one-hot part is added once at the end. m is
the row's maximum, or 0 where the norms of x and W bound the logits well inside exp's range.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

HALF = (torch.float16, torch.bfloat16)
SAFE_LOGIT = 60.0  # e^60 times 1e8 items stays far below float32's 3e38, e^-60 far above 1e-38


def logits_are_small(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether |x_n . weight_v + bias_v| < SAFE_LOGIT for all n and v, by Cauchy-Schwarz."""
    bound = x.norm(dim=1).max() * weight.norm(dim=1).max()
    if bias is not None:
        bound = bound + bias.abs().max()
    return bool(bound < SAFE_LOGIT)


class ChunkedLinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, targets, bias, chunk_rows, differentiate):
        n, v = len(x), len(weight)
        half = x.dtype in HALF
        wide = torch.float32 if half else x.dtype  # of softmax and sums; products stay in x.dtype
        shift = half or not logits_are_small(x, weight, bias)
        need_x, need_weight, need_bias = (
            differentiate and ctx.needs_input_grad[k] for k in (0, 1, 3)
        )
        dx = torch.empty_like(x, memory_format=torch.contiguous_format) if need_x else None
        dweight = weight.new_zeros(weight.shape, dtype=wide) if need_weight else None
        dbias = weight.new_zeros(v, dtype=wide) if need_bias else None
        buffer = x.new_empty(min(chunk_rows, n), v)
        loss = x.new_zeros((), dtype=wide)

        for start in range(0, n, chunk_rows):
            rows = slice(start, min(start + chunk_rows, n))
            x_rows, count = x[rows], rows.stop - rows.start
            logits = torch.mm(x_rows, weight.t(), out=buffer[:count])
            if bias is not None:
                logits += bias
            e = logits.to(wide)  # the same memory, except in half precision
            at_target = e.gather(1, targets[rows, None]).squeeze(1)
            if shift:
                maximum = e.amax(1, keepdim=True)
                e -= maximum
                at_target = at_target - maximum.squeeze(1)
            total = e.exp_().sum(1)
            loss += (total.log() - at_target).sum()
            inverse = total.reciprocal_().div_(n)[:, None]
            if half and differentiate:
                e, inverse = logits.copy_(e.mul_(inverse)), torch.ones_like(inverse)
            if dx is not None:
                torch.mm(e, weight, out=dx[rows]).mul_(inverse)
            if dweight is not None:
                scaled = x_rows * inverse.to(x.dtype)
                if half:
                    dweight += torch.mm(e.t(), scaled)
                else:
                    dweight.addmm_(e.t(), scaled)
            if dbias is not None:
                dbias += torch.mv(e.t().to(wide), inverse.squeeze(1))

        if dx is not None:
            dx.sub_(weight[targets], alpha=1 / n)
        if dweight is not None:
            dweight.index_add_(0, targets, x.to(wide), alpha=-1 / n)
        if dbias is not None:
            dbias -= torch.bincount(targets, minlength=v).to(wide) / n
        ctx.save_for_backward(*(None if d is None else d.to(x.dtype) for d in (dx, dweight, dbias)))
        return loss / n

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        dx, dweight, dbias = (None if d is None else d * grad.to(d) for d in ctx.saved_tensors)
        return dx, dweight, None, dbias, None, None
