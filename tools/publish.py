"""Make a folder that others can evaluate by its name from a finished run, and put it on the Hub.

    python tools/publish.py agedb-dir/checkpoint/RUN --out published/agedb-lds
    python tools/publish.py agedb-dir/checkpoint/RUN --out published/agedb-lds --repo OWNER/NAME

The folder holds the best epoch's weights (safetensors, which cannot run code), the flags, the
results and a model card made from them. Anyone then gives `python train.py --evaluate --eval_model`
the folder or OWNER/NAME. Uploading needs a login: `hf auth login`, or the variable HF_TOKEN.
"""

import argparse
import contextlib
import json
import os
import re
import shlex
import shutil
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from safetensors.torch import save_file

from load import load

# The same files in every folder.
released = load("agedb-dir", "released")
outside = load("agedb-dir", "outside")
program = load("agedb-dir", "program")
run_files = load("agedb-dir", "run_files")
# Where a run lay on a disk is no part of what it was.
PLACES = (
    "data_dir store_root store_name pretrained resume eval_model word_embs_file cache name".split()
)
LICENCES = {
    "agedb-dir": "AgeDB's images are given for research",
    "imdb-wiki-dir": "IMDB-WIKI's images are for research",
    "nyud2-dir": "trained on NYU Depth v2", "sts-b-dir": "trained on the STS benchmark",
    "shhs-dir": "SHHS is given on request; what may be published of it is a matter of that "
    "agreement",
    "uci-dir": "the UCI sets are CC BY 4.0; of another table its owner decides",
}  # fmt: skip
OWN_DATA = "not the benchmark's; their owner decides what may be published"
DATASETS = {"agedb-dir": "agedb", "imdb-wiki-dir": "imdb_wiki"}  # else they are the run's own
CARD = """---
library_name: pytorch
tags: [deep-imbalanced-regression, {tags}]
---

# {benchmark}: {method}, seed {seed}

Deep imbalanced regression on {benchmark}, target: {target}. Trained by

```bash
{command}
```

at commit {commit}, best epoch {best_epoch}, {hours:.1f} hours on {device}, torch {torch}.

Evaluate it with the repository's code, which prints its own figures next to these:

```bash
cd {benchmark}
python train.py --evaluate --eval_model {name}
```

Test set:

{table}

One run of one seed. `config.json` has every flag, `results.json` every metric. Data: {licence}.

Source of the methods: Yang, Zha, Chen, Wang, Katabi, "Delving into Deep Imbalanced Regression",
ICML 2021.
"""


def read_results(run):
    """Return the results of a finished run, without places.

    Args:
        run: `pathlib.Path` of its folder.

    Raises:
        FileNotFoundError, ValueError: if it is no run folder, or not finished, or of no benchmark.
    """
    path = run / "results.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"no {path}: give the folder of a finished run, such as checkpoint/NAME"
        )
    results = outside.read_json(path, run_files.AGAIN)
    with outside.reading(path, run_files.AGAIN):
        run_files.check_results(results)
        if results["benchmark"] not in LICENCES:
            raise ValueError(f"its benchmark is {outside.shown(results['benchmark'])}")
        for key, kind in (("command", str), ("versions", dict)):
            if not isinstance(results.get(key, kind()), kind):
                raise ValueError(f"its {key} is {outside.shown(results[key])}")
        return without_places(results)


def without_places(results):
    """Return results without the flags that say where the run ran, paths cut to their end."""

    def end_of(text):
        return re.split(r"[/\\]", text.rstrip("/\\"))[-1]

    words = shlex.split(results["command"])
    for i, word in enumerate(words):
        flag, sign, value = word.partition("=")
        place = i and words[i - 1].removeprefix("--") in PLACES
        if sign and (flag.removeprefix("--") in PLACES or re.match(r"[~/\\]", value)):
            words[i] = f"{flag}={end_of(value)}"
        elif place or re.match(r"[~/\\]|\.\.|[A-Za-z]:[/\\]", word):
            words[i] = end_of(word)
    config = {
        flag: end_of(value) if flag in PLACES and isinstance(value, str) else value
        for flag, value in results["config"].items()
        if flag not in results.get("place_flags", ())
    }
    return {**results, "config": config, "command": shlex.join(words)}


def plain(text):
    """Return text from a file as one line that steers neither a terminal nor a table."""
    return " ".join(outside.clean(text).split()).replace("|", "\\|")


def table_of(metrics):
    """Return the test set's metrics by shot in Markdown, with a dash where there is none."""
    names = [name for name in metrics["overall"] if name != "num_samples"]
    lines = [f"| shot | samples | {' | '.join(map(plain, names))} |"]
    lines.append("|---" + "|---:" * (1 + len(names)) + "|")
    for shot, row in metrics.items():
        cells = ["–" if row[name] is None else f"{row[name]:.3f}" for name in names]
        lines.append(f"| {plain(shot)} | {plain(row['num_samples'])} | {' | '.join(cells)} |")
    return "\n".join(lines)


def licence_of(results):
    """Return what is said of a run's data: of the benchmark's, or of others."""
    folder = results["benchmark"]
    dataset = results["config"].get("dataset")
    other = folder in DATASETS and dataset not in (None, DATASETS[folder])
    return OWN_DATA if other or "low" in results.get("target", {}) else LICENCES[folder]


