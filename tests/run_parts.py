"""Run the parts of the test suite, time each, go on after a failure, sum up.

python tests/run_parts.py lint types unit notebooks book browser
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
PYTHON = [sys.executable, "-m"]
BIN = Path(sys.executable).parent
PYTEST = [*PYTHON, "pytest", "-p", "no:cacheprovider"]
FAST = "not notebook and not book and not browser"

PARTS: dict[str, list[list[str]]] = {
    "lint": [
        [*PYTHON, "ruff", "check"],
        [*PYTHON, "ruff", "format", "--check"],
        [str(BIN / "lint-imports"), "--no-cache"],
    ],
    "types": [[*PYTHON, "mypy"]],
    "unit": [[*PYTEST, "-n", "2", "-m", FAST, "--ignore=tests/benchmarks"]],
    "notebooks": [[*PYTEST, "-m", "notebook"]],
    "book": [[*PYTEST, "-m", "book"]],
    "browser": [[*PYTEST, "-m", "browser"]],
}


def run_part(name: str, environment: dict[str, str]) -> tuple[bool, float]:
    """Run one part's commands; all of them, also after one has failed."""
    print(f"\n=== {name}", flush=True)
    start = time.perf_counter()
    codes = [
        subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode
        for command in PARTS[name]
    ]
    return not any(codes), time.perf_counter() - start


def main(names: list[str]) -> int:
    unknown = [name for name in names if name not in PARTS]
    if unknown or not names:
        print(f"unknown parts {unknown}; choose from {', '.join(PARTS)}")
        return 2
    with tempfile.TemporaryDirectory(prefix="needsaug-test-") as build:
        environment = {
            **os.environ,
            # Two workers with one thread each; waiting threads must not spin.
            "OMP_NUM_THREADS": "1",
            "OMP_WAIT_POLICY": "PASSIVE",
            # The notebooks are executed once; the book and the browser reuse them.
            "NEEDSAUG_TEST_BUILD": build,
        }
        results = {name: run_part(name, environment) for name in names}
    print("\n=== summary")
    for name, (passed, seconds) in results.items():
        print(f"{name:<10} {'passed' if passed else 'FAILED':<7} {seconds:7.1f} s")
    failed = [name for name, (passed, _) in results.items() if not passed]
    total = sum(seconds for _, seconds in results.values())
    verdict = f"failed: {', '.join(failed)}" if failed else "all parts passed"
    print(f"{verdict} in {total:.1f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
