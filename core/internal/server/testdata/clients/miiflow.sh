curl -sS -X POST "$BASE/api/v1/agent_run" \
  -H "Authorization: Bearer $GLOBAL" \
  -H 'Content-Type: application/json' \
  -d '{
    "agent_id": "agent_xxxYYYzzz",
    "input": "{\"input_parameter_1\": 1}"
  }'
