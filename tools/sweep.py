"""Run a table of results: each row of a TOML file with each seed, as far as it is missing.

    python tools/sweep.py results/tables/uci_dir.toml --dry-run   # cells and minutes
    python tools/sweep.py results/tables/uci_dir.toml --jobs 2    # run them; the same line resumes
    python tools/sweep.py results/tables/uci_dir.toml --list      # a command a line, for job arrays
    python tools/sweep.py results/tables/uci_dir.toml --cluster slurm --jobs 20   # needs submitit

A cell is a row with a seed, and a set of data where the file names several. Finished ones are never
run again. They run in processes forked from this one, so that PyTorch is loaded once. A cell that
fails is kept with its error in `errors.json`, the others continue, and the exit status is 1.

The file's entries: `folder` of train.py, `out` of the results, `seeds`, `flags` of all rows, and
`[rows]`: flags by name. Optional ones are `minutes` of a run, `store_root`, `epochs` and `lines`
(see `collect`), `[sets]`, `[over]`, `prepare` with `prepared`, `[cluster]` for submitit, and for
`evidence.py` the published figures in `[paper]`, `metrics`, `shots` and the rows of a `short`
table. Flags may hold `{set}`, `{seed}`, the entries of a set, and `{ROW}`: the best checkpoint of
the row ROW, or of a line of `[pretraining]`, which holds flags of pretrain.py. A row whose name
holds `{x}` is taken for each of the values `x` in `[over]`.
"""

import argparse
import ctypes
import importlib
import importlib.util
import itertools
import json
import multiprocessing
import os
import shlex
import shutil
import signal
import string
import sys
import time
import tomllib
import traceback
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from filelock import FileLock, Timeout

ROOT = Path(__file__).resolve().parent.parent
FORK = multiprocessing.get_context("fork") if hasattr(os, "fork") else None
NEEDED = {"folder": str, "out": str, "flags": str, "seeds": list, "rows": dict}
ENTRIES = NEEDED | {
    **dict.fromkeys(("store_root", "prepare", "prepared"), str),
    **dict.fromkeys(("sets", "over", "pretraining", "cluster", "paper"), dict),
    **dict.fromkeys(("metrics", "shots", "short"), list),
    **dict.fromkeys(("epochs", "lines"), bool),
    "minutes": int | float,
}
TOML_TYPES = {str: "a text", list: "a list", dict: "a table", bool: "true or false"}
TRAIN, PRETRAIN = "train", "pretrain"  # programs
ERROR_LINES = 20  # of a failed cell's log
POLL_SECONDS = 5
SHOTS = ("many", "medium", "few")
PR_SET_PDEATHSIG = 1  # Linux: the signal that a process gets when its parent dies
LINE = ("method", "seed", "commit", "command", "device", "best_epoch", "wall_seconds")

# ---- the table of cells --------------------------------------------------------------------


@dataclass(eq=False)
class Cell:
    """A row of the table with a seed, on a set of data."""

    row: str
    set: str
    seed: int
    args: object  # parsed flags
    flags: list
    name: list  # of its run folder, as run_folder.find_run_folder takes it
    bases: list  # cells whose best checkpoint it starts from
    prepare: list  # arguments of prepare.py, or none
    prepared: str  # file that shows that this was done
    program: str = TRAIN
    minutes: float = 0.0  # expected

    @property
    def run(self):
        """Its run folder, below the benchmark folder."""
        return Path(self.args.store_root, "".join(self.name))

    @property
    def title(self):
        """What a reader calls it."""
        return f"{self.set} {self.row}, seed {self.seed}".strip()

    @property
    def command(self):
        """The command line, to be run in the benchmark folder."""
        return ["python", f"{self.program}.py", *self.flags]


