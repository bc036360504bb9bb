"""Strict validation of manifests without a cluster.

Kinds of Kubernetes itself are checked by kubernetes-validate. Those of operators are checked by
schemas of the fields that this project uses, after each operator's published API; a field that is
not here, and a kind that is not here, fail.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import kubernetes_validate
from jsonschema import Draft202012Validator, ValidationError
from jsonschema.validators import extend

VERSIONS = ("1.29", "1.37")
"""The oldest and the newest Kubernetes that the manifests are written for."""

Schema = dict[str, Any]

TEXT: Schema = {"type": "string", "minLength": 1}
COUNT: Schema = {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}
TEXTS: Schema = {"type": "object", "additionalProperties": {"type": "string"}}
METADATA: Schema = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 63}, "labels": TEXTS},
    "required": ["name"],
    "additionalProperties": False,
}
POD_TEMPLATE: Schema = {"embedded": "PodTemplate"}
JOB_SPEC: Schema = {"embedded": "Job"}


def closed(required: dict[str, Schema], optional: dict[str, Schema] | None = None) -> Schema:
    """An object of these fields and no others."""
    return {
        "type": "object",
        "properties": required | (optional or {}),
        "required": list(required),
        "additionalProperties": False,
    }


def array(items: Schema) -> Schema:
    return {"type": "array", "items": items, "minItems": 1}


def one_of(*words: str) -> Schema:
    return {"enum": list(words)}


# sigs.k8s.io/jobset/api/jobset/v1alpha2
JOBSET_SPEC = closed(
    {
        "network": closed(
            {
                "enableDNSHostnames": {"type": "boolean"},
                "subdomain": TEXT,
                "publishNotReadyAddresses": {"type": "boolean"},
            }
        ),
        "failurePolicy": closed(
            {
                "maxRestarts": COUNT,
                "rules": array(
                    closed(
                        {
                            "name": {"type": "string", "pattern": "^[A-Za-z][A-Za-z0-9_]*$"},
                            "action": one_of(
                                "FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts"
                            ),
                            "onJobFailureReasons": array(
                                one_of(
                                    "BackoffLimitExceeded", "DeadlineExceeded", "PodFailurePolicy"
                                )
                            ),
                        }
                    )
                ),
            }
        ),
        "replicatedJobs": array(
            closed(
                {
                    "name": TEXT,
                    "replicas": COUNT,
                    "template": closed({"spec": JOB_SPEC}, {"metadata": closed({"labels": TEXTS})}),
                }
            )
        ),
    }
)

# kubeflow.org/v1
REPLICA = closed(
    {"replicas": COUNT, "restartPolicy": one_of("OnFailure"), "template": POD_TEMPLATE}
)
PYTORCH_SPEC = closed(
    {
        "runPolicy": closed(
            {
                "cleanPodPolicy": one_of("None", "Running", "All"),
                "activeDeadlineSeconds": COUNT,
                "backoffLimit": COUNT,
            }
        ),
        "pytorchReplicaSpecs": closed({"Master": REPLICA}, {"Worker": REPLICA}),
    }
)

# ray.io/v1
RAY_CLUSTER_SPEC = closed(
    {
        "rayVersion": {"type": "string", "pattern": r"^\d+\.\d+\.\d+$"},
        "headGroupSpec": closed({"rayStartParams": TEXTS, "template": POD_TEMPLATE}),
        "workerGroupSpecs": array(
            closed(
                {
                    "groupName": TEXT,
                    "replicas": COUNT,
                    "minReplicas": COUNT,
                    "maxReplicas": COUNT,
                    "rayStartParams": TEXTS,
                    "template": POD_TEMPLATE,
                }
            )
        ),
    }
)
RAY_JOB_SPEC = closed(
    {
        "entrypoint": TEXT,
        "submissionMode": one_of("K8sJobMode", "HTTPMode"),
        "shutdownAfterJobFinishes": {"type": "boolean"},
        "ttlSecondsAfterFinished": COUNT,
        "activeDeadlineSeconds": COUNT,
        "backoffLimit": COUNT,
        "submitterPodTemplate": POD_TEMPLATE,
        "rayClusterSpec": RAY_CLUSTER_SPEC,
    }
)

# trainer.kubeflow.org/v1alpha1
RUNTIME_SPEC = closed(
    {"mlPolicy": closed({"numNodes": COUNT}), "template": closed({"spec": JOBSET_SPEC})}
)
TRAINJOB_SPEC = closed(
    {
        "runtimeRef": closed(
            {
                "apiGroup": one_of("trainer.kubeflow.org"),
                "kind": one_of("TrainingRuntime"),
                "name": TEXT,
            }
        ),
        "trainer": closed({"numNodes": COUNT}),
    }
)

OPERATORS: dict[tuple[str, str], Schema] = {
    ("jobset.x-k8s.io/v1alpha2", "JobSet"): JOBSET_SPEC,
    ("trainer.kubeflow.org/v1alpha1", "TrainingRuntime"): RUNTIME_SPEC,
    ("trainer.kubeflow.org/v1alpha1", "TrainJob"): TRAINJOB_SPEC,
    ("kubeflow.org/v1", "PyTorchJob"): PYTORCH_SPEC,
    ("ray.io/v1", "RayJob"): RAY_JOB_SPEC,
    ("ray.io/v1", "RayCluster"): RAY_CLUSTER_SPEC,
}


def validate(manifest: dict[str, Any]) -> None:
    """Checks one object.

    Raises:
        jsonschema.ValidationError: A field is unknown, missing or wrong.
        kubernetes_validate.SchemaNotFoundError: The kind is unknown.
    """
    known = (manifest["apiVersion"], manifest["kind"])
    if known in OPERATORS:
        parts = {"apiVersion": TEXT, "kind": TEXT, "metadata": METADATA, "spec": OPERATORS[known]}
        _Validator(closed(parts)).validate(manifest)
        return
    for version in VERSIONS:
        kubernetes_validate.validate(manifest, version, strict=True)


def _embedded(validator: Any, kind: str, value: Any, schema: Schema) -> Iterator[ValidationError]:
    """What an operator's kind holds of Kubernetes' own is checked as the object that it becomes."""
    metadata = {"name": "embedded"}
    whole = {
        "PodTemplate": {"apiVersion": "v1", "kind": "PodTemplate", "template": value},
        "Job": {"apiVersion": "batch/v1", "kind": "Job", "spec": value},
    }[kind]
    try:
        validate({**whole, "metadata": metadata})
    except ValidationError as error:
        yield error


_Validator = extend(Draft202012Validator, {"embedded": _embedded})
