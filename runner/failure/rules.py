"""What the lines of an error stream mean: one rule a line of the table, the first that matches a line counts.

The wording is that of the libraries' own messages, several versions of each. A rule that is wrong for one library's
message costs a run its retries or wastes them, so every rule has a recorded or reported text in tests/data/stderr.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import IntEnum


class Weight(IntEnum):
    """How much a line says about the cause; smaller wins, and among equals the last line."""

    CAUSE = 0
    SYMPTOM = 1
    """The machine complains, maybe because of a cause that stands higher up (an assert inside a kernel)."""
    AFTERMATH = 2
    """Somebody else had died before: a peer, a worker, a child."""
    HEARSAY = 3
    """Something ended, and nothing says how."""
    ASIDE = 4
    """The program itself went on after it."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One way to say something. `is_transient` None means: as its class. `hint` tells a person what to do.

    `of_exceptions` rules hold only for the line that ends a traceback: elsewhere the same words are mostly a warning
    about something that went on well.
    """

    name: str
    pattern: re.Pattern[str]
    hint: str = ""
    weight: Weight = Weight.CAUSE
    is_transient: bool | None = None
    of_exceptions: bool = False


def _said(
    name: str, *patterns: str, hint: str = "", weight: Weight = Weight.CAUSE, transient: bool | None = None
) -> Rule:
    return Rule(name, re.compile("|".join(patterns)), hint, weight, transient)


def _raised(name: str, *patterns: str, hint: str = "", transient: bool | None = None) -> Rule:
    return Rule(name, re.compile("|".join(patterns)), hint, is_transient=transient, of_exceptions=True)


_KILL_HINT = (
    "the kernel does this where a host runs short of memory, and a person may do it: look there, or take "
    "fewer or leaner data-loader workers"
)

KERNEL_KILLED = _said(
    "host_oom",
    r"\boom[-_]kill(?:er)?\b.*\bevent|\bOut of memory: Killed process|Memory cgroup out of memory",
    r"\bOOM[- ]?Killed\b|^srun: error: .*: Out Of Memory",
    hint="the kernel reports that it killed a process for want of host memory",
)

RULES: tuple[Rule, ...] = (
    _said(
        "cuda_oom",
        r"(?:CUDA|HIP|XPU) out of memory\. *Tried to allocate",
        r"\b(?:CUDA|HIP)(?: driver| runtime)? error: out of memory",
        r"\bCUDA_ERROR_OUT_OF_MEMORY|(?<!`)cudaErrorMemoryAllocation\b|\bCu(?:da|DA) failure (?:\d+ )?'out of memory'",
        r"\bOutOfMemoryError: (?:CUDA|HIP|Allocation on device|Out of memory allocating)",
        r"(?:RESOURCE_EXHAUSTED|Resource exhausted): (?:Out of memory|[Ff]ailed to allocate)",
        r"\b(?:CUBLAS|CUDNN|CUSOLVER|CUSPARSE)_STATUS_(?:INTERNAL_ERROR_DEVICE_)?ALLOC(?:ATION)?_FAILED",
    ),
    _said(
        "host_oom",
        r"out of shared memory|insufficient shared memory",
        r"unable to \w+ .*(?:shared memory|</?torch_\d).*(?:No space left|Cannot allocate)",
        r"/dev/shm/.*No space left|Error while creating shared memory segment",
        hint="the shared memory of the host (/dev/shm) is full: fewer data-loader workers, or a larger /dev/shm",
    ),
    KERNEL_KILLED,
    _said(
        "host_oom",
        r"DefaultCPUAllocator: (?:can't allocate|not enough) memory|\bCannot allocate memory\b",
        r"\[Errno 12\]|\(os error 12\)|\bstd::bad_alloc\b",
    ),
    _raised("host_oom", r"^(?:[\w.]+\.)?_?(?:Array)?MemoryError\b"),
    _raised(
        "host_oom",
        r"^RuntimeError: could not create a primitive$",
        hint="oneDNN does not say why: in a process that had worked it is memory that it cannot get, in a first step "
        "it may be a CPU that its kernels do not suit",
    ),
    _said(
        "nccl",
        r"\bncclInvalid(?:Usage|Argument)\b|\bDuplicate GPU detected\b",
        transient=False,
        hint="the processes were set up wrongly, for example two on one GPU; a retry meets the same",
    ),
    _said(
        "cuda",
        r"\bdevice-side assert triggered|thread: \[\d+,\d+,\d+\] Assertion `",
        transient=False,
        hint="a kernel refused its input, mostly an index or a label out of range; a retry meets the same",
    ),
    _said(
        "cuda",
        r"no kernel image is available|driver version is insufficient|PTX was compiled with an unsupported",
        r"Found no NVIDIA driver|not compiled with CUDA|[Nn]o CUDA-capable device|No CUDA GPUs are available",
        r"invalid device ordinal|Attempting to deserialize object on (?:a )?CUDA device",
        r"CUDA unknown error - this may be due to",
        r"\b(?:CUBLAS|CUDNN)_STATUS_(?:NOT_SUPPORTED|INVALID_VALUE|ARCH_MISMATCH|BAD_PARAM)",
        r"CUDA error: (?:invalid (?:argument|configuration argument|resource handle)|operation not supported)",
        transient=False,
        hint="torch, driver, GPU and code do not go together here; a retry on this host meets the same",
    ),
    _said(
        "cuda",
        r"\bECC error\b|fallen off the bus|GPU is lost|Unable to determine the device handle",
        weight=Weight.SYMPTOM,
        hint="the GPU or its driver is at fault; if it comes again, reset that GPU or take another",
    ),
    _said(
        "cuda",
        r"\b(?:CUDA|HIP)(?: driver| runtime)? error: |\b(?:CUBLAS|CUDNN|CUSOLVER|CUSPARSE)_STATUS_[A-Z]",
        r"\bcuDNN error: |\bCUDA_ERROR_[A-Z_]+|(?<!`)\bcudaError[A-Z]\w+|\bunspecified launch failure",
        weight=Weight.SYMPTOM,
        hint="a kernel went wrong or the GPU did; a new process has a clean context, and if it fails at the same step "
        "the code is at fault (CUDA_LAUNCH_BLOCKING=1 names the place)",
    ),
    _said(
        "nccl",
        r"\bnccl(?:System|Internal|Remote|UnhandledCuda)Error\b|\bNCCL error\b|\bDist(?:Backend|Network|Store)Error\b",
        r"Watchdog caught collective operation timeout|watchdog thread terminated with exception|gloo/transport/",
        r"NCCL WARN .*(?:Connection closed by remote peer|Call to (?:recv|send|connect))",
        r"Timed out (?:initializing process group|after .* waiting for clients)|RuntimeError: Socket Timeout",
        weight=Weight.AFTERMATH,
        hint="the processes of the run lost or did not find each other",
    ),
    _said(
        "disk_full",
        r"\bNo space left on device|\bDisk quota exceeded|\[Errno (?:27|28|122)\]|database or disk is full",
        hint="free space, or raise the quota, then `runner resume`",
    ),
    _said(
        "disk_full",
        r"inline_container\.cc:\d+\] \. (?:unexpected pos|PytorchStreamWriter failed)|basic_ios::clear: iostream error",
        hint="torch could not write a file and does not say why; most often the disk is full or a quota is used up",
    ),
    _raised("import", r"^(?:[\w.]+\.)?(?:ModuleNotFoundError|ImportError)\b", hint="install it where this arm runs"),
    _said(
        "import",
        r"error while loading shared libraries: |^\S*python[\d.]*: No module named ",
        hint="install it where this arm runs",
    ),
    _said(
        "config",
        r"^\S+: error: (?:argument |the following arguments are required|unrecognized arguments)",
        r"^\S+: error: (?:ambiguous option|one of the arguments)|^Could not override '",
        r"^Error: (?:No such (?:option|command)|Missing (?:option|argument|parameter)|Invalid value)",
        r": can't open file '[^']*': \[Errno 2\]",
    ),
    _raised(
        "config",
        r"^(?:omegaconf|hydra|pydantic\w*|yaml|tomllib|toml|jsonargparse|draccus|tyro)\.[\w.]*(?:Error|Exception|Value)\b",
        r"^(?:[\w.]+\.)?(?:ConfigError|ConfigurationError|InvalidConfig\w*)\b",
    ),
    _said(
        "data",
        r"\bStale file handle|\bInput/output error|Transport endpoint is not connected",
        r"\[Errno (?:5|107|116|121)\]|\(os error 5\)",
        transient=True,
        hint="the storage failed for a moment; if it comes again, look at the disk or the network file system",
    ),
    _raised(
        "data",
        r"^(?:PIL\.)?UnidentifiedImageError\b|^(?:zipfile\.)?BadZipFile\b|^tarfile\.ReadError\b|^pandas\.errors\.\w+",
        r"^pyarrow\.lib\.Arrow(?:Invalid|SerializationError)\b|^datasets\.exceptions\.\w+",
        r"image file is truncated|broken data stream when reading image|broken PNG file|Truncated File Read",
    ),
    _raised(
        "network",
        r"Max retries exceeded with url|Temporary failure in name resolution|Name or service not known",
        r"\b(?:(?:Connect|Read)Timeout(?:Error)?|IncompleteRead|RemoteDisconnected|LocalEntryNotFoundError)\b",
        r"HTTP Error (?:429|5\d\d)|\b(?:429|5\d\d) (?:Client|Server) Error",
        r"^(?:requests|httpx|aiohttp|urllib3)\.[\w.]*Connect\w*Error\b|<urlopen error timed out>",
        hint="something was to be downloaded and the network or the other side failed",
    ),
    _raised("killed", r"^KeyboardInterrupt\b", hint="somebody sent SIGINT"),
    _said(
        "killed",
        r"killed by signal: (?:Killed|Terminated)|Signal 9 \(SIGKILL\) received by PID|\bexitcode: -9\b",
        r"with signal SIG(?:KILL|TERM)|died with <Signals\.SIG(?:KILL|TERM)|\*\*\* \[.*\] Killed",
        r"^(?:\S+: (?:line \d+: )?)?\s*(?:\d+ )?Killed(?:\s|$)",
        weight=Weight.AFTERMATH,
        hint=f"a process of the run was killed: {_KILL_HINT}",
    ),
    _said(
        "crashed",
        r"killed by signal: (?:Segmentation fault|Aborted|Bus error|Floating|Illegal)",
        r"Signal (?:4|7|8|11) \(SIG\w+\) received|(?:with signal |died with <Signals\.)SIG(?:SEGV|BUS|FPE|ILL|ABRT)",
        r"^Fatal Python error: (?!Aborted)|\bSegmentation fault\b",
        weight=Weight.AFTERMATH,
    ),
    _said(
        "killed",
        r"DataLoader worker \(pid.*exited unexpectedly|was terminated abruptly|\bWorkerCrashedError\b",
        weight=Weight.HEARSAY,
        hint=f"a process of the run ended and left no word: {_KILL_HINT}",
    ),
)

WRAPPERS = re.compile(
    r"^(?:[\w.]+\.)?(?:ChildFailedError|CalledProcessError|ProcessRaisedException|ProcessExitedException|_?RemoteTraceback"
    r"|(?:Base)?ExceptionGroup)\b|: Caught \w+ in \w+"
)
"""Exceptions that only hand on what another process or another exception had said before them."""
