"""Damaged and hostile files of every kind that the folders read, thousands of them.

    python tests/fuzz.py --cases 10000    # as `make fuzz`: counts into benchmarks/reliability
    python tests/fuzz.py --target night --cases 500
    python tests/fuzz.py --only own_maps --cases 300    # these counts again, the others stay

Each case damages a whole file at random, from its number and --seed, and reads it. A file must be
read as it was or be refused in one line that names it. Where checksums guard the content, another
content is a failure, too. Each kind is read in a process of its own, which may even crash.
"""

import argparse
import hashlib
import json
import logging
import random
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import torch

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).parents[1] / "benchmarks")]

import hostile_kinds  # noqa: E402 - found through the line above
import reliability  # noqa: E402

SECONDS = 20  # for one case: more is a hang
LONGEST = 6000  # letters of a message
GOOD = ("as it was", "another content", "refused")
NASTY = [
    b"", b"nan", b"inf", b"-1", b"1e999", b"9" * 400, b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b'"',
    b"../" * 9 + b"etc/passwd", b"/dev/zero", b"x" * 5000, b"\x1b[2J\x1b]0;x\x07", b"|", b"\r\n",
    "\u202e\ud7ff\uffff".encode(), b"[" * 30_000, b'{"a":' * 9_000, b"null", b"true", b"[1e400]",
    b"\x80\x04\x95", b"PK\x03\x04", b"\x89HDF\r\n\x1a\n", b"\x93NUMPY\x01\x00", b"\xff\xd8\xff\xe0",
]  # fmt: skip


def damage(content, rng):
    """Return a file's bytes with one to three random faults."""
    content = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        at = rng.randrange(len(content) + 1)
        to = min(len(content), at + rng.choice((1, 4, 64, 1024)))
        kind = rng.randrange(8)
        if kind in (0, 1) and at < len(content):
            content[at] ^= 1 << rng.randrange(8)
        elif kind == 2:
            del content[at:]
        elif kind == 3:
            del content[at:to]
        elif kind == 4:
            content[at:at] = content[at:to]
        elif kind == 5:
            content[at:to] = bytes(to - at)
        elif kind == 6:
            content[at:to] = rng.randbytes(to - at)
        else:
            content[at : rng.choice((at, to))] = rng.choice(NASTY)
    return bytes(content)


def flip(content, rng):
    """Return a file's bytes with one flipped bit."""
    content = bytearray(content)
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    return bytes(content)


def fingerprint(value):
    """Return a digest of what was read."""
    digest = hashlib.sha256()
    left = [value]
    while left:
        item = left.pop()
        if isinstance(item, torch.Tensor):
            item = item.detach().numpy()
        if isinstance(item, dict):
            left += [part for pair in item.items() for part in pair]
        elif isinstance(item, (list, tuple)):
            left += item
        elif isinstance(item, pd.DataFrame):
            digest.update(item.to_csv().encode("utf-8", "surrogatepass"))
        elif isinstance(item, np.ndarray) and item.dtype != object:
            digest.update(f"{item.dtype} {item.shape}".encode() + item.tobytes())
        else:
            digest.update(repr(item).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def is_one_line(error, folder):
    """Whether an error is one that a user can act on: its kind, a file's name, no control code."""
    text = str(error)
    # `Fault` is shhs-dir's, for a table that has the name in another column.
    fault = type(error).__name__ == "Fault"
    known = fault or type(error) in (ValueError, FileNotFoundError)
    names = fault or folder.name in text or any(path.name in text for path in folder.rglob("*"))
    clean = all(letter.isprintable() for letter in text) and "weights_only" not in text
    return known and names and clean and len(text) < LONGEST


def try_case(kind, folder, originals, number, seed):
    """Damage one file, read, and put it back; returns the outcome and what it was."""
    rng = random.Random(f"{seed} {kind.name} {number}")
    name = rng.choice(sorted(originals))
    change = flip if rng.random() < kind.flips else damage
    (folder / name).write_bytes(change(originals[name], rng))
    signal.alarm(SECONDS)
    try:
        read = fingerprint(kind.read(folder))
        outcome = "as it was" if read == kind.whole else "another content"
        if kind.guarded and outcome != "as it was":
            return "WRONG CONTENT", name
        return outcome, name
    except TimeoutError:
        return "HANG", name
    except Exception as error:
        if is_one_line(error, folder):
            return "refused", name
        return "RAW ERROR", f"{name}: {type(error).__name__}: {str(error)[:300]}"
    finally:
        signal.alarm(0)
        (folder / name).write_bytes(originals[name])


def run_kind(name, numbers, seed):
    """Run a kind's cases in this process; prints a line of JSON for each."""
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)

    def too_long(*_):
        raise TimeoutError

    signal.signal(signal.SIGALRM, too_long)
    kind = hostile_kinds.KINDS[name]
    with tempfile.TemporaryDirectory(prefix=f"fuzz_{name}_") as folder:
        folder = Path(folder)
        kind.make(folder)
        originals = {file: (folder / file).read_bytes() for file in kind.files}
        kind.whole = fingerprint(kind.read(folder))
        for number in numbers:
            row = [number, *try_case(kind, folder, originals, number, seed)]
            print(json.dumps(row), flush=True)


def run_apart(name, cases, seed):
    """Run a kind's cases in a process of its own, again behind a case that ends it; yields rows."""
    done = 0
    while done < cases:
        command = [sys.executable, __file__, "--target", name, "--seed", str(seed)]
        command += ["--cases", str(cases), "--first", str(done)]
        child = subprocess.run(command, capture_output=True, text=True, check=False)
        rows = [json.loads(line) for line in child.stdout.splitlines() if line.startswith("[")]
        yield from rows
        if not rows and child.returncode > 0:  # it could not even begin
            raise SystemExit(f"{name}: {child.stderr[-2000:]}")
        done += len(rows)
        if done < cases:
            yield [done, "CRASH", f"the process ended with {child.returncode}"]
            done += 1


def main(argv=None):
    """Run the kinds and write their counts."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--cases", type=int, default=10_000, help="over all kinds, or of --target")
    parser.add_argument("--seed", type=int, default=0, help="of the damage")
    parser.add_argument("--target", choices=hostile_kinds.KINDS, help="this kind only, here")
    parser.add_argument("--only", nargs="+", choices=hostile_kinds.KINDS, help="these kinds")
    parser.add_argument("--first", type=int, default=0, help="first case, with --target")
    args = parser.parse_args(argv)
    if args.target:
        return run_kind(args.target, range(args.first, args.cases), args.seed)
    start = time.monotonic()
    chosen = {name: hostile_kinds.KINDS[name] for name in args.only or hostile_kinds.KINDS}
    share = sum(kind.share for kind in chosen.values())
    counts = {}
    failed = []
    for name, kind in chosen.items():
        cases = -(-args.cases * kind.share // share)
        rows = list(run_apart(name, cases, args.seed))
        counts[name] = Counter(outcome for _, outcome, _ in rows)
        failed += [f"{name} {n}: {what}: {detail}" for n, what, detail in rows if what not in GOOD]
        print(f"{name:>22} {cases:>6,}  {dict(counts[name])}", flush=True)
    print("\n".join(failed))
    minutes = (time.monotonic() - start) / 60
    reliability.write_files(hostile_kinds.KINDS, counts, args.seed, minutes)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
