# Keyfire in a container:
#   docker build -t keyfire .
#   docker run -d --name keyfire -p 127.0.0.1:8080:8080 -v keyfire:/data keyfire
# Workflows are published and keys made in it, such as, after make examples:
#   docker cp examples/workflows/greet keyfire:/tmp/greet
#   docker exec keyfire keyfire apply /tmp/greet
#   docker exec keyfire keyfire keys create --name ci --workflow greet
# Docker gives a container ten seconds to stop, and nodes that are executing have thirty: --stop-timeout 45 lets them end.
FROM golang:1.26 AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
RUN CGO_ENABLED=0 go build -trimpath -tags=nomsgpack -o /keyfire ./core/cmd/keyfire

FROM debian:12-slim
COPY --from=build /keyfire /usr/local/bin/keyfire
# What nodes, callbacks and token issuers are verified with over TLS; the slim image has none.
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/
# A volume that is new takes over the owner and the mode of the directory it is mounted on. Where volumes belong to root and a group, as in Kubernetes with
# fsGroup: 65532, the server can still make a directory in it that is nobody else's.
RUN install -d -m 0700 -o 65532 -g 65532 /data
USER 65532:65532
ENV KEYFIRE_DATA=/data/keyfire KEYFIRE_LISTEN=0.0.0.0:8080
EXPOSE 8080
ENTRYPOINT ["keyfire"]
CMD ["serve"]
