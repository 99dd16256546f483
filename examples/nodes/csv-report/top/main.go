// Top ranks products and customers by net sales.
package main

import (
	"errors"

	"github.com/keyfire/keyfire/examples/nodes/internal/door"
	"github.com/keyfire/keyfire/examples/nodes/internal/sales"
)

type input struct {
	Orders []sales.Order `json:"orders"`
	Config struct {
		Limit int `json:"limit"` // how many of each
	} `json:"config"`
}

type output struct {
	Products  []sales.Group `json:"products"` // key: SKU, label: name
	Customers []sales.Group `json:"customers"`
}

func main() { door.Main(top) }

func top(in input) (output, error) {
	if in.Config.Limit < 1 {
		return output{}, errors.New("config.limit is missing or below 1; say how many products and customers to list")
	}
	var products, customers sales.Table
	for _, o := range in.Orders {
		products.Add(o.SKU, o.Product, o)
		customers.Add(o.Customer, "", o)
	}
	first := func(groups []sales.Group) []sales.Group { return groups[:min(len(groups), in.Config.Limit)] }
	return output{Products: first(products.ByNet()), Customers: first(customers.ByNet())}, nil
}
