#!/bin/sh
# An hour-long film and ten sentences, on a fresh machine: makes the environment if there is none, then
# renders a film, grounds the sentences in it and writes out/demo/. Arguments go to `revisionllm demo`.
. "$(dirname -- "$0")/common.sh"
help_of "-m revisionllm.cli demo" "$@"
use_environment run
run "${PY%python}revisionllm" demo "$@" # the command beside that python
