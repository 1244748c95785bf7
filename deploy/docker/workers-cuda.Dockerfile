# GPU workers: torch with CUDA, whose libraries are wheels; the node has the driver.
# Build from the repository's root: docker build -f deploy/docker/workers-cuda.Dockerfile -t tide/workers-cuda:0.1.0 --sbom=true .
ARG BASE_IMAGE=python:3.11.14-slim-bookworm

FROM ${BASE_IMAGE} AS build
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
WORKDIR /build
COPY deploy/docker/build.lock deploy/docker/workers-cuda.lock ./
RUN python -m venv /opt/tide && python -m venv /opt/build \
    && /opt/build/bin/pip install --no-cache-dir --require-hashes --only-binary :all: -r build.lock \
    && /opt/tide/bin/pip install --no-cache-dir --require-hashes --only-binary :all: -r workers-cuda.lock
COPY pyproject.toml README.md ./
COPY tide_core tide_core
COPY service service
COPY workers workers
# torch ships its own tests, and one of them needs a newer Python to compile.
# Without build isolation, since the build tools are locked too. pip and setuptools do not go into the image; its
# bill of materials (CycloneDX, checked against its schema) does.
RUN /opt/build/bin/pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir dist . \
    && /opt/tide/bin/pip install --no-cache-dir --no-deps dist/*.whl \
    && /opt/tide/bin/python -m compileall -q -x /torch/testing/ /opt/tide/lib \
    && /opt/tide/bin/pip uninstall --yes --quiet pip \
    && /opt/build/bin/cyclonedx-py environment --pyproject pyproject.toml --mc-type application \
       --validate --output-reproducible --output-file /opt/tide/sbom.cdx.json /opt/tide/bin/python

FROM ${BASE_IMAGE}
ARG VERSION=0.1.0
LABEL org.opencontainers.image.title="Tide workers (CUDA)" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.licenses="Apache-2.0"
# KubeRay's probes call wget. Debian's archive keeps no old versions, so no version is pinned.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends wget \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 10001 tide && useradd --uid 10001 --gid 10001 --create-home tide \
    && install --directory --owner tide --group tide /var/cache/tide /var/lib/tide/storage
COPY --from=build /opt/tide /opt/tide
ENV PATH=/opt/tide/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    TIDE_CACHE=/var/cache/tide \
    HF_HOME=/var/cache/tide/hub \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    RAY_USAGE_STATS_ENABLED=0
USER 10001:10001
WORKDIR /home/tide
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s \
  CMD ["wget", "-q", "-O", "-", "http://127.0.0.1:52365/api/local_raylet_healthz"]
CMD ["ray", "--version"]
