"""deploy/aws.sh beside a stand-in for the AWS CLI: what it would make in an account, and whom that lets in."""

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import yaml
from ray.autoscaler._private.util import prepare_config

from tests import clusters

ROOT = Path(__file__).resolve().parents[1]


def test_the_account_is_never_opened_to_everyone():
    script = ROOT / "deploy" / "aws.sh"
    subprocess.run(["bash", "-n", script], check=True)
    for address in ("0.0.0.0/0", "203.0.113.7", "2001:db8::1/64"):
        nothing = {"PATH": "/usr/bin:/bin", "AWS_CONFIG_FILE": os.devnull, "AWS_EC2_METADATA_DISABLED": "true"}
        ended = subprocess.run([script, address], capture_output=True, text=True, env=nothing)
        assert (ended.returncode, ended.stderr.count("\n")) == (2, 1)
        assert address in ended.stderr


# Stands for the AWS CLI: writes down what it is asked, and answers with a name or, where DONE is empty, with nothing.
ACCOUNT = """#!/usr/bin/env bash
echo "${*//$'\n'/ }" >> "$CALLS"
name() { case "$1" in *cca-ray-head*) echo sg-head ;; *cca-ray-files*) echo sg-files ;; *) echo sg-nodes ;; esac; }
case "$1 $2 $*" in
    *LifeCycleState*) echo available ;;
    *"iam get-role"* | *head-bucket*) [[ -n $DONE ]] ;;
    *get-caller-identity*) echo 123456789012 ;;
    *describe-security-groups*) if [[ -n $DONE ]]; then name "$*"; else echo None; fi ;;
    *authorize-security-group-ingress*) [[ -z $DONE ]] || { echo "$ANSWER" >&2; exit 254; } ;;
    *FileSystemId*) if [[ -n $DONE || $2 == create* ]]; then echo fs-files; else echo None; fi ;;
    *create-security-group*) name "$*" ;;
    *describe-mount-targets*) if [[ -n $DONE ]]; then printf 'subnet-1\tend-1\nsubnet-2\tend-2\n'; fi ;;
    *describe-subnets*) echo "subnet-1 subnet-2" ;;
    *) echo something ;;
esac
"""


def calls_of_the_script(folder: Path, done: str, *arguments: str) -> tuple[list[str], str]:
    """What deploy/aws.sh asks of AWS, and what it says at the end."""
    (folder / "aws").write_text(ACCOUNT)
    (folder / "aws").chmod(0o755)
    (folder / "calls").write_text("")
    around = {"PATH": f"{folder}:/usr/bin:/bin", "CALLS": str(folder / "calls"), "DONE": done}
    around["ANSWER"] = "An error occurred (InvalidPermission.Duplicate): the rule already exists"
    script = [str(ROOT / "deploy" / "aws.sh"), *arguments]
    ended = subprocess.run(script, capture_output=True, text=True, env=around, check=True, timeout=60)
    return (folder / "calls").read_text().splitlines(), ended.stdout


def opened(calls: list[str]) -> list[str]:
    """Whom security groups let in."""
    found = [re.search(r"authorize-security-group-ingress --group-id (.*)", call) for call in calls]
    return [match[1] for match in found if match]


