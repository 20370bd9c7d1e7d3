"""A fake `cuda:0`: tensors with CPU data that report this device, and checks for errors on a real GPU.

Under `posing()` a tensor moved to `cuda:0` becomes a `Posing`. An operation that mixes it with a plain tensor
fails, as on a GPU, unless the plain one is a scalar. Operations that would synchronise with a GPU are recorded with
their caller: reading values, sizes that depend on values, copies to the host, and creating device tensors from
lists. 64-bit numbers are recorded too, since some devices lack them.
"""

from __future__ import annotations

import importlib
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from accelerate import Accelerator
from torch.overrides import TorchFunctionMode
from torch.utils import _foreach_utils
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

CUDA = torch.device("cuda:0")

_ROOT = Path(__file__).resolve().parents[2]
_OURS = tuple(str(_ROOT / name) for name in ("advl_pipeline", "data", "cli"))


class Posing(torch.Tensor):
    """A tensor that reports `cuda:0` as its device."""

    elem: torch.Tensor

    @staticmethod
    def __new__(cls, elem: torch.Tensor) -> Posing:
        # A view of an ordinary tensor is ordinary in inference mode, too.
        with torch.inference_mode(False):
            made: Any = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
                cls,
                elem.size(),
                strides=elem.stride(),
                storage_offset=elem.storage_offset(),
                dtype=elem.dtype,
                layout=elem.layout,
                device=elem.device,
                requires_grad=False,
            )
        made.elem = elem
        return made  # type: ignore[no-any-return]

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return CUDA

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        return True

    def __repr__(self, *_: Any, **__: Any) -> str:  # type: ignore[override]
        return f"Posing({self.elem!r})"

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["elem"], None

    @staticmethod
    def __tensor_unflatten__(inner: dict[str, torch.Tensor], *_: Any) -> Posing:
        return Posing(inner["elem"])

    def __reduce_ex__(self, protocol: Any) -> Any:
        return Posing, (self.elem,)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        made: Any = Posing(self.elem.detach().clone())
        if isinstance(self, torch.nn.Parameter):
            made = torch.nn.Parameter(made, requires_grad=self.requires_grad)
        memo[id(self)] = made
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{func} on the posing device, outside of it")


class Mismatch(AssertionError):
    """An operation on tensors of two devices."""


_SIZED_BY_VALUES = (
    "nonzero",
    "masked_select",
    "unique",
    "_unique",
    "_unique2",
    "unique_dim",
    "unique_consecutive",
    "bincount",
    "equal",
    "is_nonzero",
    "_local_scalar_dense",
)

_FACTORIES = {
    torch.tensor, torch.as_tensor, torch.zeros, torch.ones, torch.full, torch.empty, torch.arange, torch.rand,
    torch.randn, torch.randint, torch.randperm, torch.linspace, torch.eye, torch.scalar_tensor, torch.asarray,
    torch.zeros_like, torch.ones_like, torch.full_like, torch.empty_like, torch.rand_like, torch.randn_like,
}  # fmt: skip


class Watch:
    """Recordings of a posing device: callers that synchronised, and callers that used 64 bits."""

    def __init__(self) -> None:
        self.waits: Counter[str] = Counter()
        self.doubles: Counter[str] = Counter()
        self.num_operations = 0

    def clear(self) -> None:
        self.waits.clear()
        self.num_operations = 0

    def wait(self, what: str) -> None:
        self.waits[f"{what} at {_caller()}"] += 1


def _caller() -> str:
    """Return file and line of our innermost frame."""
    frame: Any = sys._getframe(1)
    outermost = "the backward pass"
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith(_OURS):
            return f"{Path(name).relative_to(_ROOT)}:{frame.f_lineno}"
        frame = frame.f_back
    return outermost


def _is_cuda(device: Any) -> bool:
    return device is not None and torch.device(device).type == "cuda"


