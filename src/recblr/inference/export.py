"""A trained model for other programs: weights as safetensors, and ONNX that needs no torch.

    model.safetensors   weights under the names of the model's file; a shared one once; a repeat
                        bias as `blocks.RepeatBias` keeps it
    item_ids.json       raw ids in id order; the first is the padding's
    user_ids.json       of a model with a vector per user: raw ids in the order of its rows
    step.onnx           items (B,), state_0 .. (the state of B users)
                        -> representation (B, D'), scores (B, V+1), next_state_0 ..
    full.onnx           items (B, T), T > 0, lengths (B,): from the first column, 0 behind the last
                        -> representation (B, D'), scores (B, V+1), state_0 ..

Item j has column j of the scores; the padding's is -inf. The full pass is the step in a loop of
ONNX (Scan), so both compute one function, and full.onnx's states go on with step.onnx. Neither
has a `max_length`: both see a whole history, `Recommender.recommend` its last `max_length` items,
so their results differ for longer ones. A model without `step` has no ONNX, nor has one whose
state starts from a vector of the user (FPMC): item ids alone don't say whose; nor has one with a
repeat bias, which asks for all that the user has met. Needs the extra `serving`.
`onnxruntime.RunOptions().only_execute_path_to_fetches = True` computes no scores where none are
asked for.
"""

from __future__ import annotations

import copy
import importlib.util
import json
import logging
import warnings
from collections.abc import Set
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from recblr.inference.live import FlatStep, starts_by_user, user_dim
from recblr.inference.recommender import Recommender
from recblr.models.base import item_bias, repeat_bias

OPSET = 20
PACKAGES = ("onnx", "onnxscript", "onnxruntime", "safetensors")


def missing_packages() -> list[str]:
    return [name for name in PACKAGES if importlib.util.find_spec(name) is None]


def export(recommender: Recommender, folder: Path | str) -> list[Path]:
    """Write the files above; the first two alone where `no_onnx` says why. Returns their paths.

    ValueError if a package is missing.
    """
    if missing := missing_packages():
        raise ValueError(f"{', '.join(missing)}: not installed; pip install 'recblr[serving]'")
    from safetensors.torch import save_model

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    model = copy.deepcopy(recommender.model).cpu()
    paths = [folder / name for name in ("model.safetensors", "item_ids.json")]
    save_model(model, str(paths[0]), {"config": json.dumps(recommender.about["config"])})
    paths[1].write_text(json.dumps(list(recommender.item_ids)) + "\n", encoding="utf-8")
    paths[0].chmod(paths[1].stat().st_mode)  # safetensors' own files are for their owner alone
    if recommender.users:
        paths.append(folder / "user_ids.json")
        paths[-1].write_text(json.dumps(list(recommender.users)) + "\n", encoding="utf-8")
    if no_onnx(model) is None:
        import onnx

        step = step_graph(model)
        for name, graph in (("step.onnx", step), ("full.onnx", full_graph(step, model))):
            paths.append(folder / name)
            onnx.checker.check_model(graph, full_check=True)
            onnx.save_model(graph, str(paths[-1]))
    return paths


def no_onnx(model: Any) -> str | None:
    """Why a model has no ONNX; None for one that has."""
    if not hasattr(model, "step"):
        return "has no step()"
    if repeat_bias(model) is not None:
        return "has a repeat bias: its state does not hold the items that it is for"
    return "starts from a vector of the user" if starts_by_user(model) else None


class ScoredStep(nn.Module):
    """items (B,) and the parts of a state -> representation, scores, parts of the next state."""

    def __init__(self, model: Any):
        super().__init__()
        self.step = FlatStep(model, model.init_state(1))

    def forward(self, items: Tensor, *parts: Tensor) -> tuple[Tensor, ...]:
        x, *after = self.step(items, *parts)
        scores, bias = x @ self.step.model.item_matrix().T, item_bias(self.step.model)
        scores = scores if bias is None else scores + bias
        return (x, F.pad(scores[:, 1:], (1, 0), value=-torch.inf), *after)


