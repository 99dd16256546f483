package main

import (
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/keyfire/keyfire/examples/nodes/internal/door"
	"github.com/keyfire/keyfire/examples/nodes/internal/sales"
)

const head = "order_id,order_date,customer,country,currency,sku,product,quantity,unit_price,status\n"

func check(csv string, maxRejectedPercent int) (output, error) {
	in := input{CSV: csv}
	in.Config.Currency, in.Config.MaxRejectedPercent = "EUR", maxRejectedPercent
	return validate(in)
}

func TestValidate(t *testing.T) {
	t.Parallel()
	got, err := check("\ufeff"+head+
		"K-1,2025-02-28,\"Müller, \"\"Rad\"\"\nNord\",DE,EUR,TUB-1,\"Tyre 28\"\"\",3,4.95,paid\r\n"+
		"\n"+
		"K-2,2025-01-03,Le Guidon Vert,FR,EUR,CHN-1,Chain,1,22.90,refunded\n", 0)
	if err != nil {
		t.Fatal(err)
	}
	want := output{
		Orders: []sales.Order{
			{Line: 2, ID: "K-1", Date: "2025-02-28", Customer: `Müller, "Rad" Nord`, Country: "DE", SKU: "TUB-1", Product: `Tyre 28"`, Quantity: 3, Price: 495, Status: sales.Paid},
			{Line: 5, ID: "K-2", Date: "2025-01-03", Customer: "Le Guidon Vert", Country: "FR", SKU: "CHN-1", Product: "Chain", Quantity: 1, Price: 2290, Status: sales.Refunded},
		},
		Accepted: 2, Problems: []problem{}, Currency: "EUR", From: "2025-01-03", To: "2025-02-28",
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

func TestColumnsInAnyOrder(t *testing.T) {
	t.Parallel()
	got, err := check("status,note,unit_price,quantity,product,sku,currency,country,customer,order_date,order_id\n"+
		"paid,by phone,4.95,3,Tube,TUB-1,EUR,DE,Radhaus,2025-02-28,K-1\n", 0)
	if err != nil || got.Accepted != 1 || got.Orders[0].Customer != "Radhaus" || got.Orders[0].Price != 495 {
		t.Errorf("got %+v, %v", got, err)
	}
}

func TestRejects(t *testing.T) {
	t.Parallel()
	tests := []struct{ name, line, reason string }{
		{"field missing", "K-2,2025-01-03,A,DE,EUR,S,P,1,1.00", "9 fields instead of 10"},
		{"field too many", "K-2,2025-01-03,A,DE,EUR,S,P,1,1.00,paid,x", "11 fields instead of 10"},
		{"no id", " ,2025-01-03,A,DE,EUR,S,P,1,1.00,paid", "order_id is empty"},
		{"no customer", "K-2,2025-01-03,,DE,EUR,S,P,1,1.00,paid", "customer is empty"},
		{"no sku", "K-2,2025-01-03,A,DE,EUR,,P,1,1.00,paid", "sku is empty"},
		{"id twice", "K-1,2025-01-03,A,DE,EUR,S,P,1,1.00,paid", "order K-1 is on line 2 already"},
		{"no such day", "K-2,2025-02-29,A,DE,EUR,S,P,1,1.00,paid", `order_date "2025-02-29" is not a day; write it as 2025-01-31`},
		{"local date", "K-2,03.01.2025,A,DE,EUR,S,P,1,1.00,paid", `order_date "03.01.2025" is not a day; write it as 2025-01-31`},
		{"country name", "K-2,2025-01-03,A,Germany,EUR,S,P,1,1.00,paid", `country "Germany" is not a code of two capital letters`},
		{"currency", "K-2,2025-01-03,A,DE,CHF,S,P,1,1.00,paid", `currency is "CHF"; this report adds up EUR only`},
		{"nothing ordered", "K-2,2025-01-03,A,DE,EUR,S,P,0,1.00,paid", `quantity "0" is not a whole number from 1 to 10000`},
		{"negative", "K-2,2025-01-03,A,DE,EUR,S,P,-2,1.00,paid", `quantity "-2" is not a whole number from 1 to 10000`},
		{"plus sign", "K-2,2025-01-03,A,DE,EUR,S,P,+2,1.00,paid", `quantity "+2" is not a whole number from 1 to 10000`},
		{"too many", "K-2,2025-01-03,A,DE,EUR,S,P,10001,1.00,paid", `quantity "10001" is not a whole number from 1 to 10000`},
		{"comma", `K-2,2025-01-03,A,DE,EUR,S,P,1,"1,00",paid`, `unit_price "1,00": not a price; write for example "1299.50", without sign, currency or thousands separators`},
		{"too dear", "K-2,2025-01-03,A,DE,EUR,S,P,1,100000.01,paid", `unit_price "100000.01": price is above 100,000.00`},
		{"status", "K-2,2025-01-03,A,DE,EUR,S,P,1,1.00,Paid", `status "Paid" is none of paid, shipped, refunded, cancelled`},
		{"long field", "K-2,2025-01-03,A,DE,EUR,S,P,1,1.00," + strings.Repeat("é", 1000), `status "` + strings.Repeat("é", 40) + `…" is none of paid, shipped, refunded, cancelled`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got, err := check(head+"K-1,2025-01-02,A,DE,EUR,S,P,1,1.00,paid\n"+tt.line+"\n", 50)
			if err != nil {
				t.Fatal(err)
			}
			want := []problem{{Line: 3, Reason: tt.reason}}
			if !reflect.DeepEqual(got.Problems, want) || got.Accepted != 1 || got.Rejected != 1 {
				t.Errorf("got  %+v, %d accepted, %d rejected\nwant %+v, 1, 1", got.Problems, got.Accepted, got.Rejected, want)
			}
		})
	}
}

func TestFails(t *testing.T) {
	t.Parallel()
	const good = "K-%d,2025-01-02,A,DE,EUR,S,P,1,1.00,paid\n"
	tests := []struct{ name, csv, code, message string }{
		{"empty", "", "not_orders", "the CSV is empty; its first line must name the columns"},
		{"other columns", "id,date\n1,2\n", "not_orders", "the CSV has no column order_id, order_date, customer, country, currency, sku, product, quantity, unit_price, status"},
		{"one column missing", strings.Replace(head, ",sku", "", 1), "not_orders", "the CSV has no column sku"},
		{"a column twice", strings.Replace(head, "status", "sku", 1), "not_orders", `the CSV has two columns "sku"`},
		{"header only", head + "\n\n", "no_orders", "the CSV has a header and no orders"},
		{"open quote", head + fmt.Sprintf(good, 1) + "K-2,\"2025-01-02,A\n", "not_csv", `the CSV cannot be read past line 3: extraneous or missing " in quoted-field`},
		{
			"more rejected than accepted", head + fmt.Sprintf(good, 1) + fmt.Sprintf(good, 1) + fmt.Sprintf(good, 1), "too_many_rejected",
			"2 of 3 lines are not valid orders, more than the 50 % this workflow accepts; the first is line 3: order K-1 is on line 2 already",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			_, err := check(tt.csv, 50)
			var fail *door.Fail
			if !errors.As(err, &fail) {
				t.Fatalf("got %v, want a failure on purpose", err)
			}
			want := door.Fail{Status: 422, Code: tt.code, Message: tt.message}
			if *fail != want {
				t.Errorf("got  %+v\nwant %+v", *fail, want)
			}
		})
	}
}

// The list of problems is bounded, the count is not.
func TestManyProblems(t *testing.T) {
	t.Parallel()
	got, err := check(head+"K-1,2025-01-02,A,DE,EUR,S,P,1,1.00,paid\n"+strings.Repeat("K-2\n", 3*maxProblems), 100)
	if err != nil || got.Rejected != 3*maxProblems || len(got.Problems) != maxProblems {
		t.Errorf("%d rejected, %d listed, %v; want %d, %d", got.Rejected, len(got.Problems), err, 3*maxProblems, maxProblems)
	}
}

func TestCurrencyMissing(t *testing.T) {
	t.Parallel()
	if _, err := validate(input{CSV: head}); err == nil || !strings.Contains(err.Error(), "config.currency") {
		t.Errorf("got %v, want an error that names config.currency", err)
	}
}
