"""What every cluster file of ours must keep, beyond its schema; each check returns complaints, in words.

A cluster that breaks one of these still starts: it trains on its head, is found by no label, or is open to strangers.
"""

import re
import shlex
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

from click import ClickException, Command
from mlflow.cli import cli as mlflow_cli
from ray._private.accelerators.nvidia_gpu import NvidiaGPUAcceleratorManager
from ray.util.accelerators import accelerators

with warnings.catch_warnings():  # Ray Serve, which comes with it, is behind Pydantic's times
    warnings.simplefilter("ignore")
    from ray.scripts.scripts import cli as ray_cli

LABEL = "ray.io/accelerator-type"
LOOPBACK = ("127.0.0.1", "localhost")
TOKEN = "~/.ray/auth_token"
NFS = re.compile(r"mount -t nfs4 -o (?P<options>\S+) (?P<host>[\w.-]+):\S+ (?P<folder>/\S+)")
DISK = re.compile(r"mount /dev/disk/by-id/google-(?P<disk>[\w-]+) (?P<folder>/\S+)")
# What the driver calls the cards that Ray has no constant for.
CARDS = ("NVIDIA A40",)
NAMES = {value for name, value in vars(accelerators).items() if name.isupper()} | {
    NvidiaGPUAcceleratorManager._gpu_name_to_accelerator_type(card) for card in CARDS
}
# How the machines' names begin, on AWS and on Google Cloud.
MACHINES = {"p5.": "H100", "p4d": "A100", "g6e.": "L40S", "a3-high": "H100", "a2-": "A100", "g2-": "L4"}
SECRETS = re.compile(
    r"AKIA[0-9A-Z]{16}|-----BEGIN|(password|passwd|secret|token|key)[\"']?\s*[:=]\s*[\"']?[\w+/-]{16,}|\b[0-9a-f]{32,}\b",
    re.IGNORECASE,
)


def values(content: Any) -> Iterator[str]:
    """All strings of a nested structure, keys not counted."""
    if isinstance(content, Mapping):
        content = list(content.values())
    if isinstance(content, list):
        for item in content:
            yield from values(item)
    elif content is not None:
        yield str(content)


def secrets(text: str) -> list[str]:
    text = re.sub(r"\bsha256:[0-9a-f]{64}\b", "", text)  # of published files
    return [f"looks like a secret: {found.group()[:12]}…" for found in SECRETS.finditer(text)]


def open_ingress(content: Any) -> list[str]:
    """Rules that let in everyone."""
    return [f"open to {text}" for text in values(content) if re.fullmatch(r"(0\.0\.0\.0|::|0::0)/0", text)]


def unpinned(text: str) -> list[str]:
    """Images that a Dockerfile or a manifest does not name by a digest, and says nothing of it, there or above."""
    lines, found = text.splitlines(), []
    for above, line in zip(["", *lines], lines, strict=False):
        match = re.match(r"(?:FROM |[ -]*image: )(\S+)", line)
        if match and not re.search(r"@sha256:[0-9a-f]{64}$", match[1]) and "# no digest yet" not in above + line:
            found.append(f"no digest: {match[1]}")
    return found


def wrong_command(words: list[str]) -> str:
    """Why `ray …` or `mlflow …` would refuse these words; empty if it takes them. Nothing is run."""
    command: Any = {"ray": ray_cli, "mlflow": mlflow_cli}[words[0]]
    rest = words[1:]
    while rest and rest[0] in getattr(command, "commands", {}):
        command, rest = command.commands[rest[0]], rest[1:]
    return refused(command, rest, " ".join(words[:2]))


def refused(command: Command, arguments: list[str], name: str) -> str:
    try:
        command.make_context(name, list(arguments))
    except ClickException as error:
        return f"{name}: {error.format_message()}"
    return ""


def after(lines: list[str], *words: str) -> list[str]:
    """The arguments of the first of these shell commands that has the words, as `ray start`; empty if none has."""
    for line in lines:
        parts = shlex.split(line.replace(";", " ; "))
        for at in range(len(parts)):
            if parts[at].rsplit("/", 1)[-1] == words[0] and tuple(parts[at + 1 : at + len(words)]) == words[1:]:
                return parts[at + len(words) :]
    return []