def read_table(path):
    """Read a TOML file.

    Raises:
        ValueError: for an entry that is missing, unknown or of a wrong type, or no TOML.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path} is no TOML: {error}") from error
    missing, unknown = {*NEEDED} - {*table}, {*table} - {*ENTRIES}
    if missing or unknown:
        raise ValueError(f"{path}: missing {sorted(missing)}, unknown {sorted(unknown)}")
    for name, value in table.items():
        if not isinstance(value, ENTRIES[name]):
            wanted = TOML_TYPES.get(ENTRIES[name], "a number")
            raise ValueError(f"{path}: {name} must be {wanted}, got {value!r}")
    for name, flags in {**table["rows"], **table.get("pretraining", {})}.items():
        if not isinstance(flags, str):
            raise ValueError(f"{path}: the flags of {name} must be a text, got {flags!r}")
    if not table["rows"] or not table["seeds"] or {*map(type, table["seeds"])} != {int}:
        raise ValueError(f"{path}: at least one row and one seed, whole numbers, are needed")
    table.setdefault("store_root", f"checkpoint/{path.stem}")
    table.setdefault("sets", {"": {}})
    return table


def rows_of(table):
    """Return {row: (flags, values of [over])}, rows with several values taken for each."""
    over, rows = table.get("over", {}), {}
    for name, flags in table["rows"].items():
        free = [field for _, field, _, _ in string.Formatter().parse(name) if field]
        if not {*free} <= {*over}:
            raise ValueError(f"{name}: [over] has values of {sorted(over)} only")
        for values in itertools.product(*(over[field] for field in free)):
            chosen = dict(zip(free, values))
            rows[name.format_map(chosen)] = flags, chosen
    return rows


def cells_of(table, train, best, load=importlib.import_module):
    """Return the cells, seeds outermost: a sweep that is stopped has fewer seeds of each row.

    Args:
        table: as `read_table` returns it.
        train: the folder's train.py.
        best: file name of the best checkpoint.
        load: function that imports another program of the folder by its name.
    """
    cells = []
    first = [(PRETRAIN, row, (flags, {})) for row, flags in table.get("pretraining", {}).items()]
    rows = [*first, *((TRAIN, *entry) for entry in rows_of(table).items())]
    for seed, (name, entries) in itertools.product(table["seeds"], table["sets"].items()):
        made = {}
        for program, row, (flags, values) in rows:
            paths = {other: f"{cell.run}/{best}" for other, cell in made.items()}
            known = {**paths, **entries, **values, "set": name, "seed": seed}
            try:
                text = f"{table['flags']} {flags}".format_map(known)
                prepare = table.get("prepare", "").format_map(known)
                prepared = table.get("prepared", "").format_map(known)
                words = [*shlex.split(text), "--seed", str(seed)]
            except KeyError as error:
                raise ValueError(f"{row}: {error} is neither an entry nor an earlier row") from None
            except ValueError as error:  # a brace or a quotation mark that is not closed
                raise ValueError(f"{row}: {error}") from None
            words += ["--store_root", table["store_root"]]
            module = train if program == TRAIN else load(program)
            args = module.parse_args([*words, "--resume"])
            bases = [made[other] for other in made if f"{{{other}}}" in flags]
            made[row] = Cell(
                row=row,
                set=name,
                seed=seed,
                args=args,
                flags=[*words, "--resume"],
                name=module.run_name(args),
                bases=bases,
                prepare=shlex.split(prepare),
                prepared=prepared,
                program=program,
            )
        cells += made.values()
    runs = {}
    for cell in cells:
        if (other := runs.setdefault(cell.run, cell)) is not cell:
            both = f"{other.title} and {cell.title}"
            raise ValueError(f"{both} have the same flags, or those that name {cell.run}")
    return cells


# ---- results -------------------------------------------------------------------------------


def results_of(out, name):
    """Yield (set, method, seed), path and dictionary of each result of a set.

    They are lines of its file, and run folders.

    Raises:
        ValueError: for a line or file that is no JSON, cut off by a full disk say.
    """
    path = out / f"{name or 'runs'}.jsonl"
    lines = path.read_text("utf-8").splitlines() if path.is_file() else []
    texts = [(f"line {number} of {path}", path, line) for number, line in enumerate(lines, 1)]
    for path in sorted((out / name).glob("*/results.json")):
        texts.append((path, path, path.read_text("utf-8")))
    for place, path, text in texts:
        try:
            result = json.loads(text)
        except ValueError:
            raise ValueError(f"{place} is no JSON: remove it, and run what it was of") from None
        yield (name, result["method"], result["seed"]), path, result


class Results:
    """What is finished, in the folder `out`.

    Args:
        out: the folder; with several sets each has its own below it.
        table: as `read_table` returns it.
        train: the folder's train.py.

    Raises:
        ValueError: for a cell with two results.
    """

    def __init__(self, out, table, train):
        self.out, self.table, self.train = out, table, train
        self.home = ROOT / table["folder"]
        self.errors_file = out / "errors.json"
        errors = self.errors_file
        self.errors = json.loads(errors.read_text("utf-8")) if errors.is_file() else {}
        self.seconds = {}  # of finished cells
        self.elsewhere = set()  # those that ran on a GPU, where this machine has none, or else
        self.files = {}  # of the results that were there, with their commands
        for name in table["sets"]:
            for key, path, result in results_of(out, name):
                if key in self.files:
                    first = self.files[key][0]
                    raise ValueError(f"{key} is in {first} and again in {path}: keep one of them")
                self.seconds[key] = result["wall_seconds"]
                self.files[key] = path, result["command"]
                on_gpu = result.get("device", "cpu").startswith("cuda")
                if on_gpu != (train.torch.cuda.device_count() > 0):
                    self.elsewhere.add(key)

    def key(self, cell):
        """What tells a cell from others."""
        return cell.set, cell.row, cell.seed

    def is_finished(self, cell):
        """Whether the cell has results, or they can be taken from its run folder."""
        path, key = self.home / cell.run / "results.json", self.key(cell)
        if key in self.files:
            self.check(cell, *self.files[key])
        elif path.is_file():
            self.check(cell, path, json.loads(path.read_text("utf-8"))["command"])
            self.collect(cell)
        if key in self.seconds and cell.title in self.errors:  # run by hand since
            self.note(cell, None)
        return key in self.seconds

    def check(self, cell, path, command):
        """Refuse results of other flags than the table's.

        Raises:
            ValueError: naming the flags.
        """
        words = shlex.split(command)
        theirs = vars(self.train.parse_args(words[words.index("train.py") + 1 :]))
        free = {*self.train.make_parser().flags_of(self.train.flags.PLACE)}
        free |= {"data_dir", "pretrained", "precision"}  # where something lies, or ran
        own = {flag: value for flag, value in vars(cell.args).items() if flag not in free}
        others = {flag: theirs[flag] for flag, value in own.items() if theirs[flag] != value}
        if others:
            raise ValueError(f"{path} is of {others}, not as the table says: move it away")

    def collect(self, cell):
        """Keep a finished run: `results.json`, `errors.npz`, and `epochs.jsonl` with `epochs`.

        With `lines`, test metrics alone are kept, a line a run in a file of each set.
        """
        run = self.home / cell.run
        result = json.loads((run / "results.json").read_text(encoding="utf-8"))
        result["method"] = cell.row
        result["config"].pop("preparation", None)
        known = self.key(cell) in self.seconds
        self.seconds[self.key(cell)] = result["wall_seconds"]
        if known:  # run again for the sake of its checkpoint
            return
        if self.table.get("lines"):
            if any(self.key(cell) == key for key, *_ in results_of(self.out, cell.set)):
                return  # a --dry-run of another process has kept it meanwhile
            line = {key: result[key] for key in LINE} | {"test": rounded(result["metrics"]["test"])}
            self.out.mkdir(parents=True, exist_ok=True)
            with open(self.out / f"{cell.set or 'runs'}.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            return
        kept = self.out / cell.set / run.name
        kept.mkdir(parents=True, exist_ok=True)
        if self.table.get("epochs", True):
            shutil.copy(run / "epochs.jsonl", kept)
        number = result["metrics"]["test"]["overall"]["num_samples"]
        write_errors(run, kept / "errors.npz", number)
        text = json.dumps(result, indent=1, ensure_ascii=False)
        part = kept / "results.json.tmp"
        part.write_text(text + "\n", encoding="utf-8")
        part.replace(kept / "results.json")

    def note(self, cell, log):
        """Keep a failed cell's error; without `log`, forget an earlier one."""
        self.errors.pop(cell.title, None)
        if log is not None:
            tail = log.read_text("utf-8", "replace").splitlines()[-ERROR_LINES:]
            self.errors[cell.title] = {"command": shlex.join(cell.command), "error": tail}
        self.errors_file.parent.mkdir(parents=True, exist_ok=True)
        self.errors_file.unlink(missing_ok=True)
        if self.errors:
            self.errors_file.write_text(json.dumps(self.errors, indent=1) + "\n", "utf-8")

    def expect(self, cells):
        """Fill in the minutes of cells: of the row's other runs, else of the set's, else of all."""
        here = {key: value for key, value in self.seconds.items() if key not in self.elsewhere}
        known = [(name, row, seconds) for (name, row, _), seconds in here.items()]
        for cell in cells:
            of_set = [(row, seconds) for name, row, seconds in known if name == cell.set]
            of_row = [seconds for row, seconds in of_set if row == cell.row]
            near = of_row or [seconds for _, seconds in of_set or [entry[1:] for entry in known]]
            cell.minutes = float(np.mean(near)) / 60 if near else self.table.get("minutes", 1.0)


