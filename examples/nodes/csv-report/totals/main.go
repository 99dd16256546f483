// Totals adds orders up: all of them, by country and by month.
package main

import (
	"fmt"

	"github.com/keyfire/keyfire/examples/nodes/internal/door"
	"github.com/keyfire/keyfire/examples/nodes/internal/sales"
)

type input struct {
	Orders []sales.Order `json:"orders"`
}

type output struct {
	Overall   sales.Sum     `json:"overall"`
	Countries []sales.Group `json:"countries"` // by net sales, highest first
	Months    []sales.Group `json:"months"`    // 2025-01, in time order
}

func main() { door.Main(totals) }

func totals(in input) (output, error) {
	var out output
	var countries, months sales.Table
	for _, o := range in.Orders {
		if len(o.Date) != len("2006-01-02") {
			return output{}, fmt.Errorf("order %q has the date %q; totals needs the orders that validate accepted", o.ID, o.Date)
		}
		out.Overall.Add(o)
		countries.Add(o.Country, "", o)
		months.Add(o.Date[:len("2006-01")], "", o)
	}
	out.Countries, out.Months = countries.ByNet(), months.ByKey()
	return out, nil
}
