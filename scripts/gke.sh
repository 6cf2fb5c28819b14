#!/bin/bash
# Trains in the pods of a GKE workload that xpk made, see docs/launch.md; one process a pod.
#
#   exec bash scripts/gke.sh --config=configs/imagen.py --workdir=gs://BUCKET/imagen
#
# What stands after the script's name goes to train.py. Kubernetes takes status 0 for the end of
# the work, and xpk starts again only what ends with 42 or 127 to 255. So a run that was told to
# stop (SIGTERM: its machine is taken away), and has saved, ends with 42 here, and so does whatever
# else ends it too early. 2 is wrong input, which would only come again.
set -u

stopped=no
# shellcheck disable=SC2317  # reached by the trap
stop() {
  stopped=yes
  # `$!`, not a variable: the signal may come before the line that would set it. Or even before
  # there is anything to stop.
  [[ -n ${!:-} ]] || exit 42
  kill -TERM "$!"
}
trap stop TERM

python -u train.py --distributed "$@" &
# A signal ends `wait` early; the last one, of a child that is gone, has its status.
while kill -0 "$!" 2>/dev/null; do
  wait "$!"
done
wait "$!"
status=$?

if [[ $stopped == yes && $status -eq 0 ]] || [[ $status -ne 0 && $status -ne 2 ]]; then
  exit 42
fi
exit "$status"
