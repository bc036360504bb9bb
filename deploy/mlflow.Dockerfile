# The image of the MLflow server: the project's own, with what a server for a team needs.
#   docker build --file deploy/mlflow.Dockerfile --build-arg BASE=prefixworks:cpu -t prefixworks-mlflow:cpu .
ARG BASE=prefixworks:cpu
FROM ${BASE}
ARG PIP_ARGS=""
USER root
RUN /opt/prefixworks/bin/pip install --no-cache-dir \
        --constraint /opt/prefixworks/constraints.txt ${PIP_ARGS} 'prefixworks[team]'
USER 10001
ENTRYPOINT []
CMD ["mlflow", "server", "--help"]
