#!/bin/sh
# The walk through the REST API that its documentation shows, with curl alone: $1 is the server.
set -eu
api="$1/api/2.0/mlflow"
json='Content-Type: application/json'

field() { sed -n "s/.*\"$1\": *\"\([^\"]*\)\".*/\1/p" | head -n 1; }
post() { curl --fail-with-body --silent --show-error -X POST "$api/$1" -H "$json" -d "$2"; }

experiment=$(post experiments/create '{"name": "walked"}' | field experiment_id)
run=$(post runs/create "{\"experiment_id\": \"$experiment\", \"run_name\": \"by-curl\"}" | field run_id)
post runs/log-parameter "{\"run_id\": \"$run\", \"key\": \"lr\", \"value\": \"0.1\"}"
for step in 1 2 3; do
  post runs/log-metric \
    "{\"run_id\": \"$run\", \"key\": \"loss\", \"value\": 0.$step, \"timestamp\": $step, \"step\": $step}"
done
post runs/set-tag "{\"run_id\": \"$run\", \"key\": \"by\", \"value\": \"curl\"}"
printf 'hello' > hello.txt
curl --fail-with-body --silent --show-error -T hello.txt \
  "$1/api/2.0/mlflow-artifacts/artifacts/$experiment/$run/artifacts/hello.txt"
post runs/update "{\"run_id\": \"$run\", \"status\": \"FINISHED\", \"end_time\": 1700000000000}"
post registered-models/create '{"name": "walked-model"}'
post model-versions/create \
  "{\"name\": \"walked-model\", \"source\": \"runs:/$run/model\", \"run_id\": \"$run\"}"
curl --fail-with-body --silent --show-error -X PATCH "$api/registered-models/update" -H "$json" \
  -d '{"name": "walked-model", "description": "from the shell"}'
echo
echo "run=$run"
curl --silent --show-error "$api/runs/get?run_id=$run"
echo
curl --silent --show-error "$api/metrics/get-history?run_id=$run&metric_key=loss"
echo
curl --silent --show-error --get "$api/registered-models/search" \
  --data-urlencode "filter=name = 'walked-model'"
echo
curl --silent --show-error "$1/get-artifact?run_id=$run&path=hello.txt"
echo
