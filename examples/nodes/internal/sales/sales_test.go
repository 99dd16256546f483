package sales

import "testing"

func TestParseCents(t *testing.T) {
	t.Parallel()
	valid := map[string]Cents{
		"0.00": 0, "0.05": 5, "9.99": 999, "1299.50": 129950, "007.10": 710, "100000.00": MaxPrice,
	}
	for text, want := range valid {
		if got, err := ParseCents(text); err != nil || got != want {
			t.Errorf("ParseCents(%q) = %d, %v; want %d", text, got, err, want)
		}
	}
	invalid := []string{
		"", ".", "1", "1.", ".50", "1.5", "1.500", "1,50", "1,299.50", "-1.00", "+1.00", " 1.00", "1.00 EUR", "1e3.00", "1.-5",
		"٣.٥٠", "100000.01", "99999999999999999999.00",
	}
	for _, text := range invalid {
		if got, err := ParseCents(text); err == nil {
			t.Errorf("ParseCents(%q) = %d; want an error", text, got)
		}
	}
}

func TestCentsString(t *testing.T) {
	t.Parallel()
	tests := map[Cents]string{
		0: "0.00", 5: "0.05", 100: "1.00", 99999: "999.99", 100000: "1,000.00", 123456789: "1,234,567.89", -5: "-0.05", -123456: "-1,234.56",
	}
	for c, want := range tests {
		if got := c.String(); got != want {
			t.Errorf("Cents(%d) is %q, want %q", c, got, want)
		}
	}
}

func TestSum(t *testing.T) {
	t.Parallel()
	var got Sum
	for _, o := range []Order{
		{Quantity: 2, Price: 1050, Status: Paid},
		{Quantity: 1, Price: 999, Status: Shipped},
		{Quantity: 3, Price: 500, Status: Refunded},
		{Quantity: 7, Price: 100000, Status: Cancelled},
	} {
		got.Add(o)
	}
	want := Sum{Orders: 3, Cancelled: 1, Units: 3, Gross: 4599, Refunds: 1500, Net: 3099}
	if got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}
