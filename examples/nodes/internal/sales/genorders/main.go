// Genorders writes the input of the csv-report example: half a year of orders of a made-up wholesaler of bicycle parts, with
// what real exports contain: quoted names, line breaks inside fields, refunds, blank lines, and lines that are simply wrong.
//
//	go run ./internal/sales/genorders ../workflows/csv-report
//
// It writes orders.csv and request.json, which is the same file as the body of a trigger request. The same program always writes
// the same bytes, and a test compares them with the files that are checked in.
package main

import (
	"bytes"
	"encoding/csv"
	"encoding/json"
	"fmt"
	"log"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/keyfire/keyfire/examples/nodes/internal/sales"
)

const (
	seed   = 2025
	orders = 1240
)

func main() {
	if len(os.Args) != 2 {
		log.Fatal("usage: genorders DIRECTORY")
	}
	export := generate()
	request, err := requestBody(export)
	if err != nil {
		log.Fatal(err)
	}
	for name, content := range map[string][]byte{"orders.csv": export, "request.json": request} {
		if err := os.WriteFile(filepath.Join(os.Args[1], name), content, 0o644); err != nil {
			log.Fatal(err)
		}
	}
}

// requestBody wraps the export as the body of a trigger request.
func requestBody(export []byte) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	err := enc.Encode(map[string]any{"input": map[string]string{"csv": string(export)}})
	return b.Bytes(), err
}

// dice are throws that stay the same in every release of Go: the PCG generator is specified bit by bit, the convenience
// functions on top of it are not.
type dice struct{ pcg *rand.PCG }

// below returns a number from 0 to n-1.
func (d dice) below(n int) int { return int(d.pcg.Uint64() % uint64(n)) }

// ranked returns a number from 0 to n-1, small ones far more often: a few customers order most.
func (d dice) ranked(n int) int { return min(d.below(n), d.below(n), d.below(n+n/2)) }

func generate() []byte {
	d := dice{rand.NewPCG(seed, 0)}
	var b bytes.Buffer
	w := csv.NewWriter(&b)
	write(w, []string{"order_id", "order_date", "customer", "country", "currency", "sku", "product", "quantity", "unit_price", "status"})
	start := time.Date(2025, time.January, 2, 0, 0, 0, 0, time.UTC)
	const days = 179 // to the end of June
	for n := range orders {
		date := start.AddDate(0, 0, n*days/orders)
		c, p := customers[d.ranked(len(customers))], products[d.ranked(len(products))]
		price := p.price
		if date.Month() >= time.April { // the price list of the second quarter: 3 % more, rounded down to 5 cents
			price = price * 103 / 100 / 5 * 5
		}
		record := []string{
			fmt.Sprintf("KR-%05d", 10417+n), date.Format(time.DateOnly), c.name, c.country, "EUR", p.sku, p.name,
			strconv.Itoa(1 + d.below(p.most)), decimal(price), string(status(d, n)),
		}
		if spoil, ok := mistakes[n]; ok {
			record = spoil(record)
		}
		write(w, record)
		if n%311 == 200 { // an empty line, as copying between spreadsheets leaves them
			b.WriteByte('\n')
		}
	}
	return b.Bytes()
}

// write writes one line at once, because blank lines go around the csv.Writer.
func write(w *csv.Writer, record []string) {
	if err := w.Write(record); err != nil {
		log.Fatal(err) // a field that CSV cannot hold; this program has none
	}
	w.Flush()
}

func decimal(c sales.Cents) string { return fmt.Sprintf("%d.%02d", c/100, c%100) }

// status of the nth order: most are shipped, the newest ones are only paid.
func status(d dice, n int) sales.Status {
	switch throw := d.below(100); {
	case throw < 5:
		return sales.Refunded
	case throw < 9:
		return sales.Cancelled
	case n >= orders-60 || throw < 12:
		return sales.Paid
	}
	return sales.Shipped
}
