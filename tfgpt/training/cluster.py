"""The cluster that a process belongs to, by the `TF_CONFIG` that its launcher set. No TensorFlow here."""

from __future__ import annotations

import dataclasses
import json
import os

from tfgpt.errors import UserError


@dataclasses.dataclass(frozen=True)
class Cluster:
    """The workers of a run, and which of them this process is.

    Args:
        workers: their addresses, host:port; empty outside of a cluster.
        index: of this process among them.
        has_parameter_servers: whether the cluster names tasks of type "ps".
    """

    workers: tuple[str, ...] = ()
    index: int = 0
    has_parameter_servers: bool = False

    @property
    def chief(self):
        """Whether this process writes the run's files and prints: the first worker, or the only process."""
        return self.index == 0

    @classmethod
    def from_environment(cls, environment=os.environ):
        """Reads `TF_CONFIG`, in the format of TensorFlow's "Multi-worker training with Keras".

        A task of type "chief" is the first worker.

        Raises:
            UserError: if it is no JSON, names no workers, or a task that its cluster does not have.

        Example:

        >>> cluster = {"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 1}}
        >>> Cluster.from_environment({"TF_CONFIG": json.dumps(cluster)}).chief
        False
        """
        text = environment.get("TF_CONFIG", "")
        if not text.strip():
            return cls()
        try:
            content = json.loads(text)
            tasks = {kind: list(addresses) for kind, addresses in content.get("cluster", {}).items()}
            kind, index = content.get("task", {}).get("type", "worker"), int(content.get("task", {}).get("index", 0))
        except (ValueError, TypeError, AttributeError) as error:
            raise UserError(f"TF_CONFIG is {text!r}, expected JSON with a cluster and a task ({error})") from error
        if not tasks:
            return cls()
        chiefs = tasks.get("chief", [])
        workers = (*chiefs, *tasks.get("worker", []))
        if kind not in ("chief", "worker") or not 0 <= index < len(tasks.get(kind, [])):
            counts = ", ".join(f"{len(addresses)} of type {name!r}" for name, addresses in sorted(tasks.items()))
            raise UserError(
                f"TF_CONFIG's task is {kind!r} {index}, expected a chief or worker of its cluster: {counts}"
            )
        return cls(workers, index + (len(chiefs) if kind == "worker" else 0), "ps" in tasks)
