curl -sS -X POST \
  "$BASE/api/v1/process/$FLOW_ID" \
  -H 'Content-Type: application/json'\
  -H "x-api-key: $GLOBAL"\
  -d '{"inputs": {"text":""}, "tweaks": {}}'
