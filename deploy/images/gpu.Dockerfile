# The image for GPU machines (NVIDIA), on top of vLLM's own, which brings CUDA, PyTorch and a compiler:
# Triton compiles the experts' kernels when they are first used. Written, but neither built nor run.
#   docker build -f deploy/images/gpu.Dockerfile -t expertmesh-gpu:0.1.0-ray2.60.0-vllm0.32.0 .
FROM vllm/vllm-openai:v0.32.0
USER root
RUN groupadd --gid 10001 expertmesh \
    && useradd --uid 10001 --gid 10001 --create-home expertmesh
WORKDIR /opt/expertmesh
COPY requirements/lock-gpu.txt requirements/lock-gpu.txt
RUN python3 -m pip install --no-cache-dir --no-deps -r requirements/lock-gpu.txt
COPY pyproject.toml LICENSE ./
COPY router router
COPY monitoring monitoring
COPY services services
COPY deploy deploy
RUN python3 -m pip install --no-cache-dir --no-deps --editable . \
    && install --directory --owner expertmesh .expertmesh
ENV PYTHONPATH=/opt/expertmesh \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
USER 10001:10001
EXPOSE 8000
HEALTHCHECK --interval=15s --timeout=5s --start-period=900s --retries=4 \
    CMD ["python3", "-m", "deploy.images.health"]
ENTRYPOINT []
# KubeRay replaces this by `ray start`.
CMD ["python3", "-m", "deploy", "--help"]
