"""Evidence of reconciliation runs: what was read and the outcome, hashed and signed, each run after the one before.

A run is two files in `evidence/`: `N.ndjson.gz` has the inputs and the outcome, `N.json` their SHA-256, that of the run
before, and an HMAC-SHA256 of all that under `evidence.key`, which is made at the first run. Those who have the key can
verify that nothing was changed, left out or put in since. The last hundred runs are kept.
"""

import gzip
import hashlib
import hmac
import os
import secrets
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from tidegate.connectors.files.private_files import make_private_file, make_private_folder

FOLDER = "evidence"
KEY_FILE = "evidence.key"
RUNS_KEPT = 100


class Evidence(msgspec.Struct, frozen=True, kw_only=True):
    """What is signed: hashes over the lines of inputs and outcome, and over the evidence of the run before."""

    run: int
    started_at: str
    ended_at: str
    catalog: int
    inputs: str
    outcome: str
    input_lines: int
    outcome_lines: int
    before: str
    key: str
    signature: str = ""


def sign_run(
    folder: Path,
    run: int,
    times: tuple[str, str],
    catalog: int,
    inputs: Sequence[bytes],
    outcome: Sequence[bytes],
) -> Evidence:
    """Write the evidence of a run and return it; `times` are its start and end."""
    place = folder / FOLDER
    make_private_folder(place)
    key = _key(folder)
    known = _runs(place)
    before = _digest((place / f"{known[-1]}.json").read_bytes()) if known else ""
    made = Evidence(
        run=run,
        started_at=times[0],
        ended_at=times[1],
        catalog=catalog,
        inputs=_hash(inputs),
        outcome=_hash(outcome),
        input_lines=len(inputs),
        outcome_lines=len(outcome),
        before=before,
        key=hashlib.sha256(key).hexdigest()[:16],
    )
    made = msgspec.structs.replace(made, signature=_signature(key, made))
    _write(
        place / f"{run}.ndjson.gz",
        gzip.compress(b"".join(line + b"\n" for line in (*inputs, *outcome)), mtime=0),
    )
    _write(place / f"{run}.json", msgspec.json.encode(made) + b"\n")
    for old in known[: max(len(known) + 1 - RUNS_KEPT, 0)]:
        for name in (f"{old}.json", f"{old}.ndjson.gz"):
            (place / name).unlink(missing_ok=True)
    return made


def verify_runs(folder: Path) -> tuple[list[Evidence], list[str]]:
    """Return the evidence of all runs that are kept, and what is wrong with it, in words."""
    place, wrong, found = folder / FOLDER, [], []
    if not (folder / KEY_FILE).is_file():
        return [], [f"{folder / KEY_FILE}: is missing, so nothing can be verified"]
    key, before = (folder / KEY_FILE).read_bytes(), None
    for run in _runs(place):
        text = (place / f"{run}.json").read_bytes()
        try:
            one = msgspec.json.decode(text, type=Evidence)
            wrong += _faults(place, key, run, one, before)
            found.append(one)
        except (msgspec.MsgspecError, OSError, EOFError) as error:
            wrong.append(f"run {run}: cannot be read ({error})")
        before = _digest(text)
    return found, wrong


def _faults(place: Path, key: bytes, run: int, one: Evidence, before: str | None) -> list[str]:
    wrong = []
    if one.run != run or not hmac.compare_digest(one.signature, _signature(key, one)):
        wrong.append(f"run {run}: the signature does not fit what is signed")
    if before is not None and one.before != before:
        wrong.append(f"run {run}: does not follow the run before it; one was changed or taken out")
    lines = gzip.decompress((place / f"{run}.ndjson.gz").read_bytes()).splitlines()
    if len(lines) != one.input_lines + one.outcome_lines:
        wrong.append(f"run {run}: needs {one.input_lines + one.outcome_lines:,} lines, has {len(lines):,}")
    if _hash(lines[: one.input_lines]) != one.inputs:
        wrong.append(f"run {run}: its inputs were changed")
    if _hash(lines[one.input_lines :]) != one.outcome:
        wrong.append(f"run {run}: its outcome was changed")
    return wrong


def _key(folder: Path) -> bytes:
    path = folder / KEY_FILE
    if not path.is_file():
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(secrets.token_bytes(32))
    return path.read_bytes()


def _runs(place: Path) -> list[int]:
    return sorted(int(path.stem) for path in place.glob("*.json") if path.stem.isdigit())


def _signature(key: bytes, one: Evidence) -> str:
    bare = msgspec.json.encode(msgspec.structs.replace(one, signature=""))
    return hmac.new(key, bare, "sha256").hexdigest()


def _hash(lines: Iterable[bytes]) -> str:
    whole = hashlib.sha256()
    for line in lines:
        whole.update(line + b"\n")
    return whole.hexdigest()


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _write(path: Path, content: bytes) -> None:
    """Put the file in place whole, on disk."""
    made = path.with_suffix(path.suffix + ".new")
    make_private_file(made)
    with made.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    made.replace(path)
