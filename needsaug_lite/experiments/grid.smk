"""The runs of one grid. Rows are not outputs: a failed job must not delete one."""

import json
from pathlib import Path

PLAN = json.loads(Path("plan.json").read_text())
JOB = PLAN["job"]
COMMAND = PLAN["command"]
# A run works where the user called: its spec may name folders from there.
CALLER = PLAN["caller"]
WORK = PLAN["work"]


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
        caller=CALLER,
        work=WORK,
    shell:
        "cd {params.caller} && {params.job} {params.work}/locks/{wildcards.run_id}"
        " {params.command} --spec {params.work}/specs/{wildcards.run_id}.json"
        " > {params.work}/{log} 2>&1"
