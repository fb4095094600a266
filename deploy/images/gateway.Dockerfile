# The door of the mesh: no torch, no moshi, no model; 180 MB beside Python's own image. Build from the repository's root:
#   docker build -f deploy/images/gateway.Dockerfile -t moshi-mesh/gateway .
FROM python:3.11.13-slim-bookworm AS packages

WORKDIR /app
COPY deploy/images/locks/gateway.txt locks/
RUN python -m venv /opt/venv && /opt/venv/bin/pip install --no-cache-dir --require-hashes -r locks/gateway.txt

# Without pip's leftovers: only what was installed, and our sources.
FROM python:3.11.13-slim-bookworm

LABEL org.opencontainers.image.title="moshi-mesh/gateway" \
      org.opencontainers.image.licenses="Apache-2.0"

WORKDIR /app
COPY --from=packages /opt/venv /opt/venv
COPY protos/python protos/python
COPY services/__init__.py services/
COPY services/mesh services/mesh
COPY services/gateway services/gateway
COPY services/scaledown services/scaledown

ENV PATH=/opt/venv/bin:$PATH \
    PYTHONPATH=/app:/app/protos/python \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1

RUN useradd --uid 10001 --user-group --no-create-home moshi
USER 10001:10001
EXPOSE 50050 8000
ENTRYPOINT ["python", "-m", "services.gateway"]
