// Package sales is what the nodes of csv-report agree on: an order, and money that is counted and never rounded.
package sales

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Cents is an amount of money in hundredths of the report's one currency. It is an integer from the CSV to the report: a sum of
// floats would be off by a cent sooner or later, and a report that is off by a cent is wrong.
type Cents int64

// MaxPrice is the highest price ParseCents accepts. Together with MaxQuantity it keeps every sum over a file that fits into
// one request far below the largest int64, and below 2^53, up to which any JSON reader counts exactly.
const MaxPrice Cents = 100_000_00

// MaxQuantity is the largest quantity of one order.
const MaxQuantity = 10_000

var errPrice = errors.New(`not a price; write for example "1299.50", without sign, currency or thousands separators`)

// ParseCents reads a price such as "1299.50": digits, a point and exactly two more digits. Anything looser would be a guess,
// since "1,299" is one price in London and another in Berlin.
func ParseCents(s string) (Cents, error) {
	whole, fraction, ok := strings.Cut(s, ".")
	if !ok || whole == "" || len(fraction) != 2 || !digits(whole) || !digits(fraction) {
		return 0, errPrice
	}
	n, err := strconv.ParseInt(whole+fraction, 10, 64)
	if err != nil || Cents(n) > MaxPrice {
		return 0, fmt.Errorf("price is above %s", MaxPrice)
	}
	return Cents(n), nil
}

func digits(s string) bool {
	return strings.Trim(s, "0123456789") == ""
}

// String formats c for people: "1,299.50".
func (c Cents) String() string {
	sign := ""
	if c < 0 {
		sign, c = "-", -c
	}
	whole := strconv.FormatInt(int64(c/100), 10)
	for i := len(whole) - 3; i > 0; i -= 3 {
		whole = whole[:i] + "," + whole[i:]
	}
	return fmt.Sprintf("%s%s.%02d", sign, whole, c%100)
}

// Status is how far an order has come.
type Status string

// The statuses of an order. They decide what counts: paid and shipped orders are sales, a refunded order is a sale that was paid
// back, and a cancelled order never became one.
const (
	Paid      Status = "paid"
	Shipped   Status = "shipped"
	Refunded  Status = "refunded"
	Cancelled Status = "cancelled"
)

// Valid reports whether s is one of the statuses.
func (s Status) Valid() bool {
	switch s {
	case Paid, Shipped, Refunded, Cancelled:
		return true
	}
	return false
}

// Order is one accepted line of the CSV.
type Order struct {
	Line     int    `json:"line"` // where it stands in the file, from 1
	ID       string `json:"id"`
	Date     string `json:"date"` // 2025-01-31
	Customer string `json:"customer"`
	Country  string `json:"country"` // ISO 3166 alpha-2
	SKU      string `json:"sku"`
	Product  string `json:"product"`
	Quantity int64  `json:"quantity"`
	Price    Cents  `json:"unit_cents"`
	Status   Status `json:"status"`
}

// Sum is what a group of orders comes to.
type Sum struct {
	Orders    int   `json:"orders"`    // all but the cancelled ones
	Cancelled int   `json:"cancelled"` // count only
	Units     int64 `json:"units"`     // sold and not refunded
	Gross     Cents `json:"gross_cents"`
	Refunds   Cents `json:"refund_cents"`
	Net       Cents `json:"net_cents"` // Gross - Refunds
}

// Add counts o in.
func (s *Sum) Add(o Order) {
	if o.Status == Cancelled {
		s.Cancelled++
		return
	}
	amount := Cents(o.Quantity) * o.Price
	s.Orders++
	s.Gross += amount
	if o.Status == Refunded {
		s.Refunds += amount
		return
	}
	s.Units += o.Quantity
	s.Net += amount
}

// Group is one row of a table: what the orders with one key come to.
type Group struct {
	Key   string `json:"key"`
	Label string `json:"label,omitempty"` // what to print for the key, when that is something else
	Sum
}

// Table adds orders up by a key. The zero value is an empty table.
type Table struct {
	groups map[string]*Group
}

// Add counts o in under key. The label of the first order with a key is that of its group.
func (t *Table) Add(key, label string, o Order) {
	g, ok := t.groups[key]
	if !ok {
		if t.groups == nil {
			t.groups = map[string]*Group{}
		}
		g = &Group{Key: key, Label: label}
		t.groups[key] = g
	}
	g.Sum.Add(o)
}

// ByKey returns the groups in the order of their keys.
func (t *Table) ByKey() []Group {
	return t.sorted(func(a, b Group) int { return cmp.Compare(a.Key, b.Key) })
}

// ByNet returns the groups with the highest net sales first. Equal ones stand in the order of their keys, so that the same
// orders always give the same report.
func (t *Table) ByNet() []Group {
	return t.sorted(func(a, b Group) int { return cmp.Or(cmp.Compare(b.Net, a.Net), cmp.Compare(a.Key, b.Key)) })
}

func (t *Table) sorted(order func(a, b Group) int) []Group {
	list := make([]Group, 0, len(t.groups))
	for _, g := range t.groups {
		list = append(list, *g)
	}
	slices.SortFunc(list, order)
	return list
}
