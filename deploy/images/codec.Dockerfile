# Mimi, audio to codes and back. Build from the repository's root:
#   docker build -f deploy/images/codec.Dockerfile -t moshi-mesh/codec .
FROM python:3.11-slim

WORKDIR /app
COPY requirements/gateway.txt requirements/engine.txt requirements/torch.txt requirements/
# For nodes without a GPU, --build-arg TORCH=cpu takes torch's build for CPUs: 1.4 GB instead of 7.
ARG TORCH=""
RUN if [ "$TORCH" = cpu ]; then \
        pip install --no-cache-dir --index-url https://download.pytorch.org/whl/cpu -r requirements/torch.txt; \
    fi && \
    pip install --no-cache-dir -r requirements/engine.txt

COPY protos/python protos/python
COPY services/__init__.py services/
COPY services/mesh services/mesh
COPY services/codec services/codec
COPY checkpoints checkpoints

# NO_TORCH_COMPILE: on a GPU, moshi's Mimi compiles a small function (its rotary embedding), which would need a C compiler
# in the image.
ENV PYTHONPATH=/app:/app/protos/python \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    NO_TORCH_COMPILE=1 \
    HF_HOME=/cache/huggingface

# /cache is the only folder that the service writes to, besides /tmp: what the hub provided, so that a restart does not
# fetch it again.
RUN useradd --uid 10001 --user-group --home-dir /cache --create-home moshi
USER 10001:10001
VOLUME /cache
EXPOSE 50051
ENTRYPOINT ["python", "-m", "services.codec"]
