curl -sS -X POST "$BASE/api/endpoints/$FLOW_ID" \
-H "X-Bifrost-Key: $GLOBAL" \
-H "Content-Type: application/json" \
-d '{"input": "your data"}'