def make_card(results, name):
    """Return the model card of a run's results, published under `name`."""
    tags = ", ".join([results["benchmark"], *re.findall(r"[a-z-]+", results["method"].lower())])
    best = results.get("best_epoch")
    return CARD.format(
        benchmark=results["benchmark"], method=plain(results["method"]),
        seed=plain(results["seed"]),
        tags=tags, target=plain(results.get("target", {}).get("name", "unknown")),
        command=plain(results["command"]), commit=plain(results["commit"]),
        best_epoch="unknown" if best is None else round(best, 2),
        hours=(results.get("wall_seconds") or 0) / 3600,
        device=plain(results.get("device", "unknown")),
        torch=plain(results.get("versions", {}).get("torch", "unknown")),
        name=outside.clean(name),
        table=table_of(results["metrics"]["test"]), licence=licence_of(results),
    )  # fmt: skip


def publish(run, out, name="", overwrite=False):
    """Write the folder to be published.

    Args:
        run: `pathlib.Path` of a finished run's folder.
        out: path of the folder to write.
        name: OWNER/NAME under which it will be found; '' for the folder's own.
        overwrite: replace an earlier such folder.

    Raises:
        FileNotFoundError, ValueError: the run is incomplete, or `out` is not empty.
    """
    if out.is_file():
        raise ValueError(f"{out} is a file: --out FOLDER")
    results = read_results(run)
    path = run / load(results["benchmark"], "checkpoints").BEST
    state = released.weights_of(released.load(path), path)
    out = Path(os.path.realpath(out))  # of a link, the folder that it leads to
    with outside.reading(run / "results.json", run_files.AGAIN):
        texts = texts_of(results, name or out.name)
    with sole_use(out):
        held = sorted(file.name for file in out.iterdir()) if out.is_dir() else []
        if held and not (overwrite and set(held) <= set(released.FILES)):
            raise ValueError(
                f"{out} holds {', '.join(held[:5])}: --out NEW, or --overwrite where only an "
                "earlier published folder is replaced"
            )
        # Written next to it and then renamed: what was there stays until the new one is whole.
        new, old = (out.with_name(f".{out.name}.{os.getpid()}.{kind}") for kind in ("new", "old"))
        new.mkdir()
        write_folder(new, run, results["benchmark"], state, texts)
        if out.is_dir():
            out.rename(old)
        new.rename(out)
    size = sum(file.stat().st_size for file in out.iterdir()) / 1e6
    print(f"{out}: {results['benchmark']}, {outside.shown(results['method'])}, {size:.1f} MB")


@contextlib.contextmanager
def sole_use(out):
    """Keep other processes from publishing to a folder; what a killed one left is mended.

    Raises:
        ValueError: if another one is at work.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(out.with_name(f".{out.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(f"another process publishes to {out}: wait for it") from None
    try:
        mend(out)
        yield
    finally:
        mend(out)
        lock.release()


def mend(out):
    """Bring a folder back that was moved aside, if no new one took its place; remove the rest."""
    left = re.compile(rf"\.{re.escape(out.name)}\.\d+\.(new|old)")
    for folder in [path for path in out.parent.iterdir() if left.fullmatch(path.name)]:
        if folder.suffix == ".old" and not out.exists():
            folder.rename(out)
        else:
            shutil.rmtree(folder, ignore_errors=True)


def texts_of(results, name):
    """Return the texts of a folder published under `name`: {file: bytes}."""
    contents = {released.CONFIG: results["config"], released.RESULTS: results}
    texts = {
        file: json.dumps(content, indent=1, ensure_ascii=False) + "\n"
        for file, content in contents.items()
    }
    texts["README.md"] = make_card(results, name)
    return {file: text.encode() for file, text in texts.items()}


def write_folder(out, run, benchmark, state, texts):
    """Write the files of a published folder.

    Args:
        out: path of the folder.
        run: path of the run's folder.
        benchmark: name of its folder.
        state: the weights.
        texts: as `texts_of` returns them.
    """
    # Safetensors refuses views of one memory, and the channels-last order of convolutions.
    state = {
        key.removeprefix("module."): value.clone(memory_format=torch.contiguous_format)
        for key, value in state.items()
    }
    save_file(state, out / released.WEIGHTS, {"format": "pt", "benchmark": benchmark})
    for file, text in texts.items():
        (out / file).write_bytes(text)
    # Safetensors lets nobody else read it.
    (out / released.WEIGHTS).chmod((out / released.CONFIG).stat().st_mode)
    if (run / "vocab.txt").is_file():
        if (run / "vocab.txt").is_symlink():  # which could publish any file
            raise ValueError(f"{run / 'vocab.txt'} is a link: replace it by the file that is meant")
        shutil.copy(run / "vocab.txt", out)


def upload(out, repository, private):
    """Put a published folder on the Hugging Face Hub.

    Raises:
        ValueError: if the Hub refuses.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        url = api.upload_folder(repo_id=repository, folder_path=out, commit_message="Publish a run")
    except Exception as error:  # those of its HTTP library have no common base
        raise ValueError(
            f"the Hub refuses {repository} ({error}): log in with `hf auth login`, or check the "
            f"name; {out} is made and stays"
        ) from error
    print(f"published: {url}")


def main(argv=None):
    """Make the folder and, with --repo, upload it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--repo", default="", help="OWNER/NAME on the Hub, to upload it to")
    parser.add_argument("--private", action="store_true", help="so that only you see it there")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier --out")
    args = parser.parse_args(argv)
    publish(args.run, args.out, args.repo, args.overwrite)
    if args.repo:
        upload(args.out, args.repo, args.private)


if __name__ == "__main__":
    program.run(main, Path(__file__).resolve().parent)
