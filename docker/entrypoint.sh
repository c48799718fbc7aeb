#!/bin/sh
# The role is the first word; what follows goes to it. `exec`, so that signals reach the process itself.
set -eu
role=${1:-metering}
[ $# -gt 0 ] && shift
case $role in
    metering | reconciliation) exec python -m bytewax.run "flows.$role" "$@" ;;
    serve) exec tidegate serve "$@" ;;
    tidegate) exec tidegate "$@" ;;
    *)
        echo "tidegate: needs metering, reconciliation, serve or tidegate; got $role" >&2
        exit 64
        ;;
esac