def _tensors_in(values: Any, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    for value in values:
        if isinstance(value, torch.Tensor):
            tensors.append(value)
        elif isinstance(value, list | tuple):
            _tensors_in(value, tensors)
        elif isinstance(value, dict):
            _tensors_in(value.values(), tensors)
    return tensors


def _posing_in(*values: Any) -> bool:
    return any(isinstance(value, Posing) for value in _tensors_in(values, []))


def _unposed(value: Any) -> Any:
    if isinstance(value, Posing):
        return value.elem
    if isinstance(value, list | tuple):
        return type(value)(map(_unposed, value))
    return value


class _Functions(TorchFunctionMode):
    """Intercepts torch functions: moves between devices, tensors created on one, and reads of complete values."""

    def __init__(self, watch: Watch, dispatch: _Operations) -> None:
        super().__init__()
        self.watch, self.dispatch = watch, dispatch

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        # An attribute read, or a copy of a host tensor, whose memo contains everything copied before.
        if name in ("__get__", "__deepcopy__"):
            return func(*args, **kwargs)
        is_posing = _posing_in(args, kwargs)
        if name in ("to", "cuda", "cpu") and isinstance(args[0], torch.Tensor):
            return self._move(name, args, kwargs)
        if name == "pin_memory":
            return args[0]
        if name in ("tolist", "numpy", "__array__", "data_ptr") and is_posing:
            self.watch.wait(name)
            return getattr(args[0].elem.detach(), name)(*args[1:], **kwargs)
        if name == "new_tensor" and is_posing:
            self.watch.wait("new_tensor of a list")
            return Posing(args[0].elem.new_tensor(*args[1:], **kwargs))
        if func in _FACTORIES and ("device" in kwargs or not is_posing):
            if not _is_cuda(kwargs.get("device")):
                return func(*args, **kwargs)
            kwargs.pop("device")
            if func in (torch.tensor, torch.as_tensor, torch.asarray) and not is_posing:
                data = args[0] if args else kwargs["data"]
                if isinstance(data, list | tuple | np.ndarray):
                    self.watch.wait(f"{name} of a list")
            elif is_posing:
                self.watch.wait(f"{name} of values of the device")
            return Posing(func(*map(_unposed, args), **{key: _unposed(value) for key, value in kwargs.items()}))
        if _is_cuda(kwargs.get("device")) and func is not torch.Generator:
            kwargs.pop("device")
            is_posing = True
        if not is_posing:
            return func(*args, **kwargs)
        self.dispatch.depth += 1
        try:
            return func(*args, **kwargs)
        finally:
            self.dispatch.depth -= 1

    def _move(self, name: str, args: Any, kwargs: dict[str, Any]) -> Any:
        value, *rest = args
        non_blocking = bool(kwargs.get("non_blocking", False))
        device: Any = {"cuda": CUDA, "cpu": torch.device("cpu")}.get(name)
        dtype = None
        if name == "to":
            rest = [*rest, *[kwargs.pop(key) for key in ("other",) if key in kwargs]]
            if rest and isinstance(rest[0], torch.Tensor):
                device, dtype = rest[0].device, rest[0].dtype
            else:
                known = {key: kwargs[key] for key in ("device", "dtype") if kwargs.get(key) is not None}
                device, dtype, *_ = torch._C._nn._parse_to(*rest, **known)  # type: ignore[attr-defined]
        if device is None or (device.type == "cuda") == isinstance(value, Posing):
            return value if dtype is None else self._cast(value, dtype)
        if device.type == "cuda":
            elem = value.detach()
            return Posing(elem.to(dtype) if dtype not in (None, elem.dtype) else elem.clone())
        if value.requires_grad and torch.is_grad_enabled():
            raise Mismatch(f"a state with a gradient goes to the host at {_caller()}")
        assert not non_blocking, "a copy to the host that nobody waits for"
        self.watch.wait("a copy to the host")
        elem = value.elem.detach()
        return elem.to(dtype) if dtype not in (None, elem.dtype) else elem.clone()

    def _cast(self, value: torch.Tensor, dtype: torch.dtype) -> Any:
        self.dispatch.depth += 1
        try:
            return value.to(dtype)
        finally:
            self.dispatch.depth -= 1


class _Operations(TorchDispatchMode):
    """Intercepts every operation, including those of the backward pass."""

    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self.watch = watch
        self.depth = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        flat = _tensors_in((args, kwargs), [])
        posing = [value for value in flat if isinstance(value, Posing)]
        if not posing and (flat or not self.depth):
            return func(*args, **kwargs)
        name = func.overloadpacket.__name__
        if _is_cuda(kwargs.get("device")):
            kwargs["device"] = torch.device("cpu")
        strangers = [value for value in flat if not isinstance(value, Posing) and value.dim() > 0]
        if posing and strangers:
            indices = args[1] if name.lstrip("_").startswith("index") and len(args) > 1 else ()
            if any(value is index for value in strangers for index in indices if isinstance(indices, list | tuple)):
                self.watch.wait(f"{name} by what lies on the host")
            elif name == "copy_" and isinstance(args[0], Posing):
                pass
            elif name == "copy_":
                self.watch.wait("a copy to the host")
            else:
                shapes = [tuple(value.shape) for value in strangers]
                raise Mismatch(f"{func} on tensors of two devices at {_caller()}, on the host {shapes}")
        self.watch.num_operations += 1
        if posing:
            self._take_down(name, args, kwargs)
        output = func(*map(_unposed, args), **{key: _unposed(value) for key, value in kwargs.items()})
        known = {id(value.elem): value for value in posing}

        def wrapped(value: torch.Tensor) -> torch.Tensor:
            if value.dtype == torch.float64:
                self.watch.doubles[f"{name} at {_caller()}"] += 1
            mine = known.get(id(value))
            return Posing(value) if mine is None else mine

        if name == "copy_" and not isinstance(args[0], Posing):
            return output
        if isinstance(output, torch.Tensor):
            return wrapped(output)
        return tree_map_only(torch.Tensor, wrapped, output)

    def _take_down(self, name: str, args: Any, kwargs: Any) -> None:
        if name in _SIZED_BY_VALUES:
            self.watch.wait(name)
        elif name in ("index", "index_put", "index_put_", "_index_put_impl_"):
            if any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]):
                self.watch.wait(f"{name} by a mask")
        elif name == "repeat_interleave" and kwargs.get("output_size") is None:
            self.watch.wait("repeat_interleave of an unknown size")


