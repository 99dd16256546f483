curl -sS "$BASE/api/trigger" \
    -X POST \
    -d '{"inputs":{"Reference Document":"","undefined":"","Role Context":""}}' \
    -H "Content-Type: application/json" \
    -H "X-API-Key: $BOUND"
