"""How each command of the pages is checked: run by the walk, or only parsed, with the reason.

A command without a row fails a test, and so does a row without a command.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from support.docs.pages import Command

# Makes a trial of 20 steps cheap on any machine.
SMALL = ("-s", "train.global_batch=4", "-s", "evaluate.rows=8")


@dataclass(frozen=True)
class Walk:
    """A command that is run. `swap` maps placeholders to their values, `more` is appended."""

    swap: tuple[tuple[str, str], ...] = ()
    more: tuple[str, ...] = ()


_RUN = (("RUN", "latest"),)
_CLEAN_DOCS = Path(__file__).resolve().parents[3] / "docs" / "data" / "clean-docs.yaml"
# By page and command as it is written; each is run the first time that the page shows it.
WALKED: dict[tuple[str, str], Walk] = {
    ("README.md", "shardyard recipes copy gpt/quickstart my.yaml"): Walk(),
    ("README.md", "shardyard validate my.yaml"): Walk(),
    ("README.md", "shardyard plan my.yaml"): Walk(),
    ("README.md", "shardyard launch my.yaml --try 20"): Walk(more=SMALL),
    ("docs/cli.md", "shardyard help COMMAND"): Walk(swap=(("COMMAND", "launch"),)),
    ("README.md", "shardyard explain gpt/quickstart"): Walk(),
    ("docs/recipes.md", "shardyard recipes show NAME"): Walk(swap=(("NAME", "gpt/quickstart"),)),
    ("docs/checkpoints.md", "shardyard export RUN --step 100"): Walk(swap=(*_RUN, ("100", "20"))),
    ("docs/checkpoints.md", "shardyard checkpoint ls RUN"): Walk(swap=_RUN),
    ("docs/checkpoints.md", "shardyard checkpoint verify RUN --step 100"): Walk(swap=(*_RUN, ("100", "20"))),
    ("docs/checkpoints.md", "shardyard sample RUN --step 100 PROMPT"): Walk(swap=(*_RUN, ("100", "20"))),
    ("docs/checkpoints.md", "shardyard export RUN FOLDER"): Walk(swap=(*_RUN, ("FOLDER", "exported"))),
    ("docs/dashboard.md", "shardyard data rows RUN --step N"): Walk(swap=(*_RUN, ("N", "3"))),
    ("docs/dashboard.md", "shardyard watch RUN"): Walk(swap=_RUN),
    ("docs/data/ledger.md", "shardyard data trace RUN --step 120"): Walk(swap=(*_RUN, ("120", "3"))),
    ("docs/data/ledger.md", "shardyard data trace RUN --document corpus.jsonl:61"): Walk(
        swap=(*_RUN, ("corpus.jsonl:61", "decorator"))
    ),
    ("docs/dashboard.md", "shardyard runs"): Walk(),
    ("docs/data.md", "shardyard data list"): Walk(),
    ("docs/data/build.md", "shardyard data build docs/data/clean-docs.yaml --plan"): Walk(
        swap=(("docs/data/clean-docs.yaml", str(_CLEAN_DOCS)),), more=("--sample", "50")
    ),
    ("docs/data/build.md", "shardyard explain data.filters.gopher_quality"): Walk(),
    ("docs/data.md", "shardyard data inspect RECIPE"): Walk(swap=(("RECIPE", "gpt/quickstart"),)),
    ("docs/data.md", "shardyard data tokenize RECIPE"): Walk(swap=(("RECIPE", "gpt/quickstart"),), more=("--local",)),
    ("docs/evaluation.md", "shardyard eval RUN"): Walk(swap=_RUN),
    ("docs/checkpoints.md", "shardyard push RUN org/name --dry-run"): Walk(swap=_RUN),
    ("docs/finetune.md", 'shardyard sample latest "What does json.dumps do?"'): Walk(),
    (
        "docs/large/forecast.md",
        "shardyard plan gpt/llama3-8b --gpus 64 --gpu h100-80gb --per-node 8 --network 400gx8 --price 2.5",
    ): Walk(),
    (
        "docs/large/search.md",
        "shardyard plan gpt/llama3-8b --gpus 64 --gpu h100-80gb --network 400gx8 --price 2.5 --search",
    ): Walk(),
    ("docs/plan.md", "shardyard plan RECIPE"): Walk(swap=(("RECIPE", "gpt/quickstart"),)),
    ("docs/plan.md", "shardyard explain RECIPE"): Walk(swap=(("RECIPE", "gpt/quickstart"),)),
    ("docs/plan.md", "shardyard plan RECIPE --deepspeed"): Walk(swap=(("RECIPE", "gpt/quickstart"),)),
    ("docs/recipes.md", "shardyard explain SECTION"): Walk(swap=(("SECTION", "optimizer"),)),
    ("docs/recipes.md", "shardyard recipes list"): Walk(),
    ("docs/recipes.md", "shardyard recipes show gpt/quickstart"): Walk(),
    ("docs/recipes.md", "shardyard recipes copy gpt/quickstart my.yaml"): Walk(),
    ("docs/recipes.md", "shardyard data list"): Walk(),
    ("docs/recipes.md", "shardyard validate gpt/quickstart -s train.stpes=3 -s optimizer.lr=fast"): Walk(),
    ("docs/sweeps.md", "shardyard validate sweeps/lr-batch"): Walk(),
    ("docs/sweeps.md", "shardyard sweep list"): Walk(),
    ("docs/tokenizers.md", "shardyard tokenizer list"): Walk(),
    ("docs/tokenizers.md", "shardyard tokenizer train mine.yaml"): Walk(),
    ("docs/tokenizers.md", 'shardyard tokenizer show unigram-en-es-8k "In the beginning"'): Walk(),
    ("docs/wandb.md", "shardyard wandb sync --all --dry-run"): Walk(),
    ("docs/wandb.md", "shardyard runs"): Walk(),
    ("cluster/README.md", "shardyard explain cluster"): Walk(),
    ("cluster/cloud/README.md", "SHARDYARD_HOME=~/.shardyard/cloud shardyard cluster token"): Walk(),
    ("cluster/kuberay/README.md", "shardyard runs"): Walk(),
    ("cluster/local/README.md", "shardyard cluster token"): Walk(),
    ("cluster/slurm/README.md", "shardyard explain cluster.slurm"): Walk(),
    ("cluster/slurm/README.md", "shardyard explain job"): Walk(),
}

# Commands of Shardyard that are only parsed: a pattern on the command, and where it is run, or why not.
PARSED: tuple[tuple[str, str], ...] = (
    (r"shardyard (launch|plan) \S*… ?$|shardyard launch RECIPE$", "stands for the launch that is walked"),
    (r"shardyard launch my\.yaml( -s|$)", "500 steps; `launch my.yaml --try 20` of the README is walked"),
    (r"shardyard --install-completion", "changes the shell of who runs it; tests/unit/cli/test_completion.py"),
    (r"shardyard launch (gpt|moe|finetune|multimodal)/", "tests/e2e/test_recipes.py trains every small recipe"),
    (r"shardyard (launch RECIPE --profile|runs RUN)", "tests/e2e/data/test_slow_source.py profiles a launch"),
    (r"shardyard launch best\.yaml", "tests/e2e/test_sweep.py launches the best trial again"),
    (r"shardyard sweep (sweeps/|show|best|fit|stop|resume)", "tests/e2e/test_sweep.py runs a sweep to its end"),
    (r"shardyard cluster (up$|status|down)", "tests/e2e/test_cluster_up.py, on ports that are free"),
    (r"shardyard cluster (up --host|join)", "tests/e2e/test_hosts.py, on two hosts"),
    (r"shardyard submit .*--on slurm|shardyard logs .*/shared", "tests/e2e/test_slurm.py, with Slurm's daemons"),
    (
        r"shardyard submit .*--on kuberay",
        "tests/unit/launch/schedulers/test_kuberay_render.py and tests/e2e/test_kuberay_api.py",
    ),
    (r"shardyard (submit|ps|logs|stop|wait|inspect)( |$)", "tests/e2e/test_jobs.py, on a cluster of its own"),
    (r"shardyard resume", "tests/e2e/test_launch.py resumes runs"),
    (r"shardyard checkpoint rm", "tests/unit/engine/checkpoint/test_listing.py removes checkpoints"),
    (
        r"shardyard (resume|checkpoint (ls|verify|rm)) s3://",
        "tests/e2e/reliability/test_mirrored_run.py, with a server of S3",
    ),
    (r"shardyard checkpoint convert", "tests/distributed/test_convert.py converts checkpoints of every stage"),
    (r"shardyard checkpoint mirror", "tests/unit/engine/checkpoint/test_mirror.py copies runs"),
    (r"shardyard export RUN( ADAPTER)? --adapter", "needs a run with an adapter; tests/numerics/test_export_runs.py"),
    (r"shardyard export RUN FILE.gguf", "needs llama.cpp; tests/unit/models/test_gguf.py has a stand-in"),
    (r"shardyard dashboard", "a server that does not end; tests/browser uses it"),
    (r"shardyard data build \S+\.yaml$", "tests/e2e/data/test_data_build.py builds, with Ray and without"),
    (r"shardyard data prepare", "fetches packages; `make data` does so before the tests"),
    (r"shardyard data forget", "needs runs that saw listed documents; tests/unit/engine/test_trace.py"),
    (r"shardyard data (show|verify)", "needs the datasets; tests/unit/data/datasets/test_real.py"),
    (r"shardyard sample RUN .*--image", "needs a run with pictures; tests/numerics/test_picture_families.py"),
    (r"shardyard sample RUN TEXT", "needs a classifier; tests/numerics/test_objectives.py"),
    (r"shardyard sample RUN recording\.wav", "needs a run of speech; tests/numerics/test_speech_runs.py"),
    (r"shardyard eval latest --classes", "needs a run of CLIP; tests/numerics/test_contrastive.py"),
    (r"shardyard eval (RUN|latest) --task", "tests/numerics/test_harness.py"),
    (
        r"shardyard wandb sync (latest|--all --project)",
        "needs W&B's server; tests/unit/tracking/test_wandb_sync.py has a stand-in",
    ),
    (r"shardyard wandb import", "the files of another tool; tests/unit/tracking/test_wandb_import.py"),
)

# Other programs: what is checked of them, if anything, and why they are not run.
FOREIGN: dict[str, str] = {
    "make": "the target is in the Makefile, each extra in pyproject.toml; the targets start what tests and checks are",
    "pip": "the extras are in pyproject.toml; tests/e2e/test_wheel.py builds and installs a wheel",
    "python": "the file or module is there and has the options",
    "ray": "its own parser; needs a cluster",
    "apt-get": "fetches from Debian",
    "dpkg-deb": "unpacks what apt-get has fetched",
    "docker": "needs a daemon and gigabytes",
    "helm": "needs a Kubernetes cluster",
    "kubectl": "needs a Kubernetes cluster",
    "scp": "needs another host",
    "chmod": "of the file that scp brings",
    "export": "tokens of clusters that are not there, and abbreviations that the parsed commands use",
    "read": "asks for a login",
    "echo": "the exit code of the command before",
}
# The walk runs these first, with this repository instead of `<this repository>`.
BEGINNING = ("git", "cd", "source")


def fate(command: Command) -> str:
    """`walked`, `parsed`, `named` (a mention without arguments), `foreign`, `beginning`, or `forgotten`."""
    if (command.page, command.text) in WALKED and not (command.fails and command.text in _WALKED_ONCE):
        return "walked"
    words = command.words
    if words[0] in BEGINNING:
        return "beginning"
    if words[0] in FOREIGN:
        return "foreign"
    if words[0] != "shardyard":
        return "forgotten"
    if command.inline and words[1] != "help" and all(re.fullmatch(r"[a-z]+", word) for word in words):
        return "named"
    return "parsed" if reason(command) else "forgotten"


# The page shows the errors of a file that it does not show.
_WALKED_ONCE = ("shardyard tokenizer train mine.yaml",)


def reason(command: Command) -> str | None:
    """Why a command of Shardyard is parsed and not run."""
    if command.fails and command.text in _WALKED_ONCE:
        return "the page shows the mistakes of a file that it does not show"
    elsewhere = next((page for page, text in WALKED if text == command.text), None)
    if elsewhere is not None:
        return f"walked on {elsewhere}"
    return next((why for pattern, why in PARSED if re.search(pattern, " ".join(command.words))), None)


def extras(root: Path) -> set[str]:
    """Names of the extras in pyproject.toml."""
    import tomllib

    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return set(project["optional-dependencies"])
