"""The `potstill` command: arguments here, work in `potstill.commands`, heavy imports later still.

Exit codes: 0 done, 2 bad usage or recipe, 3 gate refused, 4 input damaged, 1 any other fault; 130 stopped by Ctrl-C and
143 by SIGTERM, after a checkpoint where a training was under way: the same command goes on from it.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from potstill import __version__
from potstill.commands.keys_arguments import key_commands
from potstill.errors import PotstillError

STAGES = {
    "run": "every stage whose inputs or settings changed",
    "distill": "traffic -> dataset",
    "train": "dataset -> adapter (after distill where needed)",
    "export": "adapter -> artifact, verified",
    "evaluate": "candidates on the held-out rows -> report and gate",
    "register": "report -> version in MLflow",
}


def parser() -> argparse.ArgumentParser:
    """All commands with their arguments."""
    root = argparse.ArgumentParser(
        prog="potstill", description="Turn the traffic of a large model into a small model that is proven as good."
    )
    root.add_argument("--version", action="version", version=f"potstill {__version__}")
    commands = root.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _recipe_commands(commands)
    _reading_commands(commands)
    serve = _command(commands, "serve", "serve an artifact folder or models:/NAME@ALIAS", "serve:serve_command")
    serve.add_argument("artifact", nargs="?", help="artifact folder, or models:/NAME@ALIAS (none: serve.models)")
    serve.add_argument("--follow", action="store_true", help="swap whenever the alias of models:/ moves")
    serve.add_argument("--recipe", help="take the serve section (and MLflow address) from this recipe")
    serve.add_argument("--tracking-uri", help="MLflow address for models:/ (default: that of --recipe, or ./work)")
    serve.add_argument("overrides", nargs="*", metavar="key=value", help="settings of serve, such as port=9000")
    top = _command(commands, "top", "what a running server does: rate, latency, money, engines", "top:top_command")
    top.add_argument("url", nargs="?", default="http://127.0.0.1:8080", help="address (default: http://127.0.0.1:8080)")
    top.add_argument("--once", action="store_true", help="show it one time (--json: for machines)")
    top.add_argument("--key-env", metavar="NAME", help="environment variable with a key that may see the numbers")
    _registry_commands(commands)
    _origin_commands(commands)
    _signing_commands(commands)
    key_commands(commands)
    _command(commands, "doctor", "what this machine has, and what that allows", "look:doctor")
    schema = _command(commands, "schema", "JSON Schema of a recipe, for editors", "look:schema")
    schema.add_argument("--out", help="write it to this file instead")
    return root


def _recipe_commands(commands: Any) -> None:
    for name, what in STAGES.items():
        command = _recipe_command(commands, name, what, "stages:run")
        command.add_argument("--dry-run", action="store_true", help="say what would be done and why, compute nothing")
        command.add_argument(
            "--no-track", action="store_true", help="log no run to MLflow for the stages before register"
        )
    check = _recipe_command(
        commands, "check", "validate a recipe and its inputs; settings, origins, one row, memory", "check:check"
    )
    check.add_argument(
        "--probe", action="store_true", help="run three real training steps: tokens/s, peak, hours, cost"
    )
    _recipe_command(commands, "status", "which folders are finished and which stages would run", "look:status")

    sweep = _recipe_command(commands, "sweep", "train with several settings, compare on validation rows", "sweep:sweep")
    sweep.add_argument("--trials", type=int, metavar="N", help="in all, that of the recipe as it stands included")
    sweep.add_argument("--no-track", action="store_true", help="log no run to MLflow")

    compare = _recipe_command(
        commands, "compare-bases", "several bases trained on one slice, side by side", "compare_bases:compare_bases"
    )
    compare.add_argument("--bases", nargs="+", action="extend", required=True, metavar="SPEC", help="bases to compare")
    compare.add_argument("--rows", type=int, default=500, help="rows to train on (default: 500)")
    compare.add_argument("--judged-rows", type=int, default=500, help="validation rows, at most (default: 500)")
    compare.add_argument("--no-track", action="store_true", help="log no run to MLflow should distill have to run")

    _calibrate_command(commands)


def _calibrate_command(commands: Any) -> None:
    command = _recipe_command(
        commands, "calibrate", "how sure the student must be to answer alone", "calibrate:calibrate_command"
    )
    command.add_argument("--artifact", metavar="DIR", help="exported student (default: the newest of the recipe)")
    command.add_argument("--alpha", type=float, default=0.05, help="risk that is promised at most (default: 0.05)")
    command.add_argument("--delta", type=float, help="promise it with probability 1 - delta (default: in the mean)")
    command.add_argument(
        "--of", choices=["all", "kept"], default="all", help="wrong answers as a share of all, or kept"
    )
    command.add_argument(
        "--against", choices=["answer", "large", "gold"], default="answer", help="what a wrong answer is wrong by"
    )
    command.add_argument("--score", choices=["label", "mean", "least", "product"], help="default: by the task")
    command.add_argument("--learned", action="store_true", help="learn a router on the text too")
    command.add_argument("--rows", type=int, metavar="N", help="validation rows at most (default: all)")
    watch = _recipe_command(commands, "watch", "train, try and promote anew as traffic comes", "watch:watch_command")
    watch.add_argument("--once", action="store_true", help="end when nothing more can be done now")


def _reading_commands(commands: Any) -> None:
    look = _command(commands, "look", "browse a dataset: rows, reasons, clusters, suspects", "look_dataset:look")
    look.add_argument("dataset", help="dataset folder, or a recipe (its newest finished dataset)")
    look.add_argument("overrides", nargs="*", metavar="key=value", help="settings of the recipe, such as work_dir=...")
    look.add_argument("--out", metavar="FILE.html", help="the page (default: look-<folder>.html beside the folder)")
    look.add_argument("--rows", type=int, default=2000, help="rows shown on each tab, at most (default: 2000)")
    look.add_argument("--no-open", action="store_true", help="write the page, open no browser")

    report = _command(commands, "report", "a finished report again, as a page, Markdown or JSON", "report:report")
    report.add_argument("folder", help="report folder, or the working folder of a recipe (its newest report)")
    report.add_argument("--format", choices=["html", "md", "json"], default="md", help="default: md")
    report.add_argument("--out", metavar="FILE", help="write it to this file instead of standard output")

    drift = _command(commands, "drift", "captured traffic against what was trained on", "watch:drift_command")
    drift.add_argument("artifact", help="artifact folder, or a recipe (its newest artifact)")
    drift.add_argument("captured", help="folder of captured traffic")
    drift.add_argument("--since", metavar="TIME", help="ISO 8601, UTC: exchanges from then on")
    drift.add_argument("--until", metavar="TIME", help="ISO 8601, UTC: exchanges before then")
    drift.add_argument("--alpha", type=float, help="chance of any false alarm (default: that of the recipe, or 0.01)")

    seeds = _command(commands, "seeds", "reports of several training seeds, combined", "seeds:seeds")
    seeds.add_argument("reports", nargs="+", metavar="REPORT", help="report folders, one a seed, of the same rows")


def _registry_commands(commands: Any) -> None:
    for name, what in (("promote", "move champion to a version whose gate passed"), ("rollback", "move champion back")):
        move = _command(commands, name, what, f"registry:{name}_command")
        move.add_argument("model", help="registered model, NAME or models:/NAME/VERSION")
        move.add_argument("--why", required=True, help="kept in the history")
        move.add_argument("--by", help="who (default: MLFLOW_TRACKING_USERNAME, else the user of this machine)")
        move.add_argument("--expect", metavar="VERSION", help="refuse unless this is the champion now (or: none)")
        move.add_argument("--tracking-uri", help="MLflow address (default: ./work/mlflow.db)")

    told = _command(commands, "history", "who moved champion, when and why", "registry:history_command")
    told.add_argument("model", help="registered model")
    told.add_argument("--refused", action="store_true", help="also the moves of those who came second")
    told.add_argument("--tracking-uri", help="MLflow address (default: ./work/mlflow.db)")

    prune = _command(commands, "prune", "delete what no alias, lineage or newest folder needs", "prune:prune_command")
    prune.add_argument("--keep", type=int, default=1, metavar="N", help="newest of each kind (default: 1)")
    prune.add_argument("--dry-run", action="store_true", help="say what would go, its size and why; delete nothing")
    prune.add_argument("--work-dir", default="work", help="where the folders of all recipes stand")
    prune.add_argument("--tracking-uri", help="MLflow address (default: that of the working folder)")
    prune.add_argument("--by", help="who (default: MLFLOW_TRACKING_USERNAME, else the user of this machine)")


def _origin_commands(commands: Any) -> None:
    lineage = _command(commands, "lineage", "where a thing comes from, what was made of it", "lineage:lineage_command")
    lineage.add_argument("thing", help="an answer's or row's id, a folder, a file, a hash, or models:/NAME@ALIAS")
    lineage.add_argument("--work-dir", default="work", help="where the folders of all recipes stand")
    lineage.add_argument("--tracking-uri", help="MLflow address (default: that of the working folder)")
    lineage.add_argument("--picture", metavar="FILE", help="draw it too: FILE.svg, or a page FILE.html")

    forget = _command(commands, "forget", "find all that a user left; take it out and mark", "forget:forget_command")
    whom = forget.add_mutually_exclusive_group(required=True)
    for name in ("user", "exchange", "conversation"):
        whom.add_argument(f"--{name}", metavar="ID", help=f"the {name} to forget")
    forget.add_argument("--yes", action="store_true", help="do it (without: show the plan, change nothing)")
    forget.add_argument("--refuse", action="store_true", help="serve and promote refuse what must be retrained")
    forget.add_argument("--why", help="kept in the record")
    forget.add_argument("--by", help="who (default: the user of this machine)")
    forget.add_argument("--work-dir", default="work", help="where the folders of all recipes stand")
    forget.add_argument("--tracking-uri", help="MLflow address (default: that of the working folder)")


def _signing_commands(commands: Any) -> None:
    keygen = _command(commands, "keygen", "a key to sign artifacts with", "sign:keygen")
    keygen.add_argument("--out", required=True, metavar="DIR", help="folder for NAME.key and NAME.pub")
    keygen.add_argument("--name", default="potstill", help="of the two files (default: potstill)")
    sign = _command(commands, "sign", "sign a finished folder with a key", "sign:sign")
    sign.add_argument("folder", help="artifact (or other finished) folder; an older signature is replaced")
    sign.add_argument("--key", required=True, metavar="FILE", help="private key, as `keygen` makes it")
    for command in (keygen, sign):
        command.add_argument("--passphrase-env", metavar="NAME", help="environment variable with the key's passphrase")
    verify = _command(commands, "verify", "whether a folder or version is intact, and who signed it", "sign:verify")
    verify.add_argument("thing", help="finished folder, or models:/NAME@ALIAS")
    verify.add_argument("--key", metavar="FILE", help="public key that has to have signed it")
    verify.add_argument("--tracking-uri", help="MLflow address for models:/ (default: ./work/mlflow.db)")


def _command(commands: Any, name: str, what: str, where: str) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(name, help=what, description=what)
    command.add_argument("--json", action="store_true", help="result as one JSON object on standard output")
    command.set_defaults(where=where)
    return command


def _recipe_command(commands: Any, name: str, what: str, where: str) -> argparse.ArgumentParser:
    command = _command(commands, name, what, where)
    command.add_argument("recipe", help="path of the recipe (YAML)")
    command.add_argument("overrides", nargs="*", metavar="key=value", help="such as train.epochs=3")
    return command


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Arguments with options and `key=value` words in any order (argparse alone takes the words in one run only)."""
    root = parser()
    arguments, rest = root.parse_known_args(argv)
    if rest and (not hasattr(arguments, "overrides") or any(word.startswith("-") or "=" not in word for word in rest)):
        root.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        arguments.overrides += rest
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    arguments = _parse(argv)
    module, _, function = arguments.where.partition(":")
    try:
        run = getattr(importlib.import_module(f"potstill.commands.{module}"), function)
        return int(run(arguments))
    except PotstillError as fault:
        if getattr(arguments, "json", False):
            print(json.dumps({"error": type(fault).__name__, "message": str(fault)}))
        print(f"potstill: {fault}" if "\n" not in str(fault) else str(fault), file=sys.stderr)
        return fault.exit_code
    except KeyboardInterrupt as stopped:  # a training that was asked to end gives the signal's number
        print("potstill: stopped; finished folders are kept, an unfinished training goes on next time", file=sys.stderr)
        return 128 + next((each for each in stopped.args if isinstance(each, int)), signal.SIGINT)


def entry() -> NoReturn:
    """The `potstill` command: run it and end the process with its exit code."""
    code = main()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        # Under torchrun threads of gloo may outlive their group; taking the interpreter down under them aborts
        # ("terminate called without an active exception"), after all is done and written.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    raise SystemExit(code)


if __name__ == "__main__":
    entry()