def rounded(metrics):
    """Return metrics by shot with six digits."""
    return {
        shot: {name: value and float(f"{value:.6g}") for name, value in values.items()}
        for shot, values in metrics.items()
    }


def write_errors(run, path, number):
    """Write |prediction - label| of the test samples in their order, and the shot of each.

    A bootstrap needs them (`evidence.py`); labels and predictions cannot be had from them.

    Args:
        run: the run folder.
        path: of `errors.npz`: error float32 [N], shot uint8 [N]: 0 many, 1 medium, 2 few.
        number: of test samples; nothing is written where `predictions.csv` holds others.
    """
    from figures import label_to_bucket  # the folder's

    if not (run / "predictions.csv").is_file():
        return
    table = pd.read_csv(run / "predictions.csv").query("split == 'test'")
    density = pd.read_csv(run / "label_density.csv")
    if len(table) != number:
        return
    shots = density["shot"].to_numpy()[label_to_bucket(table["label"], density["label"])]
    error = np.float32(np.abs(table["prediction"] - table["label"]))
    np.savez(path, error=error, shot=np.uint8([SHOTS.index(shot) for shot in shots]))


# ---- running -------------------------------------------------------------------------------


class Worker(NamedTuple):
    """A process that runs one cell after the other."""

    process: multiprocessing.process.BaseProcess
    pipe: multiprocessing.connection.Connection


