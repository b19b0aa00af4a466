"""Where a kernel may be other than the checks want it, and what was measured that makes it so."""

from __future__ import annotations

from tools.kernel_report.checks import Exemption

EXEMPTIONS: dict[str, tuple[Exemption, ...]] = {
    "13.0": (),
    "13.5": (
        Exemption("local memory", "column_sums_kernel<float, 0>", ("120",), "64 bytes a tile of queries"),
        Exemption("local memory", "column_sums_kernel<*float16, 72>", ("100",), "a counter of chunks, in two passes"),
    ),
}
"""By nvcc's release. What others make of the kernels has not been read: the column sums need every register that a
thread can have, so that each release spills elsewhere."""
