package main

import (
	"encoding/json"
	"testing"
)

func TestRender(t *testing.T) {
	t.Parallel()
	var in input
	err := json.Unmarshal([]byte(`{
		"title": "Sales", "currency": "EUR", "from": "2025-01-02", "to": "2025-02-03",
		"totals": {
			"overall": {"orders": 3, "cancelled": 1, "units": 12, "gross_cents": 1234500, "refund_cents": 34500, "net_cents": 1200000},
			"months": [{"key": "2025-01", "orders": 3, "gross_cents": 1234500, "refund_cents": 34500, "net_cents": 1200000}],
			"countries": [
				{"key": "DE", "orders": 2, "gross_cents": 800000, "net_cents": 800000},
				{"key": "FR", "orders": 1, "gross_cents": 434500, "refund_cents": 34500, "net_cents": 400000}
			]
		},
		"top": {
			"products": [{"key": "TYR-28", "label": "Tyre 28\" | *Kiesel*", "orders": 1, "gross_cents": 5, "net_cents": 5}],
			"customers": [{"key": "Cyklo <b>&", "orders": 1, "gross_cents": 600, "refund_cents": 600}]
		},
		"rejected": 3,
		"problems": [{"line": 7, "reason": "unit_price is missing"}, {"line": 9, "reason": "status [x](y) is unknown"}]
	}`), &in)
	if err != nil {
		t.Fatal(err)
	}
	got, err := render(in)
	if err != nil {
		t.Fatal(err)
	}
	const want = `# Sales

Orders from 2025-01-02 to 2025-02-03, amounts in EUR.

| Orders | Cancelled | Units | Gross | Refunds | Net |
| ---: | ---: | ---: | ---: | ---: | ---: |
| 3 | 1 | 12 | 12,345.00 | 345.00 | **12,000.00** |

## By month

| Month | Orders | Gross | Refunds | Net | Share |
| --- | ---: | ---: | ---: | ---: | ---: |
| 2025-01 | 3 | 12,345.00 | 345.00 | 12,000.00 | 100.0 % |

## By country

| Country | Orders | Gross | Refunds | Net | Share |
| --- | ---: | ---: | ---: | ---: | ---: |
| DE | 2 | 8,000.00 | 0.00 | 8,000.00 | 66.7 % |
| FR | 1 | 4,345.00 | 345.00 | 4,000.00 | 33.3 % |

## Top products

| Product | Orders | Gross | Refunds | Net | Share |
| --- | ---: | ---: | ---: | ---: | ---: |
| Tyre 28" \| \*Kiesel\* (TYR-28) | 1 | 0.05 | 0.00 | 0.05 | 0.0 % |

## Top customers

| Customer | Orders | Gross | Refunds | Net | Share |
| --- | ---: | ---: | ---: | ---: | ---: |
| Cyklo &lt;b&gt;&amp; | 1 | 6.00 | 6.00 | 0.00 | 0.0 % |

## 3 rejected lines, not counted above

| Line | Reason |
| --- | --- |
| 7 | unit\_price is missing |
| 9 | status \[x\](y) is unknown |

and 1 more.
`
	if got.Markdown != want {
		t.Errorf("got:\n%s\nwant:\n%s", got.Markdown, want)
	}
}

func TestRenderWithoutTitle(t *testing.T) {
	t.Parallel()
	if _, err := render(input{Currency: "EUR"}); err == nil {
		t.Error("a report without a title was written")
	}
}
