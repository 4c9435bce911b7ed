#!/bin/sh
# One inference by curl, with the headers that prove it:
#     sh examples/curl/infer.sh 127.0.0.1:8000 scale
set -eu
curl --silent --show-error --fail-with-body --include "http://$1/v2/models/$2/infer" --data '{
  "inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 1, 1, 1]}]
}'