def _grouped(lists: Any, *options: Any, _torch_groups: Any = torch._C._group_tensors_by_device_and_dtype) -> Any:
    groups = _torch_groups(lists, *options)
    return {(CUDA if _posing_in(lists) else device, dtype): group for (device, dtype), group in groups.items()}


@contextmanager
def posing() -> Iterator[Watch]:
    """Provide a fake `cuda:0` inside the block."""
    watch = Watch()
    operations = _Operations(watch)
    with ExitStack() as stack:
        # torch applies multi-tensor (foreach) operations to its own classes only.
        stack.enter_context(mock.patch.object(torch._C, "_group_tensors_by_device_and_dtype", _grouped))
        for module in (_foreach_utils, importlib.import_module("torch.optim.optimizer")):
            known = [*module._foreach_supported_types, Posing]
            stack.enter_context(mock.patch.object(module, "_foreach_supported_types", known))
        stack.enter_context(mock.patch.object(Accelerator, "device", CUDA))
        stack.enter_context(mock.patch.object(torch.cuda, "get_device_name", return_value="a posing device"))
        stack.enter_context(mock.patch.object(torch.cuda, "get_device_capability", return_value=(7, 5)))
        stack.enter_context(operations)
        stack.enter_context(_Functions(watch, operations))
        yield watch
