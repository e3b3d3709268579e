# The image for CPU machines. Build it in the repository's root:
#   docker build -f deploy/images/cpu.Dockerfile -t expertmesh-cpu:0.1.0-ray2.60.0-vllm0.32.0 .
FROM python:3.11.13-slim-bookworm AS build
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /opt/expertmesh
# The packages first, by the same script as `make setup`: a layer that only the lock changes.
COPY requirements/lock-cpu.txt requirements/lock-cpu.txt
COPY pyproject.toml LICENSE ./
COPY deploy/setup.sh deploy/setup.sh
RUN deploy/setup.sh && rm -rf /root/.cache .venv/setup.log

FROM python:3.11.13-slim-bookworm
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libnuma1 \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 10001 expertmesh \
    && useradd --uid 10001 --gid 10001 --create-home expertmesh
WORKDIR /opt/expertmesh
COPY --from=build /opt/expertmesh /opt/expertmesh
COPY router router
COPY monitoring monitoring
COPY services services
COPY deploy deploy
# For `up` outside of Kubernetes: the demo model and the records of what runs.
RUN install --directory --owner expertmesh .expertmesh
ENV PATH=/opt/expertmesh/.venv/bin:$PATH \
    PYTHONPATH=/opt/expertmesh \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
USER 10001:10001
EXPOSE 8000
# Asks the API; in Kubernetes the pods' own probes take its place.
HEALTHCHECK --interval=15s --timeout=5s --start-period=300s --retries=4 \
    CMD ["python", "-m", "deploy.images.health"]
# KubeRay replaces this by `ray start`.
CMD ["python", "-m", "deploy", "up", "--demo"]
