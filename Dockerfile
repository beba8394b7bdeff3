# One image for both: the proxy, and a target with `docker run IMAGE target --host 0.0.0.0`.
FROM python:3.12-slim AS build
WORKDIR /src
COPY pyproject.toml setup.cfg README.md LICENSE ./
COPY pyproxy/ pyproxy/
# --build-arg EXTRAS=metrics,docker: what else it is to have
ARG EXTRAS=metrics
RUN pip install --no-cache-dir --root-user-action=ignore --prefix=/install ".${EXTRAS:+[$EXTRAS]}"

FROM python:3.12-slim
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
COPY --from=build /install /usr/local
WORKDIR /app
# --chmod: readable to the user below even if cloned with a strict umask
COPY --chmod=644 appsettings.json ./
# A number, because Kubernetes' runAsNonRoot can't tell from a name
USER 10001:10001
EXPOSE 8000
ENTRYPOINT ["python", "-m", "pyproxy"]
