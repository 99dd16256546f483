package main

import (
	"reflect"
	"testing"

	"github.com/keyfire/keyfire/examples/nodes/internal/sales"
)

var orders = []sales.Order{
	{SKU: "CHN", Product: "Chain", Customer: "B", Quantity: 1, Price: 2000, Status: sales.Paid},
	{SKU: "TUB", Product: "Tube", Customer: "A", Quantity: 9, Price: 500, Status: sales.Shipped},
	{SKU: "CHN", Product: "Chain (new name)", Customer: "C", Quantity: 1, Price: 2000, Status: sales.Paid},
	{SKU: "MOT", Product: "Motor", Customer: "A", Quantity: 1, Price: 64900, Status: sales.Refunded},
}

func TestTop(t *testing.T) {
	t.Parallel()
	in := input{Orders: orders}
	in.Config.Limit = 2
	got, err := top(in)
	if err != nil {
		t.Fatal(err)
	}
	want := output{
		Products: []sales.Group{
			{Key: "TUB", Label: "Tube", Sum: sales.Sum{Orders: 1, Units: 9, Gross: 4500, Net: 4500}},
			{Key: "CHN", Label: "Chain", Sum: sales.Sum{Orders: 2, Units: 2, Gross: 4000, Net: 4000}},
		},
		Customers: []sales.Group{
			{Key: "A", Sum: sales.Sum{Orders: 2, Units: 9, Gross: 69400, Refunds: 64900, Net: 4500}},
			{Key: "B", Sum: sales.Sum{Orders: 1, Units: 1, Gross: 2000, Net: 2000}},
		},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

func TestTopOfFewer(t *testing.T) {
	t.Parallel()
	in := input{Orders: orders}
	in.Config.Limit = 100
	got, err := top(in)
	if err != nil || len(got.Products) != 3 || len(got.Customers) != 3 {
		t.Errorf("got %+v, %v; want all 3 products and 3 customers", got, err)
	}
}

func TestTopWithoutLimit(t *testing.T) {
	t.Parallel()
	if _, err := top(input{Orders: orders}); err == nil {
		t.Error("a missing limit was accepted")
	}
}