def option(arguments: list[str], name: str) -> str:
    """The value of --name, in either spelling."""
    for at, word in enumerate(arguments):
        if word == name and at + 1 < len(arguments):
            return arguments[at + 1]
        if word.startswith(f"{name}="):
            return word.partition("=")[2]
    return ""


def groups(config: Mapping[str, Any]) -> list[str]:
    """Of a cluster as the autoscaler sees it: the head never trains, every other type of node can be selected.

    The autoscaler knows a node that does not exist yet only by what the file says of it.
    """
    found, types = [], config["available_node_types"]
    head = types[config["head_node_type"]]
    if head["resources"].get("CPU") != 0 or head["resources"].get("GPU"):
        found.append(f"the head can be given work: {head['resources']}")
    if LABEL in head.get("labels", {}):
        found.append("the head says that it has an accelerator")
    workers = {name: group for name, group in types.items() if group is not head}
    for name, group in workers.items():
        label, most = group.get("labels", {}).get(LABEL), group.get("max_workers", 0)
        if not group["resources"].get("GPU"):
            found.append(f"{name}: no GPUs")
        if label is None:
            found.append(f"{name}: no label {LABEL}")
        elif label not in NAMES:
            found.append(f"{name}: {label} is not one of Ray's names")
        machine = str(group["node_config"].get("InstanceType") or group["node_config"].get("machineType") or "")
        for beginning, card in MACHINES.items():
            if machine.startswith(beginning) and label != card:
                found.append(f"{name}: {machine} has {card}, not {label}")
        if group.get("min_workers", 0) != 0:
            found.append(f"{name}: costs money when nothing runs, min_workers is {group['min_workers']}")
        if not 1 <= most <= config["max_workers"]:
            found.append(f"{name}: max_workers is {most}")
    if not workers:
        found.append("no workers")
    if not 5 <= config["idle_timeout_minutes"] <= 30:
        found.append(f"idle_timeout_minutes is {config['idle_timeout_minutes']}")
    return found


def head_command(arguments: list[str], environment: str) -> list[str]:
    """Of the head's `ray start`."""
    found = []
    if option(arguments, "--dashboard-host") not in LOOPBACK:
        found.append("the dashboard listens to more than this machine")
    found += [
        f"the head lacks {setting}"
        for setting in ("RAY_JOB_STOP_SIGNAL=SIGINT", "RAY_JOB_STOP_WAIT_TIME_S=30")
        if setting not in environment
    ]
    return found


def mlflow_command(arguments: list[str], hosts: tuple[str, ...] = LOOPBACK) -> list[str]:
    """Of `mlflow server`."""
    found = [wrong_command(["mlflow", "server", *arguments])] if arguments else ["no MLflow server"]
    if option(arguments, "--host") not in hosts:
        found.append("MLflow listens to more than it must")
    allowed = option(arguments, "--allowed-hosts")
    if not allowed or "*" in allowed:
        found.append("MLflow answers to any name")
    for name in ("--backend-store-uri", "--artifacts-destination"):
        if not option(arguments, name):
            found.append(f"MLflow lacks {name}")
    return list(filter(None, found))


def within(path: str, folders: Iterable[str]) -> bool:
    return any(PurePosixPath(path).is_relative_to(folder) for folder in folders)


