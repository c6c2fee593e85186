"""Tries torch and torchvision and tells, as JSON, what they run on. In a process of its own: a pair that does not fit may crash it."""

import json
import sys

import torch
import torchvision

from comp.network.device import find_device


def main() -> None:
    torchvision.ops.nms(
        torch.zeros(1, 4), torch.zeros(1), 0.5
    )  # compiled for one version of torch: fails with any other
    device = find_device()
    torch.ones(
        2, device=device.where
    ).sum().item()  # a GPU that this torch has no kernels for is found, but cannot add
    n_bytes = torch.cuda.get_device_properties(device.where).total_memory if device.is_cuda else 0
    found = {
        "kind": device.where.type,
        "name": device.name,
        "n_bytes": n_bytes,
        "cuda": torch.version.cuda,
    }
    json.dump(
        found | {"torch": torch.__version__, "torchvision": torchvision.__version__}, sys.stdout
    )


if __name__ == "__main__":
    main()
