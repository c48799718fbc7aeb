#!/bin/sh
# The role is the first word; what follows goes to it. `exec`, so that signals reach the process itself.
set -eu
role=${1:-metering}
[ $# -gt 0 ] && shift
case $role in
    metering | reconciliation) exec python -m bytewax.run "tidegate.flows.$role" "$@" ;;
    serve) exec tidegate serve "$@" ;;
    tidegate) exec tidegate "$@" ;;
    # The key that Prometheus reads the service's metrics with, made once and kept in a file.
    metrics-key)
        file=$1
        [ -s "$file" ] && exit 0
        token=$(tidegate keys create prometheus --scope read)
        printf %s "$token" > "$file.new"
        chmod 644 "$file.new"
        mv "$file.new" "$file"
        ;;
    *)
        echo "tidegate: needs metering, reconciliation, serve, tidegate or metrics-key; got $role" >&2
        exit 64
        ;;
esac
