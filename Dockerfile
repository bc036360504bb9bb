# Two targets from one recipe:
#   docker build --target gpu -t prefixworks .
#   docker build --target cpu -t prefixworks:cpu --build-arg PIP_ARGS="--extra-index-url CPU_WHEELS" .
# torch's default wheels bring their CUDA libraries, and training loads none of DeepSpeed's compiled
# operators, so the CUDA base needs no CUDA compiler. Both bases are arguments, so that a cluster can
# give its own, by digest if it likes; they need apt and Python 3.11 or newer.
ARG CUDA_BASE=nvidia/cuda:13.0.1-base-ubuntu24.04
ARG CPU_BASE=debian:bookworm-slim

# What both need at run time: Python, git for MLflow, and a C++ compiler with Python's headers for
# engine.compile. Their versions are those of the base's own archive, which keeps only the newest.
FROM ${CUDA_BASE} AS gpu-system
# hadolint ignore=DL3008
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
        ca-certificates g++ git python3 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 10001 prefixworks

FROM ${CPU_BASE} AS cpu-system
# hadolint ignore=DL3008
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
        ca-certificates g++ git python3 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 10001 prefixworks

# The environments are built where pip's leftovers do not count, and copied out whole.
FROM gpu-system AS gpu-build
ARG PIP_ARGS=""
WORKDIR /src
COPY . .
RUN python3 -m venv /opt/prefixworks \
    && /opt/prefixworks/bin/pip install --no-cache-dir --constraint constraints.txt ${PIP_ARGS} \
        '.[cluster]' \
    && cp constraints.txt /opt/prefixworks/

FROM cpu-system AS cpu-build
ARG PIP_ARGS=""
WORKDIR /src
COPY . .
RUN python3 -m venv /opt/prefixworks \
    && /opt/prefixworks/bin/pip install --no-cache-dir --constraint constraints.txt ${PIP_ARGS} \
        '.[cluster]' \
    && cp constraints.txt /opt/prefixworks/

FROM cpu-system AS cpu
COPY --from=cpu-build /opt/prefixworks /opt/prefixworks
ENV PATH=/opt/prefixworks/bin:$PATH \
    DS_ACCELERATOR=cpu \
    RAY_USAGE_STATS_ENABLED=0 \
    MLFLOW_DISABLE_TELEMETRY=true
# By number, since Kubernetes cannot tell from a name that it is not root's.
USER 10001
WORKDIR /home/prefixworks
# A build has less shared memory than a run: start containers with --shm-size=2g.
RUN prefixworks doctor --constraints=/opt/prefixworks/constraints.txt --skip="shared memory"
ENTRYPOINT ["prefixworks"]
CMD ["--help"]

# Last, so that it is what a build without --target makes.
FROM gpu-system AS gpu
COPY --from=gpu-build /opt/prefixworks /opt/prefixworks
# The driver is the host's; these ask the container runtime for it, whatever the base says.
ENV PATH=/opt/prefixworks/bin:$PATH \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    RAY_USAGE_STATS_ENABLED=0 \
    MLFLOW_DISABLE_TELEMETRY=true
USER 10001
WORKDIR /home/prefixworks
# A build has no GPU either.
RUN prefixworks doctor --constraints=/opt/prefixworks/constraints.txt --skip="shared memory" \
    --skip=GPUs
ENTRYPOINT ["prefixworks"]
CMD ["--help"]