def step_graph(model: Any) -> Any:
    """step.onnx as an `onnx.ModelProto`."""
    two, three = (tree_leaves(model.init_state(users)) for users in (2, 3))
    dims = [user_dim(a, b) for a, b in zip(two, three)]
    users = torch.export.Dim("users")
    states = [f"state_{number}" for number in range(len(two))]
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        logger.setLevel(logging.ERROR)
        try:
            program = torch.onnx.export(
                ScoredStep(model).eval(),
                (torch.ones(2, dtype=torch.int64), *(part.contiguous() for part in two)),
                input_names=["items", *states],
                output_names=["representation", "scores", *(f"next_{name}" for name in states)],
                custom_translation_table={torch.ops.aten.expm1.default: exact_expm1()},
                dynamic_shapes={
                    "items": {0: users},
                    "parts": tuple({dim: users} for dim in dims),
                },
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
        finally:
            logger.setLevel(level)
    assert program is not None
    return program.model_proto


def exact_expm1() -> Any:
    """exp(x) - 1 for ONNX, whose usual translation subtracts: near 0 no digit would be left."""
    from onnxscript import opset20

    op: Any = opset20

    def expm1(x):
        return op.Mul(op.Tanh(op.Mul(x, 0.5)), op.Add(op.Exp(x), 1.0))

    return expm1


def full_graph(step: Any, model: Any) -> Any:
    """full.onnx: the step of `step_graph` over the columns of padded histories.

    A user whose history is over keeps state and representation; one of length 0 has the state of
    no history and a representation of zeros.
    """
    from onnx import TensorProto, helper, numpy_helper

    one, two = (tree_leaves(model.init_state(users)) for users in (1, 2))
    starts = {"representation": np.zeros((1, model.item_matrix().shape[1]), np.float32)}
    starts |= {f"state_{number}": part.detach().numpy() for number, part in enumerate(one)}
    dims = {"representation": 0}
    dims |= {f"state_{number}": user_dim(a, b) for number, (a, b) in enumerate(zip(one, two))}

    def values(prefix: str) -> list[Any]:
        """Of what a column hands to the next."""
        shapes: dict[str, list[Any]] = {name: list(start.shape) for name, start in starts.items()}
        for name, dim in dims.items():
            shapes[name][dim] = "users"
        make = helper.make_tensor_value_info
        return [make(prefix + name, TensorProto.FLOAT, shapes[name]) for name in starts]

    # The body: the step on a column, and of each result the old value where a history is over.
    new = {name: f"new/next_{name}" for name in starts} | {"representation": "new/representation"}
    old = {name: f"new/{name}" for name in starts} | {"representation": "old/representation"}
    body = needed(renamed(step.graph, "new/"), set(new.values()))
    arrays = {"zero": np.int64(0), "one": np.int64(1), "second": np.array([1])}
    for name, start in starts.items():
        arrays |= {f"start/{name}": start}
        arrays |= {f"others/{name}": np.array([d for d in range(start.ndim) if d != dims[name]])}
        going = ["going", f"others/{name}"]
        body += [
            helper.make_node("Unsqueeze", going, [f"going/{name}"]),
            helper.make_node("Where", [f"going/{name}", new[name], old[name]], [f"kept/{name}"]),
        ]
    inputs = values("new/")
    inputs[0].name = old["representation"]
    inputs.append(helper.make_tensor_value_info("new/items", TensorProto.INT64, ["users"]))
    inputs.append(helper.make_tensor_value_info("going", TensorProto.BOOL, ["users"]))

    nodes = [
        helper.make_node("Shape", ["items"], ["width"], start=1, end=2),
        helper.make_node("Squeeze", ["width"], ["places"]),
        helper.make_node("Range", ["zero", "places", "one"], ["place"]),
        helper.make_node("Unsqueeze", ["lengths", "second"], ["length"]),
        helper.make_node("Less", ["place", "length"], ["inside"]),  # (B, T)
        helper.make_node("Sub", ["lengths", "lengths"], ["nobody"]),  # B zeros
    ]
    for name, dim in dims.items():
        start = [f"start/{name}", "nobody"]
        nodes.append(helper.make_node("Gather", start, [f"first/{name}"], axis=dim))
    first = [f"first/{name}" for name in starts]
    graph = helper.make_graph(body, "event", inputs, values("kept/"))
    axes = {"num_scan_inputs": 2, "scan_input_axes": [1, 1]}
    scan = helper.make_node("Scan", [*first, "items", "inside"], list(starts), body=graph, **axes)
    scores = needed(step.graph.node, {"scores"}, known={"representation"})
    full = helper.make_graph(
        [*nodes, scan, *scores],
        "full",
        [
            helper.make_tensor_value_info("items", TensorProto.INT64, ["users", "places"]),
            helper.make_tensor_value_info("lengths", TensorProto.INT64, ["users"]),
        ],
        [values("")[0], step.graph.output[1], *values("")[1:]],
        [
            *step.graph.initializer,
            *(numpy_helper.from_array(np.asarray(a), name) for name, a in arrays.items()),
        ],
    )
    return helper.make_model(full, opset_imports=step.opset_import, ir_version=step.ir_version)


def renamed(graph: Any, prefix: str) -> list[Any]:
    """Copies of the nodes, their values under other names; weights keep theirs."""
    weights = {weight.name for weight in graph.initializer} | {""}
    nodes = []
    for node in graph.node:
        copy = type(node)()
        copy.CopyFrom(node)
        copy.name = prefix + node.name
        for names in (copy.input, copy.output):
            names[:] = [name if name in weights else prefix + name for name in names]
        nodes.append(copy)
    return nodes


def needed(nodes: Any, wanted: set[str], known: Set[str] = frozenset()) -> list[Any]:
    """The nodes that `wanted` values come from, in order, without what leads to `known` ones."""
    found = []
    for node in reversed(nodes):
        if wanted & set(node.output) - known:
            found.append(node)
            wanted = wanted | set(node.input)
    return found[::-1]
