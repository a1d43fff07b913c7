"""A large file over HTTP, resumed where it broke off, its length verified."""

import http.client
import os
import shutil
import time
import urllib.error
import urllib.request

from tqdm import tqdm

TRIES, WAIT = 5, 2.0  # fruitless tries in a row; seconds before the second, then twice as long
PASSING = (http.HTTPStatus.REQUEST_TIMEOUT, http.HTTPStatus.TOO_MANY_REQUESTS)  # worth a retry


def length_of(url):
    """Return how many bytes the host says that the file at `url` has; None if it does not say."""
    try:
        request = urllib.request.Request(url, method="HEAD")
        with urllib.request.urlopen(request, timeout=60) as response:
            length = response.headers.get("Content-Length", "")
    except (OSError, http.client.HTTPException, ValueError):  # what is wrong is told by `fetch`
        return None
    return int(length) if length.isdecimal() else None


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
    part, fruitless, restarts = path.with_name(path.name + ".part"), 0, 0
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        size = part.stat().st_size if part.exists() else 0
        try:
            _fetch_rest(url, part, unpacked)
            break
        except (OSError, http.client.HTTPException) as error:
            code = getattr(error, "code", 0)
            refused = code in range(400, 500) and code not in PASSING
            now = part.stat().st_size if part.exists() else 0
            fruitless = 0 if now > size else fruitless + 1
            restarts += now < size  # a host that makes it start anew each time is given up too
            if refused or TRIES in (fruitless, restarts):
                raise ValueError(
                    f"cannot fetch {url} ({error}): give the command again, which goes on from "
                    f"what has arrived, or fetch it by hand and put it at {path}"
                ) from error
            time.sleep(WAIT * 2 ** max(fruitless - 1, 0))
    os.replace(part, path)
    part.with_suffix(".version").unlink(missing_ok=True)


def _ask(url, have=0, tag=""):
    """Open a file from its byte `have` on, or from its start if it is no longer that of `tag`."""
    headers = {"Range": f"bytes={have}-"} if have else {}
    if have and tag:
        headers["If-Range"] = tag
    return urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=60)


def _fetch_rest(url, part, unpacked):
    """Add to `part` what it lacks of the file at `url`; an OSError if it is not whole then."""
    have, version = part.stat().st_size if part.exists() else 0, part.with_suffix(".version")
    noted = version.read_text() if have and version.exists() else ""
    tag, _, first_length = noted.partition("\n")
    try:
        response = _ask(url, have, tag)
    except urllib.error.HTTPError as error:
        if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise
        length = error.headers.get("Content-Range", "").removeprefix("bytes */")
        if length == str(have):
            return  # all of it is here
        if length.isdecimal():
            part.unlink(missing_ok=True)
            raise OSError("more had arrived than there is: it starts anew") from error
        response = _ask(url)  # the refusal does not say whether all is here, this length does
        if response.headers.get("Content-Length") == str(have):
            return response.close()
    with response:
        resumed = response.status == http.HTTPStatus.PARTIAL_CONTENT
        span = response.headers.get("Content-Range", "")  # bytes 100-999/1000
        if resumed and not span.startswith(f"bytes {have}-"):
            raise OSError(f"asked for the bytes from {have} on, got {span!r}")
        have = have if resumed else 0
        length = span.rpartition("/")[2] if resumed else response.headers.get("Content-Length", "")
        total = int(length) if length.isdecimal() else None
        etag, date = (response.headers.get(name, "") for name in ("ETag", "Last-Modified"))
        etag = "" if etag.startswith("W/") else etag  # a weak one does not vouch for each byte
        other = etag and tag.startswith('"') and etag != tag  # some hosts pass over If-Range
        if resumed and (other or total is None or length != (first_length or length)):
            part.unlink(missing_ok=True)
            raise OSError(f"{span!r} may be of another file than what is here: it starts anew")
        needed, free = (1 + unpacked) * (total or 0) - have, shutil.disk_usage(part.parent).free
        if needed > free:
            raise ValueError(
                f"{needed:,.0f} bytes are needed, {free:,} free in {part.parent}: make room"
            )
        if not resumed:
            part.write_bytes(b"")  # before its version: what is there never passes for another's
            version.write_text(f"{etag or date}\n{'' if total is None else total}")
            if total is None:
                print(f"the host does not say how long {part.stem} is: it may end too early")
        bar = tqdm(desc=part.stem, total=total, initial=have, unit="B", unit_scale=True)
        with open(part, "ab") as file, bar:
            while content := response.read(1 << 20):
                file.write(content)
                bar.update(len(content))
    if total is not None and part.stat().st_size != total:
        raise OSError(f"{part.stat().st_size:,} of {total:,} bytes have arrived")
