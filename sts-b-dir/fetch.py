"""Files from the network: small ones at once, large ones resumed, the sha256 of each recorded."""

import hashlib
import http.client
import shutil
import time
import urllib.error
import urllib.request

from filelock import FileLock, Timeout
from tqdm import tqdm

from files import check_room, write_atomically

TRIES = 5  # fruitless ones in a row, after which a host is given up
WAIT = 2.0  # seconds before the second try, then twice as long
PASSING = (http.HTTPStatus.REQUEST_TIMEOUT, http.HTTPStatus.TOO_MANY_REQUESTS)  # worth a retry


def sole_use(folder):
    """Return a held lock, for `with`, that keeps other processes from writing in a folder.

    What one that was killed left half-written is removed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".download.lock", is_singleton=True)  # may be held twice by one
    try:
        held = lock.acquire(timeout=0)
    except Timeout:
        print(f"another process fetches or unpacks in {folder}: waiting for its end", flush=True)
        held = lock.acquire()
    for path in folder.glob(".*.tmp"):
        path.unlink()
    return held


def sha256_of(path):
    """Return the sha256 of a file as hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def compare_with_record(path, place=None):
    """Return the sha256 of a file, which must be that of the first download, if one is recorded.

    Args:
        path: `pathlib.Path` of the file.
        place: where the first download lay, if not at `path`.

    Raises:
        FileNotFoundError, ValueError: there is no file, or it is another one.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}: `python download.py` says how to get it")
    digest = sha256_of(path)
    record = record_of(place or path)
    if record.exists() and record.read_text().split()[:1] != [digest]:
        raise ValueError(
            f"{path} ({digest}) is not the file of {record}: delete it and fetch it again, or "
            "delete that record if the new file is right"
        )
    return digest


def record_of(path):
    """Return the path of the record next to a download."""
    return path.with_name(path.name + ".sha256")


def write_record(path, digest):
    """Record the sha256 of a download next to it."""
    write_atomically(record_of(path), f"{digest}  {path.name}\n".encode())


def read_url(url, advice):
    """Return the content of a small file, bytes; a ValueError that ends with `advice` if none."""
    try:
        with urllib.request.urlopen(url, timeout=60) as response:
            return response.read()
    except (OSError, http.client.HTTPException, ValueError) as error:  # ValueError: no URL
        raise ValueError(f"cannot fetch {url} ({error}): {advice}") from error


def fetch_small(files, overwrite=False, check=None, otherwise=""):
    """Fetch small files; all of them are verified before one is written.

    Args:
        files: {path: (url, sha256)}, the latter None where none is published.
        overwrite: replace other files at these paths; the right ones stay as they are.
        check: function of (path, content) that raises a ValueError if it is no such file.
        otherwise: appended to the advice if the host gives none.

    Raises:
        ValueError: another file exists, or the host gives none or an unexpected one.
    """
    contents = {}
    for path, (url, sha256) in files.items():
        record = record_of(path)
        expected = sha256 or (record.read_text()[:64] if record.exists() else None)
        if path.exists() and sha256_of(path) == expected:
            print(f"{path} is the official file")
            continue
        if path.exists() and not overwrite:
            raise ValueError(f"{path} is not the official file: --overwrite replaces it")
        advice = f"fetch it by hand, put it at {path}, then give the command again{otherwise}"
        content = read_url(url, advice)
        found = hashlib.sha256(content).hexdigest()
        if expected not in (None, found):
            known = sha256 or f"as in {record}, to be deleted if the new file is right"
            raise ValueError(f"{url} has the sha256 {found}, not {known}: it was not kept")
        if check:
            check(path, content)
        contents[path] = content
    for path, content in contents.items():
        write_atomically(path, content)
        if files[path][1] is None:
            write_record(path, sha256_of(path))
        print(f"wrote {path}")


def size_of(path):
    """Return how many bytes a file has; 0 if it does not exist."""
    return path.stat().st_size if path.exists() else 0


def length_of(url):
    """Return how many bytes the host says that the file at `url` has; None if it does not say."""
    try:
        request = urllib.request.Request(url, method="HEAD")
        with urllib.request.urlopen(request, timeout=60) as response:
            return int(response.headers.get("Content-Length", ""))
    except (OSError, http.client.HTTPException, ValueError):  # what is wrong is told by `fetch`
        return None


def fetch(url, path, unpacked=0.0):
    """Fetch a large file to `path`; what has arrived of it lies in `<path>.part` and is kept.

    Args:
        url: http or https; a host that sends no ranges sends the file from its start again.
        path: `pathlib.Path` of the file, which appears when it is whole.
        unpacked: bytes that unpacking takes for each byte; the disk must have room for both.
    Raises:
        ValueError: the host cannot be reached or gives no such file, or the disk is too full.
    """
    if not url.startswith(("http://", "https://")):
        raise ValueError(f"{url!r} is no address: it begins with http:// or https://")
    part = path.with_name(path.name + ".part")
    path.parent.mkdir(parents=True, exist_ok=True)
    fruitless = restarts = 0
    while True:
        before = size_of(part)
        try:
            _fetch_rest(url, part, unpacked)
            break
        except (OSError, http.client.HTTPException) as error:
            refused = 400 <= getattr(error, "code", 0) < 500 and error.code not in PASSING
            fruitless = 0 if size_of(part) > before else fruitless + 1
            restarts += size_of(part) < before  # a host that makes it start again for ever
            if refused or TRIES in (fruitless, restarts):
                raise ValueError(
                    f"cannot fetch {url} ({error}): give the command again, which resumes what "
                    f"has arrived, or fetch it by hand and put it at {path}"
                ) from error
            time.sleep(WAIT * 2 ** max(fruitless - 1, 0))
    part.replace(path)
    part.with_suffix(".version").unlink(missing_ok=True)


def _ask_for_rest(url, part, tag):
    """Open a file from where `part` ends, or from its start; None if nothing of it is lacking."""
    have = size_of(part)
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    if have and tag:  # a host whose file has another tag by now sends it from its start
        request.add_header("If-Range", tag)
    try:
        return urllib.request.urlopen(request, timeout=60)
    except urllib.error.HTTPError as error:
        if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise
    return None if length_of(url) == have else urllib.request.urlopen(url, timeout=60)


def _fetch_rest(url, part, unpacked):
    """Add to `part` what it lacks of the file at `url`; an OSError if it is not whole then."""
    have = size_of(part)
    version = part.with_suffix(".version")
    noted = version.read_text() if have and version.exists() else ""
    tag, _, first_length = noted.partition("\n")
    response = _ask_for_rest(url, part, tag)
    if response is None:
        return
    with response:
        headers = response.headers
        resumed = response.status == http.HTTPStatus.PARTIAL_CONTENT
        span = headers.get("Content-Range", "")  # bytes 100-999/1000
        if resumed and not span.startswith(f"bytes {have}-"):
            raise OSError(f"asked for the bytes from {have} on, got {span!r}")
        length = span.rpartition("/")[2] if resumed else headers.get("Content-Length", "")
        total = int(length) if length.isdecimal() else None
        etag = headers.get("ETag", "")
        etag = "" if etag.startswith("W/") else etag  # a weak one does not vouch for each byte
        other = etag and tag.startswith('"') and etag != tag  # some hosts pass over If-Range
        if resumed and (other or total is None or length != (first_length or length)):
            part.unlink(missing_ok=True)
            raise OSError(f"{span!r} may be of another file than what is here: it starts again")
        have = have if resumed else 0
        check_room(part.parent, (1 + unpacked) * (total or 0) - have)
        if not resumed:
            part.write_bytes(b"")  # before its version: old bytes never pass for a new file's
            version.write_text(f"{etag or headers.get('Last-Modified', '')}\n{total or ''}")
            if total is None:
                print(f"the host does not say how long {part.stem} is: it may end too early")
        bar = tqdm.wrapattr(response, "read", total, initial=have, desc=part.stem)
        with open(part, "ab") as file, bar as source:
            shutil.copyfileobj(source, file)
    if total is not None and size_of(part) != total:
        raise OSError(f"{size_of(part):,} of {total:,} bytes have arrived")


def fetch_from_drive(drive_id, path):
    """Fetch a file from Google Drive by gdown, which resumes; a ValueError says how else."""
    if path.exists():
        return print(f"{path} exists: it is not fetched again")
    import gdown  # only here: nothing else needs it

    refused = gdown.exceptions.FileURLRetrievalError
    broken = getattr(gdown.exceptions, "DownloadError", refused)  # of gdown 6: cut off, for one
    reason = "no file came"
    try:
        gdown.download(id=drive_id, output=str(path), resume=True)
    except (OSError, RuntimeError, refused, broken) as error:
        reason = error
    if not path.is_file():
        raise ValueError(
            f"cannot fetch {path.name} from Google Drive ({reason}): give the command again, which "
            f"resumes what has arrived, or open https://drive.google.com/uc?id={drive_id} "
            f"in a browser and save it as {path}"
        )
