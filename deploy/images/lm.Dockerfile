# Moshi's language model. Build from the repository's root:
#   docker build -f deploy/images/lm.Dockerfile -t moshi-mesh/lm .
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
COPY services/lm services/lm
COPY checkpoints checkpoints

ENV PYTHONPATH=/app:/app/protos/python \
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
