"""When a captured graph dies, which no stream and no object of torch's says."""

import ctypes
from functools import cache
from typing import Any, NamedTuple

import torch

# What the driver calls through: CUuserObject_flags and CUgraphUserObject_flags, and HIP's likewise.
_NO_DESTRUCTOR_SYNC = 1
_MOVE = 1
_CAPTURING = 1

# No less than a sem_t has on any Linux.
_SEMAPHORE_BYTES = 64


class _Driver(NamedTuple):
    """The functions of the driver's library, each of which returns 0 or an error."""

    capture_info: Any
    create_object: Any
    retain_object: Any


def _library() -> tuple[str, str]:
    """Path of the driver's library that torch has loaded, and the prefix of its functions."""
    name, prefix = ("libamdhip64.so", "hip") if torch.version.hip else ("libcuda.so", "cu")
    with open("/proc/self/maps") as maps:
        paths = {line.split(maxsplit=5)[-1].strip() for line in maps if f"/{name}" in line}
    if not paths:
        raise RuntimeError(f"{name} is not loaded, which a captured graph is watched through")
    return paths.pop(), prefix


@cache
def _driver() -> _Driver:
    path, prefix = _library()
    library = ctypes.CDLL(path)
    pointer, unsigned = ctypes.c_void_p, ctypes.c_uint
    capture_info = library[f"{prefix}StreamGetCaptureInfo_v2"]
    capture_info.argtypes = [pointer] * 6
    create_object = library[f"{prefix}UserObjectCreate"]
    create_object.argtypes = [pointer, pointer, pointer, unsigned, unsigned]
    retain_object = library[f"{prefix}GraphRetainUserObject"]
    retain_object.argtypes = [pointer, pointer, unsigned, unsigned]
    return _Driver(capture_info, create_object, retain_object)


def _check(error: int, what: str) -> None:
    if error != 0:
        raise RuntimeError(f"error {error} of the GPU's driver: {what}")


_libc = ctypes.CDLL(None)
_libc.calloc.argtypes = [ctypes.c_size_t] * 2
_libc.calloc.restype = ctypes.c_void_p


class CapturedGraph:
    """A graph that a step was captured into, alive as long as it or what was instantiated from it.

    The driver releases the semaphore, by the C library's own function, when it destroys the last of
    them: Python code must not run on the thread on which it does.
    """

    def __init__(self) -> None:
        # Never freed: the driver may release it after the interpreter has ended.
        self.semaphore = ctypes.c_void_p(_libc.calloc(1, _SEMAPHORE_BYTES))
        _libc.sem_init(self.semaphore, 0, 0)

    @property
    def is_alive(self) -> bool:
        """Whether it still exists."""
        released = ctypes.c_int()
        _libc.sem_getvalue(self.semaphore, ctypes.byref(released))
        return released.value == 0


def watch_capture(stream: Any) -> CapturedGraph | None:
    """The graph that is being captured from a stream, or None.

    Args:
        stream: torch's stream object, the current one; None for the CPU.

    Raises:
        RuntimeError: The driver gave an error.
    """
    if stream is None or stream.device.type != "cuda":
        return None
    if not torch.cuda.is_current_stream_capturing():
        return None
    driver = _driver()
    status, graph, user_object = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_void_p()
    handle = ctypes.c_void_p(stream.cuda_stream)
    error = driver.capture_info(handle, ctypes.byref(status), None, ctypes.byref(graph), None, None)
    _check(error, "which graph is being captured")
    if status.value != _CAPTURING:
        raise RuntimeError("the capture of the graph has failed before this step")
    captured = CapturedGraph()
    _check(
        driver.create_object(
            ctypes.byref(user_object), captured.semaphore, _libc.sem_post, 1, _NO_DESTRUCTOR_SYNC
        ),
        "an object that tells when the graph dies",
    )
    _check(driver.retain_object(graph, user_object, 1, _MOVE), "the graph's hold on it")
    return captured
