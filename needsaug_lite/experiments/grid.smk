"""The runs of one grid. Rows are not outputs: a failed job must not delete one."""

import json
from pathlib import Path

PLAN = json.loads(Path("plan.json").read_text())
JOB = PLAN["job"]
COMMAND = PLAN["command"]


localrules:
    all,


rule all:
    input:
        expand("done/{run_id}", run_id=PLAN["pending"]),


# `needsaug run` does nothing if the row exists by the time the lock is free.
rule run:
    output:
        touch("done/{run_id}"),
    log:
        "logs/{run_id}.log",
    message:
        "Run {wildcards.run_id}"
    params:
        job=JOB,
        command=COMMAND,
    shell:
        "{params.job} locks/{wildcards.run_id} {params.command}"
        " --spec specs/{wildcards.run_id}.json > {log} 2>&1"
