# The control plane: REST interface, reconciler, page, migrations. No torch, no Ray.
# Build from the repository's root: docker build -f deploy/docker/control-plane.Dockerfile -t tide/control-plane:0.1.0 --sbom=true .
ARG BASE_IMAGE=python:3.11.14-slim-bookworm

FROM ${BASE_IMAGE} AS build
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
WORKDIR /build
COPY deploy/docker/build.lock deploy/docker/control-plane.lock ./
RUN python -m venv /opt/tide && python -m venv /opt/build \
    && /opt/build/bin/pip install --no-cache-dir --require-hashes --only-binary :all: -r build.lock \
    && /opt/tide/bin/pip install --no-cache-dir --require-hashes --only-binary :all: -r control-plane.lock
COPY pyproject.toml README.md ./
COPY tide_core tide_core
COPY service service
COPY workers workers
# Without build isolation, since the build tools are locked too. pip and setuptools do not go into the image; its
# bill of materials (CycloneDX, checked against its schema) does.
RUN /opt/build/bin/pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir dist . \
    && /opt/tide/bin/pip install --no-cache-dir --no-deps dist/*.whl \
    && /opt/tide/bin/python -m compileall -q /opt/tide/lib \
    && /opt/tide/bin/pip uninstall --yes --quiet pip setuptools \
    && /opt/build/bin/cyclonedx-py environment --pyproject pyproject.toml --mc-type application \
       --validate --output-reproducible --output-file /opt/tide/sbom.cdx.json /opt/tide/bin/python

FROM ${BASE_IMAGE}
ARG VERSION=0.1.0
LABEL org.opencontainers.image.title="Tide control plane" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.licenses="Apache-2.0"
RUN groupadd --gid 10001 tide && useradd --uid 10001 --gid 10001 --create-home tide \
    && install --directory --owner tide --group tide /var/lib/tide/data /var/lib/tide/storage
COPY --from=build /opt/tide /opt/tide
ENV PATH=/opt/tide/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    TIDE_HOST=0.0.0.0 \
    TIDE_DATA_DIR=/var/lib/tide/data
USER 10001:10001
WORKDIR /var/lib/tide/data
EXPOSE 8700
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s \
  CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8700/healthz', timeout=4)"]
CMD ["tide", "serve"]
