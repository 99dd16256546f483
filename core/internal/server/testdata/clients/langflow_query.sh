curl -sS -X POST \
  "$BASE/api/v1/run/$FLOW_ID?x-api-key=$GLOBAL" \
  -H 'Content-Type: application/json'\
  -d '{"inputs": {"text":""}, "tweaks": {}}'
