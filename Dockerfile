# syntax=docker/dockerfile:1
#
# One image for every process of Tideline: `docker run tideline broker run --config …`.
# Nothing in it runs as root, and nothing in it is secret: certificates, settings and data come
# as volumes (see docker-compose.yml).

ARG RUST_TAG=1.95-slim-bookworm
ARG DEBIAN_TAG=bookworm-slim

FROM rust:${RUST_TAG} AS build
WORKDIR /src
COPY . .
# The caches belong to the builder, not to a layer: a second build compiles what changed.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    cargo build --profile dist --locked \
        --package broker --package bridge --package edge-agent --package certs --package tideline \
 && mkdir /out \
 && cp target/dist/broker target/dist/bridge target/dist/edge-agent \
       target/dist/certs target/dist/tideline /out/

FROM debian:${DEBIAN_TAG}
# curl asks /readyz; ca-certificates are for databases behind public authorities.
RUN apt-get update \
 && apt-get install --yes --no-install-recommends ca-certificates curl \
 && rm -rf /var/lib/apt/lists/*
# A new volume takes owner and mode of the folder that it is mounted on.
RUN groupadd --system --gid 10001 tideline \
 && useradd --system --uid 10001 --gid tideline --home-dir /var/lib/tideline --shell /usr/sbin/nologin tideline \
 && install --directory --owner tideline --group tideline --mode 0700 \
        /var/lib/tideline /var/lib/tideline/certs /authority /tokens \
        /hand-out/broker /hand-out/bridge /hand-out/observer /hand-out/agent
COPY --from=build /out/ /usr/local/bin/

USER tideline
WORKDIR /var/lib/tideline
# 8883 MQTT over TLS · 8080 REST API and page
EXPOSE 8883 8080
# Every long-running process answers here, on its own loopback.
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s --retries=3 \
    CMD ["curl", "--fail", "--silent", "--show-error", "--max-time", "2", "http://127.0.0.1:9464/readyz"]
CMD ["tideline", "--help"]
