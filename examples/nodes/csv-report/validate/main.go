// Validate reads a CSV export of orders, keeps the lines that can be counted, and says of every other line why not.
package main

import (
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"log"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/keyfire/keyfire/examples/nodes/internal/door"
	"github.com/keyfire/keyfire/examples/nodes/internal/sales"
)

type input struct {
	CSV    string `json:"csv"`
	Config struct {
		Currency           string `json:"currency"`             // the one currency the report adds up
		MaxRejectedPercent int    `json:"max_rejected_percent"` // more rejected lines than this fail the run
	} `json:"config"`
}

type output struct {
	Orders   []sales.Order `json:"orders"`
	Accepted int           `json:"accepted"`
	Rejected int           `json:"rejected"`
	Problems []problem     `json:"problems"` // of the rejected lines, the first maxProblems
	Currency string        `json:"currency"`
	From     string        `json:"from"` // dates of the first and the last accepted order
	To       string        `json:"to"`
}

// problem is why one line was rejected.
type problem struct {
	Line   int    `json:"line"`
	Reason string `json:"reason"`
}

// maxProblems bounds the list of problems: whoever mends a file starts at the top, and the count says how long the list is.
const maxProblems = 50

var columns = []string{"order_id", "order_date", "customer", "country", "currency", "sku", "product", "quantity", "unit_price", "status"}

func main() {
	log.SetFlags(0) // Keyfire gives each line of the log its time
	door.Main(func(in input) (output, error) {
		out, err := validate(in)
		if err == nil {
			log.Printf("%d orders accepted, %d lines rejected", out.Accepted, out.Rejected)
		}
		return out, err
	})
}

func validate(in input) (output, error) {
	if in.Config.Currency == "" {
		return output{}, errors.New(`config.currency is missing; name the currency of the report, such as "EUR"`)
	}
	r := csv.NewReader(strings.NewReader(strings.TrimPrefix(in.CSV, "\ufeff"))) // spreadsheets like to write a byte order mark
	r.FieldsPerRecord = -1                                                      // a line with a field too many is rejected, it does not end the file
	head, err := readHeader(r)
	if err != nil {
		return output{}, err
	}
	v := validator{currency: in.Config.Currency, header: head, seen: map[string]int{}}
	out := output{Orders: []sales.Order{}, Problems: []problem{}, Currency: in.Config.Currency}
	for {
		record, err := r.Read()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return output{}, notCSV(err)
		}
		line, _ := r.FieldPos(0)
		order, err := v.order(line, record)
		if err != nil {
			out.Rejected++
			if len(out.Problems) < maxProblems {
				out.Problems = append(out.Problems, problem{Line: line, Reason: err.Error()})
			}
			continue
		}
		out.Orders = append(out.Orders, order)
		if out.From == "" || order.Date < out.From {
			out.From = order.Date
		}
		out.To = max(out.To, order.Date)
	}
	out.Accepted = len(out.Orders)
	return out, enough(out, in.Config.MaxRejectedPercent)
}

// enough fails the run when so much was rejected that a report on the rest would mislead.
func enough(out output, maxPercent int) error {
	total := out.Accepted + out.Rejected
	switch {
	case total == 0:
		return &door.Fail{Status: 422, Code: "no_orders", Message: "the CSV has a header and no orders"}
	case out.Rejected*100 > total*maxPercent:
		first := out.Problems[0]
		return &door.Fail{Status: 422, Code: "too_many_rejected", Message: fmt.Sprintf(
			"%d of %d lines are not valid orders, more than the %d %% this workflow accepts; the first is line %d: %s",
			out.Rejected, total, maxPercent, first.Line, first.Reason)}
	}
	return nil
}

// header is where each column stands.
type header struct {
	fields int
	at     map[string]int
}

