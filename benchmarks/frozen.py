"""Whether a frozen teacher that is made cheaper stays the same: the smallest member of every family of timm's.

    python benchmarks/frozen.py --json [--families resnet vision_transformer ...]

Random weights, BatchNorm with statistics, scales and shifts drawn at random, default levels and logits.

| key | what |
| --- | --- |
| families | how many were tried |
| batch_norms, folded | BatchNorm2d of all networks, and those folded into the convolution before them |
| worst_error | largest difference of output or a feature, folded against not, in float64, over its largest value |
| rounded | families in which weights are rounded to bfloat16 once and no bit changes under autocast |
| failed | what went wrong, by family |
"""

from __future__ import annotations

import argparse
import copy
import sys
from typing import Any

import timm
import torch
from step_cost import report
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from zoo import SIZES, families, smallest

from distpro_cli.errors import DistproError, first_line
from distpro_cli.networks.frozen import fold_batch_norm, round_once
from distpro_cli.networks.levels import TappedNetwork
from distpro_cli.training.device import autocast


def tapped(name: str) -> tuple[TappedNetwork, int]:
    """Returns a frozen network for the smallest images that it takes, and their size.

    Raises:
        DistproError: it takes images of none of the sizes.
    """
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=10)
    for norm in (module for module in model.modules() if isinstance(module, nn.BatchNorm2d)):
        for tensor, low in ((norm.running_mean, -0.5), (norm.running_var, 0.5), (norm.weight, 0.5), (norm.bias, -0.5)):
            if tensor is not None:
                nn.init.uniform_(tensor, low, low + 1)
    for size in SIZES:
        try:
            network = TappedNetwork(model, mean=[0.5] * 3, std=[0.2] * 3, image_size=size, logits=True)
        except DistproError:
            continue
        return network.eval().requires_grad_(False), size
    raise DistproError(f"takes images of none of the sizes {', '.join(map(str, SIZES))}")


@torch.no_grad()
def seen(network: TappedNetwork, size: int) -> list[Tensor]:
    """Returns output and features of two images."""
    images_bchw = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(1)).to(network.mean.dtype)
    returned = network(images_bchw, levels=[level.number for level in network.levels])
    return [leaf for leaf in tree_leaves(returned) if isinstance(leaf, Tensor)]


def try_network(name: str) -> dict[str, Any]:
    """Returns `batch_norms`, `folded`, `error` and `rounded` of one network."""
    network, size = tapped(name)
    exact = copy.deepcopy(network).double()
    expected = seen(exact, size)
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in exact.modules())
    folded = fold_batch_norm(exact, size)
    errors = [
        float((ours - theirs).abs().max() / theirs.abs().max().clamp_min(torch.finfo(torch.float64).tiny))
        for ours, theirs in zip(seen(exact, size), expected, strict=True)
    ]
    rounded = round_once(network, size, lambda: autocast(torch.device("cpu"), "bfloat16"))
    return {"batch_norms": norms, "folded": folded, "error": max(errors), "rounded": rounded > 0}


def main() -> None:
    """Tries and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--families", nargs="*", help="only these; default: all")
    arguments = parser.parse_args()
    known = families()
    found: list[dict[str, Any]] = []
    failed: dict[str, str] = {}
    for family in arguments.families or known:
        try:
            found.append(try_network(smallest(known[family])))
        except Exception as error:
            failed[family] = f"{type(error).__name__}: {first_line(error)}"
        print(family, failed.get(family, found[-1] if found else ""), file=sys.stderr, flush=True)
    result = {
        "families": len(found) + len(failed),
        **{key: sum(one[key] for one in found) for key in ("batch_norms", "folded")},
        "worst_error": max((one["error"] for one in found), default=0.0),
        "rounded": sum(one["rounded"] for one in found),
        "failed": failed,
    }
    report(result, as_json=arguments.json)


if __name__ == "__main__":
    main()
