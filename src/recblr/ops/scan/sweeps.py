"""The parallel scan as the paper draws it (section 3.3, Figure 3), to be read, not to be fast.

A step h -> a h + u is the pair (a, u), and two steps make one step again:

    (a2, u2) . (a1, u1) = (a2 a1, a2 u1 + u2)        first step 1, then step 2 (eq. 12)

As the product "." is associative, the T products c_t . ... . c_1 need not be formed one after the
other. Two sweeps over perfect binary trees do it in 2 log2(T) rounds, and everything within a
round can run at once (eq. 15). For T = 4, and "1" the pair (1, 0) that changes nothing:

    up-sweep, Tree1                       down-sweep, Tree2 = product of all steps before the node
            c4.c3.c2.c1                                1
         c4.c3       c2.c1                     c2.c1       1
        c4    c3    c2    c1               c3.c2.c1  c2.c1  c1  1

    Tree1[v] = Tree1[later child] . Tree1[earlier child]
    Tree2[earlier child] = Tree2[v]       Tree2[later child] = Tree1[earlier child] . Tree2[v]

The paper writes the later step on the left, so its L and R are "later" and "earlier" here. The
leaf of Tree2 holds the steps strictly before t; one more product with c_t gives h_t.
"""

import torch
from torch import Tensor

Step = tuple[Tensor, Tensor]  # (a, u), each (nodes of one tree level, C), earliest first


def compose(later: Step, earlier: Step) -> Step:
    """The one step that does `earlier` and then `later`."""
    (a2, u2), (a1, u1) = later, earlier
    return a2 * a1, a2 * u1 + u2


def children(level: Step) -> tuple[Step, Step]:
    """The nodes of a level that are the earlier child of their parent, and the later ones."""
    a, u = level
    return (a[0::2], u[0::2]), (a[1::2], u[1::2])


def interleave(earlier: Step, later: Step) -> Step:
    """The level that `children` took apart."""
    a, u = (torch.stack(pair, dim=1).flatten(0, 1) for pair in zip(earlier, later))
    return a, u


def scan_by_sweeps(a: Tensor, u: Tensor) -> Tensor:
    """h_t = a_t h_(t-1) + u_t from h_0 = 0; a, u, h (T, C), T a power of two, any float dtype."""
    length = len(u)
    if length == 0 or length & (length - 1):
        raise ValueError(f"u has {length} rows, expected a power of two")

    tree1 = [(a, u)]  # levels, the leaves first
    while len(tree1[-1][0]) > 1:
        earlier, later = children(tree1[-1])
        tree1.append(compose(later, earlier))

    tree2 = torch.ones_like(a[:1]), torch.zeros_like(u[:1])  # one level at a time, from the root
    for level in reversed(tree1[:-1]):
        earlier, _ = children(level)
        tree2 = interleave(tree2, compose(earlier, tree2))

    return compose((a, u), tree2)[1]
