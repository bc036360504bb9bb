# Two targets from one recipe:
#   docker build --target gpu -t prefixworks .
#   docker build --target cpu -t prefixworks:cpu --build-arg PIP_ARGS="--extra-index-url CPU_WHEELS" .
# torch's default wheels bring their CUDA libraries; the CUDA base adds the compiler with which
# DeepSpeed builds its operators. Both bases are arguments, so that a cluster can give its own; they
# need apt and Python 3.11 or newer.
ARG CUDA_BASE=nvidia/cuda:13.0.1-devel-ubuntu24.04
ARG CPU_BASE=debian:bookworm-slim

# What both bases need at run time: Python, and a C++ compiler for DeepSpeed's operators.
FROM ${CUDA_BASE} AS gpu-system
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
        ca-certificates g++ git python3 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*

FROM ${CPU_BASE} AS cpu-system
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
        ca-certificates g++ git python3 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*

# The environments are built where pip's leftovers do not count, and copied out whole.
FROM gpu-system AS gpu-build
ARG PIP_ARGS=""
WORKDIR /src
COPY . .
RUN python3 -m venv /opt/prefixworks \
    && /opt/prefixworks/bin/pip install --no-cache-dir --constraint constraints.txt ${PIP_ARGS} \
        '.[cluster]'

FROM cpu-system AS cpu-build
ARG PIP_ARGS=""
WORKDIR /src
COPY . .
RUN python3 -m venv /opt/prefixworks \
    && /opt/prefixworks/bin/pip install --no-cache-dir --constraint constraints.txt ${PIP_ARGS} \
        '.[cluster]'

FROM cpu-system AS cpu
COPY --from=cpu-build /opt/prefixworks /opt/prefixworks
ENV PATH=/opt/prefixworks/bin:$PATH \
    DS_ACCELERATOR=cpu \
    RAY_USAGE_STATS_ENABLED=0 \
    MLFLOW_DISABLE_TELEMETRY=true
RUN useradd --create-home --uid 10001 prefixworks
USER prefixworks
WORKDIR /home/prefixworks
# A build has less shared memory than a run: start containers with --shm-size=2g.
RUN prefixworks doctor --skip "shared memory"
ENTRYPOINT ["prefixworks"]
CMD ["--help"]

# Last, so that it is what a build without --target makes.
FROM gpu-system AS gpu
COPY --from=gpu-build /opt/prefixworks /opt/prefixworks
ENV PATH=/opt/prefixworks/bin:$PATH \
    RAY_USAGE_STATS_ENABLED=0 \
    MLFLOW_DISABLE_TELEMETRY=true
RUN useradd --create-home --uid 10001 prefixworks
USER prefixworks
WORKDIR /home/prefixworks
RUN prefixworks doctor --skip "shared memory" --skip GPUs
ENTRYPOINT ["prefixworks"]
CMD ["--help"]