// readHeader reads the first line. Columns are found by name, so their order does not matter and further ones do no harm.
func readHeader(r *csv.Reader) (header, error) {
	names, err := r.Read()
	if errors.Is(err, io.EOF) {
		return header{}, notOrders("the CSV is empty; its first line must name the columns")
	}
	if err != nil {
		return header{}, notCSV(err)
	}
	h := header{fields: len(names), at: make(map[string]int, len(names))}
	for i, name := range names {
		name = strings.TrimSpace(name)
		if _, ok := h.at[name]; ok {
			return header{}, notOrders("the CSV has two columns " + quote(name))
		}
		h.at[name] = i
	}
	var missing []string
	for _, name := range columns {
		if _, ok := h.at[name]; !ok {
			missing = append(missing, name)
		}
	}
	if len(missing) > 0 {
		return header{}, notOrders("the CSV has no column " + strings.Join(missing, ", "))
	}
	return h, nil
}

func notOrders(message string) error {
	return &door.Fail{Status: 422, Code: "not_orders", Message: message}
}

// notCSV ends the run: behind a broken quote nobody can say where the next line starts.
func notCSV(err error) error {
	message := "the CSV cannot be read: " + err.Error()
	var at *csv.ParseError
	if errors.As(err, &at) {
		message = fmt.Sprintf("the CSV cannot be read past line %d: %v", at.StartLine, at.Err)
	}
	return &door.Fail{Status: 422, Code: "not_csv", Message: message}
}

// validator turns records into orders. Its rules are those of totals.awk beside the workflow, which counts the same file again.
type validator struct {
	currency string
	header   header
	seen     map[string]int // order id -> line
}

var (
	countryPattern  = regexp.MustCompile(`^[A-Z]{2}$`)
	quantityPattern = regexp.MustCompile(`^[1-9][0-9]{0,4}$`)
)

func (v *validator) order(line int, record []string) (sales.Order, error) {
	if len(record) != v.header.fields {
		return sales.Order{}, fmt.Errorf("%d fields instead of %d", len(record), v.header.fields)
	}
	// A quoted field may hold line breaks, which would tear the report's tables apart.
	field := func(name string) string { return strings.Join(strings.Fields(record[v.header.at[name]]), " ") }
	o := sales.Order{
		Line:     line,
		ID:       field("order_id"),
		Date:     field("order_date"),
		Customer: field("customer"),
		Country:  field("country"),
		SKU:      field("sku"),
		Product:  field("product"),
		Status:   sales.Status(field("status")),
	}
	for _, name := range []string{"order_id", "customer", "sku"} {
		if field(name) == "" {
			return sales.Order{}, fmt.Errorf("%s is empty", name)
		}
	}
	if first, ok := v.seen[o.ID]; ok {
		return sales.Order{}, fmt.Errorf("order %s is on line %d already", o.ID, first)
	}
	if _, err := time.Parse(time.DateOnly, o.Date); err != nil {
		return sales.Order{}, fmt.Errorf("order_date %s is not a day; write it as 2025-01-31", quote(o.Date))
	}
	if !countryPattern.MatchString(o.Country) {
		return sales.Order{}, fmt.Errorf("country %s is not a code of two capital letters", quote(o.Country))
	}
	if c := field("currency"); c != v.currency {
		return sales.Order{}, fmt.Errorf("currency is %s; this report adds up %s only", quote(c), v.currency)
	}
	quantity := field("quantity")
	if n, err := strconv.ParseInt(quantity, 10, 64); err == nil && quantityPattern.MatchString(quantity) && n <= sales.MaxQuantity {
		o.Quantity = n
	} else {
		return sales.Order{}, fmt.Errorf("quantity %s is not a whole number from 1 to %d", quote(quantity), sales.MaxQuantity)
	}
	price, err := sales.ParseCents(field("unit_price"))
	if err != nil {
		return sales.Order{}, fmt.Errorf("unit_price %s: %w", quote(field("unit_price")), err)
	}
	o.Price = price
	if !o.Status.Valid() {
		return sales.Order{}, fmt.Errorf("status %s is none of paid, shipped, refunded, cancelled", quote(string(o.Status)))
	}
	v.seen[o.ID] = line
	return o, nil
}

// quote quotes a field for a message, and cuts it: a field may be as long as the file.
func quote(s string) string {
	const most = 40
	if r := []rune(s); len(r) > most {
		s = string(r[:most]) + "…"
	}
	return strconv.Quote(s)
}
