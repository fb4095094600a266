# Moshi's language model. Build from the repository's root:
#   docker build -f deploy/images/lm.Dockerfile -t moshi-mesh/lm .
FROM python:3.11.13-slim-bookworm AS packages

WORKDIR /app
COPY requirements/gateway.txt requirements/engine.txt requirements/torch.txt requirements/
COPY deploy/images/locks/engine.txt locks/
# For nodes without a GPU, --build-arg TORCH=cpu takes torch's build for CPUs: 1.4 GB instead of 7. Its versions are those
# of the lists, not of the lock, whose hashes are those of the build with CUDA.
ARG TORCH=""
RUN python -m venv /opt/venv && \
    if [ "$TORCH" = cpu ]; then \
        /opt/venv/bin/pip install --no-cache-dir --index-url https://download.pytorch.org/whl/cpu \
            -r requirements/torch.txt && \
        /opt/venv/bin/pip install --no-cache-dir -r requirements/engine.txt; \
    else \
        /opt/venv/bin/pip install --no-cache-dir --require-hashes -r locks/engine.txt; \
    fi

# Without pip's leftovers: only what was installed, and our sources.
FROM python:3.11.13-slim-bookworm

LABEL org.opencontainers.image.title="moshi-mesh/lm" \
      org.opencontainers.image.licenses="Apache-2.0"

WORKDIR /app
COPY --from=packages /opt/venv /opt/venv
COPY protos/python protos/python
COPY services/__init__.py services/
COPY services/mesh services/mesh
COPY services/lm services/lm
COPY checkpoints checkpoints

ENV PATH=/opt/venv/bin:$PATH \
    PYTHONPATH=/app:/app/protos/python \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HF_HOME=/cache/huggingface

# /cache is the only folder that the service writes to, besides /tmp: what the hub provided, so that a restart does not
# fetch it again.
RUN useradd --uid 10001 --user-group --home-dir /cache --create-home moshi
USER 10001:10001
VOLUME /cache
EXPOSE 50052
ENTRYPOINT ["python", "-m", "services.lm"]
