"""What the tests of surgery ask of a model."""

from __future__ import annotations

import math

from torch import Tensor, nn

from dreluop import DReLU
from dreluop.surgery import Report, set_caps


def open_caps(model: nn.Module, report: Report) -> None:
    """Let every site compute what stood there before."""
    set_caps(model, {site.name: site.bound or math.inf for site in report.replaced})


def d_relus(model: nn.Module) -> dict[str, DReLU]:
    return {name: module for name, module in model.named_modules() if isinstance(module, DReLU)}


def weights_of(model: nn.Module) -> list[Tensor]:
    return [parameter for name, parameter in model.named_parameters() if not name.endswith("cap")]
