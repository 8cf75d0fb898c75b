"""nn.Modules: a fixed cap (SReLU), a cap that learns (DReLU), and one that takes its shape from the first input."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import UninitializedParameter

from dreluop._internal import cap_state, checks
from dreluop._internal.zeroed import zeroed
from dreluop.functional import Above, NaN, SaveMode, cap_penalty, capped_relu

Granularity = Literal["layer", "channel", "neuron"]
GRANULARITIES = ("layer", "channel", "neuron")


class _CappedActivation(nn.Module):
    cap: Tensor
    # Also of modules from pickles that are older than these.
    above: Above = "cap"
    nan: NaN = "propagate"

    def __init__(self, dim: int, inplace: bool, save: SaveMode, above: Above, nan: NaN) -> None:
        super().__init__()
        self.dim = checks.integer("dim", dim)
        self.inplace = checks.flag("inplace", inplace)
        self.save: SaveMode = "mask" if checks.save_mode(save) == "mask" else "output"
        zeroed(above, nan)
        self.above, self.nan = above, nan

    def forward(self, x: Tensor, residual: Tensor | None = None, *, bias: Tensor | None = None) -> Tensor:
        return capped_relu(
            x, self.cap, dim=self.dim, inplace=self.inplace, save=self.save, bias=bias, residual=residual,
            above=self.above, nan=self.nan,
        )  # fmt: skip

    def __prepare_scriptable__(self) -> Any:
        # torch.jit.script calls this first; its own error names an annotation.
        raise TypeError(f"torch.jit.script: got a {type(self).__name__}, which it cannot compile; use torch.export")

    def _options_repr(self) -> str:
        options = [f"dim={self.dim}"] if self.cap.ndim == 1 and self.cap.numel() != 1 else []
        options += ["inplace=True"] if self.inplace else []
        options += ['save="mask"'] if self.save == "mask" else []
        options += ['above="zero"'] if self.above == "zero" else []
        options += ['nan="zero"'] if self.nan == "zero" else []
        return "".join(f", {option}" for option in options)


class SReLU(_CappedActivation):
    """S-ReLU: ``y = max(0, min(x, cap))`` with a cap that is not trained (section 3 of the paper).

    Args:
        cap: a number, or a tensor of one of the shapes of ``capped_relu``; kept as the buffer ``cap``. As in
            ``capped_relu``, an infinite cap is plain ReLU, one <= 0 gives 0, and NaN gives NaN.
        dim, inplace, save, above, nan: as in ``capped_relu``.

    Raises:
        TypeError: cap is neither, dim is no int, inplace no bool.
        ValueError: the default dtype rounds the number to 0 or infinity; save, above or nan is unknown.
    """

    def __init__(
        self,
        cap: float | Tensor,
        *,
        dim: int = 1,
        inplace: bool = False,
        save: SaveMode = "output",
        above: Above = "cap",
        nan: NaN = "propagate",
    ) -> None:
        super().__init__(dim, inplace, save, above, nan)
        if isinstance(cap, Tensor):
            self._made_of: float | Tensor = checks.float_tensor("cap", cap).detach().clone()
            self.register_buffer("cap", self._made_of.clone())
        else:
            self._made_of = checks.cap_number(cap)
            self.register_buffer(
                "cap", torch.full((1,), checks.stored("cap", self._made_of, torch.get_default_dtype()))
            )

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        # A pickle of an older version has only the cap.
        if not hasattr(self, "_made_of"):
            self._made_of = self.cap.detach().clone()

    def reset_parameters(self) -> None:
        """Set the cap to the number or tensor that the module was made of, as after ``to_empty``."""
        value = self._made_of
        if not isinstance(value, Tensor):
            value = torch.tensor(checks.stored("cap", value, self.cap.dtype), dtype=self.cap.dtype, device="cpu")
        if not checks.has_values(self.cap):
            return
        if place := checks.place_without_values(value):
            raise ValueError(
                f"cap: the module was made of a tensor {place}, where it has no value; make it of a number, or load a "
                "state_dict"
            )
        cap_state.write({"": self}, {"": value})

    def extra_repr(self) -> str:
        is_number = self.cap.numel() == 1 and checks.has_values(self.cap)
        value = f"{self.cap.item():g}" if is_number else f"{tuple(self.cap.shape)}"
        return f"cap={value}{self._options_repr()}"


class DReLU(_CappedActivation, cap_state.LearnedCap):
    """D-ReLU: ``y = max(0, min(x, cap))`` with a learnable cap (section 4 of the paper).

    Train the cap under ``loss + cap_penalty(model, balancer)``, in a parameter group of its own: its best learning rate
    is about ten times that of the weights, and weight decay is the penalty's business.

    Args:
        num_parameters: 1 for one cap (the layer), C for one per channel of ``dim``, or a shape, ``x.shape[1:]``, for
            one per neuron (the paper's case).
        init: initial value of every cap, > 0 (a cap <= 0 gives 0, and its gradient is 0). With ``inf`` it is plain ReLU
            until its caps are set: an infinite cap never learns, and its penalty is infinite.
        dim, inplace, save, above, nan: as in ``capped_relu``. With ``above="zero"`` the cap learns from its penalty
            alone.
        device, dtype: of the parameter ``cap``, which always has at least one dimension.

    Raises:
        TypeError: num_parameters is no int or shape, init no number, dim no int, inplace no bool, dtype no float type.
        ValueError: a size is not positive; init is not > 0, or dtype rounds it to 0 or infinity; save, above
            or nan is unknown.
    """

    cap: nn.Parameter

    def __init__(
        self,
        num_parameters: int | Sequence[int] = 1,
        init: float = 100.0,
        dim: int = 1,
        inplace: bool = False,
        *,
        save: SaveMode = "output",
        above: Above = "cap",
        nan: NaN = "propagate",
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(dim, inplace, save, above, nan)
        self.init = checks.initial_cap(init)
        sizes = checks.shape("num_parameters", num_parameters)
        checks.float_dtype("dtype", dtype)
        self.cap = nn.Parameter(torch.empty(sizes, device=device, dtype=dtype))
        self.reset_parameters()

    @property
    def num_parameters(self) -> int | tuple[int, ...]:
        """The constructor's argument: an int, or a shape for neuron caps."""
        return self.cap.shape[0] if self.cap.ndim == 1 else tuple(self.cap.shape)

    def reset_parameters(self) -> None:
        """Set every cap to ``init``."""
        value = checks.initial_cap(self.init, self.cap.dtype)
        if self._parameters.get("cap") is not None:
            nn.init.constant_(self.cap, value)
        else:
            cap_state.write({"": self}, {"": torch.full((), value, dtype=self.cap.dtype, device="cpu")})

    def penalty(self, balancer: float) -> Tensor:
        """``balancer * sum(cap ** 2)``; for a whole model ``dreluop.cap_penalty(model, balancer)`` is one call."""
        return cap_penalty(self.cap, balancer)

    def extra_repr(self) -> str:
        return f"{self.num_parameters}, init={self.init:g}{self._options_repr()}"


class LazyDReLU(LazyModuleMixin, DReLU):
    """A DReLU that takes the shape of its cap from the first input, and then is one.

    Args:
        granularity: ``"layer"``: one cap; ``"channel"``: ``x.shape[dim]``; ``"neuron"``: ``x.shape[1:]``.
        init, dim, inplace, save, above, nan, device, dtype: as in ``DReLU``.
    """

    cls_to_become = DReLU
    cap: UninitializedParameter  # type: ignore[assignment]

    def __init__(
        self,
        granularity: Granularity = "layer",
        init: float = 100.0,
        dim: int = 1,
        inplace: bool = False,
        *,
        save: SaveMode = "output",
        above: Above = "cap",
        nan: NaN = "propagate",
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if granularity not in GRANULARITIES:
            raise ValueError(f'granularity: got {granularity!r}; expected "layer", "channel" or "neuron"')
        super().__init__(1, init, dim, inplace, save=save, above=above, nan=nan, device="meta", dtype=dtype)
        self.granularity = granularity
        self.cap = UninitializedParameter(device=device, dtype=dtype)  # type: ignore[call-arg]

    def reset_parameters(self) -> None:
        if not self.has_uninitialized_params():
            super().reset_parameters()

    def initialize_parameters(self, x: Tensor, *args: Any, **kwargs: Any) -> None:
        """Give the cap its shape; called before the first forward."""
        if not self.has_uninitialized_params():
            return
        if not isinstance(x, Tensor):
            raise TypeError(
                f"x: got {type(x).__name__}; expected a torch.Tensor in the first call of a LazyDReLU, which takes its "
                "shape from it (run the module once before tracing it)"
            )
        checks.float_tensor("x", x)
        if self.granularity == "channel" and not -x.ndim <= self.dim < x.ndim:
            raise ValueError(f"dim: got {self.dim} for x of shape {tuple(x.shape)}")
        if self.granularity == "neuron" and x.ndim < 2:
            raise ValueError(f"x: got shape {tuple(x.shape)}; neuron caps need a batch dimension before the neurons")
        shapes = {"layer": lambda: (1,), "channel": lambda: (x.shape[self.dim],), "neuron": lambda: tuple(x.shape[1:])}
        if self.granularity == "neuron":
            # A cap for the neurons of a 2-D x has one dimension, which is dim 1 of x.
            self.dim = 1
        self.cap.materialize(shapes[self.granularity]())
        with torch.no_grad():
            self.reset_parameters()

    def extra_repr(self) -> str:
        if self.has_uninitialized_params():
            return f'"{self.granularity}", init={self.init:g}'
        return super().extra_repr()
