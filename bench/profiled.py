"""What a profile of a step tells: waits, copies, a GPU's kernels by kind and by name, and the time
between them.
"""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

KERNELS = {  # words in the names of kernels, by what these do; the first kind that fits
    "convolutions": ("conv", "cudnn", "xmma", "implicit", "dgrad", "wgrad", "fprop"),
    "matrix products": ("gemm", "cutlass", "cublas", "nvjet", "attention", "flash", "fmha"),
    "normalisation": ("norm", "rowwisemoments", "computefused", "gammabeta"),
    "optimizer and averages": ("adam", "multi_tensor", "foreach"),
    "casts and copies": ("copy", "memcpy", "memset", "cat", "nchw", "nhwc"),
    "sums": ("reduce",),
    "elementwise": ("elementwise", "vectorized", "index"),
}
GAPS = (0, 1, 2, 4, 8, 16, 64, 256)  # microseconds, the least of each kind of gap
SHOWN = 15  # names of kernels


def inside(report, kind: str, step) -> None:
    """Profile a step of a kind; a row for each of its findings."""
    report.row("profile of a step", kind.replace("_", " "))
    cuda = step.networks.device.type == "cuda"
    kinds = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if cuda else [])
    with profile(activities=kinds) as found:
        seconds = step()
    events = found.events()
    waits, copies = (gpu_counts if cuda else cpu_counts)(events)
    told = f"{waits:9}" if copies is None else f"{waits:9} waits, {copies} copies"
    report.row("waits and host-device copies of a step", told,
               waits_per_step=waits, copies_per_step=copies)  # fmt: skip
    if cuda:
        spans = [
            (event.time_range.start, event.time_range.end, event.name)
            for event in events
            if event.device_type == DeviceType.CUDA and not is_annotation(event.name)
        ]
        begun = min(e.time_range.start for e in events if e.device_type == DeviceType.CPU)
        kernels(report, kind, sorted(spans), begun, seconds)


def kernels(
    report, kind: str, spans: list[tuple[float, float, str]], begun: float, seconds: float
) -> None:
    """What lies between the first kernel and the last of a step of a kind.

    spans    begin, end (microseconds) and name of every kernel, copy and fill, by their begins
    begun    when the host began the step, microseconds
    seconds  that the step took under the profile
    """
    spent, often, idle, before = Counter(), Counter(), [], Counter()
    for begin, end, name in spans:
        spent[name] += (end - begin) / 1000
        often[name] += 1
    free = spans[0][0]  # the time until which the device was at work
    for (_, end, _), (begin, _, following) in pairwise(spans):
        free = max(free, end)
        if begin > free:
            idle.append(begin - free)
            before[following] += (begin - free) / 1000
    span, busy = (max(s[1] for s in spans) - spans[0][0]) / 1000, sum(spent.values())
    short = [end - begin for begin, end, _ in spans if end - begin < 3]
    report.row(
        "under the profile",
        f"{1000 * seconds:9.1f} ms: {(spans[0][0] - begun) / 1000:.1f} to the first kernel, "
        f"{span:.1f} to the end of the last",
    )
    report.row(
        "kernels",
        f"{len(spans):9} of {busy:.1f} ms in all, {len(short)} of less than 3 us take "
        f"{sum(short) / 1000:.1f}; between them {sum(idle) / 1000:.1f} ms",
    )
    for least, most in pairwise((*GAPS, float("inf"))):
        own = [gap for gap in idle if least <= gap < most]
        report.row(f"  gaps of {least} to {most} us", f"{len(own):9} of {sum(own) / 1000:.1f} ms")
    for name, each in before.most_common(5):
        report.row(f"  gaps before {name[:44]}", f"{each:9.1f} ms")
    parts = Counter()
    for name, each in spent.items():
        fit = (part for part, words in KERNELS.items() if any(w in name.lower() for w in words))
        parts[next(fit, "other")] += each
    told = ", ".join(f"{part} {each:.1f}" for part, each in parts.most_common())
    found = {
        "count": len(spans), "busy_ms": busy, "span_ms": span, "idle_ms": sum(idle) / 1000,
        "under_3_us": len(short), "step_ms": 1000 * seconds, "parts_ms": parts,
    }  # fmt: skip
    report.row("kernels of a step, ms", told, **{f"kernels__{kind}": found})
    for name, each in spent.most_common(SHOWN):
        report.row(f"  {name[:54]}", f"{each:9.1f} ms ({often[name]})")


def is_annotation(name: str) -> bool:
    """Whether a name on the device's line of time is that of a span of torch's, such as
    Optimizer.step#Adam.step, which has the kernels within it; kernels may have a # in theirs too.
    """
    return name.startswith(("Optimizer.", "ProfilerStep"))


def gpu_counts(events) -> tuple[int, int]:
    """Times that the host waits for the device, and copies between the two."""
    names = [event.name for event in events]
    copies = sum("Memcpy HtoD" in name or "Memcpy DtoH" in name for name in names)
    return sum("Synchronize" in name for name in names) - 2, copies  # two are the clock's own


def cpu_counts(events) -> tuple[int, None]:
    """Numbers that are read, but for an optimizer's own counters."""
    reads = [event for event in events if event.name == "aten::_local_scalar_dense"]
    return sum(not within(event, "Optimizer.step") for event in reads), None


def within(event, name: str) -> bool:
    while event := event.cpu_parent:
        if event.name.startswith(name):
            return True
    return False
