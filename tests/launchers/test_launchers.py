import json
import os
import pathlib
import subprocess

import kubernetes_validate
import pytest
import yaml

LAUNCHERS = pathlib.Path(__file__).resolve().parents[2] / "launchers"
VERSIONS = ["1.31", kubernetes_validate.latest_version()]
JOBSET = yaml.safe_load((LAUNCHERS / "jobset.yaml").read_text())
[REPLICATED] = JOBSET["spec"]["replicatedJobs"]


def job():
    """What JobSet makes of its template."""
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": f"{JOBSET['metadata']['name']}-{REPLICATED['name']}-0"},
        "spec": REPLICATED["template"]["spec"],
    }


@pytest.fixture
def stand_ins(tmp_path):
    """A PATH on which `tfgpt` tells its cluster and its arguments."""

    def add(name, text):
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)

    add("tfgpt", 'echo "$TF_CONFIG"; printf "%s\\n" "$@"')
    add("scontrol", '[ "$*" = "show hostnames node[1-3]" ] && printf "node1\\nnode2\\nnode3\\n"')
    add("srun", 'shift; for i in 0 1 2; do SLURM_PROCID=$i "$@"; done')
    return os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}


@pytest.mark.parametrize("version", VERSIONS)
def test_the_job_of_the_jobset_is_valid(version):
    kubernetes_validate.validate(job(), version, strict=True)


def test_a_misspelt_key_of_the_job_is_not_valid():
    wrong = json.loads(json.dumps(job()))
    wrong["spec"]["template"]["spec"]["restartPolice"] = "Never"
    with pytest.raises(kubernetes_validate.ValidationError, match="restartPolice"):
        kubernetes_validate.validate(wrong, VERSIONS[-1], strict=True)


@pytest.mark.parametrize("index", [0, 1])
def test_pods_find_each_other(index, stand_ins):
    spec = REPLICATED["template"]["spec"]
    [container] = spec["template"]["spec"]["containers"]
    given = {one["name"]: one["value"] for one in container["env"]}
    assert int(given["WORKERS"]) == spec["completions"] == spec["parallelism"]
    command = [*container["command"], *container["args"]]
    environment = stand_ins | given | {"JOB_COMPLETION_INDEX": str(index)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    config, *arguments = done.stdout.splitlines()
    # JobSet's names of pods: JOBSET-JOB-JOBINDEX-PODINDEX.SUBDOMAIN, whose subdomain is the JobSet's name.
    hosts = [f"tfgpt-train-workers-0-{worker}.tfgpt-train:2222" for worker in range(2)]
    assert json.loads(config) == {"cluster": {"worker": hosts}, "task": {"type": "worker", "index": index}}
    assert arguments[:3] == ["train", "--strategy", "multi_worker"]
    assert container["ports"] == [{"containerPort": 2222}]


def test_the_command_of_the_pods_is_one_of_ours(stand_ins):
    from tfgpt.cli.main import build_parser

    [container] = REPLICATED["template"]["spec"]["template"]["spec"]["containers"]
    line = next(line for line in container["args"][0].splitlines() if line.startswith("exec tfgpt"))
    build_parser().parse_args(line.split()[2:])


def test_nodes_of_slurm_are_workers(stand_ins):
    environment = stand_ins | {"SLURM_JOB_ID": "123456", "SLURM_JOB_NODELIST": "node[1-3]"}
    command = ["bash", str(LAUNCHERS / "slurm.sbatch"), "--data", "two words", "--out", "model"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    lines = done.stdout.splitlines()
    configs = [json.loads(line) for line in lines if line.startswith("{")]
    assert [config["task"] for config in configs] == [{"type": "worker", "index": index} for index in range(3)]
    assert configs[2]["cluster"] == {"worker": ["node1:23456", "node2:23456", "node3:23456"]}
    assert lines[1:8] == ["train", "--strategy", "multi_worker", "--data", "two words", "--out", "model"]
