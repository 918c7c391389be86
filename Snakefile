"""One graph from notebooks, library and committed rows to the rendered book.

    snakemake --cores 2 --config profile=lite

A chapter is executed again when its notebook, the values that the profile gives it,
constraints.txt, a committed row, or a library file that it really imports has changed.
The committed rows are never an output here, so nothing in this file can delete one.
"""

import hashlib
import os
import sys
from pathlib import Path

ROOT = Path(workflow.basedir)
sys.path.insert(0, str(ROOT))

from needsaug_lite.experiments import dependencies, notebooks

PROFILE = config.get("profile", "lite")
# Not part of the commands: a call as python3 instead of python is no change.
os.environ["BOOK_PYTHON"] = sys.executable
PYTHON = '"$BOOK_PYTHON"'

# Kernels import the library beside this file. One thread a job, and threads that wait
# must not spin: two chapters run side by side.
os.environ["PYTHONPATH"] = os.pathsep.join(
    filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])
)
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

PACKAGE = Path("needsaug_lite")
BOOK = Path("book")
MADE = {"chapters", "generated", "_build"}
CHAPTERS = sorted(p.stem for p in Path("nbs").glob("[0-9][0-9]_*.ipynb"))
OTHERS = sorted(p.stem for p in Path("nbs").glob("*.ipynb") if p.stem not in CHAPTERS)

CHAPTER_FILES = expand("book/chapters/{chapter}.ipynb", chapter=CHAPTERS)
TABLES = "book/generated/results_tables.md"
HTML = "book/_build/html/index.html"


def sources(*patterns):
    """Files of the book's folder that people write."""
    found = (p for pattern in patterns for p in BOOK.rglob(pattern) if p.is_file())
    return sorted(str(p) for p in found if not MADE & set(p.relative_to(BOOK).parts))


def imports(wildcards):
    """Library files that a notebook imports."""
    notebook = Path("nbs") / f"{wildcards.notebook}.ipynb"
    return [str(p) for p in dependencies.notebook_dependencies(notebook, PACKAGE)]


def values(wildcards):
    """What the profile sets for a notebook; an unknown name stops everything here."""
    notebook = Path("nbs") / f"{wildcards.notebook}.ipynb"
    declared = notebooks.declared_parameters(notebook)
    return repr(sorted(notebooks.profile_parameters(notebook, PROFILE, declared).items()))


def data_digest():
    """Checksum of the committed rows and of the tables that the library reads.

    A checksum and not a list of inputs: hundreds of rows would slow every call, and a
    fresh clone gives all of them a new time.
    """
    files = [*(BOOK / "results").rglob("*.json"), *PACKAGE.rglob("*.csv")]
    files += [*(BOOK / "measurements").rglob("*.json")]
    files += [Path(name) for name in sources("*.csv")]
    digest = hashlib.sha256()
    for file in sorted(set(files)):
        digest.update(file.as_posix().encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()


DATA = data_digest()
EXECUTE = (
    f"{PYTHON} -m needsaug_lite.experiments.notebooks {{input.notebook}}"
    " --profile {params.profile} --output {output} > {log} 2>&1"
)


# Every output is listed. After a failed job Snakemake has removed its output but may
# take the old book for complete; the missing chapter then still brings the failure back.
rule all:
    input:
        CHAPTER_FILES,
        TABLES,
        HTML,


rule notebooks:
    input:
        CHAPTER_FILES,
        expand("book/_build/notebooks/{notebook}.ipynb", notebook=OTHERS),


rule chapter:
    input:
        notebook="nbs/{notebook}.ipynb",
        imports=imports,
        versions="constraints.txt",
    output:
        "book/chapters/{notebook}.ipynb",
    log:
        "book/_build/logs/{notebook}.log",
    params:
        profile=PROFILE,
        values=values,
        data=DATA,
    message:
        "Execute {wildcards.notebook} ({params.profile})"
    shell:
        EXECUTE


# Notebooks that are not chapters, such as the parameterised experiment.
rule other_notebook:
    input:
        notebook="nbs/{notebook}.ipynb",
        imports=imports,
        versions="constraints.txt",
    output:
        "book/_build/notebooks/{notebook}.ipynb",
    log:
        "book/_build/logs/{notebook}.log",
    params:
        profile=PROFILE,
        values=values,
        data=DATA,
    message:
        "Execute {wildcards.notebook} ({params.profile})"
    shell:
        EXECUTE


rule tables:
    input:
        [
            str(file)
            for file in dependencies.module_dependencies(
                "needsaug_lite.experiments.pages", PACKAGE
            )
        ],
        versions="constraints.txt",
    output:
        TABLES,
    log:
        "book/_build/logs/tables.log",
    params:
        data=DATA,
    message:
        "Write the tables of results"
    shell:
        f"{PYTHON} -m needsaug_lite.experiments.pages --results book/results"
        " --out book/generated > {log} 2>&1"


rule book:
    input:
        CHAPTER_FILES,
        TABLES,
        sources("*.md", "*.yml", "*.bib", "*.ipynb"),
        sources("_static/*", "_vendor/*/*", "_ext/*.py"),
        # The reference is made from docstrings.
        [str(path) for path in sorted(PACKAGE.rglob("*.py"))],
        versions="constraints.txt",
    output:
        HTML,
    log:
        "book/_build/logs/book.log",
    message:
        "Render the book"
    shell:
        f"{PYTHON} -c 'from jupyter_book.cli.main import main; main()'"
        " build book --all -q -W --keep-going > {log} 2>&1"
