"""Where a kernel may be other than the checks want it, and what was measured that makes it so.

They are of one nvcc: another one may need others.
"""

from __future__ import annotations

from scripts.kernel_report.checks import Exemption

NVCC = "13.0"

EXEMPTIONS: tuple[Exemption, ...] = ()
