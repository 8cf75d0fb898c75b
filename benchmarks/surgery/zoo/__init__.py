"""Surgery on networks of timm, transformers, segmentation_models_pytorch and torchvision (the extra ``zoo``)."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.surgery.zoo import smp_models, timm_models, torchvision_models, transformers_models
from benchmarks.surgery.zoo.case import Case


def cases() -> Sequence[Case]:
    """All networks, by library; building one is what needs the library."""
    return [
        case
        for library in (timm_models, transformers_models, smp_models, torchvision_models)
        for case in library.cases()
    ]
