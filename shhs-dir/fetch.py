"""A large file over HTTP, resumed where it broke off, its length verified."""

import http.client
import os
import shutil
import time
import urllib.error
import urllib.request

from tqdm import tqdm

TRIES, WAIT = 5, 2.0  # fruitless tries in a row; seconds before the second, then twice as long


def fetch(url, path, unpacked=0.0):
    """Fetch a large file to `path`; what has arrived of it lies in `<path>.part` and is kept.

    Args:
        url: http or https; a host that sends no ranges sends the file from its start again.
        path: `pathlib.Path` of the file, which appears when it is whole.
        unpacked: bytes that unpacking will take for each byte of the file: the disk must have
            room for both before anything is fetched.
    Raises:
        ValueError: the host cannot be reached or gives no such file, or the disk is too full.
    """
    if not url.startswith(("http://", "https://")):
        raise ValueError(f"{url!r} is no address: it begins with http:// or https://")
    part, fruitless = path.with_name(path.name + ".part"), 0
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        size = part.stat().st_size if part.exists() else 0
        try:
            _fetch_rest(url, part, unpacked)
            break
        except (OSError, http.client.HTTPException) as error:
            refused = getattr(error, "code", 0) in range(400, 500)
            grown = part.exists() and part.stat().st_size > size
            fruitless = 0 if grown else fruitless + 1
            if refused or fruitless == TRIES:
                raise ValueError(
                    f"cannot fetch {url} ({error}): give the command again, which goes on from "
                    f"what has arrived, or fetch it by hand and put it at {path}"
                ) from error
            time.sleep(WAIT * 2 ** max(fruitless - 1, 0))
    os.replace(part, path)
    part.with_suffix(".version").unlink(missing_ok=True)


def _fetch_rest(url, part, unpacked):
    """Add to `part` what it lacks of the file at `url`; an OSError if it is not whole then."""
    have, version = part.stat().st_size if part.exists() else 0, part.with_suffix(".version")
    headers = {"Range": f"bytes={have}-"} if have else {}
    if have and version.exists() and (tag := version.read_text()):
        headers["If-Range"] = tag  # a file that has changed is sent from its start
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=60)
    except urllib.error.HTTPError as error:
        if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise
        if error.headers.get("Content-Range") == f"bytes */{have}":
            return  # all of it is here
        part.unlink()
        raise OSError("more had arrived than there is: it starts anew") from error
    with response:
        resumed = response.status == http.HTTPStatus.PARTIAL_CONTENT
        span = response.headers.get("Content-Range", "")  # bytes 100-999/1000
        if resumed and not span.startswith(f"bytes {have}-"):
            raise OSError(f"asked for the bytes from {have} on, got {span!r}")
        have = have if resumed else 0
        length = span.rpartition("/")[2] if resumed else response.headers.get("Content-Length", "")
        total = int(length) if length.isdecimal() else None
        needed, free = (1 + unpacked) * (total or 0) - have, shutil.disk_usage(part.parent).free
        if needed > free:
            raise ValueError(
                f"{needed:,.0f} bytes are needed, {free:,} free in {part.parent}: make room"
            )
        if not resumed:
            part.write_bytes(b"")  # before its version: what is there never passes for another's
            tag, date = (response.headers.get(name, "") for name in ("ETag", "Last-Modified"))
            version.write_text(tag if tag and not tag.startswith("W/") else date)
        bar = tqdm(desc=part.stem, total=total, initial=have, unit="B", unit_scale=True)
        with open(part, "ab") as file, bar:
            while content := response.read(1 << 20):
                file.write(content)
                bar.update(len(content))
    if total is not None and part.stat().st_size != total:
        raise OSError(f"{part.stat().st_size:,} of {total:,} bytes have arrived")