def test_only_the_head_reaches_the_file_system_that_the_script_makes(tmp_path: Path):
    calls, said = calls_of_the_script(tmp_path, "", "203.0.113.7/32")
    assert "s/YOUR-FILES/fs-files/" in said
    (made,) = [call for call in calls if "create-file-system" in call]
    assert "--encrypted" in made
    ends = [call for call in calls if "create-mount-target" in call]
    assert [re.findall("subnet-[12]", call) for call in ends] == [["subnet-1"], ["subnet-2"]]
    assert all(call.endswith("--security-groups sg-files") for call in ends)
    assert opened(calls) == [
        "sg-nodes --protocol=-1 --source-group sg-nodes",
        "sg-nodes --protocol tcp --port 22 --cidr 203.0.113.7/32",
        "sg-files --protocol tcp --port 2049 --source-group sg-head",
    ]
    nodes = yaml.safe_load((ROOT / "cluster.yaml").read_text())["available_node_types"]
    groups = {name: node["node_config"]["SecurityGroupIds"] for name, node in nodes.items()}
    assert groups.pop("head") == ["YOUR-NODES", "YOUR-HEAD"]
    assert set(map(tuple, groups.values())) == {("YOUR-NODES",)}
    assert "s/YOUR-NODES/sg-nodes/; s/YOUR-HEAD/sg-head/" in said
    (zones,) = [re.search(r"availability-zone,Values=(\S+)", call) for call in calls if "describe-subnets" in call]
    assert zones
    assert zones[1] == yaml.safe_load((ROOT / "cluster.yaml").read_text())["provider"]["availability_zone"]


def test_run_again_the_script_closes_what_earlier_ones_left_open(tmp_path: Path):
    calls, _ = calls_of_the_script(tmp_path, "done", "203.0.113.8/32")
    assert [
        call for call in calls if re.search(r" create-(bucket|role|file-system|mount-target|security-group)", call)
    ] == []
    assert "sg-nodes --protocol tcp --port 22 --cidr 203.0.113.8/32" in opened(calls)
    moved = [call for call in calls if "modify-mount-target" in call]
    assert [call.partition("target-id ")[2] for call in moved] == [
        "end-1 --security-groups sg-files",
        "end-2 --security-groups sg-files",
    ]
    assert any("put-public-access-block" in call for call in calls)


def test_a_group_that_cannot_be_opened_is_an_error(tmp_path: Path):
    calls_of_the_script(tmp_path, "done", "203.0.113.7/32")
    around = {"PATH": f"{tmp_path}:/usr/bin:/bin", "CALLS": str(tmp_path / "calls"), "DONE": "done"}
    around["ANSWER"] = "An error occurred (UnauthorizedOperation)"
    script = [str(ROOT / "deploy" / "aws.sh"), "203.0.113.7/32"]
    ended = subprocess.run(script, capture_output=True, text=True, env=around, timeout=60)
    assert ended.returncode == 1
    assert "Tell cluster.yaml" not in ended.stdout
    assert ended.stderr == "error: An error occurred (UnauthorizedOperation)\n"


def allowed(calls: list[str]) -> dict[tuple[str, str], set[str]]:
    """By role and bucket, what may be done with it."""
    found: dict[tuple[str, str], set[str]] = {}
    for call in calls:
        if match := re.search(r"put-role-policy --role-name (\S+) --policy-name (\S+)", call):
            found.setdefault((match[1], match[2]), set()).update(re.findall(r'"(s3:\w+)"', call))
    return {of: actions for of, actions in found.items() if actions}


def test_the_nodes_may_write_to_the_bucket_that_the_script_makes_and_to_nothing_else(tmp_path: Path):
    calls, said = calls_of_the_script(tmp_path, "", "203.0.113.7/32", "YOUR-PICTURES")
    bucket = "cca-ray-123456789012-us-west-2"
    assert f"s/YOUR-BUCKET/{bucket}/" in said
    (made,) = [call for call in calls if "create-bucket" in call]
    assert made.endswith(f"--bucket {bucket} --create-bucket-configuration LocationConstraint=us-west-2")
    assert any("put-public-access-block" in call and call.count("=true") == 4 for call in calls)
    assert any("AbortIncompleteMultipartUpload" in call for call in calls)
    write = {"s3:ListBucket", "s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"}
    read = {"s3:ListBucket", "s3:GetObject"}
    roles = ("cca-ray-head", "cca-ray-worker")
    expected = {(role, bucket): write for role in roles} | {(role, "YOUR-PICTURES"): read for role in roles}
    assert allowed(calls) == expected


def statements(calls: list[str], role: str, policy: str) -> list[dict[str, Any]]:
    """Of the policy that a role gets, as IAM reads it."""
    (call,) = [call for call in calls if f"put-role-policy --role-name {role} --policy-name {policy} " in call]
    return list(json.loads(call.partition("--policy-document ")[2])["Statement"])


