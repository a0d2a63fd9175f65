"""Linear cross-entropy by chunks of rows, whose logits stay in cache and in one buffer.

With e = exp(logits - their maximum), total = sum_v e, and total subtracted from e at the target:
dx = e W / (N total) and dW = e^T (x / (N total)). So e is never normalised: the thin (rows, D)
factors are scaled instead.
"""

import torch
from torch.autograd.function import once_differentiable

# Of the shifted logits: e^-60 changes no sum; denormal e would slow the products by 3x.
FLOOR = -60.0

# Elements of the buffer of logits: 4 MB stay in cache between their product, softmax and the two
# products of the gradients. At 12,101 items 64 rows take 0.79 of the time of 256 on one machine, as
# long as 256 on another with a larger cache; fewer than 64 are slow: at 18,357 items 32 take 1.15
# times as long (measured).
CACHED_LOGITS = 1 << 20
DEVICE_LOGITS = 1 << 26  # 256 MB on a GPU, where each chunk costs a dozen launches (not measured)


def rows_at_once(items: int, device: torch.device) -> int:
    if device.type == "cpu":
        return min(max(CACHED_LOGITS // items // 32 * 32, 64), 256)
    return max(DEVICE_LOGITS // items, 1)


class ChunkedLinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, targets, bias, by, row, column, chunk_rows, differentiate):
        n, v = len(x), len(weight)
        half = x.dtype == torch.bfloat16
        wide = torch.float32 if half else x.dtype  # of softmax and sums; products stay in x.dtype
        need_x, need_weight, need_bias, need_by = (
            differentiate and ctx.needs_input_grad[k] for k in (0, 1, 3, 4)
        )
        dx = torch.empty_like(x, memory_format=torch.contiguous_format) if need_x else None
        dweight = weight.new_zeros(weight.shape, dtype=wide) if need_weight else None
        dbias = weight.new_zeros(v, dtype=wide) if need_bias else None
        dby = x.new_zeros((), dtype=wide) if need_by else None
        buffer = x.new_empty(min(chunk_rows, n), v)
        bounds = [] if row is None else chunk_bounds(row, n, chunk_rows)
        loss = x.new_zeros((), dtype=wide)

        for number, start in enumerate(range(0, n, chunk_rows)):
            rows = slice(start, min(start + chunk_rows, n))
            x_rows, count = x[rows], rows.stop - rows.start
            logits = torch.mm(x_rows, weight.t(), out=buffer[:count])
            if bias is not None:
                logits += bias
            if row is not None:
                own = slice(bounds[number], bounds[number + 1])
                shifted = row[own] - start, column[own]
                logits[shifted] += by
            e = logits.to(wide)  # the same memory, except in half precision
            target = targets[rows, None]
            e -= e.amax(1, keepdim=True)
            at_target = e.gather(1, target)
            total = e.clamp_(min=FLOOR).exp_().sum(1, keepdim=True)
            loss += (total.log() - at_target).sum()
            if not differentiate:
                continue
            e.scatter_add_(1, target, -total)
            inverse = total.reciprocal_().div_(n)
            if half:  # e of a half type is rounded, and may overflow, before it is scaled
                e, inverse = logits.copy_(e.mul_(inverse)), inverse.fill_(1)
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
            if dby is not None:
                dby += (e[shifted].to(wide) * inverse[shifted[0], 0]).sum()

        made = (dx, dweight, dbias, dby)
        ctx.save_for_backward(*(None if d is None else d.to(x.dtype) for d in made))
        return loss / n

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        dx, dweight, dbias, dby = (None if d is None else d * grad.to(d) for d in ctx.saved_tensors)
        return dx, dweight, None, dbias, dby, *[None] * 4


def chunk_bounds(row, n: int, chunk_rows: int) -> list[int]:
    """Where each chunk of rows begins in the ascending `row` (C,), and where the last ends."""
    starts = torch.arange(0, n + chunk_rows, chunk_rows, device=row.device)
    return torch.searchsorted(row, starts).tolist()
