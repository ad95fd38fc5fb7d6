#!/usr/bin/env bash
# Starts and kills the lab's processes, such as kube-apiserver. To be run inside: in.sh does that.
#
#   service.sh define NAME COMMAND… | start NAME | kill NAME
set -euo pipefail

verb=$1 name=$2
file=$LAB/service/$name
case $verb in
  define)
    shift 2
    mkdir -p "$LAB/service"
    printf '#!/bin/sh\nexec %s\n' "${*@Q}" >"$file"
    chmod +x "$file"
    ;;
  start)
    setsid "$file" >>"$LAB/log/$name.log" 2>&1 </dev/null 3<&- 4>&- &
    echo $! >"$file.pid"
    ;;
  kill)
    pid=$(cat "$file.pid")
    kill -KILL "$pid"
    while [[ -d /proc/$pid ]]; do sleep 0.02; done
    ;;
  *)
    echo "service.sh: $verb is unknown" >&2
    exit 64
    ;;
esac