class Workers:
    """Processes forked from this one; each ends when this one is killed.

    Args:
        train: the folder's train.py.
        home: the benchmark folder.
        jobs: processes at a time, which share the processor's cores, and the GPUs in turn.
    """

    def __init__(self, train, home, jobs):
        self.train, self.home, self.jobs = train, home, jobs
        self.facts = train.utils.run_facts()  # of the code that is loaded now
        self.gpus = train.torch.cuda.device_count()
        self.idle, self.number = [], 0

    def start(self, cell, log):
        """Let a worker run a cell; returns the worker, which `poll` takes."""
        worker = self.idle.pop() if self.idle else self.fork()
        worker.pipe.send((cell.command, cell.prepare, cell.prepared, log))
        return worker

    def fork(self):
        """Return a new worker."""
        pipe, its = FORK.Pipe()
        gpu = str(self.number % self.gpus) if self.gpus > 1 else None
        process = FORK.Process(target=self.work, args=(its, os.getpid(), gpu))
        process.start()
        its.close()
        self.number += 1
        return Worker(process, pipe)

    def work(self, pipe, parent, gpu):
        """Run what comes through the pipe, and say whether it succeeded; None ends it."""
        die_with_parent(parent)
        os.chdir(self.home)
        if gpu is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = gpu
        if "OMP_NUM_THREADS" not in os.environ:
            self.train.torch.set_num_threads(max(1, os.cpu_count() // self.jobs))
        self.train.report.draw_run = lambda folder: None  # slower than a small run's training
        while (task := pipe.recv()) is not None:
            *words, log = task
            with open(log, "w", encoding="utf-8") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            try:
                self.run(*words)
                pipe.send(True)
            except BaseException:  # it is in the log; SystemExit is one of them
                traceback.print_exc()
                pipe.send(False)

    def run(self, command, prepare, prepared):
        """Run one cell."""
        facts = self.facts | {"command": shlex.join(command)}
        self.train.utils.run_facts = lambda: facts
        if prepare and not Path(prepared).is_file():
            importlib.import_module("prepare").main(prepare)
        _, file, *flags = command
        importlib.import_module(Path(file).stem).main(flags)

    def poll(self, workers):
        """Wait for workers; returns [(worker, did its cell succeed?)] of those that ended one."""
        ended, done = wait([worker.pipe for worker in workers], timeout=POLL_SECONDS), []
        for worker in workers:
            if worker.pipe in ended:
                try:
                    done.append((worker, worker.pipe.recv()))
                    self.idle.append(worker)
                except EOFError:  # the process was killed, for its memory say
                    done.append((worker, False))
        return done

    def close(self):
        """End the idle workers."""
        for worker in self.idle:
            worker.pipe.send(None)

    def stop(self):
        """End all workers at once; what they run resumes another time."""
        for process in multiprocessing.active_children():
            process.terminate()


def die_with_parent(parent):
    """Let this process end with its parent, which may be killed at any moment (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it was killed before
            os._exit(1)


class Cluster:
    """Cells as jobs of submitit, each a command in the benchmark folder.

    Args:
        kind: 'slurm', or 'local' for processes of this machine.
        home: the benchmark folder.
        folder: for submitit's scripts and logs.
        options: parameters of submitit, as in the table's [cluster].
    """

    def __init__(self, kind, home, folder, options):
        import submitit

        self.home, self.submitit = home, submitit
        self.executor = submitit.AutoExecutor(folder=folder, cluster=kind)
        self.executor.update_parameters(**options)

    def start(self, cell, log):
        """Submit a cell; returns what `poll` takes."""
        words = [sys.executable, *cell.command[1:]]
        script = f"cd {shlex.quote(str(self.home))} && exec {shlex.join(words)} >{log} 2>&1"
        if cell.prepare and not (self.home / cell.prepared).is_file():
            prepare = shlex.join([sys.executable, "prepare.py", *cell.prepare])
            script = script.replace("exec", f"{prepare} && exec")
        return self.executor.submit(self.submitit.helpers.CommandFunction(["sh", "-c", script]))

    def poll(self, jobs):
        """Wait a little; returns [(job, did it succeed?)] of those that ended."""
        time.sleep(1)
        return [(job, job.exception() is None) for job in jobs if job.done()]

    def close(self):
        """Nothing is left to end."""

    def stop(self):
        """What was submitted runs to its end."""


def hold(logs):
    """Keep other sweeps out of a `store_root`; the lock dies with this process and its workers.

    Raises:
        ValueError: if another sweep is at work there.
    """
    logs.mkdir(parents=True, exist_ok=True)
    lock = FileLock(logs / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        others = f"another sweep is at work in {logs.parent}: wait for it"
        raise ValueError(f"{others}, and give it --jobs for several runs at a time") from None
    return lock


def next_cell(waiting, at_work, home):
    """Return a cell that may start: its bases are finished, and none at work prepares its data."""
    unfinished = [*waiting, *at_work]
    preparing = {cell.prepared for cell in at_work if not (home / cell.prepared).is_file()}
    for cell in waiting:
        clash = cell.prepare and cell.prepared in preparing
        if not clash and not any(base in unfinished for base in cell.bases):
            return cell
    return None


def run(cells, results, runner, jobs):
    """Run cells, a base before those that start from it.

    Args:
        cells: those to run, in order.
        results: `Results`.
        runner: `Workers` or `Cluster`.
        jobs: how many at a time.

    Returns:
        The cells that failed.
    """
    waiting, at_work, failed, total = [*cells], {}, [], len(cells)
    logs = results.home / results.table["store_root"] / "logs"
    while waiting or at_work:
        while len(at_work) < jobs:
            cell = next_cell(waiting, at_work.values(), results.home)
            if cell is None:
                break
            waiting.remove(cell)
            at_work[runner.start(cell, logs / f"{cell.run.name}.log")] = cell
        for handle, good in runner.poll([*at_work]):
            cell = at_work.pop(handle)
            log = logs / f"{cell.run.name}.log"
            if not good:
                failed.append(cell)
            elif cell.program == TRAIN:
                results.collect(cell)
            results.note(cell, None if good else log)
            results.expect(waiting)
            done = total - len(waiting) - len(at_work)
            left = in_words(sum(c.minutes for c in (*waiting, *at_work.values())) / jobs)
            said = "finished" if good else f"FAILED, see {log}"
            print(f"{done}/{total} cells, about {left} to go: {cell.title} {said}", flush=True)
    runner.close()
    return failed


def in_words(minutes):
    """Return a time: '3 h 20 min'."""
    hours, rest = divmod(round(minutes), 60)
    return f"{hours} h {rest} min" if hours else f"{rest} min"


# ---- command line --------------------------------------------------------------------------


def parse_args(argv=None):
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("table", type=Path, help="TOML file")
    add("--jobs", type=int, help="runs at a time [as many as GPUs, at least 1]")
    add("--out", type=Path, help="folder of the results [the table's]")
    add("--seeds", type=int, nargs="+", help="these only")
    add("--only", default="", metavar="TEXT", help="cells whose set and row contain this")
    add("--flags", default="", help="more, for every run: --flags='--precision bf16'")
    add("--dry-run", action="store_true", help="say what is missing, and how long it takes")
    add("--list", action="store_true", help="print the missing cells' commands, one a line")
    add("--cluster", choices=("slurm", "local"), help="submit the cells with submitit")
    args = parser.parse_args(argv)
    if args.jobs is not None and args.jobs < 1:
        parser.error(f"--jobs must be 1 or more, got {args.jobs}")
    if FORK is None and not (args.cluster or args.list or args.dry_run):
        parser.error("this system cannot fork processes: use --list, or --cluster")
    if args.cluster and importlib.util.find_spec("submitit") is None:
        parser.error("--cluster needs an optional package: pip install submitit")
    return args


def missing_cells(args, table, results, train, best):
    """Return the cells to run: those asked for that are not finished, and what they start from.

    A pretraining leaves no results: it is run whenever a row needs it, which resumes it.
    """
    table["flags"] = f"{table['flags']} {args.flags}"
    if args.seeds:
        table["seeds"] = args.seeds
    cells = cells_of(table, train, best)
    wanted = [cell for cell in cells if args.only in cell.title and cell.program == TRAIN]
    if not wanted:
        raise ValueError(f"no cell contains {args.only!r}; there is {cells[-1].title!r}, say")
    missing = {cell for cell in wanted if not results.is_finished(cell)}
    for cell in reversed(cells):  # bases stand before the cells that need them
        if cell in missing:
            lost = [b for b in cell.bases if not (results.home / b.run / best).is_file()]
            missing |= {*lost, *(b for b in cell.bases if b.program == PRETRAIN)}
    chosen = [cell for cell in cells if cell in missing]
    results.expect(chosen)
    return chosen, len({*wanted, *missing})


def print_commands(cells, folder):
    """Print the cells' commands, one a line, and what has to come first as a remark."""
    home, inside = ROOT / folder, f"cd {folder} && "
    unprepared = [c for c in cells if c.prepare and not (home / c.prepared).is_file()]
    for words in dict.fromkeys(
        shlex.join(["python", "prepare.py", *c.prepare]) for c in unprepared
    ):
        print(f"first: {inside}{words}", file=sys.stderr)
    if later := [number for number, cell in enumerate(cells, 1) if {*cell.bases} & {*cells}]:
        print(f"these lines start from earlier ones' checkpoints: {later}", file=sys.stderr)
    print("".join(f"{inside}{shlex.join(cell.command)}\n" for cell in cells), end="")


def load_folder(home):
    """Return the folder's train.py, and the file name of its best checkpoint."""
    if not (home / "train.py").is_file():
        raise FileNotFoundError(f"{home} has no train.py: `folder` names a benchmark folder")
    sys.path.insert(0, str(home))
    os.chdir(home)
    import checkpoints
    import train

    return train, checkpoints.BEST


def main(argv=None):
    """Run what is missing; returns the exit status."""
    args = parse_args(argv)
    try:
        table = read_table(args.table)
        home = ROOT / table["folder"]
        out = (args.out or ROOT / table["out"]).resolve()
        train, best = load_folder(home)
        idle = args.dry_run or args.list
        lock = None if idle else hold(home / table["store_root"] / "logs")
        results = Results(out, table, train)
        cells, number = missing_cells(args, table, results, train, best)
    except (ValueError, OSError) as error:
        raise SystemExit(f"sweep.py: {error}") from error
    if args.list:
        print_commands(cells, table["folder"])
        return 0
    jobs = args.jobs or max(1, train.torch.cuda.device_count())
    time_needed = in_words(sum(cell.minutes for cell in cells) / jobs)
    if args.dry_run:
        print("".join(f"{c.title}: about {c.minutes:.1f} min\n" for c in cells), end="")
    print(f"{len(cells)} of {number} cells to run, about {time_needed} with --jobs {jobs}")
    if args.dry_run or not cells:
        return 0
    if args.cluster:
        folder = home / table["store_root"] / "jobs"
        runner = Cluster(args.cluster, home, folder, table.get("cluster", {}))
    else:
        runner = Workers(train, home, jobs)
    try:
        failed = run(cells, results, runner, jobs)
    except BaseException:
        runner.stop()
        raise
    lock.release()
    for cell in failed:
        print(f"failed: {cell.title}: {results.errors[cell.title]['error'][-1:]}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
