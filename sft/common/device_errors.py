"""Errors of the device, as opposed to those of a model's own code: memory that ran out, a driver or kernel that failed.

A trial that answers "this model does not support it" to any error must let these through: they say nothing about the
model, and a decision taken from them would differ from run to run. By class name and text, since torch raises plain
`RuntimeError` for most of them, and this package does not import torch.
"""

from __future__ import annotations

from sft.common.errors import one_line

_MEMORY_CLASSES = frozenset({"MemoryError", "OutOfMemoryError"})
_MEMORY_TEXTS = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
    "unable to allocate",
    "_status_alloc_failed",  # of cuBLAS, cuDNN and cuSOLVER
    "_allocation_failed",
)
_CONNECTION_CLASSES = frozenset({"DistError", "DistBackendError", "DistNetworkError", "DistStoreError"})
_LOST_TEXTS = (
    "gloo/transport",
    "connection closed by peer",
    "connection reset by peer",
    "connection refused",
    "broken pipe",
    "socket timeout",
    "timed out waiting",
)
"""Of gloo, which has no class of errors."""
_DEVICE_CLASSES = frozenset({"AcceleratorError"})
_DEVICE_TEXTS = (
    "cuda error",
    "hip error",
    "xpu error",
    "mps backend",
    "acceleratorerror",
    "device-side assert",
    "cuda driver",
    "nvidia driver",
    "nccl",
    "cublas_status",
    "cudnn_status",
    "cusolver",
    "cusparse",
    "no kernel image is available",
    "ecc error",
    "triton error [",
)


def is_lost_connection(error: BaseException) -> bool:
    """Whether a collective operation failed because another process has ended, or cannot be reached."""
    return _has_class(error, _CONNECTION_CLASSES) or (isinstance(error, RuntimeError) and _says(error, _LOST_TEXTS))


def lost_connection_line(rank: int, error: BaseException) -> str:
    """The line for the user: another process or machine is the cause, not the program."""
    return (
        f"Rank {rank} lost the connection to another process, which has ended or cannot be reached "
        f"({one_line(error, 200)}). The output of that process says why. Resume from the last checkpoint with "
        "--resume_from_checkpoint auto."
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on a device or in main memory."""
    return _has_class(error, _MEMORY_CLASSES) or (isinstance(error, RuntimeError) and _says(error, _MEMORY_TEXTS))


def is_device_error(error: BaseException) -> bool:
    """Whether the machine is the cause: its memory, its device, or the connection to other processes."""
    if is_out_of_memory(error) or is_lost_connection(error) or _has_class(error, _DEVICE_CLASSES):
        return True
    return isinstance(error, RuntimeError) and _says(error, _DEVICE_TEXTS)


def reraise_device_error(error: BaseException) -> None:
    """Raise the error again if the machine is its cause; called first by whatever takes any error for an answer."""
    if is_device_error(error):
        raise error


def _has_class(error: BaseException, names: frozenset[str]) -> bool:
    return any(each.__name__ in names for each in type(error).__mro__)


def _says(error: BaseException, texts: tuple[str, ...]) -> bool:
    message = str(error).lower()
    return any(text in message for text in texts)
