"""Prints the coverage of each package of `sft/` from coverage's JSON report; exit status 1 if one is below its minimum.

pytest tests/ --cov=sft --cov-report=json:coverage.json
python tests/coverage_by_package.py coverage.json
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

MINIMUM = 0.85


def main(report: str) -> int:
    """Sums up lines by package."""
    lines, covered = Counter[str](), Counter[str]()
    for name, file in json.loads(Path(report).read_text(encoding="utf-8"))["files"].items():
        parts = Path(name).parts
        package = parts[parts.index("sft") + 1] if "sft" in parts else name
        lines[package] += file["summary"]["num_statements"]
        covered[package] += file["summary"]["covered_lines"]
    shares = {package: covered[package] / count for package, count in lines.items() if count}
    for package, share in sorted(shares.items(), key=lambda item: item[1]):
        print(f"coverage  {package:16}{share:8.1%}  of {lines[package]:,} statements")
    low = [package for package, share in shares.items() if share < MINIMUM]
    if low:
        print(f"Too low: {', '.join(low)}.", file=sys.stderr)
    return 1 if low else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
