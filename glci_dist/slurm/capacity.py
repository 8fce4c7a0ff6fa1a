"""What a cluster can never give, and what it cannot give just now: a request for the first is refused.

``sbatch --test-only`` does not tell the two apart: it refuses what waits for nodes that are drained for now, and takes
what a limit of the partition lets wait for ever. So limits and nodes, whatever state these are in, are looked at here.
"""

from __future__ import annotations

import grp
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from itertools import takewhile
from typing import NewType

from glci_dist.config import ClusterConfig
from glci_dist.slurm import scheduler

FOR_NOW = (
    *("requested node configuration is not available", "required node not available", "nodes are busy"),
    *("requested nodes are busy", "nodes required for job are down"),
)
"""What ``sbatch --test-only`` says of nodes, some of which may only be down for now: in lower case."""
_AWAY = ("down", "drain", "fail", "maint", "reserved", "unknown", "powering_down", "reboot", "perfctrs", "blocked")
_Compared = NewType("_Compared", ClusterConfig)
_NO_LIMIT = ("UNLIMITED", "INFINITE", "NONE", "N/A", "ALL", "(null)", "", "0")


def never(cluster: ClusterConfig) -> list[str]:
    """Why the request would wait for ever, with both figures: limits that do not change by themselves."""
    asked = _compared(cluster)
    found: list[str] = []
    for partition in _partitions(asked):
        reasons = [*_beyond(asked, partition), *_not_for(asked, partition)]
        if not reasons:
            # One of them takes it.
            found.clear()
            break
        found += reasons
    if not found and asked.qos and asked.time_min and scheduler.enforces_limits():
        most = minutes(scheduler.qos_limit(asked.qos))
        if most is not None and asked.time_min > most:
            found.append(_too_long(asked, most, f"cluster.qos={asked.qos} (MaxWall)"))
    return found


def refusal(cluster: ClusterConfig, said: str) -> str | None:
    """What stands against the request where ``sbatch --test-only`` said ``said``; None: it only waits for nodes."""
    if not said.lower().startswith(FOR_NOW):
        return said
    asked = _compared(cluster)
    nodes = _nodes(asked)
    fitting = [node for node in nodes if not list(_lacks(asked, node))]
    if any(_is_away(node) for node in fitting) and len(fitting) >= asked.min_nodes:
        return None
    lacking = dict.fromkeys(lack for node in nodes for lack in _lacks(asked, node))
    wanted = asked.min_nodes or "some"
    figures = f"{len(fitting)} of {len(nodes)} nodes {_where(asked)} would do, {wanted} are asked for"
    return f"{said} ({figures}{''.join(f'; {lack}' for lack in list(lacking)[:3])})"


def waits_for(cluster: ClusterConfig) -> str | None:
    """What a request that is possible waits for that somebody has to bring back; None: nothing of that kind."""
    asked = _compared(cluster)
    parts = _partitions(asked)
    down = [part["PartitionName"] for part in parts if part.get("State") == "DOWN"]
    if down and len(down) == len(parts):
        return f"it is queued, and waits: partition {', '.join(down)} is down now"
    nodes = [node for node in _nodes(asked) if not list(_lacks(asked, node))]
    away = [node for node in nodes if _is_away(node)]
    if not away or len(nodes) - len(away) >= max(asked.min_nodes, 1):
        return None
    reasons = dict.fromkeys(node["Reason"] for node in away if node["Reason"] not in ("none", ""))
    why = f" ({'; '.join(reasons)})" if reasons else ""
    states = ", ".join(dict.fromkeys(node["StateLong"].rstrip("*~#$@+^!%-") for node in away))
    return f"it is queued, and waits: {len(away)} of {len(nodes)} nodes {_where(asked)} are {states} now{why}"


def minutes(limit: str) -> float | None:
    """A time as SLURM writes limits (``1-00:00:00``, ``30:00``, ``30``) in minutes; None: no limit."""
    found = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+)(?::(\d+))?", limit.strip())
    if limit.strip() in _NO_LIMIT or found is None:
        return None
    days, numbers = int(found[1] or 0), list(map(int, limit.strip().split("-")[-1].split(":")))
    begins_with_hours = found[1] is not None or len(numbers) == 3
    units = (3600, 60, 1) if begins_with_hours else (60, 1)
    return (86400 * days + sum(number * unit for number, unit in zip(numbers, units, strict=False))) / 60


def _compared(cluster: ClusterConfig) -> _Compared:
    """The part of a request that nodes and limits are compared to; 0 and empty: whatever there is.

    An option of ``cluster.sbatch`` that says the same is left to sbatch, and so is what else than features joined by
    ``&`` stands in ``cluster.constraint``. ``nodes``: those that it would take; ``min_nodes``: those that it needs.
    """
    own = {key.lstrip("-").replace("_", "-") for key in cluster.sbatch}
    says_nodes = own & {"nodes", "nodelist"}
    compared = replace(
        cluster,
        partition=str(cluster.sbatch.get("partition") or cluster.partition),
        constraint=cluster.constraint if re.fullmatch(r"[\w.:-]+(&[\w.:-]+)*", cluster.constraint) else "",
        min_nodes=0 if says_nodes else cluster.min_nodes or cluster.nodes,
        nodes=0 if says_nodes else cluster.nodes,
        gpus=0 if own & {"gres", "gpus-per-node", "gpus"} else cluster.gpus,
        cpus=0 if "cpus-per-task" in own else cluster.cpus,
        memory_gb=0.0 if own & {"mem", "mem-per-cpu", "mem-per-gpu"} else cluster.memory_gb,
        time_min=0 if "time" in own else cluster.time_min,
    )
    return _Compared(compared)


