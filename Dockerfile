# Hub and coordinator; no PyTorch. A lab's agent is installed at its site, beside its data: pip install 'fedhub[lab]'.
#   docker build --target hub -t fedhub:0.1.0 .
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS base
ENV PYTHONSAFEPATH=1 PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1
RUN python3 -m venv /opt/fedhub
ENV PATH=/opt/fedhub/bin:$PATH
WORKDIR /opt/src
COPY bootstrap.lock ./
RUN pip install --no-cache-dir --require-hashes -r bootstrap.lock
# Any user id may run the image: it owns nothing here and writes to its volumes alone.
RUN mkdir -p /var/lib/fedhub /var/lib/fedhub-shared && chmod 1777 /var/lib/fedhub /var/lib/fedhub-shared
ENV HOME=/tmp

FROM base AS hub
COPY requirements-hub.lock ./
RUN VIRTUAL_ENV=/opt/fedhub uv pip install --no-cache --require-hashes -r requirements-hub.lock
COPY pyproject.toml README.md ./
COPY hub hub
COPY federation federation
COPY storage storage
RUN VIRTUAL_ENV=/opt/fedhub uv pip install --no-cache --no-deps --no-build-isolation . && rm -rf /opt/src
WORKDIR /var/lib/fedhub
USER 10001:10001
EXPOSE 8000 8001 8003
ENTRYPOINT ["fedhub"]
CMD ["--home", "/var/lib/fedhub/operator", "hub", "up"]
