"""Starts processes together and says what each one took: the small parent that measurements need.

A process begins with the peak memory of the one that forked it (Linux carries `ru_maxrss` over exec), so
the harness, which holds data, may not start what it measures. This file is run by itself, imports
little, reads commands as JSON from standard input and writes one usage per command to standard output.
"""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any


def _launch(command: dict[str, Any], usage: dict[str, Any]) -> None:
    time.sleep(command["delay_s"])
    with Path(command["log"]).open("wb") as log, Path(command["output"]).open("wb") as output:
        usage["started"] = time.monotonic()
        process = subprocess.Popen(
            command["arguments"],
            env=command["environment"],
            cwd=command["directory"],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=log,
        )
        _, status, spent = os.wait4(process.pid, 0)
        usage["ended"] = time.monotonic()
    process.returncode = os.waitstatus_to_exitcode(status)
    usage["exit_code"] = process.returncode
    usage["cpu_s"] = spent.ru_utime + spent.ru_stime
    usage["peak_bytes"] = spent.ru_maxrss * 1024


def main() -> None:
    commands = json.load(sys.stdin)
    usages: list[dict[str, Any]] = [{} for _ in commands]
    threads = [threading.Thread(target=_launch, args=pair) for pair in zip(commands, usages, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    json.dump(usages, sys.stdout)


if __name__ == "__main__":
    main()
