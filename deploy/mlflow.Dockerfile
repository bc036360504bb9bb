# The image of the MLflow server: the project's own, with what a server for a team needs.
#   docker build --file deploy/mlflow.Dockerfile --build-arg BASE=prefixworks:cpu -t prefixworks-mlflow:cpu .
ARG BASE=prefixworks:cpu
FROM ${BASE}
USER root
COPY constraints.txt /tmp/constraints.txt
RUN /opt/prefixworks/bin/pip install --no-cache-dir --constraint /tmp/constraints.txt \
        'prefixworks[team]' \
    && rm /tmp/constraints.txt
USER prefixworks
ENTRYPOINT []
CMD ["mlflow", "server", "--help"]