def kept_folders(config: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """The folders that the head of a file for `ray up` mounts and that outlive it; and complaints."""
    setup, provider = " ".join(config["head_setup_commands"]), config["provider"]
    folders, found = [], []
    if mount := NFS.search(setup):
        folders.append(mount["folder"])
        if not {"nfsvers=4.1", "hard"} <= set(mount["options"].split(",")):
            found.append("SQLite wants the locks of NFS 4.1, and a write that is lost must not pass for done")
        if provider["type"] == "aws" and not mount["host"].endswith(f".efs.{provider['region']}.amazonaws.com"):
            found.append(f"the file system is not in {provider['region']}")
        types, head = dict(config["available_node_types"]), config["head_node_type"]
        own = set(types.pop(head)["node_config"].get("SecurityGroupIds", []))
        for name, group in types.items():
            if not own - set(group["node_config"].get("SecurityGroupIds", [])):
                found.append(f"{name}: reaches MLflow's database as the head does")
    if mount := DISK.search(setup):
        folders.append(mount["folder"])
        disks = config["available_node_types"][config["head_node_type"]]["node_config"]["disks"]
        if [disk["autoDelete"] for disk in disks if disk.get("deviceName") == mount["disk"]] != [False]:
            found.append(f"the disk {mount['disk']} goes with the head, or is none of its own")
        elif f"/zones/{provider['availability_zone']}/" not in next(d["source"] for d in disks if "source" in d):
            found.append(f"the disk {mount['disk']} is not in {provider['availability_zone']}")
    return folders, found


def what_stays(config: Mapping[str, Any]) -> list[str]:
    """Of a file for `ray up`: studies are at a URI, which every node reaches; nothing of MLflow goes with the head."""
    folders, found = kept_folders(config)
    storage = re.search(r"CCA_RAY_STORAGE=((\w+)://([^/\s]+)\S*)", " ".join(config["head_start_ray_commands"]))
    own = {"aws": "s3", "gcp": "gs"}[config["provider"]["type"]]
    if storage is None or storage[2] != own:
        found.append(f"CCA_RAY_STORAGE is no {own}://, which every node reaches")
    for who in ("head", "worker"):
        if "CCA_RAY_CACHE=" not in " ".join(config[f"{who}_start_ray_commands"]):
            found.append(f"{who}: nothing says where copies are kept: below /tmp, which a start of the machine empties")
    mlflow = after(config["head_setup_commands"], "mlflow", "server")
    for name in ("--backend-store-uri", "--artifacts-destination"):
        kept = option(mlflow, name).removeprefix("sqlite:///")
        if "://" not in kept and not within(kept, folders):
            found.append(f"MLflow: {name} goes with the head")
    files = option(mlflow, "--artifacts-destination")
    if storage and "://" in files and not files.startswith(f"{storage[2]}://{storage[3]}/"):
        found.append("MLflow's files go to another bucket than studies, for which the nodes have no rights")
    return found


def launcher(config: Mapping[str, Any]) -> list[str]:
    """Of a file for `ray up`."""
    head, workers = config["head_start_ray_commands"], config["worker_start_ray_commands"]
    found = [*groups(config), *open_ingress(config)]
    for who, lines in {"head": head, "workers": workers}.items():
        arguments = after(lines, "ray", "start")
        found.append(wrong_command(["ray", "start", *arguments]))
        if not any(re.search(r"RAY_AUTH_MODE=token .*ray start", line) for line in lines):
            found.append(f"{who}: no token is asked for")
    for line in (line for key, lines in config.items() if key.endswith("setup_commands") for line in lines):
        if "pip install" in line and "--require-hashes" not in line:
            found.append(f"installs what nobody has locked: {line}")
    if TOKEN not in config["file_mounts"]:
        found.append("the token is not brought to the nodes")
    if not any("chmod 600 ~/.ray/auth_token" in line for line in config["setup_commands"]):
        found.append("others on the node can read the token")
    found += head_command(after(head, "ray", "start"), " ".join(head))
    found += mlflow_command(after(config["head_setup_commands"], "mlflow", "server"))
    found += what_stays(config)
    provider = config["provider"]
    if provider.get("security_group", {}).get("IpPermissions"):
        found.append("the security group opens more than SSH")
    if provider["type"] == "aws" and not provider.get("security_group", {}).get("GroupName"):
        found.append("without a named security group Ray opens SSH to everyone")
    return list(filter(None, found))


def unit(text: str) -> dict[str, list[str]]:
    """The settings of a systemd unit; one may come several times."""
    settings: dict[str, list[str]] = {}
    for line in text.replace("\\\n", " ").splitlines():
        name, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            settings.setdefault(name, []).append(value)
    return settings


def service(text: str) -> list[str]:
    """Of a systemd unit that starts Ray or MLflow."""
    settings = unit(text)
    (line,), environment = settings["ExecStart"], settings.get("Environment", [])
    if mlflow := after([line], "mlflow", "server"):
        return mlflow_command(mlflow)
    arguments = after([line], "ray", "start")
    found = [wrong_command(["ray", "start", *arguments])]
    if "RAY_AUTH_MODE=token" not in environment:
        found.append("no token is asked for")
    if not any(setting.startswith("RAY_AUTH_TOKEN_PATH=/") for setting in environment):
        found.append("where is the token?")
    if "--head" in arguments:
        found += head_command(arguments, " ".join(environment))
        if (option(arguments, "--num-cpus"), option(arguments, "--num-gpus")) != ("0", "0"):
            found.append("the head can be given work")
        if not any(setting.startswith("CCA_RAY_STORAGE=/") for setting in environment):
            found.append("studies are not told which folder all nodes see")
    elif not option(arguments, "--labels").startswith(f"{LABEL}="):
        found.append(f"no label {LABEL}")
    if settings.get("User", ["root"]) == ["root"]:
        found.append("runs as root")
    return list(filter(None, found))


def shared_mounts(pod: Mapping[str, Any], claims: Mapping[str, Any]) -> list[str]:
    """The folders of a pod's first container that other pods see too."""
    shared = {
        volume["name"]
        for volume in pod.get("volumes", [])
        if "ReadWriteMany"
        in claims.get(volume.get("persistentVolumeClaim", {}).get("claimName"), {}).get("accessModes", [])
    }
    return [mount["mountPath"] for mount in pod["containers"][0].get("volumeMounts", []) if mount["name"] in shared]


def kubernetes(documents: list[dict[str, Any]]) -> list[str]:
    """Of a RayJob and the manifests around it; `groups` judges its groups, as Ray's autoscaler reads them."""
    by_kind: dict[str, list[dict[str, Any]]] = {}
    for document in documents:
        by_kind.setdefault(document["kind"], []).append(document)
    found = open_ingress(documents)
    cluster = by_kind["RayJob"][0]["spec"]["rayClusterSpec"]
    if cluster.get("authOptions", {}).get("mode") != "token":
        found.append("no token is asked for")
    for service in by_kind.get("Service", []):
        if service["spec"].get("type", "ClusterIP") != "ClusterIP":
            found.append(f"service {service['metadata']['name']} is seen from outside")
    head = cluster["headGroupSpec"]["template"]["spec"]["containers"][0]
    settings = " ".join(f"{pair['name']}={pair.get('value')}" for pair in head.get("env", []))
    found += head_command(["--dashboard-host=127.0.0.1"], settings)  # a pod's address is the policies' affair

    guarded = set[str]()
    for policy in by_kind.get("NetworkPolicy", []):
        spec = policy["spec"]
        if "Ingress" in spec["policyTypes"] and all(rule.get("from") for rule in spec["ingress"]):
            guarded.add(spec["podSelector"]["matchLabels"]["app"])
    pods = {"head": cluster["headGroupSpec"]["template"]}
    pods |= {group["groupName"]: group["template"] for group in cluster["workerGroupSpecs"]}
    pods |= {item["metadata"]["name"]: item["spec"]["template"] for item in by_kind.get("Deployment", [])}
    claims = {claim["metadata"]["name"]: claim["spec"] for claim in by_kind.get("PersistentVolumeClaim", [])}
    storage = option(shlex.split(by_kind["RayJob"][0]["spec"]["entrypoint"]), "--storage")
    for name in ("head", *(group["groupName"] for group in cluster["workerGroupSpecs"])):
        if not within(storage, shared_mounts(pods[name]["spec"], claims)):
            found.append(f"{name}: does not see {storage or 'a storage'}")
    for name, pod in pods.items():
        if pod.get("metadata", {}).get("labels", {}).get("app") not in guarded:
            found.append(f"{name}: no network policy")
        volumes = {volume["name"]: volume for volume in pod["spec"].get("volumes", [])}
        for container in pod["spec"]["containers"]:
            for mount in container.get("volumeMounts", []):
                if mount["name"] not in volumes:
                    found.append(f"{name}: no volume {mount['name']}")
            if container["name"] == "mlflow":
                found += mlflow_command([*container["command"], *container["args"]][2:], ("0.0.0.0",))
        # The head's autoscaler asks Kubernetes for nodes; nobody else has to.
        if name != "head" and pod["spec"].get("automountServiceAccountToken") is not False:
            found.append(f"{name}: may speak to Kubernetes")
        for volume in volumes.values():
            claim = volume.get("persistentVolumeClaim", {}).get("claimName")
            if claim and claim not in claims:
                found.append(f"{name}: nothing claims {claim}")
    return found
