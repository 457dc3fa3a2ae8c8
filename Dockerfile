# Not built by the project's checks: they have no container engine. Choose what goes in by the extras:
#   docker build --build-arg EXTRAS=all -t swarmd .          everything, for `swarmd up`
#   docker build --build-arg EXTRAS=models -t swarmd-worker .  a worker node: docker run swarmd-worker run worker --nats …
FROM python:3.11-slim AS build
ARG EXTRAS=all
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY ops/lock ops/lock
COPY swarmd swarmd
RUN python -m venv /opt/swarmd \
 && /opt/swarmd/bin/pip install --no-cache-dir -c ops/lock/dev.txt ".[${EXTRAS}]"

FROM python:3.11-slim
LABEL org.opencontainers.image.title="swarmd" org.opencontainers.image.licenses="Apache-2.0"
RUN useradd --system --uid 10001 --create-home --home-dir /var/lib/swarmd swarmd
COPY --from=build /opt/swarmd /opt/swarmd
ENV PATH=/opt/swarmd/bin:$PATH PYTHONUNBUFFERED=1
USER 10001
WORKDIR /var/lib/swarmd
VOLUME /var/lib/swarmd
EXPOSE 4222 9464
HEALTHCHECK --interval=15s --timeout=5s --start-period=120s --retries=3 \
  CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:9464/livez', timeout=4)"]
# Listening everywhere: publish 4222 only where everyone who can reach it may submit.
ENV SWARMD_BROKER_HOST=0.0.0.0 SWARMD_METRICS_HOST=0.0.0.0
ENTRYPOINT ["swarmd"]
CMD ["up", "--data", "/var/lib/swarmd/data", "--metrics-port", "9464"]
