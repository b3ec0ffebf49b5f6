# The broker as an image that holds nothing but the broker: no shell, no
# package manager, no root.
#
#   docker build -t runenv-broker .
#   docker run -v "$PWD/etc:/etc/runenv:ro" -v state:/var/lib/runenv -p 8443:8443 runenv-broker
#
# For a build that never changes under you, name the builder by digest:
#   docker build --build-arg BUILDER=golang@sha256:… .
ARG BUILDER=golang:1.26-bookworm

FROM ${BUILDER} AS build
# An empty folder, since the image has no shell to make one: the broker's state.
WORKDIR /out/lib/runenv
WORKDIR /src
ENV CGO_ENABLED=0
# By its full path: not every builder's exec form searches the PATH.
COPY go.mod go.sum ./
RUN ["/usr/local/go/bin/go", "mod", "download"]
COPY . .
RUN ["/usr/local/go/bin/go", "build", "-trimpath", "-ldflags=-s -w -buildid=", "-o", "/out/runenv-broker", "./cmd/runenv-broker"]

FROM scratch
# The public authorities, for the issuers' keys and the clouds. A private one
# is named where it is used: ca_file in the broker's file.
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
# Closed to others: the broker refuses a store that isn't.
COPY --from=build --chown=65532:65532 --chmod=0700 /out/lib /var/lib
COPY --from=build /out/runenv-broker /runenv-broker
USER 65532:65532
EXPOSE 8443
VOLUME /var/lib/runenv
ENTRYPOINT ["/runenv-broker"]
CMD ["serve", "--config", "/etc/runenv/broker.yaml"]