def _partitions(asked: _Compared) -> list[Mapping[str, str]]:
    """Those that it asks for; the default one. What does not exist is sbatch's to say."""
    found = scheduler.partitions()
    if not asked.partition:
        return [part for part in found if part.get("Default") == "YES"]
    return [part for part in found if part["PartitionName"] in asked.partition.split(",")]


def _beyond(asked: _Compared, part: Mapping[str, str]) -> Iterator[str]:
    """Limits of a partition that the request is beyond."""
    name = part["PartitionName"]
    most = minutes(part.get("MaxTime", ""))
    if most is not None and asked.time_min > most:
        yield _too_long(asked, most, f"partition {name} (MaxTime)")
    figures = (
        ("MaxNodes", "cluster.min_nodes (or nodes)", asked.min_nodes),
        ("MaxCPUsPerNode", "cluster.cpus", asked.cpus),
        ("MaxMemPerNode", "cluster.memory_gb, in MB,", round(asked.memory_gb * 1024)),
        ("TotalNodes", "cluster.min_nodes (or nodes)", asked.min_nodes),
    )
    for limit, key, wanted in figures:
        text = part.get(limit, "")
        if text.isdigit() and (int(text) or limit == "TotalNodes") and wanted > int(text):
            yield f"{key}={wanted} is more than partition {name} allows ({limit}={text}): it would wait for ever"
    least = part.get("MinNodes", "")
    if least.isdigit() and 0 < asked.nodes < int(least):
        yield f"cluster.nodes={asked.nodes} is less than partition {name} takes (MinNodes={least})"


def _too_long(asked: _Compared, most: float, whose: str) -> str:
    return (
        f"cluster.time_min={asked.time_min} is more than the {most:g} min of {whose}: it would wait for ever, "
        f"set cluster.time_min={int(most)} (the job queues itself again)"
    )


def _not_for(asked: _Compared, part: Mapping[str, str]) -> Iterator[str]:
    """Whom a partition is not for."""
    name = part["PartitionName"]
    for what, value in (("Accounts", asked.account), ("Qos", asked.qos)):
        key = f"cluster.{'account' if what == 'Accounts' else 'qos'}"
        allowed, denied = part.get(f"Allow{what}", "ALL"), part.get(f"Deny{what}", "")
        if value and allowed not in _NO_LIMIT and value not in allowed.split(","):
            yield f"{key}={value} is not among those of partition {name} (Allow{what}={allowed})"
        if value and value in denied.split(","):
            yield f"{key}={value} is among those that partition {name} denies (Deny{what}={denied})"
    if os.geteuid() == 0:
        return
    groups = part.get("AllowGroups", "ALL")
    if groups not in _NO_LIMIT and not _my_groups() & set(groups.split(",")):
        yield f"partition {name} is for the groups {groups} (AllowGroups), and you are in none of them"
    if part.get("RootOnly") == "YES":
        yield f"partition {name} is for root alone (RootOnly)"


def _my_groups() -> set[str]:
    names = set()
    for number in {os.getegid(), *os.getgroups()}:
        with suppress(KeyError):
            names.add(grp.getgrgid(number).gr_name)
    return names


def _nodes(asked: _Compared) -> list[dict[str, str]]:
    names = ",".join(part["PartitionName"] for part in _partitions(asked))
    excluded = set(scheduler.host_names(asked.exclude)) if asked.exclude else set()
    found = scheduler.nodes(names) if names else []
    return [node for node in found if node["NodeHost"] not in excluded]


def _lacks(asked: _Compared, node: Mapping[str, str]) -> Iterator[str]:
    """What of the request a node does not have, ever."""
    if asked.cpus > _number(node["CPUs"]):
        yield f"cluster.cpus={asked.cpus}, and they have {node['CPUs']}"
    if (memory_mb := round(asked.memory_gb * 1024)) > _number(node["Memory"]):
        yield f"cluster.memory_gb={memory_mb / 1024:g}, and they have {_number(node['Memory']) / 1024:.1f}"
    if asked.gpus > gpus(node["Gres"]):
        yield f"cluster.gpus={asked.gpus}, and they have {gpus(node['Gres'])}"
    missing = set(filter(None, asked.constraint.split("&"))) - set(node["Features"].split(","))
    if missing:
        yield f"cluster.constraint: they have no {', '.join(sorted(missing))}"


def gpus(gres: str) -> int:
    """Of ``gpu:8`` or ``gpu:a100:4(S:0-1),gpu:v100:2``."""
    return sum(int(count) for count in re.findall(r"(?:^|,)gpu(?::[^:,(]+)?:(\d+)", gres))


def _number(text: str) -> int:
    return int("".join(takewhile(str.isdigit, text)) or 0)


def _is_away(node: Mapping[str, str]) -> bool:
    state = node["StateLong"].lower()
    return state.startswith(_AWAY) or "*" in state


def _where(asked: _Compared) -> str:
    return f"of partition {asked.partition}" if asked.partition else "of the default partition"
