"""Jobs as Kubernetes manifests: rendered as plain data, dumped as YAML, sent with kubectl.

files = render(job, "indexed-job")       # file name -> YAML, one object a file
submit_command("launched/grounding")     # kubectl apply of the folder that holds them
"""

from jobs.launch.kubernetes.commands import (
    cancel_command,
    logs_command,
    status_command,
    submit_command,
)
from jobs.launch.kubernetes.manifests import KINDS, render

__all__ = [
    "KINDS",
    "cancel_command",
    "logs_command",
    "render",
    "status_command",
    "submit_command",
]
