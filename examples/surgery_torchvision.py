"""Put capped activations into a torchvision network, and take them out again: `python examples/surgery_torchvision.py`.

Works on any model of yours too. `replace_activations` changes calls, not only modules, and its report names every
ReLU that it left.
"""

from __future__ import annotations

import torch
from torchvision import models

import dreluop
from dreluop.surgery import calibrate_caps, cap_summary, load_float_state_dict, replace_activations, to_torch


def main() -> None:
    torch.manual_seed(0)
    batches = [torch.rand(4, 3, 64, 64) for _ in range(2)]  # yours: a loader of real images
    model = models.resnet18(weights=None).eval()  # yours: weights="DEFAULT"
    checkpoint = model.state_dict()
    before = model(batches[0])

    report = replace_activations(model, granularity="channel", example_input=batches[0])
    print(report)
    assert not report.remaining, "a ReLU still runs outside of a D-ReLU"

    # Caps start at 100, so nothing is capped yet, and the keys of the float checkpoint still load.
    load_float_state_dict(model, checkpoint)
    torch.testing.assert_close(model(batches[0]), before)

    # Start the caps where they matter: at the 0.99 quantile of what reaches them.
    calibrate_caps(model, batches, quantile=0.99, progress=False)
    print(cap_summary(model, batches))

    fine_tune(model, batches)

    # For deployment without dreluop: the same outputs from torch's own operators.
    plain = to_torch(model.eval())
    assert torch.equal(plain(batches[0]), model(batches[0]))
    print("the network without dreluop gives the same outputs")


def fine_tune(model: torch.nn.Module, batches: list[torch.Tensor]) -> None:
    optimizer = torch.optim.Adam(dreluop.param_groups(model, lr=1e-4, cap_lr=1e-2))
    dreluop.project_caps_after_step(optimizer, model)
    model.train()
    for x in batches:
        label = torch.randint(1000, (len(x),))
        loss = torch.nn.functional.cross_entropy(model(x), label) + dreluop.cap_penalty(model, balancer=1e-4)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        print(f"loss {loss.item():.3f}")


if __name__ == "__main__":
    main()
