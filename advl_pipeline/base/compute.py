"""Device, precision, threads and memory of a command; the options are declared once, here."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import os
import re
import runpy
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, TypeVar

from advl_pipeline.base.configuration import Configuration, option
from advl_pipeline.base.errors import ConfigError

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    import torch

MixedPrecision = Literal["auto", "no", "fp16", "bf16"]
AUTO = "auto"

_NUMBERS_OF_PROCESSES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")

FIRST_WITH_TF32 = (8, 0)
"""Compute capability of the first GPUs with TF32."""

_DEVICES = ("cpu", "cuda", "mps", "xpu", "hpu", "npu", "mtia", "xla")
"""Device types of torch."""

MOST_WORKERS = 8
"""Maximum default number of threads that prepare batches; each keeps one batch in memory."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceConfig(Configuration):
    """Base configuration of a command that computes in fp32."""

    title: ClassVar[str] = "Machine"

    device: str = option(
        AUTO,
        help="Device, such as cpu or cuda:0; auto uses a GPU if there is one.",
        identity="provenance",
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class ComputeConfig(DeviceConfig):
    """Base configuration of a command that computes in a selectable precision."""

    title: ClassVar[str] = "Machine"

    mixed_precision: MixedPrecision = option(
        AUTO,
        help="Precision of matrix products. auto is bf16 on a GPU that supports it, else no, which is fp32. Training "
        "and evaluation use TF32 for fp32 products if the GPU has it.",
    )
    num_workers: int | None = option(
        None,
        help="Threads that decode, tokenise and collate ahead of the model; results do not depend on the number "
        f"[default: one per core, at most {MOST_WORKERS}].",
        minimum=1,
        identity="none",
    )


def require_device(name: str) -> None:
    """Refuse a device that the installed torch was not built for, without importing torch.

    Whether a GPU is present is known only when it is opened.

    Raises:
        ConfigError: torch was not built for the device.
    """
    kind = name.partition(":")[0]
    if kind not in (AUTO, *_DEVICES) or not re.fullmatch(r"[a-z]+(:\d+)?", name):
        raise _unusable(name, f"known: {AUTO}, {', '.join(_DEVICES)}, and a number such as cuda:1")
    torch_package = importlib.util.find_spec("torch")
    if kind == "cuda" and torch_package is not None and torch_package.origin is not None:
        built_for = runpy.run_path(str(Path(torch_package.origin).with_name("version.py")))
        if built_for.get("cuda") is None and built_for.get("hip") is None:
            raise _unusable(name, f"torch {built_for['__version__']} is built without CUDA")


def _unusable(name: str, why: str) -> ConfigError:
    return ConfigError(
        f"The device {name!r} cannot be used.",
        where="--device",
        why=why,
        next_command="use --device cpu, or cuda on a machine with an NVIDIA GPU",
    )


def no_fp16(what: str, why: str = "") -> ConfigError:
    """Return the error for a precision with too small a range."""
    return ConfigError(
        what, where="--mixed-precision fp16", why=why, next_command="use --mixed-precision bf16, or no"
    )


ComputeT = TypeVar("ComputeT", bound=ComputeConfig)


def resolved(config: ComputeT) -> ComputeT:
    """Return the configuration with "auto" replaced by a device and a precision.

    Raises:
        ConfigError: the device is missing or does not support the precision.
    """
    import torch

    device, wanted = open_device(config.device), config.mixed_precision
    if wanted == "fp16" and device.type == "cpu":
        raise no_fp16("A CPU does not compute in fp16.")
    if wanted == AUTO:
        computes_bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        wanted = "bf16" if computes_bf16 else "no"
    return dataclasses.replace(config, device=str(device), mixed_precision=wanted)


def num_cores() -> int:
    """Return the number of cores available to this process."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def num_processes() -> int:
    """Return the number of training processes that a launcher announces; 1 without one."""
    return max(int(os.environ.get(name, "1")) for name in _NUMBERS_OF_PROCESSES)


def num_threads(asked: int | None) -> int:
    """Return the number of batch-preparing threads for `--num-workers`; processes on one machine share its cores."""
    share = num_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return asked or max(1, min(MOST_WORKERS, share))


def open_device(name: str) -> torch.device:
    """Return a device by name, or the best one for "auto".

    Raises:
        ConfigError: this machine has no such device.
    """
    import torch

    if name == AUTO:
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        if accelerator is None:
            return torch.device("cpu")
        return torch.device(accelerator.type, torch.accelerator.current_device_index())
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise _unusable(name, str(error).splitlines()[0]) from None
    return device


def device_name(name: str) -> str:
    """Return a readable description of a device: "cpu (2 threads)", "cuda:0 (NVIDIA H100)"."""
    import torch

    device = open_device(name)
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"{device} ({torch.get_num_threads()} threads)" if device.type == "cpu" else str(device)


def allow_tf32(device: torch.device) -> bool:
    """Allow TF32 (10-bit mantissa) for fp32 matrix products on a GPU, and return whether it is in use.

    Convolutions use TF32 by default, and products become several times faster. Teachers computing a cache are
    excluded, since caches are compared across machines.
    """
    import torch

    if device.type != "cuda" or torch.cuda.get_device_capability(device) < FIRST_WITH_TF32:
        return False
    torch.set_float32_matmul_precision("high")
    return True


def precision(device: torch.device, mixed_precision: MixedPrecision) -> AbstractContextManager[object]:
    """Return the autocast context of a resolved configuration."""
    import torch

    dtype = torch.float16 if mixed_precision == "fp16" else torch.bfloat16
    return torch.autocast(device.type, dtype=dtype, enabled=mixed_precision in ("fp16", "bf16"))


@contextmanager
def one_order(wanted: bool) -> Iterator[None]:
    """If wanted, make torch deterministic inside the block, and name on stderr the operations that cannot be."""
    if not wanted:
        yield
        return
    import torch

    # cuBLAS reads it when a process first uses it.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


_training, _drawing = threading.RLock(), threading.RLock()


def _begin_turns() -> None:
    global _training, _drawing
    _training, _drawing = threading.RLock(), threading.RLock()


# A fork inherits held locks but not the threads that would release them.
os.register_at_fork(after_in_child=_begin_turns)


@contextmanager
def one_training() -> Iterator[None]:
    """Allow only one training per process inside the block; wait for another thread's, with a note on stderr.

    torch's settings, and the process group, apply to all threads of a process.
    """
    turn = _training
    if not turn.acquire(blocking=False):
        print(
            "another thread of this process trains, and torch's settings hold for all threads: this training waits "
            "for its end. Processes of their own train at the same time.",
            file=sys.stderr,
        )
        turn.acquire()
    try:
        yield
    finally:
        turn.release()


@contextmanager
def drawing(seed: int | None = None) -> Iterator[None]:
    """Reserve torch's random generator, which all threads of a process share, for this thread inside the block.

    Args:
        seed: seeds the generator for the block; its previous state is restored afterwards.
    """
    import torch

    with _drawing:
        if seed is None:
            yield
            return
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            yield


def forget_peak_memory() -> None:
    """Reset the peak to the current memory use if the kernel can: a process may train many runs of a study."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_memory_bytes() -> int:
    """Return the peak resident size since the program started or `forget_peak_memory` was called, in bytes.

    Linux reads the process status, since `getrusage` of a child includes its parent's memory at the fork and cannot
    be reset.
    """
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