def test_a_bucket_that_another_account_has_made_is_not_adopted(tmp_path: Path):
    calls, _ = calls_of_the_script(tmp_path, "", "203.0.113.7/32")
    bucket = "cca-ray-123456789012-us-west-2"
    of_bucket = [call for call in calls if call.startswith("s3api") and "create-bucket" not in call]
    assert len(of_bucket) == 3
    assert all(f"--bucket {bucket} --expected-bucket-owner 123456789012" in call for call in of_bucket)
    for role in ("cca-ray-head", "cca-ray-worker"):
        for statement in statements(calls, role, bucket):
            condition = {"StringEquals": {"aws:ResourceAccount": "123456789012"}}
            assert statement["Effect"] == "Deny" or statement["Condition"] == condition
    (tmp_path / "aws").write_text(ACCOUNT.replace("*head-bucket*) [[ -n $DONE ]]", "*bucket*) false"))
    around = {"PATH": f"{tmp_path}:/usr/bin:/bin", "CALLS": str(tmp_path / "calls"), "DONE": ""}
    script = [str(ROOT / "deploy" / "aws.sh"), "203.0.113.7/32"]
    ended = subprocess.run(script, capture_output=True, text=True, env=around, timeout=60)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert f"the bucket {bucket} could not be made" in ended.stderr


def test_the_head_tags_and_ends_what_it_has_started_and_nothing_else(tmp_path: Path):
    calls, _ = calls_of_the_script(tmp_path, "", "203.0.113.7/32")
    found = statements(calls, "cca-ray-head", "nodes")
    conditions = [s.get("Condition") for s in found for action in s["Action"] if action == "ec2:CreateTags"]
    conditions += [s.get("Condition") for s in found if s["Action"] == "ec2:CreateTags"]
    ours = {"StringEquals": {"ec2:ResourceTag/ray-cluster-name": "cca-ray"}}
    assert conditions == [ours, {"StringEquals": {"ec2:CreateAction": "RunInstances"}}]
    assert [s["Condition"] for s in found if "ec2:TerminateInstances" in s["Action"]] == [ours]


def test_workers_cannot_write_what_mlflow_keeps(tmp_path: Path):
    calls, _ = calls_of_the_script(tmp_path, "", "203.0.113.7/32")
    bucket = "cca-ray-123456789012-us-west-2"
    denied = {"Effect": "Deny", "Action": ["s3:PutObject", "s3:DeleteObject"],
              "Resource": f"arn:aws:s3:::{bucket}/mlflow/*"}  # fmt: skip
    assert denied in statements(calls, "cca-ray-worker", bucket)
    assert denied not in statements(calls, "cca-ray-head", bucket)


def test_what_the_script_says_fills_the_cluster_file(tmp_path: Path):
    _, said = calls_of_the_script(tmp_path, "yes", "203.0.113.7/32")
    (tmp_path / "cluster.yaml").write_text((ROOT / "cluster.yaml").read_text())
    subprocess.run(said.splitlines()[-1], shell=True, cwd=tmp_path, check=True)
    filled = yaml.safe_load((tmp_path / "cluster.yaml").read_text())
    commands = " ".join([*filled["head_setup_commands"], *filled["head_start_ray_commands"]])
    assert "YOUR-" not in f"{commands} {filled['available_node_types']}"
    assert "CCA_RAY_STORAGE=s3://cca-ray-123456789012-us-west-2/runs " in commands
    assert clusters.launcher(dict(prepare_config(filled))) == []


def test_the_script_makes_nothing_twice(tmp_path: Path):
    calls, said = calls_of_the_script(tmp_path, "yes", "203.0.113.7/32", "YOUR-PICTURES")
    made = {call.split()[1] for call in calls if call.split()[1].startswith("create")}
    assert made == {"create-service-linked-role"}  # which AWS refuses the second time
    assert "s/YOUR-FILES/fs-files/" in said
