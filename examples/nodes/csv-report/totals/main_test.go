package main

import (
	"reflect"
	"testing"

	"github.com/keyfire/keyfire/examples/nodes/internal/sales"
)

func TestTotals(t *testing.T) {
	t.Parallel()
	got, err := totals(input{Orders: []sales.Order{
		{Date: "2025-02-01", Country: "FR", Quantity: 1, Price: 500, Status: sales.Paid},
		{Date: "2025-01-31", Country: "DE", Quantity: 2, Price: 1000, Status: sales.Shipped},
		{Date: "2025-01-01", Country: "DE", Quantity: 1, Price: 100, Status: sales.Refunded},
		{Date: "2025-01-15", Country: "AT", Quantity: 5, Price: 100, Status: sales.Shipped},
		{Date: "2025-02-02", Country: "ES", Quantity: 9, Price: 900, Status: sales.Cancelled},
	}})
	if err != nil {
		t.Fatal(err)
	}
	want := output{
		Overall: sales.Sum{Orders: 4, Cancelled: 1, Units: 8, Gross: 3100, Refunds: 100, Net: 3000},
		Countries: []sales.Group{
			{Key: "DE", Sum: sales.Sum{Orders: 2, Units: 2, Gross: 2100, Refunds: 100, Net: 2000}},
			{Key: "AT", Sum: sales.Sum{Orders: 1, Units: 5, Gross: 500, Net: 500}},
			{Key: "FR", Sum: sales.Sum{Orders: 1, Units: 1, Gross: 500, Net: 500}},
			{Key: "ES", Sum: sales.Sum{Cancelled: 1}},
		},
		Months: []sales.Group{
			{Key: "2025-01", Sum: sales.Sum{Orders: 3, Units: 7, Gross: 2600, Refunds: 100, Net: 2500}},
			{Key: "2025-02", Sum: sales.Sum{Orders: 1, Cancelled: 1, Units: 1, Gross: 500, Net: 500}},
		},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

func TestTotalsOfNothing(t *testing.T) {
	t.Parallel()
	got, err := totals(input{})
	if err != nil || got.Overall != (sales.Sum{}) || got.Countries == nil || got.Months == nil {
		t.Errorf("got %+v, %v; want zeros and empty lists", got, err)
	}
}

func TestTotalsWithoutDate(t *testing.T) {
	t.Parallel()
	if _, err := totals(input{Orders: []sales.Order{{ID: "K-1"}}}); err == nil {
		t.Error("an order without a date was counted")
	}
}
