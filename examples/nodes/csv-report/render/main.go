// Render writes the report: Markdown for people, from the numbers of the other nodes.
package main

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/keyfire/keyfire/examples/nodes/internal/door"
	"github.com/keyfire/keyfire/examples/nodes/internal/sales"
)

type input struct {
	Title    string `json:"title"`
	Currency string `json:"currency"`
	From     string `json:"from"`
	To       string `json:"to"`
	Totals   struct {
		Overall   sales.Sum     `json:"overall"`
		Countries []sales.Group `json:"countries"`
		Months    []sales.Group `json:"months"`
	} `json:"totals"`
	Top struct {
		Products  []sales.Group `json:"products"`
		Customers []sales.Group `json:"customers"`
	} `json:"top"`
	Rejected int `json:"rejected"`
	Problems []struct {
		Line   int    `json:"line"`
		Reason string `json:"reason"`
	} `json:"problems"`
}

type output struct {
	Markdown string `json:"markdown"`
}

func main() { door.Main(render) }

func render(in input) (output, error) {
	if in.Title == "" || in.Currency == "" {
		return output{}, errors.New("title and currency are both needed to write a report")
	}
	var b strings.Builder
	all := in.Totals.Overall
	fmt.Fprintf(&b, "# %s\n\n", escape(in.Title))
	if in.From != "" {
		fmt.Fprintf(&b, "Orders from %s to %s, amounts in %s.\n\n", escape(in.From), escape(in.To), escape(in.Currency))
	}
	table(&b, "", []string{"Orders", "Cancelled", "Units", "Gross", "Refunds", "Net"}, 0, [][]string{{
		strconv.Itoa(all.Orders), strconv.Itoa(all.Cancelled), strconv.FormatInt(all.Units, 10),
		all.Gross.String(), all.Refunds.String(), "**" + all.Net.String() + "**",
	}})
	groups(&b, "By month", "Month", in.Totals.Months, all.Net)
	groups(&b, "By country", "Country", in.Totals.Countries, all.Net)
	groups(&b, "Top products", "Product", in.Top.Products, all.Net)
	groups(&b, "Top customers", "Customer", in.Top.Customers, all.Net)
	if in.Rejected > 0 {
		rows := make([][]string, 0, len(in.Problems))
		for _, p := range in.Problems {
			rows = append(rows, []string{strconv.Itoa(p.Line), escape(p.Reason)})
		}
		table(&b, fmt.Sprintf("%d rejected lines, not counted above", in.Rejected), []string{"Line", "Reason"}, 2, rows)
		if more := in.Rejected - len(rows); more > 0 {
			fmt.Fprintf(&b, "\nand %d more.\n", more)
		}
	}
	return output{Markdown: b.String()}, nil
}

// groups writes one table of sums, with each group's share of the whole.
func groups(b *strings.Builder, heading, column string, list []sales.Group, whole sales.Cents) {
	rows := make([][]string, 0, len(list))
	for _, g := range list {
		name := escape(g.Key)
		if g.Label != "" {
			name = escape(g.Label) + " (" + escape(g.Key) + ")"
		}
		rows = append(rows, []string{name, strconv.Itoa(g.Orders), g.Gross.String(), g.Refunds.String(), g.Net.String(), share(g.Net, whole)})
	}
	table(b, heading, []string{column, "Orders", "Gross", "Refunds", "Net", "Share"}, 1, rows)
}

// share is part of whole in percent with one digit, rounded half up, in integers as all of the report is.
func share(part, whole sales.Cents) string {
	if whole <= 0 {
		return ""
	}
	permille := (part*2000/whole + 1) / 2
	return fmt.Sprintf("%d.%d %%", permille/10, permille%10)
}

// table writes a Markdown table with the first left columns aligned to the left and all others to the right.
func table(b *strings.Builder, heading string, columns []string, left int, rows [][]string) {
	if heading != "" {
		fmt.Fprintf(b, "\n## %s\n\n", heading)
	}
	row := func(cells []string) { fmt.Fprintf(b, "| %s |\n", strings.Join(cells, " | ")) }
	row(columns)
	align := make([]string, len(columns))
	for i := range align {
		align[i] = "---:"
		if i < left {
			align[i] = "---"
		}
	}
	row(align)
	for _, cells := range rows {
		row(cells)
	}
}

// markdown escapes what Markdown and the HTML inside it would read as markup: names come from a file somebody else wrote.
var markdown = strings.NewReplacer(
	`\`, `\\`, "`", "\\`", `*`, `\*`, `_`, `\_`, `[`, `\[`, `]`, `\]`, `|`, `\|`, `#`, `\#`, `<`, `&lt;`, `>`, `&gt;`, `&`, `&amp;`, `~`, `\~`, "\n", " ", "\r", " ",
)

func escape(s string) string { return markdown.Replace(s) }
